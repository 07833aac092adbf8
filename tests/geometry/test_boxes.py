# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_boxes import (
    OFFICIAL_FACTORS,
    SPANS,
    check_numpy_and_jax_agree,
    random_boxes,
    valid_boxes,
)

from cropvlm_jax import geometry

# Text ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(valid_boxes)
def test_text_round_trip(box):
    assert geometry.parse(geometry.to_text(box)) == box
    assert geometry.parse(f" Look at {geometry.to_text(np.array(box))}\n[0, 0, 1, 1].") == box


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[12, 5, 40, 33].", (12, 5, 40, 33)),
        ("[12,5,40,33]", (12, 5, 40, 33)),
        (" [ 12 , 5\n,40,\t33 ] ", (12, 5, 40, 33)),
        ("see [1, 2] or [3, 4, 5, 6] or [0, 0, 9, 9]", (3, 4, 5, 6)),
        ("[[1, 2, 3, 4]]", (1, 2, 3, 4)),
        ("[001, 02, 100, 100]", (1, 2, 100, 100)),
        ("", None),
        ("the sign", None),
        ("[12, 5, 40]", None),
        ("[12, 5, 40, 33, 50]", None),
        ("[12, 5, 40, 33", None),
        ("12, 5, 40, 33", None),
        ("(12, 5, 40, 33)", None),
        ("[12 5 40 33]", None),
        ("[1.5, 5, 40, 33]", None),
        ("[-1, 5, 40, 33]", None),
        ("[, 5, 40, 33]", None),
        ("[12, 5, 40, 1000]", None),
        ("[12, 5, 40, 101]", None),
        ("[12, 5, 12, 33]", None),
        ("[40, 5, 12, 33]", None),
        ("[12, 33, 40, 5]", None),
        ("[100, 0, 100, 5]", None),
    ],
)
def test_parse(text, box):
    assert geometry.parse(text) == box


# Areas --------------------------------------------------------------------------------------------


def test_is_valid():
    some = np.random.default_rng(0).integers(-30, 130, (20_000, 4))
    x1, y1, x2, y2 = some.T
    want = (x1 >= 0) & (y1 >= 0) & (x2 <= 100) & (y2 <= 100) & (x2 > x1) & (y2 > y1)
    np.testing.assert_array_equal(geometry.is_valid(some), want)
    assert 0 < want.sum() < len(want)
    assert geometry.is_valid(np.array(geometry.FULL))


def test_overlaps_equal_counted_pixels():
    rng = np.random.default_rng(0)
    one, other = random_boxes(rng, 400), random_boxes(rng, 400)
    other[:20] = one[:20]
    row, column = np.mgrid[:100, :100]

    def mask(box):
        x1, y1, x2, y2 = (box[:, i, None, None] for i in range(4))
        return (x1 <= column) & (column < x2) & (y1 <= row) & (row < y2)

    a, b = mask(one), mask(other)
    both, either = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    np.testing.assert_allclose(geometry.area(one), a.mean((1, 2)))
    np.testing.assert_allclose(geometry.intersection(one, other), both / 10_000)
    np.testing.assert_allclose(geometry.iou(one, other), both / either)
    np.testing.assert_allclose(geometry.coverage(one, other), both / b.sum((1, 2)))
    assert (both == 0).any()
    table = geometry.iou(one[:5, None], other[None, :7])
    np.testing.assert_allclose(table[2, 3], geometry.iou(one[2], other[3]))


def _official_axis(low, high, factor):
    """The official rule on one axis, before its floor."""
    size, centre = (high - low) * factor**0.5, (low + high) / 2
    low, high = centre - size / 2, centre + size / 2
    if low < 0:
        low, high = 0, high - low
    if high > 100:
        low, high = low - (high - 100), 100
    return max(low, 0), min(high, 100)


@pytest.mark.parametrize("factor", OFFICIAL_FACTORS)
def test_expand_follows_the_official_rule(factor):
    rng = np.random.default_rng(0)
    some = random_boxes(rng, len(SPANS))
    some[:, [0, 2]] = SPANS
    got = geometry.expand(some, factor)
    assert geometry.is_valid(got).all() and got.dtype == some.dtype
    for axis in (0, 1):
        for box, new in zip(some[:, axis::2].tolist(), got[:, axis::2].tolist(), strict=True):
            low, high = (int(v) for v in _official_axis(*box, factor))
            assert new == [low, high], (box, factor)  # thin boxes only empty when shrunk


@settings(deadline=None)
@given(valid_boxes, st.floats(0.01, 200))
def test_expand(box, factor):
    got = geometry.expand(np.array(box), factor)
    assert geometry.is_valid(got)
    sides = [(box[i + 2] - box[i]) * factor**0.5 for i in range(2)]
    for i in range(2):
        low, high = _official_axis(box[i], box[i + 2], factor)
        assume(abs(low - round(low)) > 1e-6 and abs(high - round(high)) > 1e-6)
        low, high = int(low), int(high)
        assert got[i] == min(low, 99)
        assert got[i + 2] == max(high, low + 1)
        assert abs(got[i + 2] - got[i] - min(sides[i], 100)) <= 1
        if factor >= 1:
            assert got[i] <= box[i] and got[i + 2] >= box[i + 2]
    if max(sides) <= 100:  # floors move each side by less than 1
        assert (sides[0] - 1) * (sides[1] - 1) <= geometry.area(got) * 10_000 or min(sides) < 1
        assert geometry.area(got) * 10_000 <= (sides[0] + 1) * (sides[1] + 1)


