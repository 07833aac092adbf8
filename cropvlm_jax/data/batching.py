# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Examples become rows of fixed shapes: tiles, canvas and token ids, as NumPy arrays.

Shape letters: B examples, Hc Wc canvas, N tiles of S px; tokens: P of the prompt, Q of the
question, A of the answer, C of the completion.
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cropvlm_jax import geometry
from cropvlm_jax.data.budgets import Budget, Budgets
from cropvlm_jax.geometry.boxes import Array
from cropvlm_jax.pixels import host
from cropvlm_jax.pixels.canvas import Canvas, Placed, place
from cropvlm_jax.pixels.plans import PlannedTiles
from cropvlm_jax.scoring import GoldAnswers

if TYPE_CHECKING:
    from cropvlm_jax.models.conversations import Conversation, Conversations

UNSPLIT = (0, 0)  # the grid of a picture that is one tile
SPOKEN_BYTES = 4096  # of a question and its answers at most, for a target outside of the graph


class Batch(NamedTuple):
    """What a GRPO step reads; the true boxes of a source never get here.

    Attributes:
        canvas: The original pixels, padded at the bottom and right; uint8 `[B, Hc, Wc, 3]`.
        size: Height and width of the picture inside the canvas, int32 `[B, 2]`.
        tiles: What the cropper sees of the picture, leaves `[B, N, ...]`; of a SmolVLM uint8
            `[B, N, S, S, 3]`. Or `PlannedTiles`, which the step cuts from `canvas`.
        crop_prompt: The tokens that ask for a box, padded on the left; int32 `[B, P]`.
        crop_prompt_valid: Which of these are real, bool `[B, P]`.
        question: The tokens that ask the target, from after the crop to "Assistant:", padded on
            the left; int32 `[B, Q]`. None for a target outside of the graph.
        question_valid: Which of these are real, bool `[B, Q]`.
        answer: The gold reply and its end token, padded on the right; int32 `[B, A]`. None for a
            target outside of the graph.
        answer_valid: Which of these are real, bool `[B, A]`.
        example_id: Index of the example in the source, int32 `[B]`.
        shrunk: Whether the picture was larger than the canvas, bool `[B]`.
        gold: What the accuracy reward compares answers with, or None where it is not used.
        spoken: Question and gold answers as `read_spoken` reads them, uint8 `[B, SPOKEN_BYTES]`;
            None for a target inside of the graph.
        price: What 1,000 image tokens of crops cost in the reward, fp32 `[B]`; None where all
            prompts have `grpo.token_price`.
        second_prompt: As `crop_prompt`, about a picture of one tile, which the first crop is to a
            cropper that looks twice; int32 `[B, P]`. None where it looks once.
        second_prompt_valid: Which of these are real, bool `[B, P]`, or None.
    """

    canvas: Array
    size: Array
    tiles: Array
    crop_prompt: Array
    crop_prompt_valid: Array
    question: Array
    question_valid: Array
    answer: Array
    answer_valid: Array
    example_id: Array
    shrunk: Array
    gold: Any = None  # GoldAnswers
    spoken: Array = None
    price: Array = None
    second_prompt: Array = None
    second_prompt_valid: Array = None


class SupervisedBatch(NamedTuple):
    """What a supervised step reads: B conversations.

    Attributes:
        images: What the model sees of the pictures, in the order of the prompt, leaves
            `[B, N, ...]`; of a SmolVLM uint8 `[B, N, S, S, 3]`. Or `PlannedTiles` or
            `PlannedCrops`, which the step cuts from `canvas`.
        prompt: Token ids, padded on the left so that the completion follows at once; int32
            `[B, P]`.
        prompt_valid: Which of these are real, bool `[B, P]`.
        completion: Token ids, padded on the right; int32 `[B, C]`.
        completion_valid: Which of these are real, bool `[B, C]`.
        example_id: Index of the example in the source, int32 `[B]`, or None where there is none.
        canvas: As of `Batch`, where the step cuts what the model sees; else None.
        size: As of `Batch`, or None.
        shrunk: As of `Batch`, or None.
    """

    images: Array
    prompt: Array
    prompt_valid: Array
    completion: Array
    completion_valid: Array
    example_id: Array = None
    canvas: Array = None
    size: Array = None
    shrunk: Array = None


