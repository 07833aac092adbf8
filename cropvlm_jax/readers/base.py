# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What every reader is: it answers questions about a picture, or a picture and a crop of it."""

import io
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

# Kinds of failure that are the reader's own doing: it saw the question and gave no answer.
EMPTY, REFUSAL = "empty", "refusal"


class Reply(NamedTuple):
    """What a target said.

    Attributes:
        text: the answer, "" where there is none.
        failure: why there is none; "" where there is one.
    """

    text: str
    failure: str = ""

    @property
    def kind(self) -> str:
        """The failure without its particulars: "empty", "refusal", "timeout", "HTTP 500" ..."""
        return self.failure.partition(":")[0]

    @property
    def unanswered(self) -> bool:
        """Whether something kept the target from answering: it says nothing of the pictures."""
        return bool(self.failure) and self.kind not in (EMPTY, REFUSAL)


class Reader(Protocol):
    """A frozen reader of pictures.

    Some can do more, and have `log_likelihood(images, questions, answers)`, float `[n]` in nats,
    summed over an answer's tokens, and `image_tokens(images)`, how many tokens all these pictures
    take together.

    Attributes:
        name: for reports.
    """

    name: str

    def answer(
        self, images: Sequence[Sequence[np.ndarray]], questions: Sequence[str]
    ) -> list[Reply]:
        """Answers, one a question; an item that failed is a reply that says so.

        Args:
            images: of each question, the picture or the picture and the crop, uint8 RGB
                `[H, W, 3]` of any size.
            questions: the questions.
        """
        ...


def said(text: str) -> Reply:
    text = text.strip()
    return Reply(text, "" if text else EMPTY)


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
