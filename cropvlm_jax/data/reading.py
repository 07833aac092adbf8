# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Examples become conversations that teach a reader: picture, crop, question, answer.

No jax import: data workers do this.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cropvlm_jax import geometry
from cropvlm_jax.data.batching import SupervisedBatch, gold_answer, supervised_row, with_canvas
from cropvlm_jax.pixels import host
from cropvlm_jax.pixels.canvas import Canvas, place
from cropvlm_jax.pixels.plans import PlannedCrops

if TYPE_CHECKING:
    from cropvlm_jax.models.conversations import Conversations


def draw_box(
    rng: np.random.Generator, box: np.ndarray, expansion: tuple[float, float], jitter: float
) -> np.ndarray:
    """A larger box that holds a given one.

    Args:
        rng: what is drawn from.
        box: percent box, int `[4]`.
        expansion: the least and the most area of the result, in areas of `box`; log-uniform.
        jitter: how far `box` may be from the middle of the result: 0 is in the middle, 1 may be at
            an edge.

    Returns:
        Percent box, int `[4]`.
    """
    least, most = np.log(expansion)
    larger = geometry.expand(box, float(np.exp(rng.uniform(least, most))))
    before, after = box[:2] - larger[:2], larger[2:] - box[2:]
    room = np.where(rng.random(2) < 0.5, -after, before)  # to shift it left and up, or back
    shift = np.rint(rng.random(2) * jitter * room).astype(int)
    shift = np.clip(shift, -larger[:2], 100 - larger[2:])
    return larger + np.tile(shift, 2)


@dataclasses.dataclass(frozen=True)
class ReadingPreparer:
    """Turns an example into a row of a supervised batch: a reader sees its picture and a crop.

    What is drawn for an example depends on `seed` and its index alone, so it is the same each time.

    Attributes:
        conversations: The conversations of the reader.
        see: What the reader sees of a picture uint8 `[H, W, 3]` as one tile, an array `[1, ...]`,
            and its grid.
        expansion: The least and the most area of a crop, in areas of the example's box.
        jitter: How far the box may be from the middle of the crop, 0 to 1.
        whole: Share of the crops that are the whole picture; all are where there is no box.
        seed: Of what is drawn.
        question_tokens: The most tokens of a question.
        answer_tokens: The most tokens of an answer.
        canvases: What there is for the original pixels, where the step cuts what the reader sees;
            else empty.
    """

    conversations: "Conversations"
    see: Callable[[np.ndarray], tuple[Any, Any]]
    expansion: tuple[float, float]
    jitter: float
    whole: float
    seed: int
    question_tokens: int
    answer_tokens: int
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
            canvas: As of `batching.Preparer`; not read where `canvases` is empty.
            step: Not read: an example is the same in all batches.

        Raises:
            OSError: The picture is broken.
            ValueError: A text does not fit the batch's shapes, or there is no answer.
        """
        box = self.crop(example.get("box"), index)
        conversation = self.conversations.answer(
            example["question"], 2, gold_answer(example["answers"])
        )
        placed = place(example["image"], canvas, self.canvases) if self.canvases else None
        planned = PlannedCrops(np.array([geometry.FULL, box], np.int32))
        row = supervised_row(
            conversation,
            images=self.show(example["image"], box) if placed is None else planned,
            prompt_tokens=self.prompt_length,
            # The period and the end of the utterance follow the answer.
            completion_tokens=self.answer_tokens + 2,
            example_id=index,
        )
        return with_canvas(row, placed)

    def show(self, picture: host.Picture, box: np.ndarray) -> np.ndarray:
        """What the reader sees of a picture and its crop, `[2, ...]`."""
        image = host.decoded(picture)
        return np.concatenate([self.see(part)[0] for part in (image, host.cut(image, box))])

    def crop(self, box: Any, index: int) -> np.ndarray:
        """The percent box of what an example shows beside its picture, int `[4]`."""
        rng = np.random.default_rng([self.seed, index])
        if box is None or rng.random() < self.whole:
            return np.array(geometry.FULL)
        return draw_box(rng, np.array(box), self.expansion, self.jitter)

    @functools.cached_property
    def prompt_length(self) -> int:
        """P: the tokens of the longest prompt."""
        return len(self.conversations.answer("A", 2).ids) + self.question_tokens
