# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""JPEG files through libjpeg-turbo's own interface: Pillow's pixels in less time.

Pillow decodes with libjpeg-turbo too, then copies three times: from rows to its own memory of 4
bytes a pixel, to bytes, and to an array.
"""

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

_TURNS = range(2, 9)  # EXIF orientations that are not upright


def decoded(data: bytes, header: Image.Image) -> np.ndarray | None:
    """The pixels of a JPEG file, or None where Pillow is to decode it.

    That is whatever is not plain: CMYK, pictures that EXIF turns, several pictures in one file, and
    files in which the decoder finds any fault. What becomes of a fault, such as a file that is cut
    short, is so decided in one place, by Pillow.

    Args:
        data: The file.
        header: The file as Pillow opened it; its pixels are not read.

    Returns:
        uint8 `[H, W, 3]`, equal to Pillow's.
    """
    if header.format != "JPEG" or header.mode not in ("L", "RGB"):
        return None
    if header.getexif().get(ExifTags.Base.Orientation) in _TURNS:
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        return None
    return pixels if pixels.shape == (header.height, header.width, 3) else None
