# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import functools
import pickle

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tiny

from cropvlm_jax import geometry
from cropvlm_jax.data.reading import ReadingPreparer, draw_box
from cropvlm_jax.models.smolvlm.image_processing import see
from cropvlm_jax.pixels import host

EXAMPLES = [e | {"box": (20, 30, 40, 45)} for e in tiny.make_examples(3)]


def make(**changes) -> ReadingPreparer:
    settings = {
        "conversations": tiny.CONVERSATIONS,
        "see": functools.partial(see, tiny.CONFIG, longest_edge=tiny.SIDE),
        "expansion": (1.0, 4.0),
        "jitter": 0.5,
        "whole": 0.0,
        "seed": 0,
        "question_tokens": 16,
        "answer_tokens": 8,
    }
    return ReadingPreparer(**settings | changes)


edges = st.tuples(st.integers(0, 100), st.integers(0, 100)).filter(lambda e: e[0] < e[1])


@hypothesis.given(
    edges, edges, st.floats(1, 400), st.floats(1, 20), st.floats(0, 1), st.integers(0, 2**32 - 1)
)
def test_a_drawn_box_is_in_the_picture_and_holds_its_box(wide, high, least, more, jitter, seed):
    box = np.array([wide[0], high[0], wide[1], high[1]])
    got = draw_box(np.random.default_rng(seed), box, (least, least * more), jitter)
    assert (got[:2] <= box[:2]).all() and (got[2:] >= box[2:]).all()
    assert got.min() >= 0 and got.max() <= 100


def test_areas_and_places_of_drawn_boxes():
    box, rng = np.array([45, 45, 55, 55]), np.random.default_rng(0)
    drawn = np.array([draw_box(rng, box, (1.0, 25.0), 1.0) for _ in range(2000)])
    areas = geometry.area(drawn) / geometry.area(box)
    assert areas.min() < 1.5 and 23 < areas.max() < 26
    assert 4 < np.median(areas) < 6.5  # 5 is the middle of 1 and 25 on a logarithmic scale
    wide = drawn[(drawn[:, 2] - drawn[:, 0]) > 30]
    assert wide[:, 0].min() < 20 and wide[:, 2].max() > 80  # at either edge of the crop
    np.testing.assert_array_equal(draw_box(rng, box, (1.0, 1.0), 1.0), box)
    middle = draw_box(rng, box, (9.0, 9.0), 0.0)
    np.testing.assert_array_equal(middle, geometry.expand(box, 9.0))


def test_a_row_shows_picture_and_crop_and_asks_for_the_answer():
    prepare = make()
    for index, example in enumerate(EXAMPLES):
        row = prepare(example, index)
        image = host.to_rgb(example["image"])
        crop = host.cut(image, prepare.crop(example["box"], index))
        for got, picture in zip(row.images, (image, crop), strict=True):
            np.testing.assert_array_equal(got, host.tile(picture, tiny.SIDE, tiny.SIDE)[0][0])
        want = tiny.CONVERSATIONS.answer(example["question"], 2, example["answers"][0])
        ids = [*row.prompt[row.prompt_valid], *row.completion[row.completion_valid]]
        assert ids == want.ids[: want.completion.stop].tolist()
        assert row.completion_valid.sum() == want.completion.stop - want.completion.start
        assert row.example_id == index
    rows = [prepare(example, i) for i, example in enumerate(EXAMPLES)]
    shapes = {tuple(x.shape for x in row if x is not None) for row in rows}
    assert len(shapes) == 1


def test_what_is_drawn_depends_on_seed_and_index_alone():
    prepare, other = make(), make(seed=1)
    boxes = [tuple(prepare.crop((20, 30, 40, 45), index)) for index in range(50)]
    assert len(set(boxes)) > 20
    assert boxes == [tuple(make().crop((20, 30, 40, 45), index)) for index in range(50)]
    assert boxes != [tuple(other.crop((20, 30, 40, 45), index)) for index in range(50)]
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(prepare))(EXAMPLES[0], 0).images, prepare(EXAMPLES[0], 0).images
    )


def test_the_whole_picture_is_shown_as_often_as_asked_and_where_there_is_no_box():
    prepare = make(whole=0.25, expansion=(1.0, 2.0))
    full = [(prepare.crop((20, 30, 40, 45), index) == geometry.FULL).all() for index in range(1000)]
    assert 0.2 < np.mean(full) < 0.3
    assert (prepare.crop(None, 0) == geometry.FULL).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "Why " * 100}, "limit"),
        ({"answers": ["long " * 100]}, "limit"),
        ({"answers": []}, "no answer"),
        ({"image": b"none"}, "image"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        make()(EXAMPLES[0] | changes, 0)
