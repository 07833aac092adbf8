# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Picture sheets: scenes with the box in red, what the target then sees, and what it says."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cropvlm_jax import geometry

SIDE, MARGIN, LINE = 320, 12, 22


def panel(
    image: Image.Image,
    box: Sequence[float] | None,
    captions: Sequence[str] = (),
    side: int = SIDE,
    truth: Sequence[float] | None = None,
    others: Sequence[Sequence[float]] = (),
) -> Image.Image:
    """One scene: the picture with `box` in red, its crop at the same height, lines of text below.

    Args:
        image: the picture.
        box: percent box; None where there is no crop.
        captions: lines of text.
        side: px of the longest side of the picture, and of that of the crop; of several crops,
            half of it.
        truth: the true box, in percent, which is drawn in green.
        others: percent boxes that are drawn in red as well, beside their crops.
    """
    places = [_pixels(image, each) for each in (box, *others) if each is not None]
    scale = side / max(image.size)
    scene = _resized(image, scale)
    draw = ImageDraw.Draw(scene)
    if truth is not None:
        there = [round(v * scale) for v in _pixels(image, truth)]
        draw.rectangle(there, outline="lime", width=3)
    sheet = Image.new("RGB", (2 * side + MARGIN, side + LINE * len(captions)), "white")
    longest = side if len(places) == 1 else side // 2
    for i, place in enumerate(places):
        draw.rectangle([round(v * scale) for v in place], outline="red", width=3)
        crop = image.crop(place)
        crop = _resized(crop, longest / max(crop.size))
        sheet.paste(crop, (side + MARGIN + i % 2 * longest, i // 2 * longest))
    sheet.paste(scene, (0, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, caption in enumerate(captions):
        draw.text((2, side + 2 + LINE * i), caption, fill="black", font=font)
    return sheet


def _pixels(image: Image.Image, box: Sequence[float]) -> tuple[int, int, int, int]:
    """A percent box of an image in its pixels: left, top, right, bottom."""
    left, top, right, bottom = geometry.to_pixels(np.array(box), np.array(image.size[::-1]))
    return int(left), int(top), int(right), int(bottom)


def grid(panels: Sequence[Image.Image], columns: int) -> Image.Image:
    """Panels of one size in rows of `columns`."""
    width, height = (n + 2 * MARGIN for n in panels[0].size)
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, image in enumerate(panels):
        sheet.paste(image, (i % columns * width + MARGIN, i // columns * height + MARGIN))
    return sheet


def _resized(image: Image.Image, scale: float) -> Image.Image:
    """A picture in another size; of a much larger one, quickly and nearly as well."""
    size = [max(round(edge * scale), 1) for edge in image.size]
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
