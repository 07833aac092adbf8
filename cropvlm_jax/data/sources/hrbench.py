# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""HR-Bench: multiple-choice questions about 4K and 8K pictures, in gigabytes of TSV or parquet."""

import base64
import functools
import itertools
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cropvlm_jax.data import rows
from cropvlm_jax.data.source import Source

LETTERS = ("A", "B", "C", "D")
COLUMNS = ("index", "question", "answer", "category", "cycle_category", *LETTERS)
_QUOTED = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"')  # possessive: a doubled quote closes nothing
Span = tuple[int, int]


def open(folder: str | os.PathLike, split: str) -> Source:
    """Opens HR-Bench (Wang et al., "Divide, Conquer and Combine").

    Its 800 rows are 200 questions in four orders of their options, told apart by `cycle_category`.
    Opening reads the texts alone. Of the two files the TSV is preferred, since any of its pictures
    can be read by itself.

    Args:
        folder: a copy of `DreamMr/HR-Bench`: `hr_bench_{split}.tsv` or `hr_bench_{split}.parquet`.
        split: "4k" or "8k".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the split or the file's columns are unknown, or nothing in it is usable.
    """
    if split not in ("4k", "8k"):
        raise ValueError(f"the splits of HR-Bench are '4k' and '8k', not {split!r}")
    names = f"hr_bench_{split}.tsv", f"hr_bench_{split}.parquet"
    path = rows.first_file(Path(folder), names)
    if path is None:
        raise rows.not_here(Path(folder), f"HR-Bench {split}", names)
    tsv = path.suffix == ".tsv"
    entries = _tsv_rows(path) if tsv else _parquet_rows(path)
    found = rows.collect(entries, functools.partial(_example, f"hrbench/{split}"))
    read_picture = functools.partial(_tsv_picture, path) if tsv else _ParquetPictures(path)
    return Source(f"hrbench/{split}", found.examples, read_picture, found.skipped)


def _example(name: str, row: rows.Row) -> rows.Row:
    options = [rows.text(row, letter) for letter in LETTERS]
    label = rows.text(row, "answer").strip()
    if label not in LETTERS:
        raise ValueError(f"answer {label!r} is none of {', '.join(LETTERS)}")
    return {
        "example_id": f"{name}/{rows.identifier(row, 'index')}",
        "image": row["image"],
        "question": rows.text(row, "question"),
        "answers": [options[LETTERS.index(label)]],
        "options": options,
        "label": label,
        "category": rows.text(row, "category"),
        "cycle_category": rows.identifier(row, "cycle_category"),
    }


def _check_columns(path: Path, columns: list[str]) -> None:
    missing = [name for name in (*COLUMNS, "image") if name not in columns]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; found {', '.join(columns)}")


def _picture(encoded: bytes | str | None, where: str) -> bytes:
    if not encoded:
        raise ValueError(f"no picture {where}")
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise ValueError(f"no picture in base64 {where}: {error}") from error


# TSV ----------------------------------------------------------------------------------------------
# The csv module would hold every picture, and refuses fields of this size by default.


