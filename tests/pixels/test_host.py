# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import functools
import io
import math
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, TiffImagePlugin

from cropvlm_jax.pixels import formats, host


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
    tiles, grid = host.tile(image, tile_size, longest_edge)
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
        tiles, grid = host.tile(image, tile_size, longest_edge)
        want, want_grid = hf_pixels(image, tile_size, longest_edge)
        assert grid == want_grid, (height, width, tile_size, longest_edge)
        np.testing.assert_array_equal(tiles, want)


@pytest.mark.parametrize("shape", [(480, 640), (2200, 1700), (1, 9000), (9000, 1), (1, 1), (7, 7)])
@pytest.mark.parametrize("longest_edge", [64, 512, 2048, 5000])
def test_size_rules(shape, longest_edge):
    height, width = host.resized(*shape, longest_edge)
    assert max(height, width) == min(longest_edge, 4096)
    assert min(height, width) >= 1
    high, wide = host.fitted(height, width, 512)
    assert high % 512 == wide % 512 == 0
    assert high >= height
    assert wide >= width


def test_known_grids():
    def grid(height, width, longest_edge):
        high, wide = host.fitted(*host.resized(height, width, longest_edge), 512)
        return high // 512, wide // 512

    assert grid(480, 640, 512) == (1, 1)
    assert grid(480, 640, 1024) == (2, 2)
    assert grid(480, 640, 2048) == (3, 4)
    assert grid(2200, 1700, 2048) == (4, 4)
    assert grid(200, 1000, 2048) == (1, 4)


def test_to_rgb_of_every_mode(tmp_path):
    rgb = _noise(6, 9)
    grey = _noise(6, 9, channels=0)
    grey_rgb = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_array_equal(host.to_rgb(rgb), rgb)
    np.testing.assert_array_equal(host.to_rgb(Image.fromarray(rgb)), rgb)
    np.testing.assert_array_equal(host.to_rgb(grey), grey_rgb)
    np.testing.assert_array_equal(host.to_rgb(grey[..., None]), grey_rgb)
    black_white = grey > 127
    want = np.repeat(black_white[..., None], 3, -1) * 255
    np.testing.assert_array_equal(host.to_rgb(black_white), want)
    np.testing.assert_array_equal(host.to_rgb(Image.fromarray(black_white)), want)
    palette = Image.fromarray(rgb).quantize(200)
    np.testing.assert_array_equal(host.to_rgb(palette), np.asarray(palette.convert("RGB")))
    cmyk = Image.fromarray(rgb).convert("CMYK")
    np.testing.assert_array_equal(host.to_rgb(cmyk), rgb)
    path = tmp_path / "x.png"
    Image.fromarray(rgb).save(path)
    np.testing.assert_array_equal(host.to_rgb(path), rgb)
    np.testing.assert_array_equal(host.to_rgb(str(path)), rgb)


def test_16_bit_grey_is_scaled(tmp_path):
    levels = _noise(6, 9, channels=0, dtype=np.uint16)
    levels[0, :3] = 0, 257 * 100, 65535
    want = np.repeat(np.rint(levels / 257)[..., None], 3, -1)
    path = tmp_path / "x.png"
    Image.fromarray(levels).save(path)
    for image in (levels, Image.fromarray(levels), Image.fromarray(levels.astype(np.int32)), path):
        rgb = host.to_rgb(image)
        assert rgb.dtype == np.uint8
        np.testing.assert_array_equal(rgb, want)


def test_transparency_is_composited_on_white(tmp_path):
    rgba = _noise(6, 9, channels=4)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    out = host.to_rgb(Image.fromarray(rgba))
    assert (out[0] == 255).all()
    np.testing.assert_array_equal(out[1], rgba[1, :, :3])
    alpha = rgba[..., 3:] / 255
    want = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(out - want).max() <= 1
    grey_alpha = Image.fromarray(rgba).convert("LA")
    assert (host.to_rgb(grey_alpha)[0] == 255).all()
    palette = Image.fromarray(rgba[..., :3]).quantize(8)
    index = palette.getpixel((0, 0))
    path = tmp_path / "x.png"
    palette.save(path, transparency=index)
    assert (host.to_rgb(path)[np.asarray(palette) == index] == 255).all()


