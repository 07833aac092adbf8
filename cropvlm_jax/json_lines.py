# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files of JSON lines that are added to as work goes on, and that a kill may cut short.

A line counts once its end is written, so that what a kill tore is as if it had never been there.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def encode(rows: Iterable[Row]) -> bytes:
    """Rows as lines in UTF-8; halves of surrogate pairs, which it cannot hold, are escaped."""
    lines = (json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows)
    return "".join(lines).encode("utf-8", "backslashreplace")


def whole_lines(content: bytes) -> list[bytes]:
    """The lines of a file with their ends; one at its end that was torn is left out."""
    lines = content.splitlines(keepends=True)
    return lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines


def read(path: str | os.PathLike) -> list[Row]:
    """The rows of a file.

    Raises:
        OSError: there is no such file.
        ValueError: a line is no JSON object; the message names it.
    """
    rows = []
    for number, line in enumerate(whole_lines(Path(path).read_bytes()), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} of {path} is damaged: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of {path} is damaged: it holds no object")
        rows.append(row)
    return rows


def replace(path: str | os.PathLike, rows: Iterable[Row]) -> None:
    """Writes a file of other rows in place of the one that may be there, wholly or not at all."""
    temporary = Path(f"{os.fspath(path)}.new")
    temporary.write_bytes(encode(rows))
    temporary.replace(path)
