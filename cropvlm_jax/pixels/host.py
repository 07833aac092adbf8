# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures on the host, with PIL: any file to RGB, and what models see of it."""

import io
import math
import os
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, JpegImagePlugin, TiffImagePlugin

from cropvlm_jax import geometry
from cropvlm_jax.pixels import formats, jpeg

MAX_EDGE = 4096  # the longest edge that SmolVLM's first resize ever produces
MAX_PIXELS = 2**28 // 3  # 256 MiB as RGB; 8K photos (33 million) and A3 scans at 600 dpi fit
# Not what PIL hands to other programs, such as PostScript.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_SUBFILE, _REDUCED = 254, 1  # TIFF's tag of the kind of a picture, and the small ones

Picture = Image.Image | np.ndarray | bytes | str | os.PathLike


def to_rgb(image: Picture) -> np.ndarray:
    """Converts a picture to RGB as people see it.

    The EXIF orientation is applied, transparency is composited on white, 16-bit grey levels are
    scaled to 8 bits; palettes, grey, 1-bit and CMYK pictures are converted; an animation gives its
    first frame.

    Args:
        image: A PIL image, an array `[H, W]` or `[H, W, C]` with C in 1, 3, 4 (uint8, uint16 or
            bool), an image file's bytes, or its path.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        OSError: If the file is missing, broken or no picture.
        ValueError: If the pixels cannot be understood, or are more than `MAX_PIXELS`, in which case
            none is decoded.
    """
    pixels = decoded(image)
    return pixels if pixels.flags.writeable else pixels.copy()


def decoded(image: Picture) -> np.ndarray:
    """What `to_rgb` returns, where it is only read: it may be read-only, and `image` itself."""
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image)
    if isinstance(image, Image.Image):
        return _pil_to_rgb(image, "the image")
    name = _name(image)
    with _open(image, name) as opened:
        _upright_size(opened, name)  # checks before decoding
        pixels = None
        if isinstance(opened, JpegImagePlugin.JpegImageFile):
            pixels = jpeg.decoded(_content(image, opened), opened)
        return _pil_to_rgb(opened, name) if pixels is None else pixels


def picture_size(image: Picture) -> tuple[int, int]:
    """Height and width of what `to_rgb` returns, from the file's header alone.

    Raises:
        OSError: If the file is missing or no picture.
        ValueError: If there are more than `MAX_PIXELS`, or none.
    """
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    if isinstance(image, Image.Image):
        return _upright_size(image, "the image")
    name = _name(image)
    with _open(image, name) as opened:
        return _upright_size(opened, name)


def resized(height: int, width: int, longest_edge: int) -> tuple[int, int]:
    """SmolVLM's first size rule: the longest edge becomes `longest_edge`, up or down.

    The other edge is `int(longest_edge / aspect)`, plus one if odd, at least one; whatever exceeds
    4096 px is then scaled down.
    """
    aspect = width / height
    if width >= height:
        height, width = int(longest_edge / aspect), longest_edge
        height = max(height + height % 2, 1)
    else:
        height, width = longest_edge, int(longest_edge * aspect)
        width = max(width + width % 2, 1)
    aspect = width / height
    if width >= height and width > MAX_EDGE:
        height, width = max(int(MAX_EDGE / aspect), 1), MAX_EDGE
    elif height > MAX_EDGE:
        height, width = MAX_EDGE, max(int(MAX_EDGE * aspect), 1)
    return height, width


def fitted(height: int, width: int, tile_size: int) -> tuple[int, int]:
    """SmolVLM's second size rule: both edges become multiples of the tile.

    The longest edge is rounded up, the other one follows the aspect and is then rounded up too: the
    aspect ratio is not kept.
    """
    aspect = width / height
    if width >= height:
        width = _round_up(width, tile_size)
        height = _round_up(int(width / aspect), tile_size)
    else:
        height = _round_up(height, tile_size)
        width = _round_up(int(height * aspect), tile_size)
    return height, width


def grid(height: int, width: int, tile_size: int, longest_edge: int) -> tuple[int, int]:
    """Rows and columns of the tiles that a picture of this size gets from `tile`."""
    height, width = resized(height, width, longest_edge)
    height, width = fitted(height, width, tile_size)
    if height == width == tile_size:
        return 0, 0
    return height // tile_size, width // tile_size


