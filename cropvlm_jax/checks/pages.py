# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pages of scribbled lines as JPEG files, so that nothing has to be downloaded."""

import dataclasses
import json
import pathlib

import numpy as np
from PIL import Image, ImageDraw

QUALITY = 85  # of the JPEGs


@dataclasses.dataclass(frozen=True)
class Pages:
    """Pages to be written.

    Attributes:
        count: how many.
        height: pixels of each; the default is a letter page at 200 dpi.
        width: pixels of each.
    """

    count: int = 12
    height: int = 2200
    width: int = 1700

    def write(self, folder: pathlib.Path) -> None:
        """Writes pictures and `train.jsonl`, which a source of kind "jsonl" reads."""
        lines = []
        for number in range(self.count):
            name = f"{number}.jpg"
            self.draw(number).save(folder / name, quality=QUALITY)
            row = {"image": name, "question": f"What is on page {number}?", "answers": ["lines"]}
            lines.append(json.dumps(row, allow_nan=False) + "\n")
        (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")

    def draw(self, seed: int) -> Image.Image:
        """A page of grainy paper with rows of dark blocks, as words are."""
        rng = np.random.default_rng(seed)
        grain = rng.normal(235, 6, (self.height, self.width)).clip(0, 255).astype(np.uint8)
        page = Image.fromarray(grain)
        pen = ImageDraw.Draw(page)
        for y in range(self.height // 20, self.height * 19 // 20, 36):
            for x in np.cumsum(rng.integers(20, 90, self.width // 56)).tolist():
                pen.rectangle((x, y, x + int(rng.integers(8, 60)), y + 18), fill=40)
        return page.convert("RGB")
