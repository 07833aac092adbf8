# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from cropvlm_jax import boxes as box_lib
from cropvlm_jax.api import CropVLM, Target
from cropvlm_jax.data.zoom_digits import ZoomDigits
from cropvlm_jax.evals import controls


@pytest.mark.parametrize(
    ("reply", "answers", "expected"),
    [
        ("7.", ["7"], True),
        (" Yes ", ["no", "YES."], True),
        ("two  words", ["Two words"], True),
        ("17", ["7"], False),
        ("", ["7"], False),
    ],
)
def test_is_correct(reply, answers, expected):
    assert controls.is_correct(reply, answers) is expected


def test_cut_takes_the_boxes_original_pixels():
    image = np.arange(10 * 20 * 3, dtype=np.uint8).reshape(10, 20, 3)
    np.testing.assert_array_equal(controls.cut(image, np.array([50, 0, 100, 50])), image[:5, 10:])


def test_evaluation_of_the_bundled_models():
    target = Target.from_pretrained("zoom_digits/target")
    cropper = CropVLM.from_pretrained("zoom_digits/cropper", target)
    source = ZoomDigits("test", 70)  # more than a chunk
    done = []
    results = controls.evaluate(source, target, {"sft": cropper}, progress=done.append)
    accuracy = results["accuracy"]
    assert list(accuracy) == ["no_crop", "centre", "random", "sft", "oracle"]
    assert accuracy["oracle"] > 0.6 and accuracy["no_crop"] < 0.35
    assert accuracy["no_crop"] < accuracy["sft"] < accuracy["oracle"]
    assert results["valid"] == 1 and box_lib.is_valid(results["boxes"]["sft"]).all()
    assert done[-1] == 2 * len(source)
    again = controls.evaluate(source, target, {"sft": cropper})
    assert again["accuracy"] == accuracy
