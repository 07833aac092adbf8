# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures that each set of drawn scenes needs the looks that it claims to need.

    python experiments/look/legibility.py --json=experiments/look/legibility.json

For every kind of view: how high the frame and its digit are in it, in pixels of the 64 that a
bundled model sees, and the share of test digits that the bundled target reads when it is shown the
picture and that view. Chance is 0.1.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from absl import flags

from cropvlm_jax import apps
from cropvlm_jax.data import sources
from cropvlm_jax.data.source import Box
from cropvlm_jax.data.sources.zoom_digits_looks import Asked
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.vlm import VLMReader

JSON = flags.DEFINE_string("json", None, "File for the figures.")
SCENES = flags.DEFINE_integer("scenes", 100, "Test scenes of each set.")
SIDE = 64  # pixels of what the bundled models see
INK = 23 / 42  # height of a digit's square, in sides of its frame


class View(NamedTuple):
    """A frame in a view of its picture.

    Attributes:
        picture: The picture, uint8 `[H, W, 3]`.
        crop: Percent box of the view.
        asked: The question about the frame.
    """

    picture: np.ndarray
    crop: Box
    asked: Asked


def views(name: str, scenes: int) -> dict[str, list[View]]:
    """The views of a set's single frames, by kind."""
    source = sources.open_drawn(name, "test", scenes, seed=1)
    found: dict[str, list[View]] = {}
    for index in range(scenes):
        picture, questions = source.scene(index)  # type: ignore[attr-defined]
        for kind, crop, asked in _kinds(name, questions):
            found.setdefault(kind, []).append(View(picture, crop, asked))
    return found


def _kinds(name: str, questions: list[Asked]) -> Iterator[tuple[str, Box, Asked]]:
    """Kind of view, its percent box, and the question about a single frame in it."""
    whole = (0, 0, 100, 100)
    if name == "zoom_digits_pairs":
        hull = questions[0].box
        for asked in questions[2:]:
            if asked.box in questions[0].boxes:
                yield "picture", whole, asked
                yield "crop of both", hull, asked
                yield "own crop", asked.box, asked
        return
    for asked in questions:
        size = "" if name != "zoom_digits_mixed" else " of a small frame"
        size = size if asked.boxes else " of the large frame"
        yield f"picture{size}", whole, asked
        if asked.around:
            yield "crop of the ring", asked.around, asked
        yield f"own crop{size}", asked.box, asked


def frame_pixels(view: View) -> float:
    """How high the frame is in the view, in pixels."""
    frame, crop = view.asked.box, view.crop
    # A tight percent box is up to two hundredths higher than its frame, one in the mean.
    return SIDE * (frame[3] - frame[1] - 1) / (crop[3] - crop[1])


def measured(tested: list[View], reader: VLMReader) -> dict[str, float]:
    """Heights and accuracy of a kind of views."""
    replies = reader.answer(
        [[view.picture, host.cut(view.picture, np.array(view.crop))] for view in tested],
        [view.asked.question for view in tested],
    )
    right = [
        reply.text.strip(" .") == view.asked.answer
        for reply, view in zip(replies, tested, strict=True)
    ]
    height = float(np.median([frame_pixels(view) for view in tested]))
    return {
        "frame_px": round(height, 1),
        "digit_px": round(INK * height, 1),
        "accuracy": round(float(np.mean(right)), 3),
        "frames": len(tested),
    }


def main(argv: list[str]) -> None:
    del argv
    reader = VLMReader.from_pretrained("zoom_digits/target")
    results = {}
    for name in sorted(set(sources.DRAWN) - {"zoom_digits"}):
        kinds = views(name, SCENES.value)
        results[name] = {kind: measured(found, reader) for kind, found in kinds.items()}
        print(json.dumps({name: results[name]}, indent=1, allow_nan=False), flush=True)
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    apps.run_script(main)
