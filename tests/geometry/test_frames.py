# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import fractions

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_boxes import check_numpy_and_jax_agree, random_boxes, valid_boxes

from cropvlm_jax import geometry

sizes = st.tuples(st.integers(1, 2**20), st.integers(1, 2**20)) | st.tuples(
    st.integers(1, 400), st.integers(1, 400)
)


def _rounded(percent, pixels):
    return round(fractions.Fraction(percent * pixels) / 100)  # half to even, exactly


@settings(deadline=None)
@given(valid_boxes, sizes)
def test_to_pixels_rounds_like_python(box, size):
    height, width = size
    got = geometry.to_pixels(np.array(box, np.int32), np.array(size, np.int32)).tolist()
    for i, side in ((0, width), (1, height)):
        low = min(_rounded(box[i], side), side - 1)
        assert got[i] == low
        assert got[i + 2] == max(_rounded(box[i + 2], side), low + 1) <= side


@pytest.mark.parametrize("side", [1, 2, 9, 50, 99, 150, 250, 333, 1050, 4096, 2**20, 2**20 - 50])
def test_to_pixels_at_every_percent(side):
    first = np.array([(p, p, p + 1, p + 1) for p in range(100)], np.int32)
    got = geometry.to_pixels(first, np.broadcast_to(np.int32(side), (100, 2)))
    assert ((0 <= got) & (got <= side)).all() and (got[:, 2:] > got[:, :2]).all()
    want = [min(round(p * side / 100), side - 1) for p in range(100)]
    np.testing.assert_array_equal(got[:, 0], want)
    np.testing.assert_array_equal(got[:, 1], want)
    edge = geometry.to_pixels(first * [0, 0, 1, 1], np.broadcast_to(side, (100, 2)))
    np.testing.assert_array_equal(edge[:, 2], [max(round(p * side / 100), 1) for p in first[:, 2]])


@pytest.mark.parametrize(
    "box", [(30, 20, 30, 40), (50, 60, 40, 70), (10, 70, 20, 60), (-1, 0, 50, 50), (0, 0, 50, 101)]
)
def test_invalid_boxes_become_the_corner_of_the_official_training(box):
    sides = np.array([(70, 90), (1, 90), (2, 1)])
    got = geometry.to_pixels(np.broadcast_to(box, (3, 4)), sides)
    assert got.tolist() == [[0, 0, 2, 2], [0, 0, 2, 1], [0, 0, 1, 2]]


@settings(deadline=None)
@given(sizes, st.data())
def test_from_pixels_is_the_smallest_box_around(size, data):
    height, width = size
    pixels = [0] * 4
    for i, side in ((0, width), (1, height)):
        pixels[i] = data.draw(st.integers(0, side - 1))
        pixels[i + 2] = data.draw(st.integers(pixels[i] + 1, side))
    got = geometry.from_pixels(np.array(pixels), np.array(size))
    assert geometry.is_valid(got)
    for i, side in ((0, width), (1, height)):
        low, high = got[i], got[i + 2]
        assert low * side <= 100 * pixels[i] and 100 * pixels[i + 2] <= high * side
        assert (low + 1) * side > 100 * pixels[i] or low == 99
        assert (high - 1) * side < 100 * pixels[i + 2]
    back = geometry.to_pixels(got, np.array(size))
    assert (back[:2] <= pixels[:2]).all() and (back[2:] >= pixels[2:]).all()


def test_to_percent_is_unrounded_and_clipped():
    size = np.array([[50, 200]] * 2)
    pixels = np.array([[3, 1, 4.5, 2], [-10, -3, 500, 60]])
    assert geometry.to_percent(pixels, size).tolist() == [[1.5, 2, 2.25, 4], [0, 0, 100, 100]]


