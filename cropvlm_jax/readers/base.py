# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What every reader is: it answers questions about a picture, or a picture and crops of it."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from cropvlm_jax import texts

# Kinds of failure that are the reader's own doing: it saw the question and gave no answer.
EMPTY, REFUSAL = "empty", "refusal"


SUREST = -1e-7  # nats: likelier than that is not told apart in fp32


class ReaderUnavailable(ConnectionError):
    """A reader answers nothing at all, so that there is no use in asking it more.

    A run or an evaluation ends with it. It says which reader, where it is, and why.
    """


class Reply(NamedTuple):
    """What a reader said.

    Attributes:
        text: the answer, "" where there is none.
        failure: why there is none; "" where there is one.
        nats: log-probability of the answer and of its end, given the pictures and the question;
            None where the reader does not tell it.
    """

    text: str
    failure: str = ""
    nats: float | None = None

    @property
    def kind(self) -> str:
        """The failure without its particulars: such as "refusal" or "HTTP 500"."""
        return self.failure.partition(":")[0]

    @property
    def unanswered(self) -> bool:
        """Whether something kept the reader from answering: it says nothing of the pictures."""
        return bool(self.failure) and self.kind not in (EMPTY, REFUSAL)

    @property
    def margin(self) -> float | None:
        """How much likelier the answer is than all others together, in nats: its log-odds.

        With p the probability of the answer, log p - log(1 - p): above 0 where the reader would
        rather say this than anything else. None where `nats` is.
        """
        if self.nats is None or math.isnan(self.nats):
            return None
        nats = min(self.nats, SUREST)
        return nats - math.log(-math.expm1(nats))


class Likelihood(NamedTuple):
    """How likely a given answer is.

    Attributes:
        nats: log-probability, summed over the tokens of the answer and the token that ends it; NaN
            where it could not be found out.
        tokens: how many tokens these are.
        failure: why there are no `nats`; "" where there are.
    """

    nats: float
    tokens: int
    failure: str = ""

    @property
    def nats_a_token(self) -> float:
        """Their mean over the tokens; NaN where there are none."""
        return self.nats / max(self.tokens, 1)


@runtime_checkable
class Reader(Protocol):
    """A frozen reader of pictures.

    Some readers can do more: a `LikelihoodReader` tells how likely given answers are, and
    `image_tokens(images)` says how many tokens all these pictures take together. A reader may also
    have `settings`: what its replies depend on, by name, for reports and records; and
    `transcribes`: whether it says all the text that it sees, whatever the question; and
    `most_pictures`: how many pictures a question may have, where that is fewer than five.

    Attributes:
        name: for reports.
    """

    name: str

    def answer(
        self, images: Sequence[Sequence[np.ndarray]], questions: Sequence[str]
    ) -> list[Reply]:
        """Answers each question; a question that could not be answered gets a reply that says why.

        Args:
            images: of each question, the picture or the picture and crops of it, uint8 RGB
                `[H, W, 3]` of any size.
            questions: the questions.

        Returns:
            A reply to each question, in their order.

        Raises:
            ReaderUnavailable: it answers nothing, and will not.
        """
        ...


@runtime_checkable
class LikelihoodReader(Reader, Protocol):
    """A reader that can tell how likely given answers are."""

    def check_likelihoods(self) -> None:
        """Finds out whether it really can; of a server, by asking it.

        Raises:
            ReaderUnavailable: it answers nothing.
            ValueError: it cannot.
        """
        ...

    def likelihoods(
        self,
        images: Sequence[Sequence[np.ndarray]],
        questions: Sequence[str],
        answers: Sequence[str],
    ) -> list[Likelihood]:
        """How likely answers are.

        Args:
            images: as of `answer`.
            questions: the questions.
            answers: one to each question.

        Raises:
            ReaderUnavailable: it answers nothing, and will not.
        """
        ...


def require_likelihoods(reader: Reader) -> LikelihoodReader:
    """The same reader, once it is known to tell likelihoods.

    Raises:
        ReaderUnavailable: it answers nothing.
        ValueError: it tells none.
    """
    if not isinstance(reader, LikelihoodReader):
        raise ValueError(f"{reader.name} tells no likelihoods of given answers")
    reader.check_likelihoods()
    return reader


def reply_from(text: str, nats: float | None = None) -> Reply:
    """The reply of a reader that wrote `text`; where that is blank, a failure of kind `EMPTY`.

    Halves of surrogate pairs, which servers' JSON can spell and no file can hold, become U+FFFD.

    Args:
        text: that it wrote.
        nats: log-probability of the text; None where it is not known.
    """
    text = texts.mend(text).strip()
    return Reply(text, "" if text else EMPTY, nats)
