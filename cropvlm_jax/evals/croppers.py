# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The croppers of an evaluation: where they look."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from cropvlm_jax.evals.conditions import INVALID, Boxes
from cropvlm_jax.evals.items import Item
from cropvlm_jax.readers.asking import refused_alone


class Cropper(Protocol):
    """What says where to look; `api.CropVLM` is one.

    A cropper may also have `tokens_of(height, width)`, how many tokens it makes of a picture; and
    `replies(images, questions)`, of each picture the `boxes` and the `confidence` of its reply. One
    whose replies may have another number of boxes than one has these, and `grammar`, whose
    `max_boxes` and `abstain` say which numbers.
    """

    def propose(self, images: Sequence[Any], questions: Sequence[str]) -> np.ndarray:
        """Percent boxes, int `[n, 4]`."""
        ...


class Proposal(NamedTuple):
    """Where a cropper looks.

    Attributes:
        boxes: as records have them.
        confidence: probability of the reply under the cropper, 0..1; None where it tells none.
    """

    boxes: Boxes
    confidence: float | None = None


def most_boxes(cropper: Any) -> int:
    """The most boxes of a cropper's reply."""
    grammar = getattr(cropper, "grammar", None)
    return 1 if grammar is None else int(grammar.max_boxes)


def may_abstain(cropper: Any) -> bool:
    """Whether a cropper's reply may have no box."""
    grammar = getattr(cropper, "grammar", None)
    return grammar is not None and bool(grammar.abstain)


def varies(cropper: Any) -> bool:
    """Whether a cropper's reply may have another number of boxes than one."""
    return most_boxes(cropper) > 1 or may_abstain(cropper)


def numbers(cropper: Any) -> dict[str, Any]:
    """How many boxes a cropper's reply may have, for protocols; nothing where it is always one."""
    if not varies(cropper):
        return {}
    return {"max_boxes": most_boxes(cropper), "abstain": may_abstain(cropper)}


def propose(cropper: Any, items: Sequence[Item], *, confidence: bool) -> list[Proposal]:
    """Where a cropper looks for the answers to items.

    Args:
        cropper: says it.
        items: with their pictures.
        confidence: whether it is also asked how sure it is, where it can tell.
    """
    several = varies(cropper)

    def ask(rows: Sequence[Item]) -> list[Proposal]:
        images, questions = [row.image for row in rows], [row.example["question"] for row in rows]
        if several or (confidence and hasattr(cropper, "replies")):
            return [_proposal(reply, several) for reply in cropper.replies(images, questions)]
        return [Proposal(np.asarray(box).tolist()) for box in cropper.propose(images, questions)]

    refused = Proposal([list(INVALID)] if several else list(INVALID))
    return refused_alone(ask, items, lambda reason: refused)


def _proposal(reply: Any, several: bool) -> Proposal:
    """A reply as a proposal: with a list of boxes, or with the only one."""
    boxes = [list(box) for box in reply.boxes]
    return Proposal(boxes if several else boxes[0], float(reply.confidence))
