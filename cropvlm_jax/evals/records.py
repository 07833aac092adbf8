# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files of records: a line of JSON an item, appended in order, so that a killed run goes on.

The first line is the protocol, all that the records depend on; its digest is part of the file's
name. An item that was asked about again has a second line, which counts.

Of several processes each adds to a part of its own beside the file, `vstar.1a2b.jsonl.part-3`, and
process 0 moves the parts into the file. A part that a killed run has left is taken over by the
next one, whatever its number of processes.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from cropvlm_jax import json_lines

Record = json_lines.Row
PART = ".part-"  # after the file's name and before the number of a process


class RecordFile:
    """What is known of an evaluation's items, and a file that this process alone adds to."""

    def __init__(self, path: Path, file: BinaryIO, known: Iterable[Record]):
        """Takes a file that is open.

        Args:
            path: of the evaluation's file, whose parts are beside it.
            file: gets new records: that file, or a part.
            known: the records that there are.
        """
        self._path, self._file = path, file
        self._by_index = {record["index"]: record for record in known}
        self._ahead: dict[int, Record] = {}  # of parts: written as soon as they come next

    def __len__(self) -> int:
        """How many items it has records of."""
        return len(self._by_index)

    def __contains__(self, index: int) -> bool:
        """Whether there is a record of an item, written or still in a part."""
        return index in self._by_index or index in self._ahead

    def records(self, total: int) -> list[Record]:
        """The records of the first `total` items, or of as many of them as there are."""
        return [self._by_index[index] for index in sorted(self._by_index) if index < total]

    def append(self, new: Sequence[Record]) -> None:
        """Writes records of the items that come next, or again of items that are there."""
        rows = [*new]
        self._by_index |= {record["index"]: record for record in rows}
        while (following := len(self._by_index)) in self._ahead:
            self._by_index[following] = self._ahead.pop(following)
            rows.append(self._by_index[following])
        self._file.write(json_lines.encode(rows))
        self._file.flush()

    def take_parts(self) -> None:
        """Moves what the parts hold into the evaluation's file, which this is.

        A kill at any moment loses nothing: a part goes once all of it is in the file. Records of
        items that do not come next wait in one part.
        """
        parts = parts_of(self._path)
        latest = {record["index"]: record for _, part in parts for record in part}
        known = self._by_index
        again = [r for i, r in latest.items() if i in known and r != known[i]]
        self._ahead = {i: r for i, r in sorted(latest.items()) if i not in known}
        self.append(again)
        os.fsync(self._file.fileno())
        rest = part_of(self._path, 0)
        if self._ahead:
            json_lines.replace(rest, self._ahead.values())
        for name, _ in parts:
            if name != rest or not self._ahead:
                name.unlink()


def name_records(stem: str, protocol: Mapping[str, Any]) -> str:
    """The name of the file of an evaluation's records: the stem and a digest of the protocol."""
    digest = hashlib.sha256(
        json.dumps(protocol, sort_keys=True, allow_nan=False).encode()
    ).hexdigest()[:8]
    return f"{stem}.{digest}.jsonl"


@contextlib.contextmanager
def open_records(path: Path, protocol: Mapping[str, Any]) -> Iterator[RecordFile]:
    """Opens a file of records to append to it, with what is in its parts; it is made if need be.

    Raises:
        BlockingIOError: another process has it open.
        ValueError: records are missing in its midst.
    """
    with _locked(path) as file:
        rows = json_lines.read(path)
        if not rows:
            file.write(json_lines.encode([{"protocol": protocol}]))
            file.flush()
        records = _last_of_each(rows[1:])
        if [record["index"] for record in records] != list(range(len(records))):
            raise ValueError(f"{path} has been changed: remove it to begin anew")
        opened = RecordFile(path, file, records)
        opened.take_parts()
        yield opened


@contextlib.contextmanager
def open_part(path: Path, process: int) -> Iterator[RecordFile]:
    """Opens the part of a file of records that a process adds to; it is made if need be.

    Args:
        path: of the file, which nobody adds to meanwhile.
        process: number of the process.

    Raises:
        BlockingIOError: another process has the part open.
    """
    with _locked(part_of(path, process)) as file:
        yield RecordFile(path, file, known_records(path))


def known_records(path: Path) -> list[Record]:
    """The records in a file and its parts: of all processes, also while they are at work."""
    return [*read_records(path), *(record for _, part in parts_of(path) for record in part)]


def part_of(path: Path, process: int) -> Path:
    """The part of a file of records that a process adds to."""
    return path.with_name(f"{path.name}{PART}{process}")


def parts_of(path: Path) -> list[tuple[Path, list[Record]]]:
    """The parts of a file of records, and the records in each."""
    names = sorted(path.parent.glob(f"{glob.escape(path.name)}{PART}*"))
    return [(name, json_lines.read(name)) for name in names]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """A file that this process alone adds to; the piece of a line at its end is cut off.

    Raises:
        BlockingIOError: another process has it open.
    """
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"another evaluation is at work on {path}") from error
        file.seek(0)
        file.truncate(sum(map(len, json_lines.whole_lines(file.read()))))
        yield file


def read_records(path: str | os.PathLike) -> list[Record]:
    """The records of an evaluation that is complete, or of what there is of it."""
    return _last_of_each(json_lines.read(path)[1:])


def _last_of_each(records: Sequence[Record]) -> list[Record]:
    """The records in order of their items; of an item that was asked about again, the last one."""
    return list({record["index"]: record for record in records}.values())
