# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""An evaluation by several processes: each asks about chunks of its own.

Hosts need nothing of each other while they ask: each has the models on its own devices. A process
that fails leaves a note beside the records, so that the others end soon and say why.
"""

import contextlib
import glob
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cropvlm_jax import parallel
from cropvlm_jax.evals.records import Record, RecordFile, open_part, open_records, read_records

CHUNK = 32  # items that are worked on together, always the same ones
FAILED = ".failed-"  # after the file's name and before the number of a process
GO_ON = "What was recorded stays: the same command, on all hosts, goes on from there"


def check_same(name: str) -> None:
    """Checks that all processes are at the same evaluation.

    Args:
        name: of the file of records, which has a digest of all that they depend on.

    Raises:
        ValueError: they are not.
    """
    digest = np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint8)[None]
    if len(np.unique(_gathered(digest), axis=0)) > 1:
        raise ValueError(
            f"this process is to make {name} and others another file: all hosts need the same "
            "command, models, data and versions"
        )


def by_process(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each process's own chunks."""
    shares: list[list[Record]] = [[] for _ in range(jax.process_count())]
    for record in records:
        shares[record["index"] // CHUNK % len(shares)].append(record)
    return shares


def own_chunks(total: int) -> list[range]:
    """The items that this process works on, chunk by chunk: every n-th chunk of n processes.

    Args:
        total: how many items there are.
    """
    first, processes = jax.process_index(), jax.process_count()
    starts = range(first * CHUNK, total, processes * CHUNK)
    return [range(start, min(start + CHUNK, total)) for start in starts]


def ask_in_shares(
    path: Path, protocol: Mapping[str, Any], total: int, ask: Callable[[RecordFile], None]
) -> list[Record]:
    """Has each process ask about its share; to be called by all processes.

    Args:
        path: of the records, in a folder that all processes see.
        protocol: all that the records depend on.
        total: how many items there are.
        ask: asks about the items of `own_chunks` that the file has no records of.

    Returns:
        The records of all items, on every process.

    Raises:
        ConnectionError: another process has failed.
        ValueError: not all processes see the folder.
    """
    process = jax.process_index()
    with contextlib.ExitStack() as stack:
        records = stack.enter_context(open_records(path, protocol)) if process == 0 else None
        if records is not None:
            _forget_failures(path)
        _wait_for_all()
        with _noting_failure(path), open_part(path, process) as part:
            ask(part)
        _wait_for_all()
        if records is not None:
            records.take_parts()
            if (found := len(records.records(total))) < total:
                raise ValueError(
                    f"{path} has {found} of {total} items: it must be in a folder that all hosts "
                    "share"
                )
        _wait_for_all()
    return read_records(path)[:total]


@contextlib.contextmanager
def _noting_failure(path: Path) -> Iterator[None]:
    """Tells the other processes of an error that ends this one."""
    try:
        yield
    except Exception as error:
        note = path.with_name(f"{path.name}{FAILED}{jax.process_index()}")
        note.write_text(" ".join(str(error).split()), encoding="utf-8")
        raise


def _notes(path: Path) -> list[Path]:
    """The notes of processes that have failed."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}{FAILED}*"))


def _forget_failures(path: Path) -> None:
    """Removes the notes of an earlier run."""
    for note in _notes(path):
        note.unlink()


def check_others(path: Path) -> None:
    """Checks that no other process has failed.

    Args:
        path: of the records.

    Raises:
        ConnectionError: one has; the message says which, and why.
    """
    for note in _notes(path) if jax.process_count() > 1 else ():
        number = note.name.rpartition(FAILED)[2]
        why = note.read_text(encoding="utf-8")
        raise ConnectionError(f"process {number} has failed: {why}. {GO_ON}")


def _wait_for_all() -> None:
    """Waits until all processes are here.

    Raises:
        ConnectionError: one of them has ended.
    """
    _gathered(np.zeros(1, np.uint8))


def _gathered(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes.

    Raises:
        ConnectionError: one of them has ended.
    """
    try:
        return np.asarray(parallel.gather(rows))
    except jax.errors.JaxRuntimeError as error:
        raise ConnectionError(
            f"another process has ended, its own log says why. {GO_ON}"
        ) from error
