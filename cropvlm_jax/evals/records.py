# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files of records: a line of JSON an item, appended in order, so that a killed run goes on.

The first line is the protocol, all that the records depend on; its digest is part of the file's
name. An item that was asked about again has a second line, which counts.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

Record = dict[str, Any]


class RecordFile:
    """A file of records, open and locked for this process."""

    def __init__(self, file: BinaryIO, records: Sequence[Record]):
        self._file = file
        self._by_index = {record["index"]: record for record in records}

    def __len__(self) -> int:
        """How many items it has records of."""
        return len(self._by_index)

    def records(self, total: int) -> list[Record]:
        """The records of the first `total` items, or of as many of them as there are."""
        return list(self._by_index.values())[:total]

    def append(self, new: Sequence[Record]) -> None:
        """Writes records of the items that come next, or again of items that are there."""
        self._file.write(
            b"".join(json.dumps(record, allow_nan=False).encode() + b"\n" for record in new)
        )
        self._file.flush()
        self._by_index |= {record["index"]: record for record in new}


def name_records(stem: str, protocol: Mapping[str, Any]) -> str:
    """The name of the file of an evaluation's records: the stem and a digest of the protocol."""
    digest = hashlib.sha256(
        json.dumps(protocol, sort_keys=True, allow_nan=False).encode()
    ).hexdigest()[:8]
    return f"{stem}.{digest}.jsonl"


@contextlib.contextmanager
def open_records(path: Path, protocol: Mapping[str, Any]) -> Iterator[RecordFile]:
    """Opens a file of records to append to it; it is made where there is none.

    Raises:
        BlockingIOError: another process has it open.
        ValueError: records are missing in its midst.
    """
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"another evaluation is at work on {path}") from error
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):  # cut short by a kill
            file.truncate(sum(map(len, lines[:-1])))
            lines.pop()
        if not lines:
            file.write(json.dumps({"protocol": protocol}, allow_nan=False).encode() + b"\n")
            file.flush()
        records = _last_of_each([json.loads(line) for line in lines[1:]])
        if [record["index"] for record in records] != list(range(len(records))):
            raise ValueError(f"{path} has been changed: remove it to begin anew")
        yield RecordFile(file, records)


def read_records(path: str | os.PathLike) -> list[Record]:
    """The records of an evaluation that is complete, or of what there is of it."""
    lines = Path(path).read_bytes().splitlines(keepends=True)
    return _last_of_each([json.loads(line) for line in lines[1:] if line.endswith(b"\n")])


def _last_of_each(records: Sequence[Record]) -> list[Record]:
    """The records in order of their items; of an item that was asked about again, the last one."""
    return list({record["index"]: record for record in records}.values())
