# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import collections
import hashlib
import itertools
import pickle
import time

import numpy as np
import pytest

from cropvlm_jax import geometry
from cropvlm_jax.data import sources
from cropvlm_jax.data.order import open_mixture
from cropvlm_jax.data.sources import digit_drawing, zoom_digits
from cropvlm_jax.data.sources.zoom_digits_looks import DeepScenes, MixedScenes, PairScenes
from cropvlm_jax.training.config import source

SETS = {
    "zoom_digits_mixed": MixedScenes,
    "zoom_digits_pairs": PairScenes,
    "zoom_digits_deep": DeepScenes,
}


def named(question):
    """The colours in a question, in their order."""
    return [
        word.strip("?.,") for word in question.split() if word.strip("?.,") in zoom_digits.COLORS
    ]


def is_ringed(image, box, color):
    """Whether the edge of a box is of a frame's colour, but for its last two pixels."""
    x1, y1, x2, y2 = geometry.to_pixels(np.array(box), np.array(image.shape[:2]))
    levels = image[y1:y2, x1:x2].astype(int) - digit_drawing.COLORS[color]
    near = ((levels >= -30) & (levels <= 45)).all(-1)
    if not near.any():
        return False
    rows, cols = np.nonzero(near)
    edge = int(np.ceil(image.shape[0] / 100)) + 1
    return max(rows.min(), cols.min(), y2 - y1 - rows.max(), x2 - x1 - cols.max()) <= edge


@pytest.mark.parametrize("name", SETS)
def test_a_scene(name):
    scenes = sources.open_drawn(name, "test", 20)
    assert type(scenes) is SETS[name] and len(scenes) == 20
    for index in range(20):
        scene = scenes[index]
        keys = ["answers", "around", "box", "boxes", "example_id", "image", "question"]
        assert sorted(scene) == [key for key in keys if key != "around" or "deep" in name]
        assert scene["image"].shape == (*scenes.picture_size(index), 3)
        assert scene["image"].dtype == np.uint8
        assert scene["example_id"] == scenes.name_of(index) == f"{name}/test/0/{index}"
        (answer,) = scene["answers"]
        assert 0 <= int(answer) <= 18 and answer == str(int(answer))
        assert scene["boxes"] == sorted(set(scene["boxes"]))
        for box in (*scene["boxes"], scene["box"], scene.get("around", scene["box"])):
            assert type(box) is tuple and all(type(edge) is int for edge in box)
            assert geometry.is_valid(np.array(box))


@pytest.mark.parametrize("name", SETS)
def test_boxes_are_around_the_frames_of_the_named_colours(name):
    scenes = SETS[name]("train", 8, seed=3)
    for index in range(8):
        image, questions = scenes.scene(index)
        for asked in questions:
            colors = named(asked.question)
            boxes = asked.boxes or (asked.box,)
            fits = [
                all(is_ringed(image, box, color) for box, color in zip(boxes, order, strict=True))
                for order in itertools.permutations(colors)
            ]
            assert any(fits)
            if asked.around:
                assert is_ringed(image, asked.around, colors[0])
                assert geometry.coverage(np.array(asked.around), np.array(asked.box)) == 1


def test_half_of_the_mixed_scenes_need_no_crop():
    scenes = MixedScenes("validation", 200)
    questions = [scenes.scene(index)[1] for index in range(0, 200, 2)]
    assert all([len(q.boxes) for q in asked] in ([0], [1, 1, 1, 1]) for asked in questions)
    share = np.mean([not asked[0].boxes for asked in questions])
    assert 0.35 < share < 0.65
    sides = {True: [], False: []}  # whether a crop is needed, in percent of the picture
    for asked in itertools.chain(*questions):
        assert asked.boxes in ((), (asked.box,))
        sides[bool(asked.boxes)].append(asked.box[2] - asked.box[0])
    assert max(sides[True]) <= 11
    assert min(sides[False]) >= 66 and max(sides[False]) <= 78


