# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import PIL
import pytest
from made_pictures import make_picture, on_canvas
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.pixels import device, host, resampling, tile_crops

EDGE_BOXES = [
    geometry.FULL,
    (0, 0, 1, 100),
    (99, 0, 100, 100),
    (50, 3, 51, 98),
    (0, 0, 100, 1),
    (0, 99, 100, 100),
    (7, 50, 93, 51),
    (0, 0, 1, 1),
    (99, 99, 100, 100),
    (1, 0, 100, 100),
]


def _boxes(rng, n):
    """The first box on the borders, and n - 10 random ones."""
    corners = [np.sort(rng.choice(101, 2, replace=False)) for _ in range(2 * n)]
    some = np.array(corners).reshape(n, 2, 2).transpose(0, 2, 1).reshape(n, 4)
    some[: len(EDGE_BOXES)] = EDGE_BOXES[:n]
    return some.astype(np.int32)


_jitted_crops = jax.jit(tile_crops.crops, static_argnums=3)


@functools.cache
def _processor(side):
    module = pytest.importorskip("transformers.models.smolvlm.image_processing_pil_smolvlm")
    return module.SmolVLMImageProcessorPil(
        size={"longest_edge": side},
        max_image_size={"longest_edge": side},
        do_rescale=False,
        do_normalize=False,
    )


def _reference(picture, box, side):
    """The official crop, through transformers' own processor: int `[S, S, 3]`."""
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = box.tolist()
    corners = (x1 * width / 100, y1 * height / 100, x2 * width / 100, y2 * height / 100)
    left, top, right, bottom = (round(v) for v in corners)
    if left == right or top == bottom:  # PIL's crop has no pixels
        left, top = min(left, width - 1), min(top, height - 1)
        corners = (left, top, max(right, left + 1), max(bottom, top + 1))
    crop = Image.fromarray(picture).crop(corners)
    pixels = _processor(side)(crop, return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 1, 3, side, side)
    return pixels[0, 0].transpose(1, 2, 0).astype(int)


@pytest.mark.parametrize(
    ("side", "canvas_shape", "shapes", "n"),
    [
        (
            64,
            (330, 300),
            [
                (330, 210),
                (200, 300),
                (300, 300),
                (297, 99),
                (93, 279),
                (17, 9),
                (9, 17),
                (1, 1),
                (3, 50),
                (40, 3),
                (300, 2),
                (64, 64),
                (67, 128),
            ],
            26,
        ),
        (64, (130, 260), [(130, 260), (128, 43), (101, 203), (17, 9)], 30),
        (64, (1400, 20), [(1400, 14), (1111, 11), (606, 6), (150, 20)], 16),
        (64, (900, 1200), [(900, 1200), (817, 613)], 14),
        (512, (400, 560), [(400, 560), (390, 260)], 13),
        (512, (600, 9), [(600, 6)], 12),
    ],
)
def test_crop_equals_pil_and_the_transformers_processor(side, canvas_shape, shapes, n):
    traces = []

    def counted(canvas, size, boxes):
        traces.append(canvas.shape)
        return tile_crops.crops(canvas[None], size[None], boxes[None], side)[0]

    crop = jax.jit(counted)
    rng = np.random.default_rng(sum(canvas_shape))
    for i, shape in enumerate(shapes):
        kind = ("noise", "smooth", "extremes", "noise", "gradient")[i % 5]
        picture, boxes = make_picture(rng, kind, *shape), _boxes(rng, n)
        got = crop(on_canvas(rng, picture, *canvas_shape), np.array(shape), boxes)
        assert got.shape == (n, side, side, 3) and got.dtype == np.uint8
        for box, ours in zip(boxes, np.asarray(got, int), strict=True):
            difference = np.abs(ours - _reference(picture, box, side))
            where = f"{kind} {shape} {box}: max {difference.max()}, {(difference > 1).sum()} over 1"
            assert (difference > 1).mean() <= 1e-3, where
            assert difference.max() <= 3, where
            assert (difference > 0).mean() <= 1e-2, where
    assert len(traces) == 1