def test_exif_orientation_is_applied(tmp_path):
    rgb = np.zeros((16, 32, 3), np.uint8)
    rgb[:, :16] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    path = tmp_path / "x.png"
    Image.fromarray(rgb).save(path, exif=exif)
    np.testing.assert_array_equal(host.to_rgb(path), np.rot90(rgb, -1))


def test_to_rgb_errors(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no image file .*missing.png"):
        host.to_rgb(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(OSError, match="text.png"):
        host.to_rgb(tmp_path / "text.png")
    Image.fromarray(_noise(64, 64)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="cut.png"):
        host.to_rgb(tmp_path / "cut.png")
    with pytest.raises(ValueError, match="float32"):
        host.to_rgb(np.zeros((3, 3, 3), np.float32))
    with pytest.raises(ValueError, match="Floating-point"):
        host.to_rgb(Image.fromarray(np.zeros((3, 3), np.float32)))
    with pytest.raises(ValueError, match="16 bits"):
        host.to_rgb(Image.fromarray(np.full((3, 3), 70000, np.int32)))
    with pytest.raises(ValueError, match=r"\(3, 4, 4, 4\)"):
        host.to_rgb(np.zeros((3, 4, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="no pixels"):
        host.to_rgb(np.zeros((0, 4, 3), np.uint8))


def _encoded(image, fmt, **options):
    file = io.BytesIO()
    image.save(file, fmt, **options)
    return file.getvalue()


def _chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width, height, rows):
    """A grey PNG that declares more pixels than it need have."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_bytes_are_read_as_files_are(tmp_path, fmt):
    data = _encoded(Image.fromarray(_noise(6, 9)), fmt)
    path = tmp_path / f"x.{fmt}"
    path.write_bytes(data)
    np.testing.assert_array_equal(host.to_rgb(data), host.to_rgb(path))
    np.testing.assert_array_equal(host.to_rgb(data), Image.open(path).convert("RGB"))


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_picture_size_is_that_of_the_upright_picture(tmp_path, fmt, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encoded(Image.fromarray(_noise(16, 32)), fmt, exif=exif)
    path = tmp_path / "x"
    path.write_bytes(data)
    want = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    for image in (data, path, str(path), Image.open(path)):
        assert host.picture_size(image) == want.shape[:2]
        rgb = host.to_rgb(image)
        np.testing.assert_array_equal(rgb, want)
        assert host.picture_size(rgb) == want.shape[:2]


def test_picture_size_reads_the_header_alone(tmp_path):
    # These have no pixels at all: decoding would fail.
    for fmt, end in (("JPEG", b"\xff\xda"), ("PNG", b"IDAT")):
        data = _encoded(Image.fromarray(_noise(300, 500)), fmt)
        data = data[: data.index(end) + 32]
        assert host.picture_size(data) == (300, 500)
        with pytest.raises(OSError, match=rf"Cannot decode the image's {len(data)} bytes"):
            host.to_rgb(data)


def test_exif_after_the_pixels_turns_neither_size_nor_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _encoded(Image.fromarray(_noise(16, 32)), "PNG")
    data = data[:-12] + _chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + data[-12:]
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    assert host.picture_size(data) == host.to_rgb(data).shape[:2] == (16, 32)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif", [b"", b"junk", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x05\x01\x12"]
)
def test_broken_exif_is_no_reason_to_lose_a_picture(exif):
    data = _encoded(Image.fromarray(_noise(16, 32)), "JPEG", exif=b"Exif\0\0" + exif)
    assert host.picture_size(data) == host.to_rgb(data).shape[:2] == (16, 32)


@pytest.mark.parametrize("action", ["ignore", "error"])
def test_a_bomb_is_refused_without_decoding(tmp_path, recwarn, action):
    warnings.simplefilter(action)  # what PIL does to some sizes that are over our limit
    # The same tiny file is a picture or a bomb: only the declared size differs.
    assert host.to_rgb(_png(30, 20, bytes(31 * 20))).shape == (20, 30, 3)
    for side in (1 + math.isqrt(host.MAX_PIXELS), 30_000, 2**31 - 1):
        bomb = _png(side, side, bytes(31 * 20))
        path = tmp_path / "bomb.png"
        path.write_bytes(bomb)
        for read in (host.to_rgb, host.picture_size):
            with pytest.raises(ValueError, match="Too many pixels in the image's .* bytes"):
                read(bomb)
            with pytest.raises(ValueError, match="Too many pixels in .*bomb.png"):
                read(path)


def test_the_limit_is_our_own(monkeypatch):
    """Not PIL's, which any other code of the process may have lifted."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ValueError, match=f"30000 x 30000, over the limit of {host.MAX_PIXELS}"):
        host.to_rgb(_png(30_000, 30_000, b""))
    monkeypatch.setattr(host, "MAX_PIXELS", 54)
    image = Image.fromarray(_noise(6, 9))
    assert host.to_rgb(image).shape == host.to_rgb(_encoded(image, "PNG")).shape == (6, 9, 3)
    monkeypatch.setattr(host, "MAX_PIXELS", 53)
    for picture in (image, _encoded(image, "PNG"), _noise(6, 9)):
        with pytest.raises(ValueError, match="9 x 6, over the limit of 53"):
            host.to_rgb(picture)


@pytest.mark.parametrize("size", [(1, 1), (20, 30_000), (30_000, 20)])
def test_extreme_sizes(size):
    image = _noise(*size)
    data = _encoded(Image.fromarray(image), "PNG")
    assert host.picture_size(data) == size
    np.testing.assert_array_equal(host.to_rgb(data), image)


def test_cmyk_jpeg():
    rgb = np.asarray(Image.fromarray(_noise(3, 4)).resize((64, 48), Image.BICUBIC))
    data = _encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=100)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(host.to_rgb(data).astype(int) - rgb).max() <= 6


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(_noise(6, 9, seed=seed)).quantize(200) for seed in range(3)]
    data = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(host.to_rgb(data), np.asarray(frames[0].convert("RGB")))


def test_16_bit_png_bytes():
    levels = np.array([[0, 257 * 100, 65535]], np.uint16)
    rgb = host.to_rgb(_encoded(Image.fromarray(levels), "PNG"))
    np.testing.assert_array_equal(rgb[0, :, 0], [0, 100, 255])


def test_palette_with_alpha():
    palette = Image.fromarray(_noise(6, 9)).quantize(3)
    data = _encoded(palette, "PNG", transparency=bytes([0, 128, 255]))
    index, colors = np.asarray(palette), np.asarray(palette.convert("RGB")).astype(int)
    rgb = host.to_rgb(data)
    assert (rgb[index == 0] == 255).all()
    assert np.abs(rgb - (colors + 255) / 2)[index == 1].max() <= 2
    np.testing.assert_array_equal(rgb[index == 2], colors[index == 2])


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG", b"\xff\xd8", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_bytes_that_are_no_picture(data, tmp_path):
    (tmp_path / "x.png").write_bytes(data)
    for read in (host.to_rgb, host.picture_size):
        with pytest.raises(OSError, match=f"the image's {len(data)} bytes"):
            read(data)
        with pytest.raises(OSError, match="x.png"):
            read(tmp_path / "x.png")


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_a_truncated_file_is_an_os_error(fmt):
    data = _encoded(Image.fromarray(_noise(64, 64)), fmt)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(OSError, match="the image's .* bytes"):
            host.to_rgb(data[: int(share * len(data))])


@pytest.mark.filterwarnings("ignore")  # PIL's, on what it finds odd
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_damage_never_raises_anything_else(fmt, monkeypatch):
    monkeypatch.setattr(host, "MAX_PIXELS", 10**6)  # a broken size costs time
    rng = random.Random(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if fmt in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    whole = _encoded(Image.fromarray(_noise(24, 32)), fmt, **options)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            # Half of the damage is done to the header.
            place = rng.randrange(rng.choice((min(len(data), 200), len(data))))
            data[place] = rng.choice((0, 255, rng.randrange(256)))
        try:
            size = host.picture_size(bytes(data))
        except (OSError, ValueError):
            size = None
        try:
            rgb = host.to_rgb(bytes(data))
        except (OSError, ValueError):
            continue
        assert rgb.shape == (*size, 3)


@functools.cache
def _clip_processor(side, pad):
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    llava = pytest.importorskip("transformers.models.llava.image_processing_pil_llava")
    options = dict(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    options |= dict(do_rescale=False, do_normalize=False)
    if pad:
        return llava.LlavaImageProcessorPil(do_pad=True, **options)
    return clip.CLIPImageProcessorPil(**options)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([8, 37, 90]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_bicubic_square_equals_transformers(height, width, side, pad):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    got = host.bicubic_square(image, side, (122, 116, 104) if pad else None)
    want = _clip_processor(side, pad)(Image.fromarray(image), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(got.transpose(2, 0, 1), want[0])


@pytest.mark.parametrize("shape", [(3000, 2), (1, 1500), (3001, 5)])
def test_bicubic_square_of_a_very_long_picture(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    got = host.bicubic_square(image, 336).astype(int)
    pil = Image.fromarray(image)
    enlarged = [336 * edge // min(shape) for edge in shape]
    pil = pil.resize(enlarged[::-1], Image.Resampling.BICUBIC)
    top, left = ((edge - 336) // 2 for edge in enlarged)
    want = np.asarray(pil.crop((left, top, left + 336, top + 336)), int)
    assert np.abs(got - want).max() <= 1 and (got != want).mean() < 1e-3


def _iso(brand, *others):
    body = brand + bytes(4) + b"".join(others)
    return struct.pack(">I", 8 + len(body)) + b"ftyp" + body + bytes(64)


@pytest.mark.parametrize(
    ("data", "name", "remedy"),
    [
        (_iso(b"heic", b"mif1", b"heic"), "a HEIC picture", "convert it to JPEG or PNG"),
        (_iso(b"heix"), "a HEIC picture", "convert it"),
        (_iso(b"hevc"), "a HEIC picture", "convert it"),
        (_iso(b"mif1", b"heic"), "a HEIC picture", "convert it"),
        (_iso(b"avif", b"mif1"), "an AVIF picture", "convert it"),
        (_iso(b"avis"), "an AVIF picture", "convert it"),
        (_iso(b"mif1", b"miaf", b"avif"), "an AVIF picture", "convert it"),
        (_iso(b"crx "), "a raw photo", "convert it"),
        (_iso(b"isom", b"mp42"), "a video", "take frames out of it"),
        (_iso(b"qt  "), "a video", "take frames"),
        (b"\x1aE\xdf\xa3" + bytes(40), "a video", "take frames"),
        (b"\xff\x0a" + bytes(40), "a JPEG XL picture", "convert it"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture", "convert it"),
        (b"%PDF-1.7\n", "a PDF file", "render its pages"),
        (b"8BPS\0\1", "a Photoshop file", "convert it"),
        (b"%!PS-Adobe-3.0", "a PostScript file", "convert it"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing", "convert it"),
        (b"<?xml version='1.0'?><svg/>", "an SVG drawing", "convert it"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "a web page", "download or copy it again"),
        (b"<HTML><body>403", "a web page", "download or copy it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS", "git lfs pull"),
        (bytes(128) + b"DICM" + bytes(40), "a DICOM file", "convert it"),
        (b"PK\3\4" + bytes(40), "a zip archive", "unpack it"),
        (b"\x1f\x8b\x08", "a gzip archive", "unpack it"),
        (b"\x93NUMPY\1\0", "a NumPy array", "PNG"),
        (b"", "an empty file", "download or copy it again"),
        (bytes(5000), "nothing but zeros", "download or copy it again"),
    ],
)
def test_files_of_other_kinds_are_refused_by_name(tmp_path, data, name, remedy):
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    for read in (host.to_rgb, host.picture_size):
        with pytest.raises(OSError, match=f"photo.jpg: it is .*{name}.* To do: .*{remedy}"):
            read(path)
        with pytest.raises(OSError, match=f"the image's {len(data)} bytes: it is .*{name}"):
            read(data)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_pictures_that_open_are_no_other_kind(fmt):
    assert formats.kind_of(_encoded(Image.fromarray(_noise(6, 9)), fmt)[: formats.HEAD]) is None


@given(st.binary(max_size=40), st.sampled_from([b"", bytes(4) + b"ftyp", bytes(128), b"RIFF"]))
def test_any_bytes_are_some_kind_or_none(data, beginning):
    kind = formats.kind_of(beginning + data)
    assert kind is None or (kind.name and kind.remedy)


def test_the_thumbnail_of_a_raw_photo_is_not_taken_for_the_photo():
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[254] = 1
    raw = _encoded(Image.fromarray(_noise(6, 9)), "TIFF", tiffinfo=info)
    for read in (host.to_rgb, host.picture_size):
        with pytest.raises(ValueError, match="is a thumbnail, as in raw photos"):
            read(raw)
