# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Lessons of the start weights for scenes that need none, one or several looks."""

import collections

import digit_lessons
import look_lessons
import numpy as np
import optax

from cropvlm_jax import geometry
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.train_state import TrainState


def texts_of(batch, pretrained):
    """The replies of a batch."""
    return [
        pretrained.tokenizer.decode(tokens[valid].tolist()).strip()
        for tokens, valid in zip(batch.completion, batch.completion_valid, strict=True)
    ]


def test_a_batch_of_the_reader_shows_none_to_three_crops():
    target = Pretrained.open("zoom_digits/target", weights=False)
    course, rng = look_lessons.READER[-1], np.random.default_rng(1)
    scenes = list(look_lessons.drawn(np.random.default_rng(0), course, "train", 0))
    batch = look_lessons.reading_batch(scenes, course, rng, target.conversations())
    assert batch.images.shape == (64, 1 + look_lessons.CROPS, 64, 64, 3)
    shown = (batch.prompt == target.config.image_token_id).sum(-1) // 16 - 1
    assert set(shown) == {0, 1, 2, 3} and (shown == 2).sum() >= 12
    assert {text.rstrip(".") for text in texts_of(batch, target)} <= set(map(str, range(19)))


def test_a_course_of_pairs_asks_both_questions_about_two_frames_and_shows_them():
    target = Pretrained.open("zoom_digits/target", weights=False)
    (course,) = (course for course in look_lessons.READER if course.scenes is look_lessons.PAIRS)
    scenes = list(look_lessons.drawn(np.random.default_rng(0), course, "train", 0))
    rng = np.random.default_rng(1)
    batch = look_lessons.reading_batch(scenes, course, rng, target.conversations())
    shown = (batch.prompt == target.config.image_token_id).sum(-1) // 16 - 1
    np.testing.assert_array_equal(shown, np.full(64, 2))
    answers = [int(text.rstrip(".")) for text in texts_of(batch, target)]
    expected = [int(asked.answer) for (_, questions), _ in scenes for asked in questions[:2]]
    assert answers == expected


def test_the_cropper_imitates_noisy_boxes_in_noisy_numbers():
    cropper = Pretrained.open("zoom_digits/cropper", weights=False)
    counts = collections.defaultdict(collections.Counter)  # of boxes, by how many are needed
    course, rng = look_lessons.CROPPER[0], np.random.default_rng(0)
    exact = 0
    for step in range(4):
        scenes = list(look_lessons.drawn(np.random.default_rng(step), course, "train", 0))
        for (_, questions), _ in scenes:
            boxes = look_lessons.replied(rng, questions[0], course)
            assert boxes == geometry.in_order(boxes)
            counts[len(questions[0].boxes)][len(boxes)] += 1
            exact += set(boxes) == set(questions[0].boxes) != set()
    assert exact <= 1
    for needed, found in counts.items():
        assert 0.1 < found[needed] / found.total() < 0.9
    batch = look_lessons.locating_batch(scenes, course, rng, cropper.conversations())
    for text in texts_of(batch, cropper):
        parsed = geometry.parse_all(text)
        assert parsed is not None and geometry.reply_text(parsed) == text and len(parsed) <= 2


def test_a_course_that_was_cut_off_goes_on_from_its_file(tmp_path):
    params = {"a": np.arange(3.0, dtype=np.float32), "b": {"c": np.ones((2, 2), np.float32)}}
    optimizer = optax.adamw(1e-3)
    state = TrainState.create(params, optimizer).apply_gradients(params, optimizer)
    digit_lessons.save(tmp_path / "new" / "course.npz", state)
    fresh = TrainState.create(params, optimizer)
    again = digit_lessons.restored(tmp_path / "new" / "course.npz", fresh)
    assert int(again.step) == 1 and [p.name for p in (tmp_path / "new").iterdir()] == ["course.npz"]
    np.testing.assert_array_equal(again.params["b"]["c"], state.params["b"]["c"])
    np.testing.assert_array_equal(again.opt_state[0].mu["a"], state.opt_state[0].mu["a"])


def test_lessons_of_second_looks_have_one_box_at_most():
    cropper = Pretrained.open("zoom_digits/cropper", weights=False)
    (course,), rng = look_lessons.SECOND_LOOKS, np.random.default_rng(0)
    scenes = list(look_lessons.drawn(rng, course, "train", 0))
    batch = look_lessons.locating_batch(scenes, course, rng, cropper.conversations())
    counts = [len(geometry.parse_all(text)) for text in texts_of(batch, cropper)]
    assert len(counts) == 64 and set(counts) <= {0, 1} and np.mean(counts) > 0.8
