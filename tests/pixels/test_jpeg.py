# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whatever is done with a JPEG file, its pixels, or the refusal of it, are Pillow's."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from cropvlm_jax.pixels import host, jpeg

SMOOTH = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
)  # enlarged: colours as of photos
SAVED = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "poor": {"quality": 5},
    "progressive": {"progressive": True},
    "optimised": {"optimize": True},
    "restarts": {"restart_marker_blocks": 3},
    "restarts, progressive": {"restart_marker_rows": 1, "progressive": True},
    "rgb": {"keep_rgb": True},
    "profile": {"icc_profile": b"no profile" * 9000},
    "comment": {"comment": b"\xff\xd8\xff\xda"},
}
SIZES = ((1, 1), (9, 17), (64, 64), (1, 50), (131, 77))  # width, height


def saved(mode: str = "RGB", size: tuple[int, int] = (131, 77), **options) -> bytes:
    file = io.BytesIO()
    picture = SMOOTH.resize(size, Image.Resampling.BICUBIC).convert(mode)
    picture.save(file, "JPEG", **{"quality": 85} | options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray | None:
    """The pixels; None where Pillow cannot decode the file."""
    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError):
        return None


def check(data: bytes) -> None:
    expected = by_pillow(data)
    if expected is None:
        with pytest.raises(OSError):
            host.to_rgb(data)
    else:
        np.testing.assert_array_equal(host.to_rgb(data), expected)


def is_fast(data: bytes) -> bool:
    return jpeg.decoded(data, Image.open(io.BytesIO(data))) is not None


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", SAVED)
def test_pixels_are_those_of_pillow(kind, mode):
    for size in SIZES:
        data = saved(mode, size, **SAVED[kind])
        assert is_fast(data)
        check(data)


@pytest.mark.parametrize("orientation", range(10))
def test_what_exif_turns_is_left_to_pillow(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(exif=exif)
    assert is_fast(data) == (orientation not in range(2, 9))
    check(data)


def test_other_colours_and_several_pictures_are_left_to_pillow():
    several = io.BytesIO()
    SMOOTH.save(several, "MPO", save_all=True, append_images=[SMOOTH.rotate(180)])
    for data in (saved("CMYK"), several.getvalue()):
        assert not is_fast(data)
        check(data)


def test_a_file_that_is_cut_short_is_refused_as_pillow_does():
    whole = saved()
    for share in (0.3, 0.5, 0.9, 0.99):
        data = whole[: int(share * len(whole))]
        with pytest.raises(OSError, match="Cannot"):
            host.to_rgb(data)
    assert whole[-2:] == b"\xff\xd9"
    for data in (whole[:-1], whole[:-2], whole[:-3], whole + b"and more", whole * 2):
        check(data)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it finds
@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "restarts"])
def test_damaged_files_come_out_as_of_pillow(kind):
    whole, rng = saved(**SAVED[kind]), np.random.default_rng(1)
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(2, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        check(bytes(data))


def test_a_path_is_read_as_its_bytes_are(tmp_path):
    data = saved()
    (tmp_path / "x.png").write_bytes(data)  # whatever it is called
    np.testing.assert_array_equal(host.to_rgb(tmp_path / "x.png"), by_pillow(data))
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match="cut.jpg"):
        host.to_rgb(tmp_path / "cut.jpg")


def test_what_is_decoded_may_be_written_to():
    for image in (saved(), saved("CMYK"), SMOOTH, np.asarray(SMOOTH)):
        pixels = host.to_rgb(image)
        before = np.asarray(SMOOTH).copy()
        pixels[:] = 0
        np.testing.assert_array_equal(SMOOTH, before)
