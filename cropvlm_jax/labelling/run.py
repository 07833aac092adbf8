# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Labelling a data set, by one process or by several that share the work.

Hosts need nothing of each other while they ask: each has the model on its own devices and asks
about a stretch of the examples.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from cropvlm_jax import parallel
from cropvlm_jax.data.source import Source
from cropvlm_jax.labelling import replies
from cropvlm_jax.labelling.base import Labeller
from cropvlm_jax.labelling.collect import collect
from cropvlm_jax.progress import Progress
from cropvlm_jax.readers.base import ReaderUnavailable


def label(
    source: Source,
    path: str | os.PathLike,
    open_labeller: Callable[[Sequence[int]], Labeller],
) -> None:
    """Asks about all examples that have no reply yet; to be called by all processes of a run.

    Args:
        source: the examples.
        path: the file of replies, which all processes see.
        open_labeller: makes what is asked, of the indices of those to ask about; it is not called
            where there are none.

    Raises:
        ReaderUnavailable: a server answers nothing; what it answered before is in the file.
        ValueError: another run adds to the file, or not all processes see it.
    """

    def share(file: replies.Replies) -> int:
        return _ask_own_share(source, path, open_labeller, file)

    process = jax.process_index()
    if process == 0:
        with replies.adding(path) as file:
            file.take_over_parts()
            before = _count(path)
            _wait_for_all()
            written = _over_hosts(share(file))
            file.take_over_parts()
            if _count(path) < before + written:
                raise ValueError(
                    f"{path} has {_count(path) - before} of {written} new replies: "
                    "it must be in a folder that all hosts share"
                )
    else:
        _wait_for_all()  # until the parts of an earlier run are taken over
        with replies.adding(path, process) as file:
            written = share(file)
        _over_hosts(written)


def _ask_own_share(
    source: Source,
    path: str | os.PathLike,
    open_labeller: Callable[[Sequence[int]], Labeller],
    file: replies.Replies,
) -> int:
    """Asks about the share of this process; returns how many replies it has written."""
    names = source.ids()
    pending = replies.unanswered(names, path)
    digest = hashlib.sha256("\n".join(names[index] for index in pending).encode()).hexdigest()
    parallel.check_same_on_all_hosts(digest, "examples without a reply")
    process, processes = jax.process_index(), jax.process_count()
    start, stop = (len(pending) * edge // processes for edge in (process, process + 1))
    indices = pending[start:stop]  # neighbours, whose pictures are often in the same file
    if not indices:
        return 0
    progress = Progress(len(indices), what="picture")
    try:
        return collect(source, indices, open_labeller(indices), file, progress.update)
    except ReaderUnavailable as error:
        raise ReaderUnavailable(
            f"{error}. Replies so far are in {path}: the same command goes on from there"
        ) from error


def _count(path: str | os.PathLike) -> int:
    """How many examples have a reply in a file."""
    return len(replies.read(path)) if Path(path).exists() else 0


def _wait_for_all() -> None:
    """Waits until all processes are here."""
    parallel.on_all_hosts(True)


def _over_hosts(number: int) -> int:
    """The sum of a number over all processes, once all are here."""
    return int(parallel.gather(np.array([number])).sum())
