# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import math
import pickle
import time

import numpy as np
import pytest
from PIL import Image

from cropvlm_jax.data.sources import digit_drawing, zoom_digits
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits


def test_a_scene():
    source = ZoomDigits("test", 20)
    assert len(source) == 20
    for index in range(20):
        scene = source[index]
        assert sorted(scene) == ["answers", "box", "example_id", "image", "question"]
        assert scene["image"].shape == (512, 512, 3)
        assert scene["image"].dtype == np.uint8
        (answer,) = scene["answers"]
        assert answer in set("0123456789")
        assert scene["example_id"] == f"zoom_digits/test/0/{index}"
        assert sum(color in scene["question"].split() for color in zoom_digits.COLORS) == 1
        x1, y1, x2, y2 = scene["box"]
        assert all(type(edge) is int for edge in scene["box"])
        assert 0 <= x1 < x2 <= 100
        assert 0 <= y1 < y2 <= 100
        assert max(x2 - x1, y2 - y1) <= math.ceil(46 / 5.12) + 1


def _near(image, color):
    """Where a pixel is of the frame colour, up to jitter and grain, `[H, W]`."""
    levels = image.astype(int) - zoom_digits.COLORS[color]
    return ((levels >= -13) & (levels <= 28)).all(-1)


@pytest.mark.parametrize("size", [(512, 512), (512, 1300), (900, 600)])
def test_the_box_is_tight_around_the_frame_of_the_named_colour(size):
    source = ZoomDigits("train", 20, seed=3, size=size)
    for index in range(20):
        scene = source[index]
        (color,) = (c for c in zoom_digits.COLORS if c in scene["question"].split())
        rows, cols = np.nonzero(_near(scene["image"], color))
        x1, y1, x2, y2 = scene["box"]
        height, width = size
        assert x1 == math.floor(100 * cols.min() / width)
        assert y1 == math.floor(100 * rows.min() / height)
        assert x2 == math.ceil(100 * (cols.max() + 1) / width)
        assert y2 == math.ceil(100 * (rows.max() + 1) / height)
        assert 38 <= np.ptp(rows) + 1 == np.ptp(cols) + 1 <= 46


def test_the_colour_survives_the_small_view():
    """At an eighth the frame's hue still stands out; everything else is greyish."""
    source = ZoomDigits("train", 30)
    for index in range(30):
        scene = source[index]
        small = np.asarray(Image.fromarray(scene["image"]).resize((64, 64), Image.LANCZOS), int)
        chroma = np.ptp(small, axis=-1)
        x1, y1, x2, y2 = (edge * 64 / 100 for edge in scene["box"])
        inside = chroma[int(y1) : math.ceil(y2), int(x1) : math.ceil(x2)]
        assert inside.max() > 60
        assert np.median(chroma) < 40


def test_scenes_are_pure_functions_of_seed_split_and_index():
    source = ZoomDigits("train", 5)
    again = pickle.loads(pickle.dumps(ZoomDigits("train", 500)))
    for index in (4, 0, 2):
        one, two = source[index], again[np.int64(index)]
        np.testing.assert_array_equal(one.pop("image"), two.pop("image"))
        assert one == two
    pictures = [
        ZoomDigits(split, 5, seed)[index]["image"].tobytes()
        for split in zoom_digits.SPLITS
        for seed in (0, 1)
        for index in (0, 1)
    ]
    assert len(set(pictures)) == len(pictures)


def test_splits_are_disjoint_and_stratified():
    indices = {split: digit_drawing.digit_indices(split) for split in zoom_digits.SPLITS}
    together = np.concatenate(list(indices.values()))
    assert sorted(together) == list(range(1797))
    for split, share in zip(zoom_digits.SPLITS, (0.60, 0.15, 0.25), strict=True):
        labels = digit_drawing.split_digits(split)[1]
        assert abs(len(labels) / 1797 - share) < 0.01
        counts = np.bincount(labels, minlength=10)
        assert counts.min() > 0.9 * share * 1797 / 10


@pytest.mark.parametrize("digits", [(1, 1), (2, 5), (8, 8)])
def test_the_number_of_digits(digits):
    source = ZoomDigits("validation", 20, digits=digits)
    counts = {
        sum(_near(scene["image"], color).sum() > 300 for color in zoom_digits.COLORS)
        for scene in (source[index] for index in range(20))
    }
    assert counts == set(range(digits[0], digits[1] + 1))


@pytest.mark.parametrize(("digits", "enlarge"), [(1, (2.0, 5.0)), (4, (1.2, 2.2))])
def test_enlarged_frames(digits, enlarge):
    source = ZoomDigits("train", 20, digits=(digits, digits), enlarge=enlarge)
    for index in range(20):
        boxes = [box for _, _, box in source.scene(index)[1]]
        sides = [x2 - x1 for x1, _, x2, _ in boxes]
        assert 38 * enlarge[0] / 5.12 <= min(sides)
        assert max(sides) <= 46 * enlarge[1] / 5.12 + 2
        assert all(0 <= edge <= 100 for box in boxes for edge in box)


def test_answers_and_questions_are_varied():
    source = ZoomDigits("train", 300, digits=(1, 1))
    scenes = [source[index] for index in range(300)]
    assert {scene["answers"][0] for scene in scenes} == set("0123456789")
    patterns = {
        " ".join("?" if word in zoom_digits.COLORS else word for word in scene["question"].split())
        for scene in scenes
    }
    assert len(patterns) == len(zoom_digits.QUESTIONS)


def test_errors():
    with pytest.raises(ValueError, match="Unknown split 'dev': use one of train"):
        ZoomDigits("dev", 1)
    with pytest.raises(ValueError, match="at least 512"):
        ZoomDigits("train", 1, size=(512, 511))
    for digits in ((0, 1), (3, 2), (1, 9)):
        with pytest.raises(ValueError, match=r"within 1\.\.8"):
            ZoomDigits("train", 1, digits=digits)
    for options in ({"num_scenes": 0}, {"num_scenes": 1, "seed": -1}):
        with pytest.raises(ValueError, match="num_scenes must be"):
            ZoomDigits("train", **options)
    for enlarge in ((0.5, 1.0), (2.0, 1.0), (1.0, 2.4)):
        with pytest.raises(
            ValueError, match="what leaves room for 4 frames on a 512x512 px canvas"
        ):
            ZoomDigits("train", 1, enlarge=enlarge)
    source = ZoomDigits("train", 3, digits=(1, 2))
    for index in (3, -1):
        with pytest.raises(IndexError, match=rf"Scene {index} is outside of 0..2 of ZoomDigits"):
            source[index]
    assert repr(source) == (
        "ZoomDigits(split='train', num_scenes=3, seed=0, digits=(1, 2), size=(512, 512), "
        "enlarge=(1.0, 1.0))"
    )


def test_drawing_is_cheap():
    source = ZoomDigits("train", 30)
    source[0]
    times = []
    for index in range(30):
        start = time.process_time()
        source[index]
        times.append(time.process_time() - start)
    assert min(times) < 0.03  # 3 ms on a free core; a bound that a busy machine keeps
