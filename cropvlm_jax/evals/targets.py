# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Frozen targets that answer questions about a picture and a crop of it, whatever they are."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from cropvlm_jax import api
from cropvlm_jax.data import images as image_lib

Pictures = Sequence[np.ndarray]


class Reply(NamedTuple):
    """What a target said.

    Attributes:
        text: the answer, "" where there is none.
        failure: why there is none: "refusal: ..." and "empty" are the target's own doing, all else
            ("timeout ...", "HTTP 500 ...") kept it from answering. "" where there is an answer.
    """

    text: str
    failure: str = ""


class Target(Protocol):
    """A frozen reader of pictures.

    Some can do more, and have `log_likelihood(images, questions, answers)`, float `[n]` in nats,
    summed over an answer's tokens, and `image_tokens(images)`, how many tokens all these pictures
    take together.

    Attributes:
        name: for reports.
    """

    name: str

    def answer(self, images: Sequence[Pictures], questions: Sequence[str]) -> list[Reply]:
        """Answers, one a question; an item that failed is a reply that says so.

        Args:
            images: of each question, the picture or the picture and the crop, uint8 RGB
                `[H, W, 3]` of any size.
            questions: the questions.
        """
        ...


class VLM:
    """A model of ours (`api.Target`).

    Attributes:
        name: of the model.
    """

    def __init__(self, model: api.Target, name: str):
        """Wraps a loaded model."""
        self.model, self.name = model, name

    def answer(self, images: Sequence[Pictures], questions: Sequence[str]) -> list[Reply]:
        """Greedy answers, as `Target.answer`."""
        texts = self.model.answer(images, questions)
        return [Reply(text, "" if text else "empty") for text in texts]

    def log_likelihood(
        self, images: Sequence[Pictures], questions: Sequence[str], answers: Sequence[str]
    ) -> np.ndarray:
        """Log-likelihoods of answers, fp32 `[n]`, in nats, summed over tokens and the end token."""
        return self.model.log_likelihood(images, questions, answers)

    def answer_tokens(self, answers: Sequence[str]) -> np.ndarray:
        """Tokens that `log_likelihood` sums over, the end token included, int `[n]`."""
        spans = [self.model.prompts.answer("?", 1, answer).completion for answer in answers]
        return np.array([span.stop - span.start for span in spans])

    def image_tokens(self, images: Sequence[Pictures]) -> int:
        """Tokens that all these pictures take together."""
        source, edge = self.model.source, self.model.longest_edge
        sizes = (picture.shape[:2] for pictures in images for picture in pictures)
        grids = (image_lib.grid(h, w, source.tile_size, edge) for h, w in sizes)
        return sum(rows * columns + 1 for rows, columns in grids) * source.config.image_seq_len


def open_target(spec: str) -> Target:
    """Opens a target by its name on the command line.

    Args:
        spec: a folder, bundled model or hub id of a VLM.
    """
    return VLM(api.Target.from_pretrained(spec), spec)
