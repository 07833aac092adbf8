# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Asks a labeller about the examples of a data set, and keeps each reply as it comes."""

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from absl import logging

from cropvlm_jax.data import faults
from cropvlm_jax.data.source import Source
from cropvlm_jax.labelling.base import Labeller, prompt
from cropvlm_jax.labelling.replies import Replies

THREADS = min(os.cpu_count() or 1, 16)  # which decode and resize pictures
AHEAD = 4 * THREADS  # pictures that are prepared before they are needed


def collect(
    source: Source,
    indices: Iterable[int],
    labeller: Labeller,
    replies: Replies,
    progress: Callable[[int], None],
) -> int:
    """Asks about examples and writes each reply as it comes, so that an interruption loses none.

    An example that cannot be asked about, or gets no reply, is left out: the log counts and names
    them, and another run asks again.

    Args:
        source: the examples.
        indices: of those to ask about.
        labeller: is asked.
        replies: the file of the replies.
        progress: called with the number of examples that are done.

    Returns:
        How many replies were written.

    Raises:
        ReaderUnavailable: a server answers nothing, and will not.
    """
    unanswered: list[str] = []
    written = 0

    def fail(index: int, reason: Any) -> None:
        unanswered.append(f"{source.name_of(index)}: {reason}")
        if len(unanswered) <= faults.SHOWN:  # at once, as there may be hours to go
            logging.warning("no reply for example %d of %s: %s", index, source.name, reason)
        progress(written + len(unanswered))

    ids: dict[str, int] = {}

    def readable() -> Iterator[tuple[str, Any]]:
        for each in prepared(source, indices, labeller):
            if each.fault is None:
                ids[each.example_id] = each.index
                yield each.example_id, each.asked
            else:
                fail(each.index, each.fault)

    for told in labeller.ask(readable()):
        index = ids.pop(told.example_id)
        if told.reply.failure:
            fail(index, told.reply.failure)
            continue
        row = {"example_id": told.example_id, "reply": told.reply.text, "frame": labeller.frame}
        replies.add([row | ({"resized": list(told.resized)} if told.resized else {})])
        written += 1
        progress(written + len(unanswered))
    total = written + len(unanswered)
    faults.log(f"{source.name}: no reply for {len(unanswered)} of {total} examples", unanswered)
    return written


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An example that a labeller is to be asked about.

    Attributes:
        index: of the example.
        example_id: its name.
        asked: what the labeller's `prepare` made of it; None where it cannot be asked about.
        fault: why it cannot be.
    """

    index: int
    example_id: str
    asked: Any
    fault: Exception | None = None


def prepared(source: Source, indices: Iterable[int], labeller: Labeller) -> Iterator[Prepared]:
    """Examples as a labeller takes them, in their order; threads prepare the next ones."""

    def prepare(index: int, name: str) -> Prepared:
        try:
            example = source[index]
            return Prepared(
                index, name, labeller.prepare(example["image"], prompt(example["question"]))
            )
        except (OSError, ValueError) as error:
            return Prepared(index, name, None, error)

    names = source.ids()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        waiting: collections.deque[concurrent.futures.Future[Prepared]] = collections.deque()
        try:
            for index in indices:
                waiting.append(pool.submit(prepare, index, names[index]))
                if len(waiting) >= AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