def tile(
    image: np.ndarray, tile_size: int, longest_edge: int, split: bool = True
) -> tuple[np.ndarray, tuple[int, int]]:
    """Cuts a picture into what the SmolVLM vision tower sees.

    Two PIL Lanczos passes on uint8, to `resized` and from there to `fitted`. If the result is one
    tile, that is all. Otherwise its tiles follow in row-major order, and last the whole of it
    resized to one tile. Equal to transformers' PIL image processor, before rescaling and
    normalising, to the last bit.

    Args:
        image: The picture, uint8 `[H, W, 3]`.
        tile_size: The input size of the vision tower, such as 512.
        longest_edge: The longest edge that the picture is resized to, such as 512, 1024 or 2048.
        split: False makes one tile of the whole picture, in one pass from `resized`.

    Returns:
        Tiles uint8 `[N, tile_size, tile_size, 3]` and their `(rows, columns)`. N is rows * columns
        + 1; a picture that is not split is one tile, of (0, 0).
    """
    height, width = resized(image.shape[0], image.shape[1], longest_edge)
    picture = _lanczos(Image.fromarray(image), height, width)
    height, width = fitted(height, width, tile_size) if split else (tile_size, tile_size)
    picture = _lanczos(picture, height, width)
    if height == width == tile_size:
        return np.asarray(picture)[None], (0, 0)
    rows, columns = height // tile_size, width // tile_size
    tiles = np.empty((rows * columns + 1, tile_size, tile_size, 3), np.uint8)
    cells = np.asarray(picture).reshape(rows, tile_size, columns, tile_size, 3)
    tiles[:-1].reshape(rows, columns, tile_size, tile_size, 3)[:] = cells.swapaxes(1, 2)
    tiles[-1] = np.asarray(_lanczos(picture, tile_size, tile_size))
    return tiles, (rows, columns)


def bicubic_square(
    image: np.ndarray, side: int, fill: tuple[int, int, int] | None = None
) -> np.ndarray:
    """Resizes a picture to what a CLIP vision tower sees.

    Equal to transformers' PIL image processors of CLIP (the shortest edge to `side`, then the
    centre) and of LLaVA with `do_pad`, before rescaling and normalising, to the last bit; but
    pictures so long that they would be enlarged to over 2**24 pixels may differ by a grey level.

    Args:
        image: The picture, uint8 `[H, W, 3]`.
        side: S, the input size of the vision tower, such as 336.
        fill: The colour that the picture is padded with to a square; None takes its centre.

    Returns:
        uint8 `[S, S, 3]`.
    """
    height, width = image.shape[:2]
    if fill is not None and height != width:
        longest = max(height, width)
        top, left = (longest - height) // 2, (longest - width) // 2
        padded = np.full((longest, longest, 3), fill, np.uint8)
        padded[top : top + height, left : left + width] = image
        image, height, width = padded, longest, longest
    high, wide = (side * edge // min(height, width) for edge in (height, width))
    top, left = (high - side) // 2, (wide - side) // 2
    if high * wide > 2**24:  # only the centre and what the filter reaches from there
        scale = np.array([width / wide, height / high])
        ends = np.array([[left, top], [left + side, top + side]]) * scale
        reach = math.ceil(2 * max(scale.max(), 1)) + 1
        x, y = np.maximum(ends[0].astype(int) - reach, 0)
        right, bottom = np.ceil(ends[1]).astype(int) + reach
        picture = Image.fromarray(image[y:bottom, x:right])
        box = (ends - (x, y)).clip(0, picture.size).ravel().tolist()
        return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC, box))
    picture = Image.fromarray(image)
    resized = np.asarray(picture.resize((wide, high), Image.Resampling.BICUBIC))
    return resized[top : top + side, left : left + side]


