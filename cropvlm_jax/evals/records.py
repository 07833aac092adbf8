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

from cropvlm_jax import json_lines

Record = json_lines.Row


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
        self._file.write(json_lines.encode(new))
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
        file.truncate(sum(map(len, json_lines.whole_lines(file.read()))))
        rows = json_lines.read(path)
        if not rows:
            file.write(json_lines.encode([{"protocol": protocol}]))
            file.flush()
        records = _last_of_each(rows[1:])
        if [record["index"] for record in records] != list(range(len(records))):
            raise ValueError(f"{path} has been changed: remove it to begin anew")
        yield RecordFile(file, records)


def read_records(path: str | os.PathLike) -> list[Record]:
    """The records of an evaluation that is complete, or of what there is of it."""
    return _last_of_each(json_lines.read(path)[1:])


def _last_of_each(records: Sequence[Record]) -> list[Record]:
    """The records in order of their items; of an item that was asked about again, the last one."""
    return list({record["index"]: record for record in records}.values())