@pytest.mark.parametrize("fill", [None, (122, 116, 104)], ids=["centre", "pad"])
@pytest.mark.parametrize(
    ("side", "canvas_shape", "shapes"),
    [
        (64, (330, 300), [(330, 300), (200, 300), (17, 9), (1, 1), (3, 50), (300, 2), (64, 64)]),
        (64, (130, 260), [(128, 256), (128, 43), (101, 203)]),
        (64, (700, 20), [(700, 14), (303, 3), (700, 1)]),  # far enlarged
        (336, (400, 560), [(400, 560), (390, 260)]),
    ],
)
def test_bicubic_squares_equal_those_of_the_host(side, canvas_shape, shapes, fill):
    """The host's equal those of transformers: `tests/pixels/test_host.py`."""
    rng = np.random.default_rng(sum(canvas_shape))
    crop = jax.jit(functools.partial(device.bicubic_square, side=side, fill=fill))
    for i, shape in enumerate(shapes):
        kind = ("noise", "smooth", "extremes", "gradient")[i % 4]
        picture, boxes = make_picture(rng, kind, *shape), _boxes(rng, 14)
        got = np.asarray(crop(on_canvas(rng, picture, *canvas_shape), np.array(shape), boxes), int)
        assert got.shape == (14, side, side, 3)
        pixels = geometry.to_pixels(boxes, np.broadcast_to(np.array(shape), (14, 2)))
        for (left, top, right, bottom), ours in zip(pixels, got, strict=True):
            want = host.bicubic_square(picture[top:bottom, left:right], side, fill).astype(int)
            difference = np.abs(ours - want)
            where = f"{kind} {shape} {left, top, right, bottom}: max {difference.max()}"
            assert (difference > 1).mean() <= 1e-3, where
            assert difference.max() <= 3 and (difference > 0).mean() <= 2e-2, where