def smart_tiles(image: np.ndarray, limits: geometry.PixelLimits) -> np.ndarray:
    """Resizes a picture as Qwen2-VL's and Qwen2.5-VL's processors do, and cuts it into tiles.

    Equal to transformers' PIL image processor, before rescaling and normalising, to the last bit.

    Args:
        image: The picture, uint8 `[H, W, 3]`.
        limits: The limits of the processor; S is its factor.

    Returns:
        Tiles uint8 `[rows, columns, S, S, 3]`.

    Raises:
        ValueError: One side is more than 200 times the other.
    """
    (height, width), side = image.shape[:2], limits.factor
    high, wide = geometry.smart_resize(height, width, side, limits.min_pixels, limits.max_pixels)
    picture = Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC)
    tiles = np.asarray(picture).reshape(high // side, side, wide // side, side, 3)
    return tiles.swapaxes(1, 2)


def cut(image: np.ndarray, box: Any) -> np.ndarray:
    """The original pixels `[h, w, 3]` of a percent box of a picture `[H, W, 3]`, a view."""
    left, top, right, bottom = geometry.to_pixels(np.array(box), np.array(image.shape[:2]))
    return image[top:bottom, left:right]


def size_to_fit(height: int, width: int, most_high: int, most_wide: int) -> tuple[int, int]:
    """Height and width of a picture that is shrunk, its aspect kept, where it exceeds these."""
    scale = min(most_high / height, most_wide / width)
    if scale >= 1:
        return height, width
    return max(int(height * scale), 1), max(int(width * scale), 1)


def shrink_to_fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture `[H, W, 3]`, smaller and its aspect kept if it exceeds `height` x `width`."""
    high, wide = size_to_fit(image.shape[0], image.shape[1], height, width)
    if (high, wide) == image.shape[:2]:
        return image
    return np.asarray(_lanczos(Image.fromarray(image), high, wide))


def _name(image: bytes | str | os.PathLike) -> str:
    return f"the image's {len(image)} bytes" if isinstance(image, bytes) else os.fspath(image)


def _content(image: bytes | str | os.PathLike, opened: ImageFile.ImageFile) -> bytes:
    """The bytes of an opened file."""
    if isinstance(image, bytes):
        return image
    assert opened.fp is not None  # as long as it is open
    opened.fp.seek(0)
    return opened.fp.read()


def _open(image: bytes | str | os.PathLike, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image, "r", _FORMATS)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no image file {name}.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"Too many pixels in {name}: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise OSError(_refusal(image, name)) from error
    except Exception as error:  # PIL's readers raise nearly anything on a broken file
        raise OSError(f"Cannot open {name}: {error}") from error


def _refusal(image: bytes | str | os.PathLike, name: str) -> str:
    """Why there is no picture in a file, and what to do: what it is, where its bytes tell."""
    if isinstance(image, bytes):
        head = image[: formats.HEAD]
    else:
        with open(image, "rb") as file:
            head = file.read(formats.HEAD)
    known, kind = ", ".join(_FORMATS), formats.kind_of(head)
    if kind is None:
        return f"No picture in {name}: none of {known}. Convert it to JPEG or PNG."
    return f"No picture that can be opened in {name}: it is {kind.name}. To do: {kind.remedy}."


def _check_count(height: int, width: int, name: str) -> None:
    if not width * height:
        raise ValueError(f"There are no pixels in {name}: {width} x {height}.")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"Too many pixels in {name}: {width} x {height}, over the limit of {MAX_PIXELS}."
        )


def _upright_size(image: Image.Image, name: str) -> tuple[int, int]:
    width, height = image.size
    _check_count(height, width, name)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_SUBFILE) == _REDUCED:
        raise ValueError(
            f"The first picture in {name} is a thumbnail, as in raw photos (DNG, NEF): convert it "
            "to JPEG or PNG."
        )
    # A PNG's own getexif would decode the pixels.
    turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    if turned and isinstance(image, TiffImagePlugin.TiffImageFile):
        # Newer versions of PIL have turned its size already.
        return image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
    return (width, height) if turned else (height, width)


def _array_to_rgb(image: np.ndarray) -> np.ndarray:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ValueError(f"An image array must be [H, W] or [H, W, 1|3|4], got {image.shape}.")
    if 0 in image.shape:
        raise ValueError(f"The image array {image.shape} has no pixels.")
    if image.dtype == np.bool_:
        image = image * np.uint8(255)
    elif image.dtype == np.uint16:
        image = _to_8_bits(image)
    elif image.dtype != np.uint8:
        raise ValueError(f"An image array must be uint8, uint16 or bool, got {image.dtype}.")
    _check_count(image.shape[0], image.shape[1], "the image array")
    if image.ndim == 3 and image.shape[2] == 3:
        image = image.view()
        image.flags.writeable = False
        return image
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    return _pil_to_rgb(Image.fromarray(np.ascontiguousarray(image)), "the image array")


def _pil_to_rgb(image: Image.Image, name: str) -> np.ndarray:
    # Checks before decoding. PIL keeps the EXIF that this reads: what a PNG has behind its pixels
    # turns neither size nor picture.
    _upright_size(image, name)
    try:
        image = ImageOps.exif_transpose(image)  # also decodes the file
    except Exception as error:
        raise OSError(f"Cannot decode {name}: {error}") from error
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"Grey levels outside of 16 bits in {name}: cannot convert to RGB.")
        image = Image.fromarray(_to_8_bits(levels))
    if image.mode == "F":
        raise ValueError(f"Floating-point pixels in {name}: convert it to 8 or 16 bits.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _to_8_bits(levels: np.ndarray) -> np.ndarray:
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 257 = 255


def _round_up(value: int, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple


def _lanczos(image: Image.Image, height: int, width: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.LANCZOS)