def test_from_pixels_clips():
    size = np.array([[50, 200]] * 3)
    pixels = np.array([[-10, -3, 500, 60], [300, 80, 400, 90], [-9, -9, -5, -5]])
    want = [[0, 0, 100, 100], [99, 99, 100, 100], [0, 0, 1, 1]]
    assert geometry.from_pixels(pixels, size).tolist() == want


@settings(deadline=None, max_examples=500)
@given(
    sides=st.tuples(st.integers(1, 12_000), st.integers(1, 12_000)),
    factor=st.sampled_from([28, 32]),
    limits=st.tuples(st.integers(1, 400), st.integers(1, 20_000)).map(sorted),
)
def test_smart_resize_is_that_of_transformers(sides, factor, limits):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    settings = [factor, *(limit * factor**2 for limit in limits)]
    for arguments in (settings, [28, 3136, geometry.MAX_PIXELS]):
        if max(sides) > 200 * min(sides):
            with pytest.raises(ValueError, match="200 times"):
                geometry.smart_resize(*sides, *arguments)
        else:
            assert geometry.smart_resize(*sides, *arguments) == smart_resize(*sides, *arguments)


def test_smart_resize_by_hand():
    assert geometry.smart_resize(14 * 29, 14 * 31) == (28 * 14, 28 * 16)  # half to even
    assert geometry.smart_resize(1, 200) == (28, 812)
    assert geometry.smart_resize(3024, 4032) == (3024, 4032)  # just under the released limit
    assert geometry.smart_resize(6048, 8064) == (3080, 4116)
    assert geometry.smart_resize(3024, 4032, max_pixels=1280 * 28**2) == (840, 1148)


@pytest.mark.parametrize("frame", geometry.FRAMES)
@settings(deadline=None)
@given(box=valid_boxes, sides=st.tuples(st.integers(100, 12_000), st.integers(100, 12_000)))
def test_frames_there_and_back(frame, box, sides):
    size = np.array(geometry.frame_size(frame, *sides, max_pixels=2_000_000))
    there = geometry.to_pixels(np.array(box), size)
    assert (there >= 0).all() and (there.reshape(2, 2) <= size[::-1]).all()
    back = geometry.from_pixels(there, size)
    # An edge moves by half a pixel, which may begin another percent.
    assert (np.abs(back - box) <= 1 + 100 / size.min()).all()
    if frame in ("thousandths", "percent"):
        np.testing.assert_array_equal(back, box)


