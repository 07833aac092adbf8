# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Examples to rows of fixed shapes: tiles, canvas and token ids, as NumPy arrays.

Shape letters: B examples, Hc Wc canvas, N tiles of S px, P Q A C tokens of prompt, question,
answer, completion.
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cropvlm_jax import geometry
from cropvlm_jax.models.conversations import Conversations
from cropvlm_jax.pixels import host

SPOKEN_BYTES = 4096  # most of a question and its answers, for a target outside of the graph


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
        gold: what the accuracy reward compares answers with, or None where it is not used.
        spoken: uint8 `[B, SPOKEN_BYTES]`, question and gold answers as `read_spoken` reads them;
            for targets outside of the graph, and then `question` and `answer` are None.
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
    gold: Any = None
    spoken: Any = None


class SupervisedBatch(NamedTuple):
    """What a supervised step reads: B conversations.

    Attributes:
        images: uint8 `[B, N, S, S, 3]`, in the order of the prompt.
        prompt: token ids `[B, P]`, padded on the left so that the completion follows at once.
        prompt_valid: bool `[B, P]`.
        completion: token ids `[B, C]`, padded on the right.
        completion_valid: bool `[B, C]`.
        example_id: int32 `[B]`, index in the source, or None where there is none.
    """

    images: Any
    prompt: Any
    prompt_valid: Any
    completion: Any
    completion_valid: Any
    example_id: Any = None


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


def stack(rows: Sequence[Any]) -> Any:
    """Rows to a batch: leaves of (nested) named tuples get a leading axis, None stays None."""
    first = rows[0]
    if isinstance(first, tuple):
        return type(first)(*(stack(column) for column in zip(*rows, strict=True)))
    return None if first is None else np.stack(rows)


def gold_answer(answers: Sequence[str]) -> str:
    """The answer most annotators gave, up to case and outer spaces; of equals, the first.

    Raises:
        ValueError: there is no answer.
    """
    counts = collections.Counter(answer.strip().lower() for answer in answers)
    if not counts:
        raise ValueError("there is no answer to learn from")
    most = counts.most_common(1)[0][0]
    return next(answer for answer in answers if answer.strip().lower() == most)


def write_spoken(question: str, answers: Sequence[str]) -> np.ndarray:
    """A question and its answers as uint8 `[SPOKEN_BYTES]`: batches hold arrays of fixed shapes.

    Raises:
        ValueError: they are too long, or there is no answer.
    """
    if not answers:
        raise ValueError("there is no answer to compare with")
    data = json.dumps([question, *answers]).encode()
    if len(data) > SPOKEN_BYTES:
        raise ValueError(f"question and answers take {len(data)} bytes, over {SPOKEN_BYTES}")
    return np.frombuffer(data.ljust(SPOKEN_BYTES), np.uint8)


def read_spoken(data: np.ndarray) -> tuple[str, list[str]]:
    """The question and the answers that `write_spoken` wrote."""
    question, *answers = json.loads(data.tobytes())
    return question, answers


@functools.cache
def _crop_prompt_length(prompts: Conversations, grid: tuple[int, int]) -> int:
    """Tokens of the crop conversation about a picture of `grid`, but for the question's."""
    return len(prompts.crop("A", grid).ids)


@dataclasses.dataclass(frozen=True)
class CropperInput:
    """How the cropper sees an example: tiles, and the prompt that asks for a box.

    Attributes:
        prompts: of the cropper's tokenizer.
        tile_size: S.
        longest_edge: pixels of the longest side of what is split into tiles.
        question_tokens: most tokens of a question.
    """

    prompts: Conversations
    tile_size: int
    longest_edge: int
    question_tokens: int

    @property
    def single_bucket(self) -> bool:
        """Whether every picture is one tile."""
        return self.longest_edge <= self.tile_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tiles of a picture of this size."""
        return host.grid(height, width, self.tile_size, self.longest_edge)

    def tiles(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """Tiles uint8 `[N, S, S, 3]` of a picture, and their grid."""
        return host.tile(image, self.tile_size, self.longest_edge)

    def pad(self, prompt: np.ndarray, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """A prompt padded on the left to its bucket's P, and which tokens are real."""
        return pad(prompt, _crop_prompt_length(self.prompts, grid) + self.question_tokens, "left")


@dataclasses.dataclass(frozen=True)
class Preparer:
    """Turns a source's example into a row of a GRPO batch.

    Attributes:
        cropper: how the cropper sees it.
        answer_prompts: of the target's tokenizer; None where the target is outside of the graph.
        canvas: Hc, Wc; a larger picture is shrunk to fit.
        answer_tokens: most tokens of a gold answer.
        gold: makes of the gold answers what the accuracy reward compares with; None without it.
    """

    cropper: CropperInput
    answer_prompts: Conversations | None
    canvas: tuple[int, int]
    answer_tokens: int
    gold: Callable[[Sequence[str]], Any] | None = None

    def __call__(self, example: Any, index: int) -> Batch:
        """One row, without the batch axis.

        Raises:
            OSError: the picture is broken.
            ValueError: a text does not fit the batch's shapes, or there is no answer.
        """
        image = host.to_rgb(example["image"])
        tiles, grid = self.cropper.tiles(image)
        image = host.shrink_to_fit(image, *self.canvas)
        question, answers = example["question"], example["answers"]
        prompt = self.cropper.prompts.crop(question, grid)
        seen = (
            host.pad_to_canvas(image, *self.canvas),
            np.array(image.shape[:2], np.int32),
            tiles,
            *self.cropper.pad(prompt.ids, grid),
        )
        if self.answer_prompts is None:
            nothing = (None,) * 4
            return Batch(*seen, *nothing, np.int32(index), spoken=write_spoken(question, answers))
        conversation = self.answer_prompts.answer(question, 2, gold_answer(answers))
        return Batch(
            *seen,
            *pad(conversation.ids[conversation.question], self.question_length, "left"),
            # The period and the end of the utterance follow the answer.
            *pad(conversation.ids[conversation.completion], self.answer_tokens + 2, "right"),
            np.int32(index),
            None if self.gold is None else self.gold(answers),
        )

    @property
    def question_length(self) -> int:
        """Q: tokens from after the crop to "Assistant:"."""
        assert self.answer_prompts is not None
        shortest = self.answer_prompts.answer("A")
        return len(shortest.ids[shortest.question]) + self.cropper.question_tokens


@dataclasses.dataclass(frozen=True)
class BoxPreparer:
    """Turns an example with a box into a row of a supervised batch.

    Attributes:
        cropper: how the cropper sees it.
        reply_tokens: C, of the longest reply that names a box.
    """

    cropper: CropperInput
    reply_tokens: int

    def __call__(self, example: Any, index: int) -> SupervisedBatch:
        """One row, without the batch axis.

        Raises:
            OSError: the picture is broken.
            ValueError: the question does not fit the batch's shapes, or there is no box.
        """
        if "box" not in example:
            raise ValueError("there is no box to learn from")
        tiles, grid = self.cropper.tiles(host.to_rgb(example["image"]))
        box_text = geometry.to_text(example["box"])
        prompt = self.cropper.prompts.crop(example["question"], grid, box_text)
        return SupervisedBatch(
            tiles,
            *self.cropper.pad(prompt.ids[: prompt.completion.start], grid),
            *pad(prompt.ids[prompt.completion], self.reply_tokens, "right"),
            np.int32(index),
        )
