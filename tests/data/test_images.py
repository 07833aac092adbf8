# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from cropvlm_jax.data import images


def _noise(height, width, channels=3, dtype=np.uint8, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


@pytest.fixture(scope="module")
def hf_pixels():
    module = pytest.importorskip("transformers.models.smolvlm.image_processing_pil_smolvlm")

    def process(image, tile_size, longest_edge):
        processor = module.SmolVLMImageProcessorPil(
            size={"longest_edge": longest_edge},
            max_image_size={"longest_edge": tile_size},
            do_rescale=False,
            do_normalize=False,
            return_row_col_info=True,
        )
        out = processor(image, input_data_format="channels_last", return_tensors="np")
        grid = (out["rows"][0][0], out["cols"][0][0])
        return out["pixel_values"][0].transpose(0, 2, 3, 1), grid

    return process


@pytest.mark.parametrize(
    ("height", "width", "tile_size", "longest_edge"),
    [
        (480, 640, 512, 512),
        (480, 640, 512, 1024),
        (333, 500, 512, 2048),
        (64, 64, 512, 512),
        (513, 511, 64, 128),
        (100, 37, 64, 64),
        (100, 37, 64, 256),
        (37, 100, 64, 192),
        (75, 100, 64, 200),
        (128, 128, 64, 64),
        (128, 128, 64, 128),
        (11, 700, 64, 256),
        (700, 11, 64, 256),
        (5, 3000, 64, 256),
        (2, 4097, 64, 128),
        (4097, 2, 64, 128),
        (64, 65, 64, 65),
        (65, 64, 64, 65),
        (90, 30, 64, 50),
        (20, 20, 128, 40),
        (40, 300, 1024, 5000),
    ],
)
def test_tile_equals_the_transformers_processor(hf_pixels, height, width, tile_size, longest_edge):
    image = _noise(height, width)
    tiles, grid = images.tile(image, tile_size, longest_edge)
    want, want_grid = hf_pixels(image, tile_size, longest_edge)
    assert grid == want_grid
    assert tiles.dtype == np.uint8
    np.testing.assert_array_equal(tiles, want)


def test_tile_of_random_shapes(hf_pixels):
    rng = np.random.default_rng(1)
    for seed in range(60):
        height, width = (int(v) for v in np.exp(rng.uniform(np.log(5), np.log(400), 2)))
        tile_size, longest_edge = int(rng.integers(8, 49)), int(rng.integers(8, 200))
        image = _noise(height, width, seed=seed)
        tiles, grid = images.tile(image, tile_size, longest_edge)
        want, want_grid = hf_pixels(image, tile_size, longest_edge)
        assert grid == want_grid, (height, width, tile_size, longest_edge)
        np.testing.assert_array_equal(tiles, want)


@pytest.mark.parametrize("shape", [(480, 640), (2200, 1700), (1, 9000), (9000, 1), (1, 1), (7, 7)])
@pytest.mark.parametrize("longest_edge", [64, 512, 2048, 5000])
def test_size_rules(shape, longest_edge):
    height, width = images.resized(*shape, longest_edge)
    assert max(height, width) == min(longest_edge, 4096)
    assert min(height, width) >= 1
    high, wide = images.fitted(height, width, 512)
    assert high % 512 == wide % 512 == 0
    assert high >= height
    assert wide >= width


def test_known_grids():
    def grid(height, width, longest_edge):
        high, wide = images.fitted(*images.resized(height, width, longest_edge), 512)
        return high // 512, wide // 512

    assert grid(480, 640, 512) == (1, 1)
    assert grid(480, 640, 1024) == (2, 2)
    assert grid(480, 640, 2048) == (3, 4)
    assert grid(2200, 1700, 2048) == (4, 4)
    assert grid(200, 1000, 2048) == (1, 4)


def test_pad_to_canvas():
    image = _noise(3, 5)
    canvas = images.pad_to_canvas(image, 4, 7)
    assert canvas.shape == (4, 7, 3)
    np.testing.assert_array_equal(canvas[:3, :5], image)
    assert canvas[3:].sum() == canvas[:, 5:].sum() == 0
    with pytest.raises(ValueError, match="3 x 5 px .* 4 x 4 px"):
        images.pad_to_canvas(image, 4, 4)


def test_to_rgb_of_every_mode(tmp_path):
    rgb = _noise(6, 9)
    grey = _noise(6, 9, channels=0)
    grey_rgb = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_array_equal(images.to_rgb(rgb), rgb)
    np.testing.assert_array_equal(images.to_rgb(Image.fromarray(rgb)), rgb)
    np.testing.assert_array_equal(images.to_rgb(grey), grey_rgb)
    np.testing.assert_array_equal(images.to_rgb(grey[..., None]), grey_rgb)
    black_white = grey > 127
    want = np.repeat(black_white[..., None], 3, -1) * 255
    np.testing.assert_array_equal(images.to_rgb(black_white), want)
    np.testing.assert_array_equal(images.to_rgb(Image.fromarray(black_white)), want)
    palette = Image.fromarray(rgb).quantize(200)
    np.testing.assert_array_equal(images.to_rgb(palette), np.asarray(palette.convert("RGB")))
    cmyk = Image.fromarray(rgb).convert("CMYK")
    np.testing.assert_array_equal(images.to_rgb(cmyk), rgb)
    path = tmp_path / "x.png"
    Image.fromarray(rgb).save(path)
    np.testing.assert_array_equal(images.to_rgb(path), rgb)
    np.testing.assert_array_equal(images.to_rgb(str(path)), rgb)


def test_16_bit_grey_is_scaled(tmp_path):
    levels = _noise(6, 9, channels=0, dtype=np.uint16)
    levels[0, :3] = 0, 257 * 100, 65535
    want = np.repeat(np.rint(levels / 257)[..., None], 3, -1)
    path = tmp_path / "x.png"
    Image.fromarray(levels).save(path)
    for image in (levels, Image.fromarray(levels), Image.fromarray(levels.astype(np.int32)), path):
        rgb = images.to_rgb(image)
        assert rgb.dtype == np.uint8
        np.testing.assert_array_equal(rgb, want)


def test_transparency_is_composited_on_white(tmp_path):
    rgba = _noise(6, 9, channels=4)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    out = images.to_rgb(Image.fromarray(rgba))
    assert (out[0] == 255).all()
    np.testing.assert_array_equal(out[1], rgba[1, :, :3])
    alpha = rgba[..., 3:] / 255
    want = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(out - want).max() <= 1
    grey_alpha = Image.fromarray(rgba).convert("LA")
    assert (images.to_rgb(grey_alpha)[0] == 255).all()
    palette = Image.fromarray(rgba[..., :3]).quantize(8)
    index = palette.getpixel((0, 0))
    path = tmp_path / "x.png"
    palette.save(path, transparency=index)
    assert (images.to_rgb(path)[np.asarray(palette) == index] == 255).all()


def test_exif_orientation_is_applied(tmp_path):
    rgb = np.zeros((16, 32, 3), np.uint8)
    rgb[:, :16] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    path = tmp_path / "x.png"
    Image.fromarray(rgb).save(path, exif=exif)
    np.testing.assert_array_equal(images.to_rgb(path), np.rot90(rgb, -1))


def test_to_rgb_errors(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no image file .*missing.png"):
        images.to_rgb(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(OSError, match="text.png"):
        images.to_rgb(tmp_path / "text.png")
    Image.fromarray(_noise(64, 64)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="cut.png"):
        images.to_rgb(tmp_path / "cut.png")
    with pytest.raises(ValueError, match="float32"):
        images.to_rgb(np.zeros((3, 3, 3), np.float32))
    with pytest.raises(ValueError, match="Floating-point"):
        images.to_rgb(Image.fromarray(np.zeros((3, 3), np.float32)))
    with pytest.raises(ValueError, match="16 bits"):
        images.to_rgb(Image.fromarray(np.full((3, 3), 70000, np.int32)))
    with pytest.raises(ValueError, match=r"\(3, 4, 4, 4\)"):
        images.to_rgb(np.zeros((3, 4, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="no pixels"):
        images.to_rgb(np.zeros((0, 4, 3), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="whole.png has too many pixels"):
        images.to_rgb(tmp_path / "whole.png")
