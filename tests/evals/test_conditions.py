# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What targets are shown under each condition."""

import dataclasses
import types

import hypothesis
import numpy as np
import pytest
from absl import app
from hypothesis import strategies as st

from cropvlm_jax import CropVLM, geometry
from cropvlm_jax.apps import evaluate
from cropvlm_jax.evals.conditions import (
    CENTRE,
    NO_CROP,
    ORACLE,
    RANDOM,
    UPSCALED,
    Conditions,
    shown_pictures,
    sorted_expansions,
    upscale,
)
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.hub.replies import Replies
from cropvlm_jax.pixels import host


def test_cut_takes_the_boxes_original_pixels():
    image = np.arange(10 * 20 * 3, dtype=np.uint8).reshape(10, 20, 3)
    np.testing.assert_array_equal(host.cut(image, [50, 0, 100, 50]), image[:5, 10:])


def test_upscaling_doubles_up_to_a_limit():
    for size, expected in {
        (30, 50): (60, 100),
        (100, 3000): (137, 4096),
        (9, 5000): (9, 5000),
    }.items():
        assert upscale(np.zeros((*size, 3), np.uint8)).shape[:2] == expected


def test_what_the_target_gets_under_each_condition():
    image = np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)
    boxes = {"sft": [0, 0, 50, 100], ORACLE: [50, 50, 100, 100]}
    (alone,) = shown_pictures(image, NO_CROP, boxes)
    np.testing.assert_array_equal(alone, image)
    expected = {"sft": image[:, :40], ORACLE: image[25:, 40:], UPSCALED: upscale(image)}
    for condition, second in expected.items():
        first, crop = shown_pictures(image, condition, boxes)
        np.testing.assert_array_equal(first, image)
        np.testing.assert_array_equal(crop, second)


@hypothesis.given(
    st.integers(0, 99), st.integers(0, 99), st.integers(1, 100), st.integers(1, 100), st.integers(0)
)
def test_controls_are_as_large_as_the_last_croppers_box(x, y, width, height, index):
    last = [x, y, min(x + width, 100), min(y + height, 100)]
    known = {"first": [0, 0, 100, 100], "last": last, ORACLE: [1, 2, 3, 4]}
    expansions = sorted_expansions([1, 2, 0.5])
    boxes = Conditions(("first", "last"), expansions, seed=7).boxes(index, known)
    assert list(boxes) == [
        *(CENTRE, RANDOM, "first", "last", ORACLE, "first x0.5", "last x0.5", "oracle x0.5"),
        *("first x2", "last x2", "oracle x2"),
    ]
    assert all(geometry.is_valid(np.array(box)) for box in boxes.values())
    sides = [last[2] - last[0], last[3] - last[1]]
    for control in (CENTRE, RANDOM):
        box = np.array(boxes[control])
        np.testing.assert_array_equal(box[2:] - box[:2], sides)
    middle = np.add(boxes[CENTRE][:2], boxes[CENTRE][2:]) / 2
    assert (np.abs(middle - 50) <= 0.5).all()
    again = Conditions(("first", "last"), seed=7).boxes(index, known)
    assert again[RANDOM] == boxes[RANDOM]


def test_random_crops_are_anywhere():
    known = {"last": [0, 0, 10, 10]}
    conditions = Conditions(("last",))
    corners = [conditions.boxes(index, known)[RANDOM][:2] for index in range(300)]
    assert np.min(corners) == 0 and np.max(corners) == 90
    np.testing.assert_allclose(np.mean(corners, 0), 45, atol=5)


def test_a_cropper_that_was_trained_with_budgets_is_told_one(monkeypatch):
    source = Pretrained.open("zoom_digits/cropper")
    model = source.load()
    told = Replies(max_boxes=2, abstain=True, budgets=("low", "high"))
    aware = dataclasses.replace(source, replies=told)
    croppers = {"plain": CropVLM(source, model, 64), "aware": CropVLM(aware, model, 64)}
    models = {"plain": "a", "aware": "b"}
    monkeypatch.setattr(evaluate, "BUDGETS", types.SimpleNamespace(value=["low", "high"]))
    found = evaluate.told_budgets(croppers, models)
    assert [(name, each.budget) for name, each in found.items()] == [
        ("plain", None),
        ("aware low", "low"),
        ("aware high", "high"),
    ]
    monkeypatch.setattr(evaluate, "BUDGETS", types.SimpleNamespace(value=[]))
    with pytest.raises(app.UsageError, match="aware was trained .*--budgets=low,high"):
        evaluate.told_budgets(croppers, models)
