# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Are the tiles that a step cuts those of the host, on pictures of all shapes?

    python experiments/check_tiles.py --json=experiments/check_tiles.json

Each picture is put on its canvas and cut twice, at 512, 1024 and 2048 px: by the program that runs
on accelerators, and by Pillow. Pictures of one canvas and grid share a compiled program. The file
is written after each such group, and a run that finds it goes on behind the groups that it has.
"""

import collections
import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
import PIL
from absl import flags, logging
from PIL import Image

from cropvlm_jax import apps
from cropvlm_jax.pixels import canvas, host
from cropvlm_jax.pixels.plans import PlannedTiles
from cropvlm_jax.pixels.tiles import cut_tiles

JSON = flags.DEFINE_string("json", None, "File of the results.", required=True)
PICTURES = flags.DEFINE_integer("pictures", 1000, "Pictures, each at all pixels.", lower_bound=1)

SIDE, LARGEST = 512, 4096
EDGES = (512, 1024, 2048)
CORNERS = (  # height, width
    (9, 17),
    (17, 9),
    (1, 1),
    (1, LARGEST),
    (LARGEST, 1),
    (700, 2100),
    (2100, 700),
    (1365, LARGEST),
    (2200, 1700),
    (3024, 4032),
    (LARGEST, LARGEST),  # shrunk to its canvas
)


def shape(number: int) -> tuple[int, int]:
    """Height and width of a picture: first `CORNERS`, then log-uniform, a tenth of them 1 px thin.

    Another tenth is three times as long as wide, on either side.
    """
    if number < len(CORNERS):
        return CORNERS[number]
    rng = np.random.default_rng([number, 0])
    height, width = np.exp(rng.uniform(0, np.log(LARGEST), 2)).astype(int).tolist()
    if number % 10 == 0:
        height = 1
    elif number % 10 == 1:
        height = -(-width // 3)
    return (width, height) if number % 20 < 10 else (height, width)


def picture(number: int) -> np.ndarray:
    """Noise, black and white noise, a gradient full of ties, or soft colours; uint8 `[H, W, 3]`."""
    (height, width), rng = shape(number), np.random.default_rng([number, 1])
    kind = rng.integers(4)
    if kind == 0:
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    if kind == 1:
        return rng.choice(np.array([0, 255], np.uint8), (height, width, 3))
    if kind == 2:
        row, column = np.mgrid[:height, :width, :3][:2]
        return (row * rng.integers(0, 3, 3) + column).astype(np.uint8)
    soft = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
    return np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC))


def groups(count: int) -> dict[tuple[int, canvas.Canvas, tuple[int, int]], list[int]]:
    """The numbers of pictures by pixels of the longest edge, canvas and grid."""
    found = collections.defaultdict(list)
    for number in range(count):
        height, width = shape(number)
        on = canvas.FITTED[canvas.choose(height, width, canvas.FITTED)]
        fitted = host.size_to_fit(height, width, on.height, on.width)
        for edge in EDGES:
            grid = PlannedTiles.of(*fitted, SIDE, edge).cells.shape
            found[edge, on, grid].append(number)
    return dict(found)


def compare(edge: int, on: canvas.Canvas, numbers: list[int]) -> np.ndarray:
    """How many values of the tiles of these pictures differ by each number of levels, `[256]`."""
    cut = jax.jit(functools.partial(cut_tiles, side=SIDE, longest_edge=edge))
    counts = np.zeros(256, np.int64)
    for number in numbers:
        placed = canvas.place(picture(number), canvases=[on])
        plan = PlannedTiles.of(*placed.picture.shape[:2], SIDE, edge)
        row = jax.tree.map(lambda x: x[None], (placed.canvas, placed.size, plan))
        ours = np.asarray(cut(*row)[0])
        theirs, _ = host.tile(placed.picture, SIDE, edge)
        levels = np.abs(ours.astype(np.int16) - theirs)
        counts += np.bincount(levels.ravel(), minlength=256)
    return counts


def result(
    edge: int, on: canvas.Canvas, grid: tuple[int, int], numbers: list[int]
) -> dict[str, Any]:
    """The result of a group."""
    counts = compare(edge, on, numbers)
    return {
        "longest_edge": edge,
        "canvas": list(on),
        "grid": list(grid),
        "pictures": len(numbers),
        "values": int(counts.sum()),
        "differ": int(counts[1:].sum()),
        "differ_by_over_1": int(counts[2:].sum()),
        "largest_difference": int(np.flatnonzero(counts).max()),
    }


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The largest difference and the shares of values that differ, by pixels."""
    rows = []
    for edge in EDGES:
        of_edge = [one for one in found if one["longest_edge"] == edge]
        if not of_edge:
            continue
        values = sum(one["values"] for one in of_edge)
        rows.append(
            {
                "longest_edge": edge,
                "pictures": sum(one["pictures"] for one in of_edge),
                "largest_difference": max(one["largest_difference"] for one in of_edge),
                "share_differing": sum(one["differ"] for one in of_edge) / values,
                "share_over_1": sum(one["differ_by_over_1"] for one in of_edge) / values,
            }
        )
    return rows


def main(argv: list[str]) -> None:
    """Compares group after group, and writes the file."""
    del argv
    file = pathlib.Path(JSON.value)
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = kept["groups"] if kept.get("asked") == PICTURES.value else []
    done = {(one["longest_edge"], tuple(one["canvas"]), tuple(one["grid"])) for one in found}
    for (edge, on, grid), numbers in sorted(groups(PICTURES.value).items()):
        if (edge, on, grid) in done:
            continue
        found.append(result(edge, on, grid, numbers))
        told = {
            "asked": PICTURES.value,
            "platform": jax.default_backend(),
            "pillow": PIL.__version__,
            "summary": summary(found),
            "groups": found,
        }
        file.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        print(found[-1], flush=True)
    for row in summary(found):
        print(row)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    apps.run_script(main)
