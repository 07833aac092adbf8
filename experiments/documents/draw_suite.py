# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws receipts, with questions and true boxes, as a folder that the source `jsonl` reads.

    python experiments/documents/draw_suite.py --out=data/drawn --count=200

For those who have no receipts at hand:

    cropvlm evaluate --benchmark=jsonl --folder=data/drawn --metric=contains \
        --targets=documents/reader --croppers=start=documents/start --out=runs/drawn

Names, dates and sums are made up; the fonts are those of this machine (`drawn/fonts.py`). None was
trained on: their random numbers begin elsewhere.
"""

import json
import pathlib
from typing import Any

import numpy as np
from absl import flags, logging
from drawn import draw_receipt
from PIL import Image

from cropvlm_jax import apps, geometry
from cropvlm_jax.data.sources.sroie import QUESTIONS
from cropvlm_jax.progress import Progress

OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
COUNT = flags.DEFINE_integer("count", 200, "Receipts to draw.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 1000, "Of what is drawn.")


def receipt(number: int, folder: pathlib.Path) -> list[dict[str, Any]]:
    """Draws a receipt into a file; its questions, as lines of the source `jsonl`."""
    drawn = draw_receipt(np.random.default_rng([SEED.value, number]))
    image = f"images/{number:04}.png"
    Image.fromarray(drawn.image).save(folder / image)
    size = np.array(drawn.image.shape[:2])
    return [
        {
            "example_id": f"drawn/{number}/{field}",
            "image": image,
            "question": QUESTIONS[field],
            "answers": [drawn.fields[field].answer],
            "category": field,
            "box": geometry.from_pixels(np.array(drawn.evidence[field]), size).tolist(),
        }
        for field in ("total", "date")
    ]


def main(argv: list[str]) -> None:
    del argv
    folder = pathlib.Path(OUT.value)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    progress, lines = Progress(COUNT.value, what="receipt"), []
    for number in range(COUNT.value):
        lines += [json.dumps(line, allow_nan=False) for line in receipt(number, folder)]
        progress.update(number + 1)
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    logging.info("%d questions about %d receipts are in %s", len(lines), COUNT.value, folder)


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    apps.run_script(main)
