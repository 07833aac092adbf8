# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Are crops and tiles that the device cuts those of PIL?"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from cropvlm_jax.checks.verdict import Verdict, judge
from cropvlm_jax.pixels import host, tile_crops
from cropvlm_jax.pixels.plans import PlannedTiles
from cropvlm_jax.pixels.tiles import cut_tiles

NAME = "crops, tiles = PIL's"
REMEDY = (
    "wrong tiles alone: --config.data.tiles=host; wrong crops cannot be switched off: do not train "
    "on this device; please report it"
)
TILED = 4  # pictures whose tiles are cut


class Difference(NamedTuple):
    """How far pictures are from others, each by itself; the worst of them counts.

    Attributes:
        unequal: share of a picture's numbers that differ.
        above_1: share of them that differ by more than 1 of 255.
        largest: the largest difference.
    """

    unequal: float
    above_1: float
    largest: int

    @classmethod
    def of(cls, got: np.ndarray, want: np.ndarray) -> "Difference":
        """Compares pictures, uint8 `[N, S, S, 3]`."""
        distance = np.abs(got.astype(np.int16) - want)
        shares = [float((distance > level).mean((1, 2, 3)).max()) for level in (0, 1)]
        return cls(shares[0], shares[1], int(distance.max()))

    def is_within(self, bound: "Difference") -> bool:
        """Whether nothing is larger than in `bound`."""
        return all(one <= most for one, most in zip(self, bound, strict=True))

    def __str__(self) -> str:
        return f"{self.unequal:.2%} differ, {self.above_1:.2%} by over 1, most {self.largest}"


BOUND = Difference(unequal=1e-2, above_1=1e-3, largest=3)


@dataclasses.dataclass(frozen=True)
class Boxes:
    """How many boxes of which pictures are cut.

    Attributes:
        side: S, pixels of a side of a crop and of a tile.
        canvas: height and width of the canvases.
        pictures: how many, of all shapes that fit the canvas.
        each: boxes of a picture.
    """

    side: int = 512
    canvas: tuple[int, int] = (2048, 2048)
    pictures: int = 10
    each: int = 20


TINY = Boxes(side=64, canvas=(330, 300))


def check(boxes: Boxes) -> Verdict:
    """Cuts random boxes, and tiles, out of random pictures on the device and with PIL.

    Args:
        boxes: how many.
    """
    found = {"crops": compare_crops(boxes), "tiles": compare_tiles(boxes)}
    count = boxes.pictures * boxes.each
    return judge(
        NAME,
        all(difference.is_within(BOUND) for difference in found.values()),
        f"{count} boxes: {found['crops']}; {TILED} pictures' tiles: {found['tiles']}",
        REMEDY,
        boxes=count,
        bound=BOUND._asdict(),
        differences={name: difference._asdict() for name, difference in found.items()},
    )


def compare_crops(boxes: Boxes) -> Difference:
    """Crops of the device and of PIL."""
    rng = np.random.default_rng(0)
    crop = jax.jit(functools.partial(tile_crops.crops, side=boxes.side))
    got, want = [], []
    for number in range(boxes.pictures):
        picture = random_picture(rng, boxes.canvas, number)
        drawn = random_boxes(rng, boxes.each)
        canvas, size = on_canvas(picture, boxes.canvas)
        got.append(crop(canvas, size, drawn[None])[0])
        cut = [host.cut(picture, box) for box in drawn]
        want.append([host.tile(part, boxes.side, boxes.side)[0][0] for part in cut])
    return Difference.of(np.concatenate(got), np.concatenate(want))


def compare_tiles(boxes: Boxes) -> Difference:
    """Tiles of the device and of PIL: 2 rows and 2 columns, and the whole picture as one more."""
    rng = np.random.default_rng(0)
    edge = 2 * boxes.side
    cut = jax.jit(functools.partial(cut_tiles, side=boxes.side, longest_edge=edge))
    got, want = [], []
    for number in range(TILED):
        picture = random_picture(rng, boxes.canvas, 0 if number == 0 else number + 2)
        # No wider than high and more than half as wide: of this grid.
        picture = picture[:, : picture.shape[0]][: picture.shape[1] * 3 // 2]
        plan = PlannedTiles.of(picture.shape[0], picture.shape[1], boxes.side, edge)
        plan = jax.tree.map(lambda x: x[None], plan)
        canvas, size = on_canvas(picture, boxes.canvas)
        got.append(cut(canvas, size, plan)[0])
        want.append(host.tile(picture, boxes.side, edge)[0])
    return Difference.of(np.concatenate(got), np.concatenate(want))


def on_canvas(picture: np.ndarray, canvas: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A picture on a canvas, uint8 `[1, Hc, Wc, 3]`, and its height and width, int32 `[1, 2]`."""
    padded = np.zeros((1, *canvas, 3), np.uint8)
    padded[0, : picture.shape[0], : picture.shape[1]] = picture
    return padded, np.array([picture.shape[:2]], np.int32)


def random_picture(rng: np.random.Generator, canvas: tuple[int, int], number: int) -> np.ndarray:
    """A picture that fits a canvas, uint8 `[H, W, 3]`: every other one smooth, the others noise.

    The first fills the canvas, the next are narrow ones, the others of any shape.
    """
    height, width = canvas
    if number in (1, 2):
        height, width = ((height, max(width // 100, 1)), (max(height // 30, 1), width))[number - 1]
    elif number:
        height, width = (int(rng.integers(edge // 8, edge + 1)) for edge in canvas)
    if number % 2:
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    small = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes in whole percent, int32 `[count, 4]`: the whole picture, thin ones, and any."""
    corners = np.sort(rng.integers(0, 101, (count, 2, 2)), axis=1)
    equal = corners[:, 0] == corners[:, 1]
    corners[:, 0] -= equal & (corners[:, 0] > 0)
    corners[:, 1] += corners[:, 0] == corners[:, 1]
    corners[0] = (0, 0), (100, 100)
    corners[1] = (50, 0), (51, 100)
    corners[2] = (0, 99), (100, 100)
    return corners.reshape(count, 4).astype(np.int32)
