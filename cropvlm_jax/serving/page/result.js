// Copyright 2026 The cropvlm_jax Authors.
// SPDX-License-Identifier: Apache-2.0
// Draws what the endpoint answered: boxes on the picture, crops, answers and times.

const SHORT = 8; // characters of an answer that is set in large type
const CROP = 200; // px, the longest side that a small crop is enlarged to

export const $ = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function described(pairs) {
  return element("dl", {}, ...pairs.flatMap(([name, value]) => [
    element("dt", { textContent: name }), element("dd", { textContent: value }),
  ]));
}

const range = ([left, top, right, bottom]) => `${left}, ${top} to ${right}, ${bottom}`;
// The probability of a box, as the geometric mean of its edges: nearby boxes share what is left.
const sure = (p) => `${Math.round(100 * p ** 0.25)}% an edge`;

// ---- Boxes and crops ----

// Where the tip of a box has room, in a picture that clips what is outside.
function side([left, top, right, bottom]) {
  const across = left + right < 70 ? "right" : left + right > 130 ? "left" : "";
  return `tip ${across} ${top + bottom > 100 ? "above" : ""}`;
}

function drawBox(box, number, size) {
  const [left, top, right, bottom] = box.pixels.map((value, i) => 100 * value / size[i % 2]);
  const tip = `left, top ${box.pixels[0]}, ${box.pixels[1]}\n`
    + `right, bottom ${box.pixels[2]}, ${box.pixels[3]} px`;
  const button = element("button", { type: "button", className: "box" },
    element("b", { textContent: number, ariaHidden: "true" }),
    element("span", { className: side([left, top, right, bottom]), textContent: tip, ariaHidden: "true" }));
  button.ariaLabel = `Box ${number}: pixels ${range(box.pixels)}, percent ${range(box.percent)}`;
  Object.assign(button.style, { left: "0%", top: "0%", width: "100%", height: "100%" });
  requestAnimationFrame(() => requestAnimationFrame(() => Object.assign(button.style, {
    left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%`,
  })));
  return button;
}

function drawCrop(box, number, confidence) {
  const [left, top, right, bottom] = box.pixels;
  const [width, height] = [right - left, bottom - top];
  const scale = CROP / Math.max(width, height);
  const canvas = element("canvas", {
    width: Math.max(1, Math.round(width * Math.min(scale, 8))),
    height: Math.max(1, Math.round(height * Math.min(scale, 8))),
    role: "img", ariaLabel: `Crop ${number}`,
  });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage($("picture"), left, top, width, height, 0, 0, canvas.width, canvas.height);
  return element("div", { className: "crop" }, canvas, described([
    ["Size", `${width} × ${height} px`], ["Pixels", range(box.pixels)],
    ["Percent", range(box.percent)], ["Confidence", sure(confidence)],
  ]));
}

function shade(boxes, [width, height]) {
  const holes = boxes.map(({ pixels: [left, top, right, bottom] }) => {
    const [x, y] = [100 * left / width, 100 * top / height];
    return `M${x} ${y}H${100 * right / width}V${100 * bottom / height}H${x}Z`;
  });
  $("shade").firstElementChild.setAttribute("d", `M0 0H100V100H0Z${holes.join("")}`);
  $("shade").classList.toggle("on", boxes.length > 0);
}

// ---- Answers ----

const plain = (text) => text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, " ").trim();
const shortly = (ms) => (ms < 10 ? ms.toFixed(1) : Math.round(ms).toLocaleString("en"));

function drawAnswer(name, text, truth, { image_tokens: tokens, milliseconds = {} } = {}) {
  const said = $(`said-${name}`);
  said.textContent = text || "(no text)";
  said.className = text.length <= SHORT ? "said short" : "said";
  const right = truth !== undefined && plain(text) === plain(truth);
  const verdict = $(`verdict-${name}`);
  verdict.hidden = truth === undefined;
  verdict.textContent = right ? "✓ Right" : `✗ Wrong, it is ${truth}`;
  verdict.className = right ? "verdict right" : "verdict wrong";
  const costs = [tokens && `${tokens.toLocaleString("en")} image tokens`,
    milliseconds.total !== undefined && `${shortly(milliseconds.total)} ms`];
  $(`cost-${name}`).replaceChildren(
    ...costs.filter(Boolean).map((textContent) => element("span", { textContent })));
}

function drawFailure(name, message) {
  drawAnswer(name, message, undefined);
  $(`said-${name}`).className = "said none";
}

function drawTimes({ total, ...stages }) {
  const spent = Object.entries(stages);
  const rest = total - spent.reduce((sum, [, ms]) => sum + ms, 0);
  if (rest > 0.05) spent.push(["other", rest]);
  $("bar").replaceChildren(...spent.map(([, ms], i) => {
    const part = element("i", { className: `stage-${i % 6}` });
    part.style.flexGrow = ms;
    return part;
  }));
  $("stages").replaceChildren(...spent.map(([name, ms], i) => element("div", {},
    element("dt", {}, element("i", { className: `stage-${i % 6}` }), name),
    element("dd", { textContent: `${shortly(ms)} ms` }))));
}

const answerOf = (completion) => completion.choices?.[0]?.message?.content ?? "";

// Draws a result, and gives what a screen reader is to say of it.
export function report(truth, closer, alone) {
  const { boxes = [], warnings = [], milliseconds = {} } = closer.cropvlm ?? {};
  const size = boxes[0]?.size;
  $("boxes").replaceChildren(...boxes.map((box, i) => drawBox(box, i + 1, size)));
  shade(boxes, size ?? [1, 1]);
  $("crops").replaceChildren(...boxes.map((box, i) => drawCrop(box, i + 1, box.confidence)));
  $("closer").hidden = boxes.length === 0;
  const notices = boxes.length || warnings.length ? warnings : ["It saw no place to look closer at."];
  $("notice").textContent = notices.join("; ");
  $("notice").hidden = notices.length === 0;
  drawAnswer("with", answerOf(closer), truth, closer.cropvlm);
  if (alone.status === "fulfilled") {
    drawAnswer("alone", answerOf(alone.value), truth, alone.value.cropvlm);
  } else {
    drawFailure("alone", alone.reason.message);
  }
  drawTimes({ total: 0, ...milliseconds });
  $("result").hidden = false;
  $("empty").hidden = true;
  $("result").scrollIntoView({ block: "nearest" });
  return [`Answer with the crop: ${$("said-with").textContent}`,
    `Picture alone: ${$("said-alone").textContent}`,
    ...boxes.map((box, i) => `Box ${i + 1}: pixels ${range(box.pixels)}`), ...notices].join(". ");
}

export function clear() {
  $("result").hidden = true;
  $("boxes").replaceChildren();
  $("shade").classList.remove("on");
}