@pytest.mark.parametrize("factor", OFFICIAL_FACTORS)
def test_unrounded_boxes_are_only_floored(factor):
    corners = np.random.default_rng(0).uniform(0, 100, (2_000, 2, 2))
    some = np.sort(corners, axis=1).reshape(-1, 4)
    got = geometry.expand(some, factor)
    assert geometry.is_valid(got).all() and got.dtype.kind == "i"
    for axis in (0, 1):
        for box, new in zip(some[:, axis::2].tolist(), got[:, axis::2].tolist(), strict=True):
            low, high = (int(v) for v in _official_axis(*box, factor))
            assert new == [low, max(high, low + 1)], (box, factor)


@settings(deadline=None)
@given(valid_boxes, valid_boxes, st.floats(0.01, 200))
def test_boxes_of_two_looks_are_expanded_in_hundredths(outer, inner, factor):
    fine = geometry.inside(np.array(outer), np.array(inner))
    got = geometry.expand_reply(fine, factor)
    assert geometry.is_valid(got) and got.dtype == fine.dtype
    np.testing.assert_allclose(got * 100, np.rint(got * 100), atol=1e-3)
    for i in range(2):
        low, high = _official_axis(float(fine[i]), float(fine[i + 2]), factor)
        np.testing.assert_allclose(got[[i, i + 2]], [low, high], atol=0.011)
    np.testing.assert_array_equal(
        geometry.expand_reply(np.array(outer), factor), geometry.expand(np.array(outer), factor)
    )


def test_a_reply_of_no_numbers_is_not_expanded():
    with pytest.raises(ValueError, match="a coordinate is not a finite number"):
        geometry.expand_reply(np.array([1.25, 2.5, np.nan, 30.0]), 2)


def test_quintiles_of_the_paper():
    # 15, 16 | 38 | 91 | 351 of 10,000: a bound belongs to the quintile that it begins.
    some = np.array(
        [
            (10, 20, 15, 23),
            (10, 20, 14, 24),
            (10, 20, 29, 22),
            (10, 20, 17, 33),
            (10, 20, 37, 33),
            (0, 0, 99, 99),
        ]
    )
    got = geometry.expand_by_quintile(some, geometry.PAPER_BOUNDS)
    factors = [45, 10, 4, 2, 1, 1]
    assert round(geometry.area(some)[4] * 10_000) == 351
    for box, factor, new in zip(some, factors, got, strict=True):
        np.testing.assert_array_equal(new, geometry.expand(box, factor))
    np.testing.assert_array_equal(got[4:], some[4:])


def test_quintiles_of_the_boxes_themselves():
    some = np.array([(0, 0, 1 + i // 20, 5 + i % 20 + i // 20) for i in range(100)])
    got = geometry.expand_by_quintile(some)
    areas = sorted(geometry.area(some).tolist())
    for box, new in zip(some, got, strict=True):
        smaller = (
            sum(area <= geometry.area(box) for area in areas) - 1
        )  # rank of the last equal one
        factor = geometry.QUINTILE_FACTORS[min(int(smaller / 99 * 5), 4)]
        np.testing.assert_array_equal(new, geometry.expand(box, factor))
    one = np.array([[10, 10, 20, 20]])
    np.testing.assert_array_equal(geometry.expand_by_quintile(one), one)


# NumPy and JAX ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "make"),
    [
        (geometry.is_valid, lambda rng: (rng.integers(-20, 120, (500, 4), np.int32),)),
        (geometry.area, lambda rng: (random_boxes(rng, 500),)),
        (geometry.intersection, lambda rng: (random_boxes(rng, 500), random_boxes(rng, 500))),
        (geometry.iou, lambda rng: (random_boxes(rng, 500), random_boxes(rng, 500))),
        (geometry.coverage, lambda rng: (random_boxes(rng, 500), random_boxes(rng, 500))),
        *(
            (geometry.expand, lambda rng, factor=factor: (random_boxes(rng, 500), factor))
            for factor in OFFICIAL_FACTORS
        ),
        (geometry.expand, lambda rng: (random_boxes(rng, 500), rng.choice([2.0, 45.0], 500))),
        (geometry.expand, lambda rng: (random_boxes(rng, 500) + np.float32(0.25), 4)),
        (
            lambda b: geometry.expand_by_quintile(b, (0.01005, 0.05005, 0.1005, 0.2005)),
            lambda rng: (random_boxes(rng, 500),),
        ),
    ],
)
def test_numpy_and_jax_agree(function, make):
    check_numpy_and_jax_agree(function, make(np.random.default_rng(0)))
