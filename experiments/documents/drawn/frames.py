# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How paper lies under a scanner or before a camera."""

import numpy as np

from .chance import between, often
from .document import Sheet
from .warp import STRIPS, Frame


def scanned(rng: np.random.Generator, sheet: Sheet) -> Frame:
    """The paper fills the picture, or nearly so."""
    width, height = sheet.image.size
    scale = 1.0 if often(rng, 0.6) else between(rng, 1.0, 1.2)
    most = 0.035 if often(rng, 0.2) else 0.005
    borders = [max(between(rng, -1, 1), -0.3) * most * width * scale for _ in range(4)]
    corners = _rectangle(borders[0], borders[1], width * scale, height * scale)
    bend = None
    if often(rng, 0.4):
        corners = _turned(rng, corners, 0.7)
        bend = _bent(rng, width) if often(rng, 0.4) else None
    return _framed(width * scale, height * scale, borders, corners, bend)


def exact(sheet: Sheet) -> Frame:
    """The sheet as it is."""
    width, height = sheet.image.size
    return Frame(width=width, height=height, corners=_rectangle(0, 0, width, height))


def photographed(rng: np.random.Generator, sheet: Sheet) -> Frame:
    """The paper lies on something, seen from an angle."""
    width, height = sheet.image.size
    borders = [between(rng, 0.0, 0.15) * width for _ in range(4)]
    corners = _turned(rng, _rectangle(borders[0], borders[1], width, height), 1.5)
    corners += rng.normal(size=(4, 2)) * 0.015 * width
    return _framed(width, height, borders, corners, _bent(rng, width))


def on_page(rng: np.random.Generator, sheet: Sheet) -> Frame:
    """A small receipt on the white page of a scanner or a copier."""
    width, height = sheet.image.size
    page = max(width / between(rng, 0.25, 0.46), height / 0.95 / 2**0.5)
    x = between(rng, 0.25, 0.6) * (page - width)
    y = min(between(rng, 0.0, 0.28) * page * 2**0.5, page * 2**0.5 - height)
    corners = _rectangle(x, y, width, height)
    if often(rng, 0.4):
        corners = _turned(rng, corners, 0.6)
    return Frame(width=round(page), height=round(page * 2**0.5), corners=corners)


def _framed(
    width: float, height: float, borders: list[float], corners: np.ndarray, bend: np.ndarray | None
) -> Frame:
    """The picture of paper of a size with borders: left, top, right, bottom."""
    return Frame(
        width=round(width + borders[0] + borders[2]),
        height=round(height + borders[1] + borders[3]),
        corners=corners,
        bend=bend,
    )


def _rectangle(x: float, y: float, width: float, height: float) -> np.ndarray:
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], np.float64)


def _turned(rng: np.random.Generator, corners: np.ndarray, degrees: float) -> np.ndarray:
    """Corners turned around their middle by a small random angle, and sheared a little."""
    angle = np.deg2rad(rng.normal() * degrees)
    shear = rng.normal() * np.deg2rad(degrees) * 0.3
    matrix = np.array([[np.cos(angle), -np.sin(angle) + shear], [np.sin(angle), np.cos(angle)]])
    middle = corners.mean(0)
    return (corners - middle) @ matrix.T + middle


def _bent(rng: np.random.Generator, width: int) -> np.ndarray:
    """A gentle wave along the paper."""
    along = np.linspace(0, 1, STRIPS + 1)
    wave = np.sin(along * between(rng, 1, 7) + rng.random() * 6)
    return wave * width * between(rng, 0, 0.012)
