# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Percent boxes: their text, order, area, overlap and expansion.

A box is four integers `x1, y1, x2, y2` in percent of the image's width and height, 0..100, with
x2 > x1 and y2 > y1. All functions take NumPy arrays (in data workers) and JAX arrays (under jit)
alike, and JAX is not imported here.
"""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

Array = Any  # np.ndarray or jax.Array
Box = tuple[int, int, int, int]
FineBox = tuple[float, float, float, float]  # of two looks, see `frames.inside`; or a `Box`
FULL = (0, 0, 100, 100)
QUINTILE_FACTORS = (45, 10, 4, 2, 1)  # of the smallest fifth of the boxes first
PAPER_BOUNDS = (0.0016, 0.0038, 0.0091, 0.0351)  # quintiles of seed areas, CropVLM's table 2
MAX_BOXES = 4  # that a reply may have
NOT_NEEDED = "Not needed."  # the reply that names no box
_REPLY = re.compile(r"\[\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\]")


def check_finite(boxes: Array) -> None:
    """Refuses coordinates that are no numbers; of NumPy arrays, as nothing can be raised under jit.

    Args:
        boxes: Boxes in any frame, `[..., 4]`.

    Raises:
        ValueError: A coordinate is NaN or infinite.
    """
    if isinstance(boxes, np.ndarray) and boxes.dtype.kind == "f":
        finite = np.isfinite(boxes).all(axis=-1)
        if not finite.all():
            box = boxes[~finite][0].tolist()
            raise ValueError(f"box {box}: a coordinate is not a finite number")


def zero_where_not_finite(converted: Array, boxes: Array) -> Array:
    """What boxes were converted to, but 0, 0, 0, 0, which is not valid, where they are not finite.

    Args:
        converted: The boxes in another frame, `[..., 4]`.
        boxes: The boxes that they were, `[..., 4]`.
    """
    xp = boxes.__array_namespace__()
    if not xp.isdtype(boxes.dtype, "real floating"):
        return converted
    finite = xp.all(xp.isfinite(boxes), axis=-1, keepdims=True)
    return xp.where(finite, converted, xp.zeros_like(converted))


def to_text(box: Any) -> str:
    """The reply that names one box, such as `[12, 5, 40, 33].`; raises as `check_finite` does."""
    return reply_text([box])


def reply_text(boxes: Iterable[Any]) -> str:
    """The reply that names boxes, such as `[12, 5, 40, 33], [50, 0, 60, 9].`.

    Args:
        boxes: Four numbers each; none at all is the reply that nothing is to be looked at.

    Raises:
        ValueError: A coordinate is NaN or infinite.
    """
    written = []
    for box in boxes:
        check_finite(np.asarray(box))
        x1, y1, x2, y2 = (int(edge) for edge in box)
        written.append(f"[{x1}, {y1}, {x2}, {y2}]")
    return ", ".join(written) + "." if written else NOT_NEEDED


def parse(text: str) -> Box | None:
    """The first box in `text`, or None where there is none or it is not valid."""
    match = _REPLY.search(text)
    return None if match is None else _valid(match)


def parse_all(text: str) -> tuple[Box, ...] | None:
    """The boxes of a reply in canonical order, or None where it is no reply.

    Args:
        text: What a cropper wrote, with other words around it or not.

    Returns:
        The valid boxes, each once; none where the reply is `NOT_NEEDED`.
    """
    boxes = [box for match in _REPLY.finditer(text) if (box := _valid(match)) is not None]
    if boxes:
        return in_order(boxes)
    return () if NOT_NEEDED.rstrip(".") in text else None


def _valid(match: re.Match[str]) -> Box | None:
    """The box of a match of `_REPLY`, where it is a valid one."""
    x1, y1, x2, y2 = (int(v) for v in match.groups())
    return (x1, y1, x2, y2) if is_valid(np.array([x1, y1, x2, y2])) else None


def in_order(boxes: Iterable[Any]) -> tuple[Box, ...]:
    """Boxes as a reply names them: each once, by x1, then y1, then x2, then y2.

    So a set of boxes has one reply.
    """
    whole: set[Box] = set()
    for box in boxes:
        x1, y1, x2, y2 = (int(edge) for edge in box)
        whole.add((x1, y1, x2, y2))
    return tuple(sorted(whole))


def successor(boxes: Array) -> Array:
    """The next box in the order of `in_order`, of all that there are.

    Args:
        boxes: Valid boxes, int `[..., 4]`.

    Returns:
        Int `[..., 4]`; after the last box, 99, 99, 100, 100, comes none: there x1 is 100.
    """
    xp = boxes.__array_namespace__()
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    found = xp.stack([x1 + 1, x1 * 0, x1 + 2, x1 * 0 + 1], axis=-1)
    for possible, following in (
        (y1 < 99, (x1, y1 + 1, x1 + 1, y1 + 2)),
        (x2 < 100, (x1, y1, x2 + 1, y1 + 1)),
        (y2 < 100, (x1, y1, x2, y2 + 1)),
    ):
        found = xp.where(possible[..., None], xp.stack(following, axis=-1), found)
    return found


def is_valid(boxes: Array) -> Array:
    """Whether boxes `[..., 4]` are inside the image, ordered and not empty: bool `[...]`."""
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return (0 <= x1) & (x1 < x2) & (x2 <= 100) & (0 <= y1) & (y1 < y2) & (y2 <= 100)


def area(boxes: Array) -> Array:
    """Share of the image that boxes `[..., 4]` cover, 0..1 `[...]`."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]) / 10_000


