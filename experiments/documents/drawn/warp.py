# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where a sheet lies in a picture: turned, in perspective, bent; and where its boxes go."""

import dataclasses

import numpy as np
from PIL import Image

from .document import Box, Sheet

STRIPS = 16  # of equal height, in which a bent sheet is straight
_COLUMNS = 4  # in which a strip is cut, as pieces of it are drawn without perspective


@dataclasses.dataclass(frozen=True)
class Frame:
    """The place of a sheet in a picture.

    Attributes:
        width, height: Of the picture in pixels.
        corners: Where the sheet's corners are, clockwise from the upper left one: `[4, 2]`.
        bend: How far to the right the sheet is pushed at evenly spaced heights of the picture, in
            pixels: `[STRIPS + 1]`; None where it is flat.
    """

    width: int
    height: int
    corners: np.ndarray
    bend: np.ndarray | None = None

    def within(self, longest: int) -> "Frame":
        """This frame, smaller where an edge of the picture is longer than that."""
        scale = min(1.0, longest / max(self.width, self.height))
        return Frame(
            width=round(self.width * scale),
            height=round(self.height * scale),
            corners=self.corners * scale,
            bend=None if self.bend is None else self.bend * scale,
        )

    def forward(self, points: np.ndarray, sheet: Sheet) -> np.ndarray:
        """From points of the sheet to points of the picture, `[..., 2]`."""
        moved = _project(_homography(_corners(sheet.image), self.corners), points)
        if self.bend is not None:
            moved[..., 0] += np.interp(moved[..., 1], self._heights(), self.bend)
        return moved

    def photograph(self, sheet: Sheet) -> Image.Image:
        """The sheet's ink as the picture shows it; none beyond the sheet."""
        low, high = self.corners[0], self.corners[2]
        upright = np.array([low, (high[0], low[1]), high, (low[0], high[1])])
        if self.bend is None and np.allclose(self.corners, upright):
            return self._resized(sheet.image, low, high)
        image = sheet.image
        shrinking = np.linalg.norm(high - low) / np.hypot(*image.size)
        if shrinking < 0.8:  # the transforms below would skip pixels
            image = image.resize((round(image.width * shrinking), round(image.height * shrinking)))
        size = self.width, self.height
        back = _homography(self.corners, _corners(image))
        if self.bend is None:
            to_sheet = (back / back[2, 2]).ravel()[:8].tolist()
            return image.transform(size, Image.Transform.PERSPECTIVE, to_sheet, _SMOOTH)
        return image.transform(size, Image.Transform.MESH, self._mesh(back), _SMOOTH)

    def boxes(self, boxes: np.ndarray, sheet: Sheet) -> np.ndarray:
        """Boxes `[N, 4]` of the sheet, as the smallest that hold them in the picture."""
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).astype(np.float64)
        moved = self.forward(corners, sheet)
        return np.concatenate([moved.min(1), moved.max(1)], 1)

    def clipped(self, box: Box) -> Box:
        """The part of a box that the picture shows."""
        left, right = np.clip([box[0], box[2]], 0, self.width).tolist()
        top, bottom = np.clip([box[1], box[3]], 0, self.height).tolist()
        return left, top, right, bottom

    def _heights(self) -> np.ndarray:
        return np.linspace(0, self.height, STRIPS + 1)

    def _resized(self, ink: Image.Image, low: np.ndarray, high: np.ndarray) -> Image.Image:
        (left, top), (right, bottom) = np.rint(low).astype(int), np.rint(high).astype(int)
        image = Image.new("L", (self.width, self.height))
        image.paste(ink.resize((right - left, bottom - top), _SMOOTH), (left, top))
        return image

    def _mesh(self, back: np.ndarray) -> list[tuple[tuple[int, ...], list[float]]]:
        """Patches of the picture, and the four corners of the sheet that each shows."""
        assert self.bend is not None
        rows = np.rint(self._heights()).astype(int).tolist()
        columns = np.rint(np.linspace(0, self.width, _COLUMNS + 1)).astype(int).tolist()
        x, y = np.meshgrid(columns, rows)
        sources = _project(back, np.stack([x - self.bend[:, None], y], -1).astype(np.float64))
        patches: list[tuple[tuple[int, ...], list[float]]] = []
        for row, (top, bottom) in enumerate(zip(rows, rows[1:], strict=False)):
            for column, (left, right) in enumerate(zip(columns, columns[1:], strict=False)):
                (upper_left, upper_right), (lower_left, lower_right) = sources[
                    row : row + 2, column : column + 2
                ]
                quad = np.concatenate([upper_left, lower_left, lower_right, upper_right])
                patches.append(((left, top, right, bottom), quad.tolist()))
        return patches


_SMOOTH = Image.Resampling.BILINEAR


def _corners(image: Image.Image) -> np.ndarray:
    width, height = image.size
    return np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)


def _homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The projection `[3, 3]` that takes four points to four others."""
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    return np.append(np.linalg.solve(np.array(rows), target.ravel()), 1).reshape(3, 3)


def _project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    return moved[..., :2] / moved[..., 2:]