def test_pairs_are_far_apart_and_their_answers_follow_from_the_digits():
    scenes = PairScenes("train", 40, seed=1)
    kinds = collections.Counter()
    for index in range(40):
        _, questions = scenes.scene(index)
        digits = {named(asked.question)[0]: int(asked.answer) for asked in questions[2:]}
        places = {named(asked.question)[0]: asked.box for asked in questions[2:]}
        assert len(digits) == 4 and all(asked.boxes == (asked.box,) for asked in questions[2:])
        for asked in questions[:2]:
            first, second = named(asked.question)
            both = digits[first], digits[second]
            is_sum = "sum" in asked.question or "Add" in asked.question
            assert both[0] != both[1]
            assert int(asked.answer) == (sum(both) if is_sum else max(both))
            assert asked.boxes == tuple(sorted((places[first], places[second])))
            assert geometry.coverage(np.array(asked.box), np.array(asked.boxes)).min() == 1
            assert min(asked.box[2] - asked.box[0], asked.box[3] - asked.box[1]) >= 58
        kinds[is_sum] += 1
    assert len(kinds) == 2


def test_deep_frames_are_tiny_and_their_neighbourhoods_are_not():
    scenes = DeepScenes("train", 10)
    for index in range(10):
        _, questions = scenes.scene(index)
        assert len({named(asked.question)[0] for asked in questions}) == 4
        for asked in questions:
            assert asked.box[2] - asked.box[0] <= 3
            assert 10 <= asked.around[2] - asked.around[0] <= 13


@pytest.mark.parametrize("name", SETS)
def test_scenes_are_pure_functions_of_seed_split_and_index(name):
    one, again = SETS[name]("train", 5), pickle.loads(pickle.dumps(SETS[name]("train", 500)))
    for index in (4, 0):
        first, second = one[index], again[np.int64(index)]
        np.testing.assert_array_equal(first.pop("image"), second.pop("image"))
        assert first == second
    pictures = [
        SETS[name](split, 5, seed)[index]["image"].tobytes()
        for split in zoom_digits.SPLITS
        for seed in (0, 1)
        for index in (0, 1)
    ]
    assert len(set(pictures)) == len(pictures)


def test_each_set_opens_by_its_name_in_a_run():
    mixture = open_mixture({name: source(split="validation") for name in SETS}, seed=3)
    names = [mixture.name_of(index) for index in (0, 1_000_000, 2_000_000)]
    assert names == [f"{name}/validation/3/0" for name in SETS]
    assert len(set(mixture.fingerprint.splitlines())) == 3
    with pytest.raises(ValueError, match="unknown drawn data set 'zoom_digit': use one of zoom_d"):
        sources.open_drawn("zoom_digit", "test", 1)


@pytest.mark.parametrize("name", SETS)
def test_errors(name):
    with pytest.raises(ValueError, match="Unknown split 'val': use one of train"):
        SETS[name]("val", 1)
    for options in ({"num_scenes": 0}, {"num_scenes": 1, "seed": -1}):
        with pytest.raises(ValueError, match="num_scenes must be >= 1 and seed >= 0"):
            SETS[name]("train", **options)
    for index in (3, -1):
        with pytest.raises(IndexError, match=rf"Scene {index} is outside of 0..2 of \w+Scenes\("):
            SETS[name]("train", 3)[index]


def test_todays_scenes_are_what_they_were():
    """zoom_digits shares its drawing with the other sets and must not change with them."""
    image, questions = zoom_digits.ZoomDigits("train", 9, seed=5, digits=(2, 5)).scene(7)
    digest = hashlib.sha256(image.tobytes() + repr(questions).encode()).hexdigest()
    assert digest.startswith("fdbd3650132cb8e7")


@pytest.mark.parametrize("name", SETS)
def test_drawing_is_cheap(name):
    scenes = SETS[name]("train", 10)
    scenes[0]
    times = []
    for index in range(10):
        start = time.process_time()
        scenes[index]
        times.append(time.process_time() - start)
    assert min(times) < 0.05  # 2 to 6 ms on a free core; a bound that a busy machine keeps
