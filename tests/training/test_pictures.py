# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Held-out pictures in TensorBoard: the same ones after each evaluation, also of a resumed run."""

import io
import json
import pathlib
import re
import struct

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tiny_runs import OUTSIDE, small

from cropvlm_jax.data.order import SCENES
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.pixels import sheet
from cropvlm_jax.training import loop
from cropvlm_jax.training.checkpoints import Preemption
from cropvlm_jax.training.pictures import WIDTH, picture_of


def drawn(workdir: pathlib.Path) -> dict[tuple[int, str], np.ndarray]:
    """The pictures in a run's TensorBoard files, by step and name."""
    found = {}
    for file in sorted((workdir / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:  # records: length, its checksum, an event, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            for value in event.summary.value:
                if value.HasField("image"):
                    image = Image.open(io.BytesIO(value.image.encoded_image_string))
                    found[event.step, value.tag] = np.asarray(image)
    return found


@pytest.fixture
def captions(monkeypatch):
    """The lines under the pictures that are drawn, in their order."""
    found, panel = [], sheet.panel

    def remembered(image, box, lines, **options):
        found.append(lines)
        return panel(image, box, lines, **options)

    monkeypatch.setattr(sheet, "panel", remembered)
    return found


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_rewards_and_replies_of_the_boxes_are_shown(where, tmp_path, captions):
    changes = OUTSIDE | {"gradient_accumulation_steps": 2} if where == "outside" else {}
    assert loop.run(small("grpo", **changes), tmp_path)
    assert drawn(tmp_path).keys() == {(1, "held_out/1"), (1, "held_out/2")}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (expected,) = [line["eval/reward"] for line in lines if "eval/reward" in line]
    rewards = [float(re.search(r"reward (\S+);", text[2])[1]) for text in captions]
    np.testing.assert_allclose(np.mean(rewards), expected, atol=1e-3)
    for index, (question, reply, facts) in enumerate(captions):
        example = ZoomDigits("validation", SCENES)[index]
        assert question == example["question"]
        assert re.fullmatch(rf"reply: \S+ \(right: {example['answers'][0]}\)", reply)
        assert "; IoU " in facts and "of the picture" in facts


def test_a_reader_in_training_shows_what_it_answers(tmp_path, captions):
    assert loop.run(small("reader", **{"data.question_tokens": 64}), tmp_path)
    assert len(captions) == 2 and all(reply.startswith("reply: ") for _, reply, _ in captions)


def test_a_resumed_run_goes_on_with_the_same_pictures(tmp_path, monkeypatch):
    config = small("sft", steps=2)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert loop.run(config, whole)
    monkeypatch.setattr(Preemption, "requested", lambda self, number: number == 1)
    assert not loop.run(config, stopped)
    monkeypatch.undo()
    assert loop.run(config, stopped)
    expected, found = drawn(whole), drawn(stopped)
    assert {step for step, _ in expected} == {1, 2} and expected.keys() == found.keys()
    for name, picture in expected.items():
        np.testing.assert_array_equal(picture, found[name])


def test_both_boxes_are_drawn_and_long_lines_are_cut(captions):
    image = np.full((200, 400, 3), 128, np.uint8)
    example = {
        "image": image,
        "question": "why " * 99,
        "answers": ["a", "b"],
        "box": (0, 0, 50, 50),
    }
    boxes = np.array([[25, 0, 75, 50]])
    picture = np.asarray(picture_of(example, boxes=boxes, reply="c", reward=-0.5))
    colours = {tuple(colour) for colour in picture.reshape(-1, 3)}
    assert {(255, 0, 0), (0, 255, 0)} <= colours
    ((question, reply, facts),) = captions
    assert len(question) <= WIDTH and question.endswith("...")
    assert reply == "reply: c (right: a / b)"
    assert facts == "reward -0.500; box [25, 0, 75, 50], 25% of the picture; IoU 0.33"
    del example["box"]
    picture_of(example, boxes=None, reply=None, reward=None)
    picture_of(example, boxes=boxes[:0], reply="c", reward=0.0)
    assert captions[-1][-1] == "reward 0.000; no crop"
