# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How targets are asked in an evaluation, and what that takes."""

import collections
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cropvlm_jax.data.source import Example
from cropvlm_jax.evals.records import Record
from cropvlm_jax.readers.asking import ask, ask_how_sure, ask_likelihoods
from cropvlm_jax.readers.base import LikelihoodReader, Reply


class Asked(NamedTuple):
    """What a target is asked about an item, under all conditions that show it the same.

    Attributes:
        record: of the item.
        conditions: their names.
        pictures: what it is shown.
        question: the question.
        example: the item.
    """

    record: Record
    conditions: list[str]
    pictures: list[np.ndarray]
    question: str
    example: Example


class Clock:
    """Measures what a model takes for a stage: seconds, and the tokens that it reads and writes."""

    def __init__(self, model: Any):
        self._work: collections.Counter[str] | None = getattr(model, "work", None)
        self._tokens = self._work["tokens"] if self._work is not None else 0
        self._began = time.perf_counter()

    def stop(self, stage: str, records: Sequence[Record]) -> None:
        """Writes into records the share of each, under the name of the stage."""
        seconds = time.perf_counter() - self._began
        for record in records:
            shares = {"seconds": seconds / len(records)}
            if self._work is not None:
                shares["tokens"] = (self._work["tokens"] - self._tokens) / len(records)
            for key, share in shares.items():
                record[key][stage] = record[key].get(stage, 0.0) + share


def replies_of(target: Any, asked: Sequence[Asked], *, likelihood: bool, sure: bool) -> list[Reply]:
    """A target's replies; one to a question that it refuses says so.

    Args:
        target: answers.
        asked: what it is asked.
        likelihood: whether it chooses the likeliest of an item's options.
        sure: whether replies are to have their log-probabilities.
    """
    if likelihood:
        return _likeliest(target, asked)
    pictures, questions = [row.pictures for row in asked], [row.question for row in asked]
    return (ask_how_sure if sure else ask)(target, pictures, questions)


def _likeliest(target: LikelihoodReader, asked: Sequence[Asked]) -> list[Reply]:
    """Replies that are, for each item, the option whose tokens are the likeliest on average."""
    each = [(row, option) for row in asked for option in row.example["options"]]
    told = iter(
        ask_likelihoods(
            target,
            [row.pictures for row, _ in each],
            [row.question for row, _ in each],
            [option for _, option in each],
        )
    )
    replies = []
    for row in asked:
        likelihoods = {option: next(told) for option in row.example["options"]}
        failures = [likelihood.failure for likelihood in likelihoods.values() if likelihood.failure]
        best = max(likelihoods, key=lambda option: likelihoods[option].nats_a_token)
        nats = likelihoods[best].nats
        replies.append(Reply("", failures[0]) if failures else Reply(best, nats=nats))
    return replies
