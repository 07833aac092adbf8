# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures as files: in which format a reader outside of this process gets them."""

import base64
import dataclasses
import io
import re

import numpy as np
from PIL import Image

JPEG_EDGE = 65_500  # px, the most that libjpeg writes


@dataclasses.dataclass(frozen=True)
class PictureFormat:
    """Which pictures are sent as PNG, without loss, and which as JPEG.

    Attributes:
        quality: of JPEG, 1..100; None sends every picture as PNG.
        lossless: pictures of up to so many pixels are PNG; of a larger one the smaller file is
            sent, as PNG of screenshots and drawings is smaller than JPEG.
        compress_level: of PNG, as zlib's, -1 for its default: 1 takes 0.4 of the time, for files
            that are 15% larger.
    """

    quality: int | None = 90
    lossless: int = 2**20
    compress_level: int = -1

    def __post_init__(self) -> None:
        """Checks the quality.

        Raises:
            ValueError: it is out of range.
        """
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"the quality of JPEG is 1 to 100, not {self.quality}")

    @classmethod
    def named(cls, name: str) -> "PictureFormat":
        """The format of a name: "png", or "jpeg" and its quality, of all pictures.

        Raises:
            ValueError: there is no such format.
        """
        if name == "png":
            return cls(quality=None)
        if found := re.fullmatch(r"jpeg(\d+)", name):
            return cls(quality=int(found[1]), lossless=0)
        raise ValueError(f"{name!r} is neither png nor jpeg with a quality, such as jpeg85")

    def __str__(self) -> str:
        """What is sent, for reports and records."""
        if self.quality is None:
            return "PNG"
        larger = f"JPEG of quality {self.quality}, or PNG where that is smaller"
        return f"PNG up to {self.lossless} px, then {larger}" if self.lossless else larger

    def data_url(self, picture: np.ndarray) -> str:
        """A picture, uint8 RGB `[H, W, 3]`, as a `data:` URL."""
        height, width = picture.shape[:2]
        if (
            self.quality is None
            or height * width <= self.lossless
            or max(height, width) > JPEG_EDGE
        ):
            return _data_url("png", encoded(picture, "PNG", compress_level=self.compress_level))
        # Colours keep their resolution: small coloured print is what crops are about.
        jpeg = encoded(picture, "JPEG", quality=self.quality, subsampling=0)
        fast_png = encoded(picture, "PNG", compress_level=1)
        if len(fast_png) < len(jpeg):
            return _data_url("png", fast_png)
        return _data_url("jpeg", jpeg)


def png(picture: np.ndarray) -> bytes:
    """A picture, uint8 RGB `[H, W, 3]`, as a PNG file."""
    return encoded(picture, "PNG")


def encoded(picture: np.ndarray, kind: str, **options: int) -> bytes:
    """A picture, uint8 RGB `[H, W, 3]`, as a file of PIL's format `kind`."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def _data_url(kind: str, file: bytes) -> str:
    """An encoded picture as a `data:` URL."""
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"
