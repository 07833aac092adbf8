# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The replies of a labeller in a file, which outlives the process that asks.

A reply is a line of JSON, `{"example_id", "reply"}`. Where it is known, it also has `"frame"`, what
the numbers of its box count, and `"resized"`, `[height, width]` of the picture in that frame.
`data.seed_boxes` makes boxes of replies.

Of several processes process 0 adds to the file itself, and each of the others to a part of its own
beside it, `replies.jsonl.part-3`, which process 0 takes over in the end. A part that a killed run
has left is taken over by the next one.
"""

import contextlib
import errno
import fcntl
import glob
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from absl import logging

from cropvlm_jax import geometry, json_lines
from cropvlm_jax.data import faults, rows

PART = ".part-"  # after the file's name and before the number of a process
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without them say


def read(path: str | os.PathLike) -> dict[str, rows.Row]:
    """Replies by example; the last one where an example has several.

    Lines that are no reply are skipped; the log counts and names them.

    Raises:
        OSError: there is no such file.
    """
    found = rows.collect(rows.jsonl_rows(Path(path)), _check)
    skipped = found.skipped
    total = len(found.examples) + len(skipped)
    faults.log(f"{path}: {len(skipped)} of {total} lines skipped", skipped)
    return {row["example_id"]: row for row in found.examples}


def _check(row: rows.Row) -> rows.Row:
    """A reply whose fields are known to be usable.

    Raises:
        ValueError: one of them is not.
    """
    if not isinstance(row.get("reply"), str):
        raise ValueError(f"the reply is {row.get('reply')!r}, not text")
    if row.get("frame", geometry.FRAMES[0]) not in geometry.FRAMES:
        raise ValueError(f"frame is {row['frame']!r}, not one of {', '.join(geometry.FRAMES)}")
    match row.get("resized", [1, 1]):
        case [int(height), int(width)] if 0 < min(height, width) <= max(height, width) < 2**20:
            return row | {"example_id": rows.identifier(row, "example_id")}
        case size:
            raise ValueError(f"resized is {size!r}, not [height, width]")


def _stored(row: rows.Row) -> rows.Row:
    """A reply as it is written, without the number of its line."""
    return {key: value for key, value in row.items() if key != "line"}


class Replies:
    """A file of replies that this process alone adds to."""

    def __init__(self, path: str | os.PathLike, file: IO[bytes]):
        """Takes a file that `adding` has opened."""
        self._path, self._file = Path(path), file

    def add(self, new: Iterable[rows.Row]) -> None:
        """Writes replies at the file's end; a kill loses none that was written."""
        self._file.write(json_lines.encode(new))
        self._file.flush()

    def take_over_parts(self) -> None:
        """Moves what other processes have written into this file.

        A kill at any moment loses and doubles nothing: a reply that is here already is not added
        again, and a part goes only when all of it is here.
        """
        parts = sorted(self._path.parent.glob(f"{glob.escape(self._path.name)}{PART}*"))
        if not parts:
            return
        here = read(self._path)
        for part in parts:
            there = read(part)
            self.add(_stored(row) for name, row in there.items() if name not in here)
            os.fsync(self._file.fileno())
            here |= there
            part.unlink()


@contextlib.contextmanager
def adding(path: str | os.PathLike, process: int = 0) -> Iterator[Replies]:
    """Opens a file of replies to add to it; it is made if need be.

    The piece of a line that a killed process has left at its end is cut off.

    Args:
        path: of the file, the same for all processes.
        process: which one of them this is; all but 0 get a part of their own.

    Raises:
        ValueError: another process adds to it.
    """
    path = Path(path)
    if process:
        path = path.with_name(f"{path.name}{PART}{process}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process adds to {path}: wait until it ends, or name another file"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logging.warning("%s cannot be locked: see to it that no other run adds to it", path)
        _mend(file)
        yield Replies(path, file)


def _mend(file: IO[bytes]) -> None:
    """Ends the last line of a file, or cuts it off where it is only a piece of one."""
    file.seek(0)
    content = file.read()
    last = content[content.rfind(b"\n") + 1 :]
    if not last:
        return
    try:
        json.loads(last)
    except ValueError:
        file.truncate(len(content) - len(last))
    else:
        file.write(b"\n")  # written by hand, or by another program
        file.flush()


def unanswered(ids: Iterable[str], path: str | os.PathLike) -> list[int]:
    """Indices of the examples that have no reply in the file, which may not exist yet."""
    known: dict[str, Any] = read(path) if Path(path).exists() else {}
    return [index for index, name in enumerate(ids) if name not in known]