@pytest.mark.parametrize(
    ("tokens", "canvas_shape", "shapes", "n"),
    [
        (
            (4, 16),
            (330, 300),
            [(330, 300), (200, 300), (297, 99), (93, 279), (17, 9), (1, 1), (300, 2), (112, 112)],
            12,
        ),
        ((4, 256), (700, 900), [(700, 900), (640, 480)], 12),
        ((8, 24), (900, 40), [(900, 5), (606, 33), (40, 40)], 16),
    ],
)
def test_smart_tiles_equal_pil_and_the_transformers_processor(tokens, canvas_shape, shapes, n):
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    limits = geometry.PixelLimits(tokens[1] * 28**2, tokens[0] * 28**2)
    processor = module.Qwen2VLImageProcessorPil(
        size={"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels},
        do_rescale=False,
        do_normalize=False,
    )
    cut = jax.jit(functools.partial(device.smart_tiles, limits=limits))
    rng = np.random.default_rng(sum(canvas_shape))
    for i, shape in enumerate(shapes):
        kind = ("noise", "smooth", "extremes", "gradient")[i % 4]
        picture, boxes = make_picture(rng, kind, *shape), _boxes(rng, n)
        tiles, grids = cut(on_canvas(rng, picture, *canvas_shape), np.array(shape), boxes)
        assert tiles.shape == (n, limits.most_tiles, 28, 28, 3) and tiles.dtype == np.uint8
        pixel_boxes = geometry.to_pixels(boxes, np.array([shape] * n))
        rows = zip(boxes, pixel_boxes, np.asarray(tiles, int), np.asarray(grids), strict=True)
        for box, (left, top, right, bottom), ours, (high, wide) in rows:
            crop = picture[top:bottom, left:right]
            where = f"{kind} {shape} {box}: {high} x {wide}"
            assert 1 <= high * wide <= limits.most_tiles, where
            if max(crop.shape[:2]) > 200 * min(crop.shape[:2]):  # which the processor refuses
                continue
            expected = host.smart_tiles(crop, limits)
            assert expected.shape[:2] == (high, wide), where
            inputs = processor(Image.fromarray(crop), return_tensors="np")
            assert inputs["image_grid_thw"].tolist() == [[1, 2 * high, 2 * wide]]
            theirs = inputs["pixel_values"].reshape(-1, 2, 2, 3, 2, 14, 14)
            np.testing.assert_array_equal(theirs[:, :, :, :, 0], theirs[:, :, :, :, 1])
            theirs = theirs[:, :, :, :, 0].transpose(0, 1, 4, 2, 5, 3).reshape(-1, 28, 28, 3)
            np.testing.assert_array_equal(expected.reshape(theirs.shape), theirs)
            difference = np.abs(ours[: high * wide] - theirs)
            assert (difference > 1).mean() <= 1e-3, where
            assert difference.max() <= 2, where
            # Of the ties of smooth pictures, fp32 weights decide some otherwise than PIL's.
            assert (difference > 0).mean() <= 1e-2 or kind in ("smooth", "gradient"), where


@pytest.mark.parametrize("tokens", [(4, 16), (1, 1), (4, 256), (9, 24), (4, 16384)])
def test_grids_equal_smart_resize_of_every_size(tokens):
    limits = geometry.PixelLimits(tokens[1] * 28**2, tokens[0] * 28**2)
    rng = np.random.default_rng(0)
    largest = 4096
    small = np.stack(np.meshgrid(np.arange(1, 150), np.arange(1, 150)), -1).reshape(-1, 2)
    # Whole numbers of tiles, which floats may miss, among others.
    ties = np.concatenate([tokens[i] * np.arange(1, 4096) // 16 for i in range(2)])
    some = rng.choice(
        np.r_[np.arange(1, largest + 1), ties[(ties > 0) & (ties <= largest)]], 40_000
    )
    equal = np.repeat(np.arange(1, largest + 1), 2)
    sizes = np.concatenate([small, some.reshape(-1, 2), equal.reshape(-1, 2)])
    sizes = sizes[sizes.max(-1) <= 200 * sizes.min(-1)].astype(np.int32)
    grid = jax.jit(functools.partial(device.smart_grid, limits=limits, largest=largest))
    got = np.stack(
        [
            np.concatenate(part)
            for part in zip(*(grid(*block.T) for block in np.array_split(sizes, 40)), strict=True)
        ],
        -1,
    )
    settings = 28, limits.min_pixels, limits.max_pixels
    expected = np.array([geometry.smart_resize(h, w, *settings) for h, w in sizes.tolist()]) // 28
    wrong = (got != expected).any(-1)
    assert not wrong.any(), (sizes[wrong][:5], got[wrong][:5], expected[wrong][:5])


@pytest.mark.parametrize("kind", ["gradient", "checks"])
@pytest.mark.parametrize("shape", [(128, 128), (128, 96), (192, 128), (256, 100)])
def test_ties_round_as_in_pil(kind, shape):
    rng = np.random.default_rng(0)
    picture = make_picture(rng, kind, *shape)
    halves = [geometry.FULL, (0, 0, 50, 50), (0, 0, 50, 100), (0, 0, 100, 50), (50, 25, 100, 75)]
    canvas = on_canvas(rng, picture, 256, 128)
    (got,) = _jitted_crops(canvas[None], np.array([shape]), np.array([halves]), 64)
    for box, ours in zip(np.array(halves), np.asarray(got, int), strict=True):
        difference = np.abs(ours - _reference(picture, box, 64))
        assert difference.max() <= 1 and (difference > 0).mean() <= 1e-2, box


@pytest.mark.parametrize(
    ("side", "canvas_shape", "shapes"),
    [
        (64, (130, 140), [(120, 80), (90, 140), (17, 9)]),
        (64, (1400, 20), [(1400, 14), (606, 6), (150, 20)]),  # rows first, by Pillow's version
        (96, (600, 700), [(600, 700), (257, 384)]),  # borders of blocks
    ],
)
def test_crops_by_blocks_equal_those_of_the_whole_canvas(side, canvas_shape, shapes):
    rng = np.random.default_rng(0)
    sizes = np.array(shapes, np.int32)
    pictures = [make_picture(rng, "noise", *shape) for shape in shapes]
    canvases = np.stack([on_canvas(rng, picture, *canvas_shape) for picture in pictures])
    boxes = np.stack([_boxes(rng, 14)] + [_boxes(rng, 14)[::-1] for _ in sizes[1:]])
    blocks = jax.jit(tile_crops._crops_by_blocks, static_argnums=3)
    whole = jax.jit(jax.vmap(functools.partial(tile_crops._crops_of_whole, side=side)))
    np.testing.assert_array_equal(
        blocks(canvases, sizes, boxes, side), whole(canvases, sizes, boxes)
    )


@pytest.mark.parametrize(
    ("start", "length", "out", "columns", "rows"),
    [(0, 50, 64, 50, 64), (13, 37, 9, 60, 64), (99, 1, 64, 100, 64), (5, 90, 1, 100, 8)],
)
def test_weights_stay_inside_the_crop(start, length, out, columns, rows):
    jitted = jax.jit(resampling.resize_weights, static_argnums=(0, 2, 3))
    axis = resampling.Axis(start, length, out)
    weights = np.asarray(jitted(resampling.LANCZOS, axis, columns, rows))[:out]
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    outside = np.ones(columns, bool)
    outside[start : start + length] = False
    assert (weights[:, outside] == 0).all()


@pytest.mark.parametrize("side", [64, 364, 512])
def test_sizes_equal_the_processor(side):
    height, width = (axis.ravel() for axis in np.mgrid[1:200, 1:200])
    large = np.random.default_rng(0).integers(1, 2049, (2_000, 2))
    multiples = [(k * a, k * b) for a, b in ((49, 64), (5, 7), (3, 256)) for k in range(1, 9)]
    misses = tile_crops._float_truncations(side, 2048)
    some = np.concatenate([np.stack([width, height], -1), large, multiples, misses])
    wide, high = jax.jit(tile_crops._keep_aspect, static_argnums=(2, 3))(*some.T, side, 2048)
    want = [host.resized(h, w, side) for w, h in some.tolist()]
    np.testing.assert_array_equal(np.stack([high, wide], -1), want)


def _is_vertical_first(rng, width, height, wide, high):
    """How PIL orders the passes of a resize; None where it makes no difference."""

    def resize(image, *sizes):
        for size in sizes:
            image = image.resize(size, Image.Resampling.LANCZOS)
        return np.asarray(image)

    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    got = resize(image, (wide, high))
    across_first = resize(image, (wide, height), (wide, high))
    down_first = resize(image, (width, high), (wide, high))
    if (across_first == down_first).all():
        return None
    if (got == down_first).all():
        return True
    assert (got == across_first).all()
    return False


def test_order_of_the_passes_equals_pil():
    rng = np.random.default_rng(0)

    def about(low, high):
        return int(np.exp(rng.uniform(np.log(low), np.log(high))))

    cases = []
    for _ in range(100):
        cases.append([about(2, 120) for _ in range(4)])
        cases.append([about(2, 40), about(40, 3000), about(2, 200), about(2, 600)])
        width, high, wide = about(20, 60), about(8, 60), about(8, 60)  # near the rule of Pillow 13
        height = max(2, high + 2 * (width - wide) + int(rng.integers(-2, 4)))
        cases.append([width, height, wide, high])
        width = about(2, 9)  # near the rule of Pillow 12
        cases.append([width, 100 * width + int(rng.integers(-3, 4)), about(2, 50), about(2, 900)])
        if len(cases) <= 80:
            cases.append([about(300, 1200), about(300, 1200), about(64, 600), about(64, 600)])
    orders = []
    for case in cases:
        order = _is_vertical_first(rng, *case)
        if order is not None:
            assert bool(resampling.vertical_first(*map(jnp.array, case))) == order, case
            orders.append(order)
    assert len(orders) > 300


@pytest.mark.parametrize(
    ("size", "new_size", "first_versions"),
    [
        ((6, 601), (64, 64), ["12.2.0", "12.3.0", "13.0.0", "13.1.0.dev0"]),
        ((6, 601), (1, 601), []),
        ((6, 600), (64, 64), ["13.0.0", "13.1.0.dev0"]),
        ((100, 101), (100, 100), ["13.0.0", "13.1.0.dev0"]),
        ((120, 141), (100, 100), ["13.0.0", "13.1.0.dev0"]),
        ((120, 140), (100, 100), []),
        ((200, 100), (300, 100), []),
    ],
)
def test_order_of_the_passes_by_version(monkeypatch, size, new_size, first_versions):
    for version in ("9.5.0", "11.3.0", "12.1.1", "12.2.0", "12.3.0", "13.0.0", "13.1.0.dev0"):
        monkeypatch.setattr(PIL, "__version__", version)
        got = resampling.vertical_first(*(jnp.array(v) for v in (*size, *new_size)))
        assert bool(got) == (version in first_versions), version


def test_shapes_are_checked_when_functions_are_called():
    canvas, size = np.zeros((1, 8, 8, 3), np.uint8), np.array([[8, 8]])
    with pytest.raises(jaxtyping.TypeCheckError, match="boxes"):
        _jitted_crops(canvas, size, np.array([[0, 0, 9, 9]]), 64)
