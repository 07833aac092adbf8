# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Accuracy of a frozen target with croppers, and with the controls that put it in proportion."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cropvlm_jax import boxes as box_lib
from cropvlm_jax.api import CropVLM, Target

CHUNK = 64  # scenes in memory at once


def is_correct(reply: str, answers: list[str]) -> bool:
    """Whether a reply is one of the answers, up to case, spaces and the final period."""

    def plain(text: str) -> str:
        return " ".join(text.lower().split()).removesuffix(".")

    return plain(reply) in {plain(answer) for answer in answers}


def cut(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The original pixels `[h, w, 3]` of a percent box of a picture `[H, W, 3]`."""
    left, top, right, bottom = box_lib.to_pixels(box, np.array(image.shape[:2]))
    return image[top:bottom, left:right]


def evaluate(
    source: Any,
    target: Target,
    croppers: Mapping[str, CropVLM],
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Answers every question of `source` with each cropper's crop and with each control's.

    Controls: the picture alone (`no_crop`), a centre crop and a random crop of the last cropper's
    mean area (`centre`, `random`), the ground-truth box (`oracle`).

    Args:
        source: examples with `image`, `question`, `answers` and the true percent `box`.
        target: answers.
        croppers: by name.
        seed: of the random crops.
        progress: told how many examples are done.

    Returns:
        `n`; `accuracy` by condition, 0..1; `boxes`, by cropper, int `[n, 4]`; and of the last
        cropper: `coverage` of the true box, `area` and `valid`, means, 0..1.
    """
    chunks = [range(i, min(i + CHUNK, len(source))) for i in range(0, len(source), CHUNK)]
    boxes: dict[str, np.ndarray] = {name: np.zeros((len(source), 4), int) for name in croppers}
    truth = np.zeros((len(source), 4), int)
    for chunk in chunks:
        examples = [source[i] for i in chunk]
        truth[chunk] = [example["box"] for example in examples]
        for name, cropper in croppers.items():
            boxes[name][chunk] = cropper.propose(
                [example["image"] for example in examples],
                [example["question"] for example in examples],
            )
        progress(chunk.stop)
    last = boxes[list(croppers)[-1]]
    side = round(100 * float(np.sqrt(box_lib.area(last).mean())))
    corner = np.random.default_rng(seed).integers(0, 101 - side, (len(source), 2))
    crops = {
        "centre": np.tile([50 - side // 2, 50 - side // 2] * 2, (len(source), 1)),
        "random": np.tile(corner, 2),
    }
    crops = {name: box + [0, 0, side, side] for name, box in crops.items()}
    crops |= boxes | {"oracle": truth}

    correct = {name: 0 for name in ("no_crop", *crops)}
    for chunk in chunks:
        examples = [source[i] for i in chunk]
        questions = [example["question"] for example in examples]
        for name in correct:
            pictures = [[example["image"]] for example in examples]
            if name != "no_crop":
                for picture, box in zip(pictures, crops[name][chunk], strict=True):
                    picture.append(cut(picture[0], box))
            for reply, example in zip(target.answer(pictures, questions), examples, strict=True):
                correct[name] += is_correct(reply, example["answers"])
        progress(len(source) + chunk.stop)
    return {
        "n": len(source),
        "accuracy": {name: count / len(source) for name, count in correct.items()},
        "coverage": float(box_lib.coverage(last, truth).mean()),
        "area": float(box_lib.area(last).mean()),
        "valid": float(box_lib.is_valid(last).mean()),
        "boxes": boxes,
    }