def _tsv_rows(path: Path) -> Iterator[rows.Entry]:
    """Rows whose "image" is the offset and the length of its base64 in the file."""
    with path.open("rb") as file:
        header = file.readline()
        try:
            columns = [_tsv_text(header, span).lstrip("\ufeff") for span in _fields(header) or ()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no TSV file in UTF-8: {error}") from error
        _check_columns(path, columns)
        for number, (offset, line) in enumerate(_tsv_lines(file, len(columns)), 1):
            yield (
                f"row {number} of {path.name}",
                functools.partial(_tsv_row, columns, offset, line),
            )


def _tsv_row(columns: list[str], offset: int, line: bytes) -> rows.Row:
    fields = _fields(line)
    if fields is None:
        raise ValueError("its quotes do not close")
    if len(fields) != len(columns):
        raise ValueError(f"{len(fields)} fields instead of {len(columns)}")
    spans = dict(zip(columns, fields, strict=True))
    begin, end = spans["image"]
    row: rows.Row = {name: _tsv_text(line, spans[name]) for name in COLUMNS}
    return row | {"image": (offset + begin, end - begin)}


def _tsv_lines(file: BinaryIO, columns: int) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each row; one that ends inside quotes takes in the next line."""
    offset, row = file.tell(), b""
    for line in file:
        if row and len(_fields(line) or ()) == columns:  # a row of its own: the quotes never close
            yield offset, row
            offset, row = offset + len(row), b""
        row += line
        if _fields(row) is not None:
            yield offset, row
            offset, row = offset + len(row), b""
    if row:
        yield offset, row


def _fields(row: bytes) -> list[Span] | None:
    """Where the fields of a row begin and end, their quotes included; None inside open quotes."""
    stop = len(row) - (2 if row.endswith(b"\r\n") else row.endswith(b"\n"))
    fields, begin = [], 0
    while begin <= stop:
        end = begin
        if row.startswith(b'"', begin):
            quoted = _QUOTED.match(row, begin)
            if quoted is None:
                return None
            end = quoted.end()
        end = row.find(b"\t", end, stop)
        end = stop if end < 0 else end
        fields.append((begin, end))
        begin = end + 1
    return fields


def _tsv_text(row: bytes, span: Span) -> str:
    begin, end = span
    field = row[begin:end]
    if len(field) > 1 and field.startswith(b'"') and field.endswith(b'"'):
        field = field[1:-1].replace(b'""', b'"')
    return field.decode()


def _tsv_picture(path: Path, place: Span) -> bytes:
    offset, length = place
    with path.open("rb") as file:
        file.seek(offset)
        return _picture(file.read(length).strip(b'"'), f"at byte {offset} of {path}")


# Parquet ------------------------------------------------------------------------------------------


def _parquet_rows(path: Path) -> Iterator[rows.Entry]:
    """Rows whose "image" is a row group and the row in it."""
    pa, pq = rows.import_pyarrow()
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no readable parquet file: {error}") from error
    with file:
        _check_columns(path, file.schema_arrow.names)
        kind = str(file.schema_arrow.field("image").type)
        if kind not in ("string", "large_string", "binary", "large_binary"):
            raise ValueError(f"{path}: the column image is {kind}, not text in base64")
        number = itertools.count()
        for group in range(file.num_row_groups):
            fields = rows.read_row_group(file, str(path), group, list(COLUMNS))
            for index in range(file.metadata.row_group(group).num_rows):
                read = functools.partial(rows.parquet_row, fields, index, (group, index))
                yield f"row {next(number)} of {path.name}", read


class _ParquetPictures:
    """Reads pictures of a parquet file, quickest in their order.

    A row group may hold all 800 pictures: they are streamed one by one instead of loaded together,
    from the one read last or from the row group's start.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._group, self._next, self._last = -1, 0, ""
        self._stream: Iterator[Any] = iter(())

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return type(self), (self._path,)

    def __call__(self, place: tuple[int, int]) -> bytes:
        group, index = place
        with self._lock:
            if group != self._group or index < self._next - 1:
                self._group, self._next, self._stream = group, 0, self._pictures(group)
            try:
                while self._next <= index:
                    self._last = next(self._stream)
                    self._next += 1
            except Exception:
                self._group = -1  # a stream that failed is over
                raise
            encoded = self._last
        return _picture(encoded, f"in row {index} of row group {group} of {self._path}")

    def _pictures(self, group: int) -> Iterator[str]:
        _, pq = rows.import_pyarrow()
        with pq.ParquetFile(self._path, buffer_size=2**20) as file:
            for batch in file.iter_batches(1, row_groups=[group], columns=["image"]):
                yield batch.column(0)[0].as_py()