@settings(deadline=None)
@given(
    sides=st.tuples(st.integers(28, 12_000), st.integers(28, 12_000)),
    max_pixels=st.sampled_from([200_704, 1_003_520, geometry.MAX_PIXELS]),
    data=st.data(),
)
def test_smart_resized_boxes_come_back_within_half_a_pixel(sides, max_pixels, data):
    assume(max(sides) <= 200 * min(sides))
    size, shown = np.array(sides), np.array(geometry.smart_resize(*sides, max_pixels=max_pixels))
    low = np.array([data.draw(st.integers(0, side - 1)) for side in shown[::-1]])
    high = [data.draw(st.integers(a + 1, b)) for a, b in zip(low, shown[::-1], strict=True)]
    box = [int(v) for v in (*low, *high)]
    got = geometry.rescale(np.array(box), shown, size).tolist()
    scale = [fractions.Fraction(int(a), int(b)) for a, b in zip(size, shown, strict=True)][::-1] * 2
    exact = [edge * factor for edge, factor in zip(box, scale, strict=True)]
    half = fractions.Fraction(1, 2)
    for axis, whole in enumerate(size[::-1]):
        assert 0 <= got[axis] < got[axis + 2] <= whole
        assert abs(got[axis] - exact[axis]) <= half or exact[axis] > whole - 1
        # What is less than a pixel becomes one.
        thin = exact[axis + 2] - exact[axis] < 1
        assert abs(got[axis + 2] - exact[axis + 2]) <= (1 if thin else half)
    # And what we point at in original pixels, as the model would write it with fractions.
    original = np.array([*np.minimum(low * size[::-1] // shown[::-1], size[::-1] - 1), *size[::-1]])
    there = original * np.array([*shown[::-1]] * 2) / np.array([*size[::-1]] * 2)
    np.testing.assert_array_equal(geometry.rescale(there, shown, size), original)


@settings(deadline=None, max_examples=300)
@given(
    sides=st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)),
    tokens=st.tuples(st.integers(1, 40), st.integers(1, 3000)).map(sorted),
)
def test_no_picture_has_more_tiles_than_the_limits_say(sides, tokens):
    assume(max(sides) <= 200 * min(sides))
    limits = geometry.PixelLimits(tokens[1] * 28**2, tokens[0] * 28**2)
    high, wide = geometry.smart_resize(*sides, 28, limits.min_pixels, limits.max_pixels)
    assert high * wide // 28**2 <= limits.most_tiles
    if tokens[1] >= 200 and tokens[0] <= 4:
        assert limits.most_tiles == tokens[1]


@pytest.mark.parametrize("limits", [dict(max_pixels=1000), dict(min_pixels=10**9), dict(factor=5)])
def test_limits_that_make_no_sense_are_refused(limits):
    with pytest.raises(ValueError, match="_pixels=1"):
        geometry.PixelLimits(**limits)


@pytest.mark.parametrize(
    ("frame", "written"),
    [
        ("smart_resized", (574, 168, 861, 420)),  # the model sees 1148 x 840 px
        ("thousandths", (500, 200, 750, 500)),
        ("pixels", (2016, 605, 3024, 1512)),
        ("percent", (50, 20, 75, 50)),
    ],
)
def test_a_labeller_points_at_the_same_place_in_every_frame(frame, written):
    size = geometry.frame_size(frame, 3024, 4032, max_pixels=1280 * 28**2)
    assert geometry.from_pixels(np.array(written), np.array(size)).tolist() == [50, 20, 75, 50]


def test_the_official_mistake_moves_boxes():
    size = geometry.frame_size("smart_resized_unscaled", 3024, 4032, max_pixels=1280 * 28**2)
    got = geometry.from_pixels(np.array([574, 168, 861, 420]), np.array(size))
    # 100 * 574 / 4032 and so on: towards the top left, and small
    assert got.tolist() == [14, 5, 22, 14]


def test_fractions_of_pixels_are_kept_inside():
    size = np.array([100, 200])
    got = geometry.from_pixels(np.array([3.9, -0.5, 4.1, 7.01]), size)
    assert got.tolist() == [1, 0, 3, 8] and got.dtype == size.dtype


def test_an_unknown_frame_is_refused():
    with pytest.raises(ValueError, match="no frame 'permille': use one of smart_resized, "):
        geometry.frame_size("permille", 10, 10)


@pytest.mark.parametrize(
    ("function", "make"),
    [
        *(
            (function, lambda rng: (random_boxes(rng, 500), rng.integers(1, 9000, (500, 2))))
            for function in (geometry.to_pixels, geometry.from_pixels, geometry.to_percent)
        ),
        (
            geometry.to_pixels,
            lambda rng: (rng.integers(-20, 120, (500, 4)), rng.integers(1, 9000, (500, 2))),
        ),
        (geometry.to_pixels, lambda rng: (random_boxes(rng, 500), np.full((500, 2), 2**20))),
    ],
)
def test_numpy_and_jax_agree(function, make):
    check_numpy_and_jax_agree(function, make(np.random.default_rng(0)))


NOT_FINITE = [
    [float("nan"), 0, 10, 10],
    [0, float("nan"), 10, 10],
    [0, 0, float("nan"), 10],
    [0, 0, 10, float("nan")],
    [float("nan")] * 4,
    [float("inf"), 0, 10, 10],
    [0, 0, float("inf"), 10],
    [0, 0, 10, float("inf")],
    [0, float("-inf"), 10, 10],
    [float("-inf"), float("-inf"), float("inf"), float("inf")],
    [0, 0, np.float32("nan"), 1e300],
]
SIZE = np.array([50, 200])
CONVERSIONS = {
    "to_pixels": lambda boxes: geometry.to_pixels(boxes, SIZE),
    "from_pixels": lambda boxes: geometry.from_pixels(boxes, SIZE),
    "to_percent": lambda boxes: geometry.to_percent(boxes, SIZE),
    "rescale": lambda boxes: geometry.rescale(boxes, SIZE, SIZE),
    "expand": lambda boxes: geometry.expand(boxes, 2),
}


@pytest.mark.parametrize("name", CONVERSIONS)
@pytest.mark.parametrize("box", NOT_FINITE)
def test_boxes_that_are_not_finite_are_refused(name, box):
    for boxes in (np.array(box), np.array([[1, 2, 3, 4], box])):
        with pytest.raises(ValueError, match="a coordinate is not a finite number"):
            CONVERSIONS[name](boxes)
    with pytest.raises(ValueError, match="not a finite number"):
        geometry.to_text(box)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_boxes_that_are_not_finite_are_not_valid_under_jit(name):
    boxes = jax.numpy.array([[1, 2, 30, 40], *NOT_FINITE[:-1]])
    converted = np.array(jax.jit(CONVERSIONS[name])(boxes))
    assert np.isfinite(converted).all()
    np.testing.assert_array_equal(converted[0], CONVERSIONS[name](np.array([1, 2, 30, 40])))
    corner = [0, 0, 2, 2] if name == "to_pixels" else [0] * 4
    assert (converted[1:] == corner).all()


def test_boxes_inside_of_boxes_are_exact():
    """Against fractions: edges are rounded to pixels only, half to even, as PIL does."""
    rng = np.random.default_rng(0)
    outer, inner = random_boxes(rng, 300), random_boxes(rng, 300)
    inner[0], sizes = geometry.FULL, rng.integers(1, 2**17, (300, 2))
    found = geometry.inside(outer, inner)
    assert geometry.is_valid(found).all() and (found[0] == outer[0]).all()
    pixels = geometry.to_pixels(found, sizes)
    for i, (height, width) in enumerate(sizes.tolist()):
        x1, y1, x2, y2 = outer[i].tolist()
        frame = [(x1, x2 - x1, width), (y1, y2 - y1, height)] * 2
        edges = [
            low + fractions.Fraction(percent * side, 100)
            for percent, (low, side, _) in zip(inner[i].tolist(), frame, strict=True)
        ]
        assert found[i].tolist() == list(map(float, edges))
        rounded = [_rounded(edge, p) for edge, (_, _, p) in zip(edges, frame, strict=True)]
        left, top = min(rounded[0], width - 1), min(rounded[1], height - 1)
        right, bottom = max(rounded[2], left + 1), max(rounded[3], top + 1)
        assert pixels[i].tolist() == [left, top, right, bottom]


def test_boxes_inside_of_boxes_are_the_same_under_jit():
    rng = np.random.default_rng(1)
    outer, inner = random_boxes(rng, 500), random_boxes(rng, 500)
    sizes = rng.integers(1, 2**17, (500, 2))
    check_numpy_and_jax_agree(geometry.inside, (outer, inner))
    for found in (geometry.inside(outer, inner), 1.0 * outer):
        check_numpy_and_jax_agree(geometry.to_pixels, (found, sizes))
    pixels = geometry.to_pixels(1.0 * outer, sizes)
    np.testing.assert_array_equal(pixels, geometry.to_pixels(outer, sizes))


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (0, 0), (-5, 10)])
@pytest.mark.parametrize("convert", [geometry.from_pixels, geometry.to_percent])
def test_pictures_without_pixels_are_refused(convert, size):
    with pytest.raises(ValueError, match="has no pixels"):
        convert(np.array([0, 0, 1, 1]), np.array(size))
