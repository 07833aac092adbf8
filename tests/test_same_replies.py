# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""One picture, crop and question: Python, evaluation, training and `cropvlm zoom` hear the same."""

import shutil

import numpy as np
import pytest
from chat_server import KEY, serving
from PIL import Image, ImageDraw, ImageFont
from tiny_evals import folder_source, run
from tiny_folder import SPLIT, make_folder

from cropvlm_jax.api import CropVLM
from cropvlm_jax.data import batching
from cropvlm_jax.grpo import black_box
from cropvlm_jax.readers.base import Reply
from cropvlm_jax.readers.registry import open_reader
from cropvlm_jax.training.config import default_config, load_config
from cropvlm_jax.training.stages import open_stage

QUESTION = "total?"  # the server of the tests says it again; other words tell it to misbehave


def receipt() -> Image.Image:
    """A picture that OCR reads also at 256 px, and whose parts read differently."""
    image = Image.new("RGB", (640, 480), "white")
    font = ImageFont.load_default(110)
    for i, line in enumerate(["TOTAL", "48.15", "EURO"]):
        ImageDraw.Draw(image).text((40, 20 + 150 * i), line, "black", font)
    return image


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Cropper and target."""
    root = tmp_path_factory.mktemp("models")
    return make_folder(root / "cropper", 1), make_folder(root / "target", 2)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The chat endpoint of the environment, with an empty home for its replies."""
    with serving() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("HOME", str(tmp_path))
        yield server


def from_evaluation(model, target, image, question, tmp_path):
    """Replies with and without the crop, from the records of an evaluation."""
    image.save(tmp_path / "scene.png")
    row = {"example_id": "scene", "question": question, "answers": ["48.15"]}
    source = folder_source(tmp_path, [row | {"image": str(tmp_path / "scene.png")}])
    croppers = {"mine": model}
    _, (record,) = run(tmp_path / "out", source, "jsonl", readers=[target], croppers=croppers)
    replies = record["replies"][target.name]
    return tuple(record["boxes"]["mine"]), replies["mine"], replies["no_crop"]


def from_training(spec, cropper, image, question, box, monkeypatch):
    """The reply to picture and crop that a run with this target scores, and the score."""
    config = default_config()
    config.cropper, config.target = str(cropper), spec
    config.data.longest_edge, config.data.canvas = SPLIT, (512, 640)
    config.grpo.update(likelihood_weight=0.0, accuracy_weight=1.0, accuracy="contains")
    stage = open_stage(load_config(config))
    heard = []
    answer = stage.reader.answer

    def listen(images, questions):
        heard.extend(answer(images, questions))
        return heard

    monkeypatch.setattr(stage.reader, "answer", listen)
    example = {"example_id": "scene", "image": np.asarray(image), "question": question}
    row = stage.prepare(example | {"answers": ["48.15"]}, 0)
    # Two rollouts that agree are asked about once.
    boxes, count = np.array([[[box], [box]]], np.int32), np.ones((1, 2), np.int32)
    parts = black_box.ask(stage.reader, stage.config.grpo, batching.stack([row]), boxes, count)
    assert len(heard) == 1
    return heard[0], parts["accuracy"][0, 0]


def specs(folders):
    return {
        "vlm": f"vlm:{folders[1]}",
        "openai": "openai:m",
        "rapidocr": "rapidocr:v4@256",
        "tesseract": "tesseract@256",
    }


@pytest.mark.parametrize("kind", ["vlm", "openai", "rapidocr", "tesseract"])
def test_every_way_to_ask_gives_the_same_replies(folders, server, tmp_path, monkeypatch, kind):
    if kind == "rapidocr":
        pytest.importorskip("rapidocr_onnxruntime")
    if kind == "tesseract" and not shutil.which("tesseract"):
        pytest.skip("no tesseract here: apt-get install tesseract-ocr")
    spec, image = specs(folders)[kind], receipt()
    model = CropVLM.from_pretrained(folders[0], spec)
    zoom = model(image, QUESTION)
    assert zoom.answer and not zoom.failure
    if kind in ("rapidocr", "tesseract"):
        assert "48.15" in zoom.answer_without_crop
    opened = CropVLM.from_pretrained(folders[0], open_reader(spec))
    assert opened.zoom([image], QUESTION)[0]._replace(crops=()) == zoom._replace(crops=())

    box, with_crop, without = from_evaluation(model, opened.target, image, QUESTION, tmp_path)
    assert box == zoom.box
    assert with_crop["text"] == zoom.answer
    assert without["text"] == (zoom.answer_without_crop or "")
    assert without.get("failure", "") == zoom.failure_without_crop
    heard, score = from_training(spec, folders[0], image, QUESTION, zoom.box, monkeypatch)
    assert heard[:2] == Reply(zoom.answer)[:2] and score == ("48.15" in zoom.answer)
    if kind == "openai":  # the requests are equal to the last byte: so each is sent once
        contents = [repr(body["messages"][0]["content"]) for *_, body in server.requests]
        controls = 3  # of the evaluation: centre, random and enlarged
        assert len(set(contents)) == len(contents) <= 2 + controls


@pytest.mark.parametrize("word", ["400", "refusal", "empty"])
def test_every_way_to_ask_says_why_there_is_no_reply(folders, server, tmp_path, monkeypatch, word):
    image = receipt()
    reader = open_reader("openai:m")
    reader.answer([image], [QUESTION])  # once it has answered, it is known to be there
    model = CropVLM.from_pretrained(folders[0], reader)
    answered, zoom = model.zoom([image, image], [QUESTION, word])
    assert answered.answer == "said total?." and not answered.failure
    assert zoom.answer is None and zoom.answer_without_crop is None
    assert zoom.failure == zoom.failure_without_crop != ""
    assert zoom.failure.startswith({"400": "HTTP 400"}.get(word, word))

    rows = [
        {"example_id": f"{i}", "question": q, "answers": ["x"]}
        for i, q in enumerate([QUESTION, word])
    ]
    for row in rows:
        image.save(tmp_path / f"{row['example_id']}.png")
        row["image"] = str(tmp_path / f"{row['example_id']}.png")
    source = folder_source(tmp_path, rows)
    _, records = run(tmp_path / "out", source, "jsonl", readers=[reader], croppers={"mine": model})
    assert records[1]["replies"]["m"]["mine"]["failure"] == zoom.failure
    heard, score = from_training("openai:m", folders[0], image, word, zoom.box, monkeypatch)
    assert heard == Reply("", zoom.failure)
    assert np.isnan(score) if word == "400" else score == 0
