# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A cropper that looks twice, from Python and from its folder."""

import dataclasses
import json
import re

import numpy as np
import pytest
import several_boxes
from PIL import Image
from tiny_runs import small

from cropvlm_jax import CropVLM, geometry
from cropvlm_jax.hub.export import export
from cropvlm_jax.hub.replies import FILE, Replies
from cropvlm_jax.pixels import host
from cropvlm_jax.training.config import load_config
from cropvlm_jax.training.stages import open_stage

PICTURES, QUESTIONS = several_boxes.scenes(12)


def cropper_of(looks: int) -> CropVLM:
    """A cropper that is undecided whether there is anything to look at."""
    replies = Replies(abstain=True, looks=looks)
    source = dataclasses.replace(several_boxes.source(), replies=replies)
    return CropVLM(source, several_boxes.model(), source.longest_edge)


@pytest.fixture(scope="module")
def cropper() -> CropVLM:
    return cropper_of(2)


def test_the_second_look_is_a_first_look_at_the_crop(cropper):
    once = cropper_of(1)
    first = once.replies(PICTURES, QUESTIONS)
    closer = [i for i, reply in enumerate(first) if reply.boxes]
    crops = [host.cut(PICTURES[i], first[i].boxes[0]) for i in closer]
    second = once.replies(crops, [QUESTIONS[i] for i in closer])
    assert 0 < len(closer) < 12 and 0 < sum(bool(reply.boxes) for reply in second) < len(closer)
    for i, reply in zip(closer, second, strict=True):
        first[i] = first[i].then(reply)
        (outer,) = once.replies([PICTURES[i]], QUESTIONS[i])
        if not reply.boxes:
            assert first[i].boxes == outer.boxes
    found = cropper.replies(PICTURES, QUESTIONS)
    assert [reply.boxes for reply in found] == [reply.boxes for reply in first]
    sure = [[reply.confidence for reply in replies] for replies in (found, first)]
    np.testing.assert_allclose(sure[0], sure[1], rtol=1e-4)


def test_crops_are_of_the_original_pixels(cropper):
    zooms = cropper.zoom(PICTURES, QUESTIONS)
    boxes = cropper.propose(PICTURES, QUESTIONS)
    assert any(edge != int(edge) for edge in boxes.flat)
    for picture, zoom, box in zip(PICTURES, zooms, boxes, strict=True):
        assert tuple(box) == (zoom.box or geometry.FULL)
        if zoom.box is not None:
            np.testing.assert_array_equal(zoom.crop, host.cut(picture, box))


def test_its_folder_says_it(cropper, tmp_path):
    cropper.save_pretrained(tmp_path / "cropper")
    said = json.loads((tmp_path / "cropper" / FILE).read_text())
    assert said == {"max_boxes": 1, "abstain": True, "looks": 2}
    again = CropVLM.from_pretrained(tmp_path / "cropper")
    few = PICTURES[:3], QUESTIONS[:3]
    assert again.replies(*few) == cropper.replies(*few)
    export(tmp_path / "reader", again.source.load(), again.source, role="reader")
    assert not (tmp_path / "reader" / FILE).exists()


@pytest.mark.parametrize("edge", [64, 128])
def test_its_card_looks_twice_in_transformers(edge, tmp_path, monkeypatch):
    source = dataclasses.replace(several_boxes.source(), replies=Replies(looks=2))
    export(tmp_path / "cropper", source.load(), source, longest_edge=edge, role="cropper")
    text = (tmp_path / "cropper/README.md").read_text()
    assert "it writes one box, in two looks" in text
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    exec(code.partition("image = Image.open(")[0], space)
    if edge == 128:  # of which it has learned nothing
        for name, tiles in (("processor", 5), ("one_tile", 1)):
            seen = space[name].image_processor([Image.fromarray(PICTURES[0])])
            assert len(seen["pixel_values"][0]) == tiles
        return
    found = CropVLM.from_pretrained("cropper").replies(PICTURES[:4], QUESTIONS[:4])
    for picture, question, ours in zip(PICTURES, QUESTIONS, found, strict=False):
        theirs = space["propose"](Image.fromarray(picture), question)
        np.testing.assert_allclose(theirs, ours.boxes, rtol=1e-12)


def test_sft_teaches_no_second_look():
    config = load_config(small("sft", **{"grpo.looks": 2}))
    with pytest.raises(ValueError, match="grpo.looks=2: stage='sft' teaches single replies"):
        open_stage(config, abstract=True)
