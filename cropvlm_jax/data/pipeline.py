# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Examples to batches of fixed shapes: tiles, canvas and token ids, as NumPy arrays, through Grain.

Shape letters: B examples, Hc Wc canvas, N tiles of S px, P Q A tokens of prompt, question, answer.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import logging

from cropvlm_jax.data import images
from cropvlm_jax.prompts import Prompts


class Batch(NamedTuple):
    """What a GRPO step reads; the true boxes of a source never get here.

    Attributes:
        canvas: uint8 `[B, Hc, Wc, 3]`, original pixels padded at the bottom and right.
        size: int32 `[B, 2]`, height and width inside the canvas.
        tiles: uint8 `[B, N, S, S, 3]`, what the cropper sees.
        crop_prompt: int32 `[B, P]`, padded on the left.
        crop_prompt_valid: bool `[B, P]`.
        question: int32 `[B, Q]`, from after the crop to "Assistant:", padded on the left.
        question_valid: bool `[B, Q]`.
        answer: int32 `[B, A]`, the gold reply and its end token, padded on the right.
        answer_valid: bool `[B, A]`.
        example_id: int32 `[B]`, index in the source.
    """

    canvas: Any
    size: Any
    tiles: Any
    crop_prompt: Any
    crop_prompt_valid: Any
    question: Any
    question_valid: Any
    answer: Any
    answer_valid: Any
    example_id: Any


def pad(sequence: np.ndarray, length: int, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids `[length]` and which are real, bool `[length]`.

    Args:
        sequence: token ids.
        length: to pad to.
        side: "left" or "right".

    Raises:
        ValueError: the sequence is longer than `length`.
    """
    missing = length - len(sequence)
    if missing < 0:
        raise ValueError(f"{len(sequence)} tokens, over the limit of {length}")
    widths = (missing, 0) if side == "left" else (0, missing)
    return np.pad(sequence, widths), np.pad(np.ones(len(sequence), bool), widths)


@dataclasses.dataclass(frozen=True)
class Preparer:
    """Turns a source's example into a row of a batch.

    Attributes:
        crop_prompts: of the cropper's tokenizer.
        answer_prompts: of the target's tokenizer.
        tile_size: S of the cropper.
        longest_edge: of the cropper's input.
        canvas: Hc, Wc.
        grid: rows and columns of the cropper's tiles; pictures that split otherwise are refused.
        prompt_length: P.
        question_length: Q.
        answer_length: A.
    """

    crop_prompts: Prompts
    answer_prompts: Prompts
    tile_size: int
    longest_edge: int
    canvas: tuple[int, int]
    prompt_length: int
    question_length: int
    answer_length: int
    grid: tuple[int, int] = (0, 0)

    def __call__(self, example: dict[str, Any], index: int) -> Batch:
        """One row, without the batch axis.

        Raises:
            ValueError: the picture or a text does not fit the batch's shapes.
        """
        image = images.to_rgb(example["image"])
        tiles, grid = images.tile(image, self.tile_size, self.longest_edge)
        if grid != self.grid:
            raise ValueError(f"the picture splits into {grid} tiles, this batch takes {self.grid}")
        crop = self.crop_prompts.crop(example["question"], grid)
        answer = self.answer_prompts.answer(example["question"], 2, example["answers"][0])
        return Batch(
            images.pad_to_canvas(image, *self.canvas),
            np.array(image.shape[:2], np.int32),
            tiles,
            *pad(crop.ids, self.prompt_length, "left"),
            *pad(answer.ids[answer.question], self.question_length, "left"),
            *pad(answer.ids[answer.completion], self.answer_length, "right"),
            np.int32(index),
        )


def stack(rows: Sequence[Batch]) -> Batch:
    """Rows to a batch."""
    return Batch(*(np.stack(column) for column in zip(*rows, strict=True)))


class _Prepared:
    """A source of rows; an example that cannot be prepared is named in the log and left out."""

    def __init__(self, source: Any, prepare: Preparer):
        self._source, self._prepare = source, prepare

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Batch | None:
        example = self._source[index]
        try:
            return self._prepare(example, index)
        except (ValueError, OSError) as error:
            logging.warning("skipped %s: %s", example.get("example_id", index), error)
            return None


def training_batches(source: Any, prepare: Preparer, batch_size: int, seed: int) -> Iterator[Batch]:
    """Endless shuffled batches, prepared ahead in threads.

    Args:
        source: random-access examples: `image`, `question`, `answers`.
        prepare: shapes and prompts.
        batch_size: B.
        seed: of the shuffle.
    """
    dataset = grain.MapDataset.source(_Prepared(source, prepare)).shuffle(seed).repeat()
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * batch_size)
    return iter(dataset.to_iter_dataset(options).batch(batch_size, batch_fn=stack))
