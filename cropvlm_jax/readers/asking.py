# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How every reader is asked: in training, in evaluations and from Python alike."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from absl import logging

from cropvlm_jax.readers.base import (
    REFUSAL,
    Likelihood,
    LikelihoodReader,
    Reader,
    Reply,
    require_likelihoods,
)

Row = TypeVar("Row")
Result = TypeVar("Result")


def ask(
    reader: Reader, images: Sequence[Sequence[np.ndarray]], questions: Sequence[str]
) -> list[Reply]:
    """A reader's replies; the reply to a question that it refuses by a ValueError says so.

    Args:
        reader: answers.
        images: of each question, the picture or the picture and crops of it, uint8 RGB.
        questions: the questions.

    Raises:
        ReaderUnavailable: it answers nothing, and will not.
        TypeError: it does not return a list of a `Reply` to each question.
    """

    def answer(rows: Sequence[tuple[Sequence[np.ndarray], str]]) -> list[Reply]:
        replies = reader.answer([pictures for pictures, _ in rows], [text for _, text in rows])
        as_promised = isinstance(replies, list) and len(replies) == len(rows)
        if not (as_promised and all(isinstance(reply, Reply) for reply in replies)):
            raise TypeError(
                f"{reader.name}: `answer` must return a list of {len(rows)} Reply, not "
                f"{replies!r:.80}"
            )
        return replies

    rows = list(zip(images, questions, strict=True))
    return refused_alone(answer, rows, lambda reason: Reply("", f"{REFUSAL}: {reason}"))


def ask_how_sure(
    reader: Reader, images: Sequence[Sequence[np.ndarray]], questions: Sequence[str]
) -> list[Reply]:
    """A reader's replies with their `nats`; arguments and errors are those of `ask`.

    A reader that does not tell them as it answers, but can tell likelihoods, is asked about its own
    answers once more.
    """
    replies = ask(reader, images, questions)
    if not isinstance(reader, LikelihoodReader):
        return replies
    untold = [i for i, reply in enumerate(replies) if reply.nats is None and not reply.failure]
    told = ask_likelihoods(
        reader,
        [images[i] for i in untold],
        [questions[i] for i in untold],
        [replies[i].text for i in untold],
    )
    for i, likelihood in zip(untold, told, strict=True):
        if not likelihood.failure:
            replies[i] = replies[i]._replace(nats=likelihood.nats)
    return replies


def check_tells_how_sure(reader: Reader | None) -> None:
    """Checks that `ask_how_sure` has a reader that tells it.

    Raises:
        ReaderUnavailable: it answers nothing.
        ValueError: there is none, or it tells no likelihoods.
    """
    if reader is None:
        raise ValueError("keep_if_surer compares a target's answers: give a target")
    try:
        require_likelihoods(reader)
    except ValueError as error:
        raise ValueError(
            f"keep_if_surer needs how sure the target is of its answers: {error}"
        ) from error


def keeps_crops(closer: Reply, whole: Reply) -> bool:
    """Harm control: whether the answer with crops is kept, or that to the picture alone.

    It is kept where the reader is at least as sure of it, by `Reply.margin`, and where that is not
    known. An answer is kept before none.

    Args:
        closer: to the picture and the crops.
        whole: to the picture alone.
    """
    if closer.failure or whole.failure:
        return not closer.failure or bool(whole.failure)
    if closer.margin is None or whole.margin is None:
        return True
    return closer.margin >= whole.margin


def ask_likelihoods(
    reader: LikelihoodReader,
    images: Sequence[Sequence[np.ndarray]],
    questions: Sequence[str],
    answers: Sequence[str],
) -> list[Likelihood]:
    """How likely answers are; one that the reader refuses by a ValueError has a failure.

    Args:
        reader: tells likelihoods.
        images: of each question, the picture or the picture and crops of it, uint8 RGB.
        questions: the questions.
        answers: one to each.

    Raises:
        ReaderUnavailable: it answers nothing, and will not.
    """

    def tell(rows: Sequence[tuple[Sequence[np.ndarray], str, str]]) -> list[Likelihood]:
        return reader.likelihoods(
            [pictures for pictures, _, _ in rows],
            [question for _, question, _ in rows],
            [answer for _, _, answer in rows],
        )

    rows = list(zip(images, questions, answers, strict=True))
    return refused_alone(tell, rows, lambda why: Likelihood(math.nan, 0, f"{REFUSAL}: {why}"))


def refused_alone(
    function: Callable[[Sequence[Row]], Sequence[Result]],
    rows: Sequence[Row],
    failed: Callable[[str], Result],
) -> list[Result]:
    """The results of `function` by row; `failed` makes that of a row which it refuses alone.

    Where it refuses several rows, each half of them is asked again, so that neighbours stay
    together.
    """
    if not rows:
        return []
    try:
        return list(function(rows))
    except ValueError as error:
        if len(rows) == 1:
            logging.warning("an item was refused: %s", error)
            return [failed(str(error))]
        middle = len(rows) // 2
        halves = rows[:middle], rows[middle:]
        return [result for half in halves for result in refused_alone(function, half, failed)]
