// Copyright 2026 The cropvlm_jax Authors.
// SPDX-License-Identifier: Apache-2.0
// The page of `cropvlm serve`: asks its public endpoint twice, with the crop and without.

import { $, clear, element, report } from "./result.js";

let picture = null; // what is asked about: {url, name, width, height, truths}
let running = null; // the AbortController of the requests on their way

// ---- The picture ----

async function dataUrl(blob) {
  const reader = new FileReader();
  reader.readAsDataURL(blob);
  await new Promise((done, failed) => { reader.onload = done; reader.onerror = failed; });
  return reader.result;
}

async function show(blob, name, truths = {}) {
  forget();
  const image = $("picture");
  try {
    const url = await dataUrl(blob);
    image.src = url;
    await image.decode();
    picture = { url, name, truths, width: image.naturalWidth, height: image.naturalHeight };
  } catch {
    picture = null;
    stage(false);
    fail(`${name} is not a picture that this browser can show. Take a PNG, JPEG or WebP file.`);
    return;
  }
  image.alt = `Your picture: ${name}`;
  $("about").textContent = `${name}, ${picture.width} × ${picture.height} px`;
  stage(true);
  tell(`${name} is shown, ${picture.width} by ${picture.height} pixels. Now ask a question.`);
}

function stage(full) {
  $("stage").classList.toggle("full", full);
  $("shown").hidden = !full;
  $("choose").textContent = full ? "Choose another" : "Choose a picture";
}

function chosen(file) {
  if (!file) return;
  pressed(null);
  $("chips").hidden = true;
  show(file, file.name || "Pasted picture");
}

$("file").addEventListener("change", (event) => {
  chosen(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", (event) => chosen(event.clipboardData.files[0]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("stage").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("stage").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("stage").classList.remove("over");
  chosen(event.dataTransfer.files[0]);
});

// ---- Samples ----

function pressed(button) {
  for (const other of $("samples").children) other.ariaPressed = String(other === button);
}

async function takeSample(sample, button) {
  pressed(button);
  const blob = await (await fetch(sample.url)).blob();
  if (button.ariaPressed !== "true") return; // another picture was taken meanwhile
  const truths = Object.fromEntries(sample.questions.map((asked) => [asked.question, asked.answer]));
  await show(blob, sample.name, truths);
  $("question").value = sample.questions[0].question;
  $("chips").replaceChildren(...sample.questions.map(({ question }) => {
    const chip = element("button", { type: "button", textContent: question });
    chip.addEventListener("click", () => { $("question").value = question; ask(); });
    return chip;
  }));
  $("chips").hidden = false;
}

async function loadSamples() {
  const samples = await (await fetch("page/samples.json")).json();
  $("samples").append(...samples.map((sample) => {
    const image = element("img", { src: sample.url, alt: sample.name, width: 160, height: 160 });
    const button = element("button", { type: "button", className: "sample", ariaPressed: "false" }, image);
    button.addEventListener("click", () => takeSample(sample, button).catch(
      () => fail("The sample cannot be loaded. Is cropvlm serve still running?")));
    return button;
  }));
  $("samples-block").hidden = samples.length === 0;
}

// ---- The endpoint ----

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function refusal(response) {
  const wait = response.headers.get("Retry-After");
  if (response.status === 401) {
    $("key-block").hidden = false;
    const message = "This server asks for an access token. Enter it above and ask again.";
    return Object.assign(new Error(message), { culprit: $("key") });
  }
  if (response.status === 429) {
    return new Error(`The server is busy. Ask again ${wait ? `in ${wait} s` : "in a moment"}.`);
  }
  let said = await response.text();
  try {
    said = JSON.parse(said).error.message;
  } catch { /* the server's words as they are */ }
  return new Error(`The server refused (${response.status}): ${said.slice(0, 400)}`);
}

async function send(address, options) {
  let response;
  try {
    response = await fetch(address, { headers: headers(), ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is cropvlm serve still running?");
  }
  if (!response.ok) throw await refusal(response);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server sent no answer that can be read.");
  }
}

async function complete(question, looks, signal) {
  const image = { type: "image_url", image_url: { url: picture.url } };
  const content = [image, { type: "text", text: question }];
  const body = {
    model: $("model").value, messages: [{ role: "user", content }], cropvlm: { looks },
  };
  return send("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
}

async function models() {
  const { data } = await send("v1/models");
  $("model").replaceChildren(...data.map(({ id }) => element("option", { textContent: id })));
  $("models").hidden = false;
  example();
}

function example() {
  $("example").textContent = `from openai import OpenAI

client = OpenAI(base_url="${new URL("v1", document.baseURI)}")
reply = client.chat.completions.create(model="${$("model").value}", messages=messages)
print(reply.choices[0].message.content)
print(reply.cropvlm["boxes"])  # percent and pixels, with the cropper's confidence`;
}

// ---- Asking ----

async function ask() {
  const question = $("question").value.trim();
  forget();
  if (!picture) return fail("Choose a picture first, or take a sample.", $("file"));
  if (!question) return fail("Write a question first.", $("question"));
  running = new AbortController();
  const { signal } = running;
  wait(true);
  try {
    if (!$("model").value) await models();
    const requests = [complete(question, 1, signal), complete(question, 0, signal)];
    const [closer, alone] = await Promise.allSettled(requests);
    if (signal.aborted) return;
    if (closer.status === "rejected") throw closer.reason;
    wait(false);
    tell(report(picture.truths[question], closer.value, alone));
  } catch (error) {
    if (signal.aborted) return;
    wait(false);
    fail(error.message, error.culprit);
  }
}

$("model").addEventListener("change", example);
$("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("stop").addEventListener("click", () => {
  forget();
  tell("Stopped.");
  $("question").focus();
});

// ---- States ----

function tell(text) { $("status").textContent = text; }

function fail(message, culprit) {
  $("error").textContent = message;
  $("error").hidden = false;
  $("question").ariaInvalid = String(culprit === $("question"));
  culprit?.focus();
}

function wait(on) {
  $("waiting").hidden = !on;
  $("empty").hidden = on || !$("result").hidden;
  $("stop").hidden = !on;
  $("ask").textContent = on ? "Asking" : "Ask";
  $("results").ariaBusy = String(on);
  if (on) tell("Asking, with the crop and without.");
}

function forget() { // all that came of the last question
  running?.abort();
  running = null;
  clear();
  wait(false);
  $("error").hidden = true;
  $("question").ariaInvalid = "false";
}

// Escape puts the tip of a box away, until the pointer or the focus comes again.
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") $("boxes").classList.add("quiet");
});
for (const kind of ["pointerover", "focusin"]) {
  $("boxes").addEventListener(kind, () => $("boxes").classList.remove("quiet"));
}

example();
loadSamples().catch(() => {}); // the page works without them
models().catch(() => {}); // asked for again with the question