def pad(sequence: np.ndarray, length: int, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Pads token ids with zeros.

    Args:
        sequence: Token ids, at most `length` of them.
        length: How many there are to be.
        side: Where zeros go, "left" or "right".

    Returns:
        Token ids `[length]`, and which of them are real, bool `[length]`.

    Raises:
        ValueError: The sequence is longer than `length`.
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


def canvas_facts(batch: Any) -> dict[str, float]:
    """What a run tells of the canvases of a batch; nothing where it has none.

    Returns:
        The share of its canvases' pixels that show no picture, and how many pictures were shrunk.
    """
    if getattr(batch, "canvas", None) is None:
        return {}
    shown = np.prod(batch.size, axis=-1, dtype=np.int64).sum()
    pixels = np.prod(batch.canvas.shape[:3], dtype=np.int64)
    return {"padding_share": 1 - shown / pixels, "shrunk_pictures": int(batch.shrunk.sum())}


def supervised_row(
    conversation: "Conversation",
    images: Any,
    prompt_tokens: int,
    completion_tokens: int,
    example_id: int | None = None,
) -> SupervisedBatch:
    """A conversation and its pictures as a row of a supervised batch.

    Args:
        conversation: With a reply.
        images: What the model sees of its pictures, leaves `[N, ...]`; None where they are kept
            apart.
        prompt_tokens: P.
        completion_tokens: C.
        example_id: Of the example in its source.

    Raises:
        ValueError: Prompt or completion is longer.
    """
    reply = conversation.completion
    prompt, prompt_valid = pad(conversation.ids[: reply.start], prompt_tokens, "left")
    completion, completion_valid = pad(conversation.ids[reply], completion_tokens, "right")
    return SupervisedBatch(
        images=images,
        prompt=prompt,
        prompt_valid=prompt_valid,
        completion=completion,
        completion_valid=completion_valid,
        example_id=None if example_id is None else np.int32(example_id),
    )


def with_canvas(row: SupervisedBatch, placed: Placed | None) -> SupervisedBatch:
    """A row whose pictures the step is to cut from a canvas; as it is where there is none."""
    if placed is None:
        return row
    return row._replace(canvas=placed.canvas, size=placed.size, shrunk=placed.shrunk)


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
    data = json.dumps([question, *answers], allow_nan=False).encode()
    if len(data) > SPOKEN_BYTES:
        raise ValueError(f"question and answers take {len(data)} bytes, over {SPOKEN_BYTES}")
    return np.frombuffer(data.ljust(SPOKEN_BYTES), np.uint8)


def read_spoken(data: np.ndarray) -> tuple[str, list[str]]:
    """The question and the answers that `write_spoken` wrote."""
    question, *answers = json.loads(data.tobytes())
    return question, answers


@functools.cache
def crop_prompt_length(conversations: "Conversations", grid: Any) -> int:
    """Tokens of the crop conversation about a picture of `grid`, but for the question's."""
    return len(conversations.crop("A", grid).ids)


@dataclasses.dataclass(frozen=True)
class CropperInput:
    """What the cropper sees of an example: its picture, and the prompt that asks for a box.

    Attributes:
        conversations: The conversations of the cropper.
        see: What the cropper sees of a picture uint8 `[H, W, 3]`, leaves `[N, ...]`, and its grid:
            `Architecture.see` of the cropper's config and `longest_edge`, as `functools.partial`,
            which data workers can unpickle without jax.
        grid: Height and width of a picture to the grid that `see` returns for it.
        splits: Whether larger pictures are split into tiles, so that the shapes of a row depend on
            the grid, which is the rows and columns of the tiles.
        question_tokens: The most tokens of a question.
        plan: Height and width of a picture to what the step is to cut of it in place of `see`; None
            where the host cuts.
        budgets: What the cropper is told after the question; None where it is told nothing.
        budget_tokens: The most tokens of these words, which `question_tokens` does not count.
        looks: 2 where it is asked once more, about its first crop.
    """

    conversations: "Conversations"
    see: Callable[[np.ndarray], tuple[Any, Any]]
    grid: Callable[[int, int], Any]
    splits: bool
    question_tokens: int
    plan: Callable[[int, int], PlannedTiles] | None = None
    budgets: Budgets | None = None
    budget_tokens: int = 0
    looks: int = 1

    def budget(self, index: int, step: int) -> Budget | None:
        """The budget of an example in a batch; None where there are none."""
        return None if self.budgets is None else self.budgets.draw(index, step)

    def show(self, picture: np.ndarray) -> tuple[Any, Any]:
        """Tiles of a picture uint8 `[H, W, 3]`, or their plan, and its grid."""
        if self.plan is None:
            return self.see(picture)
        height, width = picture.shape[:2]
        return self.plan(height, width), self.grid(height, width)

    def prompt_tokens(self, grid: Any) -> int:
        """P, the same for all pictures of a grid."""
        words = self.question_tokens + self.budget_tokens
        return crop_prompt_length(self.conversations, grid) + words

    def ask(self, told: str, grid: Any = UNSPLIT) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that ask for a box, padded on the left to P, and which of them are real."""
        return pad(self.conversations.crop(told, grid).ids, self.prompt_tokens(grid), "left")


@dataclasses.dataclass(frozen=True)
class Preparer:
    """Turns a source's example into a row of a GRPO batch.

    Attributes:
        cropper_input: What the cropper sees of the example.
        target_conversations: The conversations of the target; None where it is outside of the
            graph.
        canvases: What there is for the original pixels; a picture that fits none is shrunk.
        answer_tokens: The most tokens of a gold answer.
        gold: Makes of the gold answers what the accuracy reward compares with; None without that
            reward.
    """

    cropper_input: CropperInput
    target_conversations: "Conversations | None"
    canvases: Sequence[Canvas]
    answer_tokens: int
    gold: Callable[[Sequence[str]], GoldAnswers] | None = None

    def __call__(
        self,
        example: Mapping[str, Any],
        index: int,
        canvas: np.ndarray | None = None,
        step: int = 0,
    ) -> Batch:
        """One row, without the batch axis.

        Args:
            example: What the source has.
            index: Of the example in the source.
            canvas: What to put the picture on, uint8 `[Hc, Wc, 3]`; None makes one, the smallest
                that holds it.
            step: Number of the batch, which the budget is drawn by.

        Raises:
            OSError: The picture is broken.
            ValueError: A text does not fit the batch's shapes, or there is no answer.
        """
        question, answers = example["question"], example["answers"]
        placed = place(example["image"], canvas, self.canvases)
        tiles, grid = self.cropper_input.show(placed.picture)
        budget = self.cropper_input.budget(index, step)
        told = question if budget is None else budget.after(question)
        crop_prompt, crop_prompt_valid = self.cropper_input.ask(told, grid)
        second = self.cropper_input.ask(told) if self.cropper_input.looks > 1 else (None, None)
        asked = answered = asked_valid = answered_valid = gold = spoken = None
        if self.target_conversations is None:
            spoken = write_spoken(question, answers)
        else:
            conversation = self.target_conversations.answer(question, 2, gold_answer(answers))
            asked, asked_valid = pad(
                conversation.ids[conversation.question], self.question_length, "left"
            )
            # The period and the end of the utterance follow the answer.
            answered, answered_valid = pad(
                conversation.ids[conversation.completion], self.answer_tokens + 2, "right"
            )
            gold = None if self.gold is None else self.gold(answers)
        return Batch(
            canvas=placed.canvas,
            size=placed.size,
            tiles=tiles,
            crop_prompt=crop_prompt,
            crop_prompt_valid=crop_prompt_valid,
            question=asked,
            question_valid=asked_valid,
            answer=answered,
            answer_valid=answered_valid,
            example_id=np.int32(index),
            shrunk=placed.shrunk,
            gold=gold,
            spoken=spoken,
            price=None if budget is None else np.float32(budget.price),
            second_prompt=second[0],
            second_prompt_valid=second[1],
        )

    @property
    def question_length(self) -> int:
        """Q: the tokens from after the crop to "Assistant:"."""
        assert self.target_conversations is not None
        shortest = self.target_conversations.answer("A")
        return len(shortest.ids[shortest.question]) + self.cropper_input.question_tokens


@dataclasses.dataclass(frozen=True)
class BoxPreparer:
    """Turns an example with boxes into a row of a supervised batch.

    Attributes:
        cropper_input: What the cropper sees of the example.
        reply_tokens: C, the tokens of the longest reply.
        max_boxes: The most boxes of a reply.
        abstain: Whether a reply may name no box.
        canvases: What there is for the original pixels, where the step cuts what the cropper sees;
            else empty.
    """

    cropper_input: CropperInput
    reply_tokens: int
    max_boxes: int = 1
    abstain: bool = False
    canvases: Sequence[Canvas] = ()

    def __call__(
        self,
        example: Mapping[str, Any],
        index: int,
        canvas: np.ndarray | None = None,
        step: int = 0,
    ) -> SupervisedBatch:
        """One row, without the batch axis.

        Args:
            example: What the source has.
            index: Of the example in the source.
            canvas: As of `Preparer`; not read where `canvases` is empty.
            step: As of `Preparer`.

        Raises:
            OSError: The picture is broken.
            ValueError: The question does not fit the batch's shapes, or there is no box to learn
                from, or more than a reply may have.
        """
        reply = geometry.reply_text(self.boxes(example))
        placed = place(example["image"], canvas, self.canvases) if self.canvases else None
        picture = host.decoded(example["image"]) if placed is None else placed.picture
        tiles, grid = self.cropper_input.show(picture)
        budget = self.cropper_input.budget(index, step)
        told = example["question"] if budget is None else budget.after(example["question"])
        conversation = self.cropper_input.conversations.crop(told, grid, reply)
        row = supervised_row(
            conversation,
            images=tiles,
            prompt_tokens=self.cropper_input.prompt_tokens(grid),
            completion_tokens=self.reply_tokens,
            example_id=index,
        )
        return with_canvas(row, placed)

    def boxes(self, example: Mapping[str, Any]) -> tuple[geometry.Box, ...]:
        """The boxes that the reply to an example names, in the order of a reply.

        They are its `boxes`, or its `box` where it has no `boxes` or these are not what a reply may
        name.

        Raises:
            ValueError: There are none, or too many.
        """
        found = geometry.in_order(example["boxes"]) if "boxes" in example else None
        if found is not None and self.fits(len(found)):
            return found
        if "box" in example:
            return geometry.in_order([example["box"]])
        if found is None:
            raise ValueError("there is no box to learn from: `cropvlm label` makes seed boxes")
        if found:
            raise ValueError(
                f"{len(found)} boxes to learn from, and a reply has at most {self.max_boxes}: set "
                f"grpo.max_boxes={len(found)}, at most {geometry.MAX_BOXES}"
            )
        raise ValueError(
            "no box to learn from: set grpo.abstain=True, so that a reply may be that nothing is "
            "to be looked at"
        )

    def fits(self, count: int) -> bool:
        """Whether a reply may name so many boxes."""
        return (0 if self.abstain else 1) <= count <= self.max_boxes
