# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Crops as files that fit what a client takes: neither too large nor too small to be read."""

import dataclasses
import io
from typing import Annotated

from PIL import Image

from cropvlm_jax.settings import Range, Settings

QUALITIES = (92, 85, 75)  # of JPEG, tried one after the other


@dataclasses.dataclass(frozen=True)
class Budget(Settings):
    """How large the crops of an answer may be.

    Attributes:
        max_edge: longest edge, px; larger crops are shrunk.
        min_edge: longest edge, px, to which smaller crops are enlarged, since models that read
            pictures see little in tiny ones; 0 leaves them as they are.
        max_kb: all crops of an answer together, thousands of bytes, as text of base64.
    """

    max_edge: Annotated[int, Range(16, 16_384)] = 1024
    min_edge: Annotated[int, Range(0, 16_384)] = 448
    max_kb: Annotated[int, Range(16, 100_000)] = 700

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: one is left, or the smallest crop would be larger than the largest.
        """
        super().__post_init__()
        if self.min_edge > self.max_edge:
            raise ValueError(
                f"min_edge={self.min_edge} must not be more than max_edge={self.max_edge}"
            )


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A crop as a file.

    Attributes:
        file: its bytes.
        kind: "png" or "jpeg".
        size: width and height in the file, px.
    """

    file: bytes
    kind: str
    size: tuple[int, int]


def encoded(crop: Image.Image, budget: Budget, crops: int = 1) -> Encoded:
    """A crop as a file within a budget: PNG if that fits, or else JPEG, or else smaller.

    Args:
        crop: RGB.
        budget: of the answer.
        crops: among how many crops the bytes are shared.
    """
    most = budget.max_kb * 1000 * 3 // 4 // crops
    longest = min(max(max(crop.size), budget.min_edge), budget.max_edge)
    shown = _resized(crop, longest)
    file = _file(shown, "PNG")
    if len(file) <= most:
        return Encoded(file, "png", shown.size)
    while True:
        for quality in QUALITIES:
            # Colours keep their resolution: small coloured print is what crops are about.
            file = _file(shown, "JPEG", quality=quality, subsampling=0)
            if len(file) <= most or longest == 1:
                return Encoded(file, "jpeg", shown.size)
        longest = max(longest * 4 // 5, 1)
        shown = _resized(crop, longest)


def _resized(picture: Image.Image, longest: int) -> Image.Image:
    """A picture whose longest edge is `longest`, with its aspect kept."""
    scale = longest / max(picture.size)
    width, height = (max(round(edge * scale), 1) for edge in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _file(picture: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
