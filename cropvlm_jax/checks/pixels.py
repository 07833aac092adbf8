# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Are crops that the device cuts those of PIL?"""

import dataclasses
import functools

import jax
import numpy as np
from PIL import Image

from cropvlm_jax.checks.verdict import Verdict, judge
from cropvlm_jax.pixels import host, tile_crops

NAME = "crops = PIL's"
REMEDY = "nothing can be switched off: do not train on this device, and please report it"
# Of a crop's numbers: how many may differ from PIL's at all, by more than 1 of 255, and the most.
MOST_UNEQUAL, MOST_ABOVE_1, LARGEST = 1e-2, 1e-3, 3


@dataclasses.dataclass(frozen=True)
class Boxes:
    """How many boxes of which pictures are cut.

    Attributes:
        side: S, pixels of a crop's side.
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
    """Cuts random boxes out of random pictures on the device and with PIL.

    Args:
        boxes: how many.
    """
    rng = np.random.default_rng(0)
    crop = jax.jit(functools.partial(tile_crops.crops, side=boxes.side))
    differences = []
    for number in range(boxes.pictures):
        picture = random_picture(rng, boxes.canvas, number)
        drawn = random_boxes(rng, boxes.each)
        canvas = host.pad_to_canvas(picture, *boxes.canvas)
        size = np.array(picture.shape[:2], np.int32)
        (got,) = np.asarray(crop(canvas[None], size[None], drawn[None]), np.int16)
        want = [host.tile(host.cut(picture, b), boxes.side, boxes.side)[0][0] for b in drawn]
        differences.append(np.abs(got - np.array(want)))
    found = np.concatenate(differences)
    of_boxes = (1, 2, 3)
    unequal = float((found > 0).mean(of_boxes).max())
    above_1 = float((found > 1).mean(of_boxes).max())
    largest = int(found.max())
    return judge(
        NAME,
        unequal <= MOST_UNEQUAL and above_1 <= MOST_ABOVE_1 and largest <= LARGEST,
        f"{len(found)} boxes; in the worst {unequal:.2%} of the numbers differ, {above_1:.2%} by "
        f"more than 1 of 255, at most by {largest}",
        REMEDY,
        boxes=len(found),
        unequal=unequal,
        above_1=above_1,
        largest=largest,
        bounds={"unequal": MOST_UNEQUAL, "above_1": MOST_ABOVE_1, "largest": LARGEST},
    )


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
