# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Croppers that write several boxes, or none: their folders, cards and replies elsewhere."""

import dataclasses
import json
import re

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.api import CropVLM
from cropvlm_jax.data import batching
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.hub.export import export, export_processor
from cropvlm_jax.hub.model_card import Card
from cropvlm_jax.hub.pretrained import BUNDLED, Pretrained
from cropvlm_jax.hub.replies import FILE, Replies
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training.sft import SFTStep

TWO = Replies(max_boxes=2, abstain=True)
SCENES = [ZoomDigits("test", 3)[i] for i in range(3)]
PICTURES = [Image.fromarray(scene["image"]) for scene in SCENES]
QUESTIONS = [scene["question"] for scene in SCENES]
TAUGHT = [((1, 2, 30, 40), (55, 60, 70, 80)), (), ((10, 20, 90, 100),)]


def source_of(replies):
    return dataclasses.replace(Pretrained.open(BUNDLED / "zoom_digits/cropper"), replies=replies)


def taught(source):
    """The bundled cropper after it has learned three replies by heart."""
    cropper = CropVLM(source, source.load(), source.longest_edge)
    seen, grids = zip(*(cropper.see([picture]) for picture in PICTURES), strict=True)
    conversations = [
        cropper.conversations.crop(question, grid, geometry.reply_text(boxes))
        for question, (grid,), boxes in zip(QUESTIONS, grids, TAUGHT, strict=True)
    ]
    longest = max(conversation.completion.start for conversation in conversations)
    rows = [
        batching.supervised_row(
            conversation,
            tiles,
            prompt_tokens=longest,
            completion_tokens=cropper.grammar.max_length,
        )
        for conversation, tiles in zip(conversations, seen, strict=True)
    ]
    optimizer = optax.adam(3e-3)
    state = TrainState.create(cropper.params, optimizer)
    step = jax.jit(SFTStep(cropper.graphdef, optimizer))
    for _ in range(60):
        state, metrics = step(state, batching.stack(rows), jax.random.key(0))
    assert metrics["loss"] < 0.02
    return nnx.merge(cropper.graphdef, state.params)


def test_an_export_says_what_it_replies_and_transformers_writes_the_same(tmp_path, monkeypatch):
    source = source_of(TWO)
    export(tmp_path / "cropper", taught(source), source, role="cropper")
    said = json.loads((tmp_path / "cropper" / FILE).read_text())
    assert said == {"max_boxes": 2, "abstain": True}  # as versions of one look read it
    cropper = CropVLM.from_pretrained(tmp_path / "cropper")
    assert cropper.source.replies == TWO and cropper.grammar.iterations == 17
    found = cropper.replies(PICTURES, QUESTIONS)
    assert [reply.boxes for reply in found] == TAUGHT
    assert all(0.9 < reply.confidence <= 1.0001 for reply in found)
    first = [boxes[0] if boxes else geometry.FULL for boxes in TAUGHT]
    np.testing.assert_array_equal(cropper.propose(PICTURES, QUESTIONS), first)
    assert [cropper.replies([p], q)[0].boxes for p, q in zip(PICTURES, QUESTIONS, strict=True)] == (
        TAUGHT
    )

    text = (tmp_path / "cropper" / "README.md").read_text()
    assert "it writes up to 2 boxes or none" in text
    PICTURES[0].save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], space)
    theirs = [space["propose"](*asked) for asked in zip(PICTURES, QUESTIONS, strict=True)]
    assert [tuple(boxes) for boxes in theirs] == TAUGHT

    again = Pretrained.open(tmp_path / "cropper")
    export(tmp_path / "next", again.load(), again)
    assert Pretrained.open(tmp_path / "next").replies == TWO
    export(tmp_path / "reader", again.load(), again, role="reader")
    assert not (tmp_path / "reader" / FILE).exists()
    export_processor(tmp_path / "adapter", again, 64, "cropper")
    assert Replies.read(tmp_path / "adapter") == TWO
    export_processor(tmp_path / "adapter", source_of(Replies()), 64, "cropper")
    assert Replies.read(tmp_path / "adapter") == Replies()


def test_a_cropper_of_before_writes_one_box():
    source = Pretrained.open(BUNDLED / "zoom_digits/cropper")
    assert not (source.folder / FILE).exists()
    assert source.replies == Replies(1, False) and source.grammar().iterations == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"max_boxes": 0}', "max_boxes=0 is not a whole number from 1 to 4"),
        ('{"max_boxes": 5}', "max_boxes=5 is not"),
        ('{"max_boxes": "2"}', "max_boxes='2' is not"),
        ('{"max_boxes": true}', "max_boxes=True is not"),
        ('{"abstain": 1}', "abstain=1 is neither true nor false"),
        ('{"looks": 3}', "looks=3 is neither 1 nor 2"),
        ('{"looks": true}', "looks=True is neither 1 nor 2"),
        ('{"looks": 2, "max_boxes": 2}', "looks=2 is for croppers of one box"),
        ('{"turns": 2}', "turns is not known: was the cropper made by a newer version"),
        ('{"budgets": "low"}', "budgets='low' is no list of names"),
        ('{"budgets": [1]}', "budgets=[1] are not names"),
        ("[]", "holds a list"),
        ("{", "is not JSON"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, message):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=f"{FILE}:? .*{re.escape(message)}"):
        Replies.read(tmp_path)


def test_replies_in_words():
    assert str(Replies()) == "one box" and str(TWO) == "up to 2 boxes or none"
    assert str(Replies(looks=2)) == "one box, in two looks"
    assert str(Replies(abstain=True, looks=2)) == "one box or none, in two looks"


def test_a_card_says_how_to_look_twice_and_what_is_told(tmp_path):
    replies = Replies(abstain=True, looks=2, budgets=("low", "high"))
    source = source_of(replies)
    Card("mine", source, "cropper", 2 * source.tile_size).write(tmp_path, before=tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "it writes one box or none, in two looks" in text
    assert 'size={"longest_edge": 64})' in text and "def look(" in text and "$" not in text
    assert "Give it alone, and after it what may be spent on crops, `Budget: low.`" in text
    Card("mine", source_of(TWO), "cropper", 64).write(tmp_path, before=tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "def look(" not in text and "Give it alone.\n" in text and "$" not in text
