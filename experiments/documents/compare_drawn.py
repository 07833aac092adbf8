# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How drawn documents differ from real ones: where answers lie, and how the pictures look.

    python experiments/documents/compare_drawn.py --json=experiments/documents/drawn.json
    python experiments/documents/compare_drawn.py --receipts=FOLDER --pages=FOLDER --count=200

Reads the training splits only: of SROIE, and of the suite of pages where its folder is given. For
each field: mean and deviation over the questions of the middle, width and height of its box, in
percent of the picture as everywhere; for the pictures: shape and greys.
"""

import json
import pathlib
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags
from drawn import Document, draw_page, draw_receipt
from PIL import Image

from cropvlm_jax import apps, geometry
from cropvlm_jax.data.source import Source
from cropvlm_jax.data.sources import jsonl, sroie
from cropvlm_jax.pixels import host

RECEIPTS = flags.DEFINE_string("receipts", "../shared/data/sroie", "Folder of SROIE.")
PAGES = flags.DEFINE_string("pages", None, "Folder of the suite of pages; else they are left out.")
COUNT = flags.DEFINE_integer("count", 500, "Documents to draw of each kind.", lower_bound=2)
JSON = flags.DEFINE_string("json", None, "Where to write the figures; else they are printed only.")

Boxes = dict[str, list[list[float]]]
_BORDER = 60  # the part of a picture's width that is its border


def main(_: list[str]) -> None:
    found = {
        "receipts": {
            "real": _real(sroie.open(RECEIPTS.value, "train"), every=1),
            "drawn": _drawn(draw_receipt, lambda document: document.evidence),
        }
    }
    if PAGES.value:
        found["pages"] = {
            "real": _real(jsonl.open(PAGES.value, "train"), every=20),
            "drawn": _drawn(draw_page, _answer_boxes),
        }
    text = json.dumps(found, indent=1, allow_nan=False)
    if JSON.value:
        pathlib.Path(JSON.value).write_text(f"{text}\n")
    print(text)


def _answer_boxes(document: Document) -> dict[str, Any]:
    return {name: field.box for name, field in document.fields.items()}


def _real(source: Source, every: int) -> dict[str, Any]:
    """Figures of a split: of all its boxes, and of some of its pictures."""
    boxes: Boxes = defaultdict(list)
    first: dict[str, int] = {}  # question about a picture
    for index, row in enumerate(source.rows):
        first.setdefault(str(row["image"]), index)
        if "box" in row:
            field = row["example_id"].rsplit("/", 1)[1].replace("_", " ")
            boxes[field].append(list(row["box"]))
    chosen = list(first.values())[::every]
    looks = [_look(host.to_rgb(source[index]["image"])) for index in chosen]
    return {"pictures": _summary(looks), "boxes": _places(boxes)}


def _drawn(
    draw: Callable[[np.random.Generator], Document], boxes_of: Callable[[Document], dict[str, Any]]
) -> dict[str, Any]:
    """Figures of documents that are drawn."""
    boxes: Boxes = defaultdict(list)
    looks = []
    for seed in range(COUNT.value):
        document = draw(np.random.default_rng(seed))
        looks.append(_look(document.image))
        size = np.array(document.image.shape[:2])
        for name, box in boxes_of(document).items():
            boxes[name].append(geometry.from_pixels(np.array(box), size).tolist())
    return {"pictures": _summary(looks), "boxes": _places(boxes)}


def _places(boxes: Boxes) -> dict[str, Any]:
    """Of each field: how many boxes there are, and what describes them."""
    places = {}
    for name, of_field in sorted(boxes.items()):
        left, top, right, bottom = np.array(of_field, np.float64).T
        middle = {"x": (left + right) / 2, "y": (top + bottom) / 2}
        values = middle | {"width": right - left, "height": bottom - top}
        places[name] = {"n": len(of_field)} | {key: _moments(v) for key, v in values.items()}
    return places


def _look(picture: np.ndarray) -> dict[str, float]:
    """Shape and greys of a picture."""
    height, width, _ = picture.shape
    small = Image.fromarray(picture).convert("L").resize((width // 2, height // 2))
    grey = np.asarray(small, np.float32)
    paper, border = float(np.quantile(grey, 0.7)), max(2, grey.shape[1] // _BORDER)
    inner = grey[border:-border, border:-border]
    black = np.count_nonzero(grey < 80) - np.count_nonzero(inner < 80)
    return {
        "height by width": height / width,
        "grey of paper": paper,
        "grey of darkest 1%": float(np.quantile(grey, 0.01)),
        "share of ink": float((grey < paper - 50).mean()),
        "share of border that is black": black / (grey.size - inner.size),
    }


def _summary(looks: list[dict[str, float]]) -> dict[str, Any]:
    moments = {name: _moments(np.array([look[name] for look in looks])) for name in looks[0]}
    return {"n": len(looks)} | moments


def _moments(values: np.ndarray) -> list[float]:
    """Mean and deviation."""
    return [round(float(values.mean()), 3), round(float(values.std()), 3)]


if __name__ == "__main__":
    apps.run_script(main)