def intersection(boxes: Array, others: Array) -> Array:
    """Share of the image that lies in both of `[..., 4]` and `[..., 4]`, 0..1 `[...]`."""
    xp = boxes.__array_namespace__()
    low = xp.maximum(boxes[..., :2], others[..., :2])
    high = xp.minimum(boxes[..., 2:], others[..., 2:])
    return xp.prod(xp.maximum(high - low, 0), axis=-1) / 10_000


def iou(boxes: Array, others: Array) -> Array:
    """Intersection over union of `[..., 4]` and `[..., 4]`, 0..1 `[...]`."""
    both = intersection(boxes, others)
    return both / (area(boxes) + area(others) - both)


def coverage(boxes: Array, truth: Array) -> Array:
    """Share of the `truth` boxes `[..., 4]` that `boxes` `[..., 4]` contain, 0..1 `[...]`."""
    return intersection(boxes, truth) / area(truth)


def expand(boxes: Array, factor: Any) -> Array:
    """Scales boxes' areas about their centres, as the official CropVLM data preparation does.

    Each side grows by sqrt(factor). A box that then reaches beyond the image is shifted back inside
    it, and clamped where it is too large for that. Coordinates are rounded down, but a box keeps
    one percent of each side at least.

    Args:
        boxes: Percent boxes, int or float `[..., 4]`.
        factor: What areas are multiplied with, a number or `[...]`.

    Returns:
        Valid boxes, int `[..., 4]`.

    Raises:
        ValueError: A coordinate is NaN or infinite.
    """
    xp = boxes.__array_namespace__()
    low, high = _expanded(boxes, factor)
    whole = boxes.dtype if xp.isdtype(boxes.dtype, "integral") else int
    high = xp.floor(high).astype(whole)
    low = xp.minimum(xp.floor(low).astype(whole), 99)
    expanded = xp.concatenate([low, xp.maximum(high, low + 1)], axis=-1)
    return zero_where_not_finite(expanded, boxes)


def expand_reply(boxes: Array, factor: Any) -> Array:
    """Scales the areas of a cropper's boxes: whole percent as `expand`, hundredths to hundredths.

    Args:
        boxes: Percent boxes, int, or of two looks float, `[..., 4]`.
        factor: What areas are multiplied with, a number or `[...]`.

    Returns:
        Valid boxes `[..., 4]`, int or float as they were; a float box keeps 0.01 of each side.

    Raises:
        ValueError: A coordinate is NaN or infinite.
    """
    xp = boxes.__array_namespace__()
    if xp.isdtype(boxes.dtype, "integral"):
        return expand(boxes, factor)
    low, high = (xp.round(edges * 100) for edges in _expanded(boxes, factor))
    low = xp.minimum(low, 9_999)
    expanded = xp.concatenate([low, xp.maximum(high, low + 1)], axis=-1) / 100
    return zero_where_not_finite(expanded, boxes)


def _expanded(boxes: Array, factor: Any) -> tuple[Array, Array]:
    """Left and top, and right and bottom, `[..., 2]`, of scaled boxes before they are rounded."""
    check_finite(boxes)
    xp = boxes.__array_namespace__()
    size = (boxes[..., 2:] - boxes[..., :2]) * xp.asarray(factor)[..., None] ** 0.5
    size = xp.minimum(size, 100.0)
    low = (boxes[..., 2:] + boxes[..., :2]) / 2 - size / 2
    low = xp.clip(low, 0, 100 - size)
    return low, low + size


def expand_by_quintile(boxes: Array, bounds: Array | None = None) -> Array:
    """Expands seed boxes, the small ones more: area x45, x10, x4, x2, x1 by quintile of area.

    Args:
        boxes: Percent boxes, int or float `[N, 4]`.
        bounds: Areas 0..1 `[4]` where the second to fifth quintiles begin, such as `PAPER_BOUNDS`;
            None takes the quintiles of `boxes`, as in the official code.

    Returns:
        Valid boxes, int `[N, 4]`.
    """
    xp = boxes.__array_namespace__()
    areas = area(boxes)
    if bounds is None:
        bounds = xp.quantile(areas, xp.asarray([0.2, 0.4, 0.6, 0.8]))
    quintile = xp.searchsorted(xp.asarray(bounds), areas, side="right")
    return expand(boxes, xp.asarray(QUINTILE_FACTORS)[quintile])
