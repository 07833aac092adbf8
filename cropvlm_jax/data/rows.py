# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of JSON, JSON-lines and parquet files; the broken ones are named and left out."""

import dataclasses
import functools
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from cropvlm_jax import texts
from cropvlm_jax.data.source import Box

Row = dict[str, Any]
# What messages call a row, and how to read it: `collect` says which errors mean that it cannot be.
Entry = tuple[str, Callable[[], Row]]

SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
_ROW_GROUPS = threading.Lock()
_LOST = "lost_box"  # of a row that `collect` has not seen: why it has no box


@dataclasses.dataclass(frozen=True)
class Collected:
    """What came of the rows of a file.

    Attributes:
        examples: the usable rows.
        skipped: a line for each row that is left out: "row 17 of train.json: no question".
        lost_boxes: a line for each of the examples whose box is left out.
    """

    examples: list[Row]
    skipped: list[str]
    lost_boxes: list[str]


def collect(entries: Iterable[Entry], parse: Callable[[Row], Row]) -> Collected:
    """Parses rows.

    Args:
        entries: the rows.
        parse: a row to an example; raises `ValueError`, `OSError` or `ArithmeticError` (a number
            too large) where there is none in it.
    """
    found = Collected([], [], [])
    for where, read in entries:
        try:
            example = parse(read())
        except (ValueError, OSError, ArithmeticError, RecursionError) as error:
            found.skipped.append(f"{where}: {error}")
            continue
        if _LOST in example:
            found.lost_boxes.append(f"{where}: {example.pop(_LOST)}")
        found.examples.append(example)
    return found


def with_box(example: Row, make_box: Callable[[], Box]) -> Row:
    """An example with its box; one that cannot be used costs the box alone.

    Args:
        example: the rest of it, for `collect`.
        make_box: raises `ValueError`, `OSError` or `ArithmeticError` where there is none.
    """
    try:
        return example | {"box": make_box()}
    except (ValueError, OSError, ArithmeticError) as error:
        return example | {_LOST: str(error)}


# Fields -------------------------------------------------------------------------------------------


def text(row: Row, key: str) -> str:
    """A field that must be a string and not blank, as it stands."""
    value = row.get(key)
    if value is None or value == "":
        raise ValueError(f"no {key}")
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r}, not text")
    if not value.strip():
        raise ValueError(f"no {key}")
    return texts.check(value, key)


def identifier(row: Row, key: str) -> str:
    """A field that must be a whole number or a string."""
    value = row.get(key)
    return str(value) if type(value) is int else text(row, key)


def answers(values: Any, required: bool) -> list[str]:
    """Stripped answers of all annotators, the blank ones left out.

    Args:
        values: a list, or one answer; None where there are none. Whole numbers are taken as text;
            others are refused, as JSON forgets the zero of 12.50.
        required: whether to refuse a row without any.
    """
    if values is None:
        values = []
    stripped = [_answer(value) for value in (values if isinstance(values, list) else [values])]
    stripped = [answer for answer in stripped if answer]
    if required and not stripped:
        raise ValueError("no answer")
    return stripped


def _answer(value: Any) -> str:
    if type(value) is int:
        return str(value)
    if isinstance(value, float):
        raise ValueError(f'answer {value!r:.80} is a number: write it as text, such as "{value!r}"')
    if not isinstance(value, str):
        raise ValueError(f"answer {value!r:.80} is not text")
    return texts.check(value.strip(), "answer")


def split_name(split: str) -> str:
    """`split` as "train", "val" or "test"; "validation" is "val"."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    return SPLITS[split]


def fraction(name: str) -> float:
    """A number in [0, 1) that depends on nothing but the name: splits are made by it."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def not_here(folder: Path, wanted: str, expected: Sequence[str]) -> FileNotFoundError:
    """The error for a folder of something else."""
    if not folder.is_dir():
        return FileNotFoundError(f"{wanted}: there is no folder {folder}")
    names = sorted(path.name for path in folder.iterdir())
    found = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "nothing"
    return FileNotFoundError(
        f"{wanted} is not in {folder}: expected {' or '.join(expected)}; found {found}"
    )


# Files --------------------------------------------------------------------------------------------


def first_file(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of the files that exists."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def json_rows(path: Path) -> Iterator[Entry]:
    """Rows of `{"data": [...]}`, numbered from 0.

    Raises:
        ValueError: the file is no JSON in UTF-8, or of another shape.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file in UTF-8: {error}") from error
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        found = ", ".join(content) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f'{path}: expected an object with a list "data", found {found}')
    for number, row in enumerate(data):
        yield f"row {number} of {path.name}", functools.partial(_object, row)


def jsonl_rows(path: Path) -> Iterator[Entry]:
    """Rows of a file with an object in JSON on each line; blank lines are none.

    A row's "line" is its number, from 1.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"line {number} of {path.name}", functools.partial(_line, line, number)


def _line(line: bytes, number: int) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON object in UTF-8: {error}") from error
    return _object(row) | {"line": number}


def _object(row: Any) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, not an object with fields")
    return row


# Parquet ------------------------------------------------------------------------------------------


def parquet_shards(folder: Path, folders: Sequence[str], split: str) -> list[Path]:
    """Shards `{split}-*.parquet` in the first of the folders that has any.

    Args:
        folder: of the data set.
        folders: inside it, "" for itself.
        split: as the files are named.
    """
    for inner in folders:
        shards = sorted((folder / inner).glob(f"{split}-*.parquet"))
        if shards:
            numbered = re.search(r"-of-(\d+)", shards[0].name)
            if numbered and len(shards) < int(numbered[1]):
                found, place = len(shards), folder / inner
                logging.warning("only %d of %d shards are in %s", found, int(numbered[1]), place)
            return shards
    return []


def parquet_rows(
    shards: Iterable[Path], columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[Entry]:
    """Rows of parquet files, numbered from 0 in each file, without the pictures.

    Args:
        shards: the files. They hold a column `image`, struct {bytes, path}, which is not read:
            a row's "image" is what `parquet_picture` takes.
        columns: to read, and must be there.
        optional: to read where they are there.

    Raises:
        ImportError: pyarrow is absent.
        ValueError: a file is no parquet file, or of other columns.
        OSError: a file is broken.
    """
    pa, pq = import_pyarrow()
    for path in shards:
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is no readable parquet file: {error}") from error
        with file:
            schema = file.schema_arrow
            missing = [name for name in (*columns, "image") if name not in schema.names]
            if missing or not pa.types.is_struct(schema.field("image").type):
                raise ValueError(
                    f"{path} is of another data set: expected the columns {', '.join(columns)} "
                    f"and image (struct of bytes and path), found {', '.join(schema.names)}"
                )
            wanted = [name for name in (*columns, *optional) if name in schema.names]
            number = 0
            for group in range(file.num_row_groups):
                fields = read_row_group(file, str(path), group, wanted)
                for index in range(file.metadata.row_group(group).num_rows):
                    picture = (str(path), group, index)
                    read = functools.partial(parquet_row, fields, index, picture)
                    yield f"row {number} of {path.name}", read
                    number += 1


def parquet_row(fields: dict[str, Any], index: int, picture: Any) -> Row:
    """A row of what `read_row_group` returns, with `picture` as its "image"."""
    return {name: field[index].as_py() for name, field in fields.items()} | {"image": picture}


def parquet_picture(where: tuple[str, int, int]) -> bytes:
    """The encoded picture at a file, a row group in it, and a row in that.

    A row group is decompressed whole, some 100 pictures; each process keeps the two used last.
    Reading in order is cheap therefore, but shuffled training on large sets is not: prepare the
    set with TFDS (array_record) once.

    Raises:
        OSError: the file is gone or broken.
        ValueError: the row has no picture.
    """
    path, group, index = where
    with _ROW_GROUPS:  # threads that want the same group wait for it instead of reading it too
        pictures = _row_group(path, group)
    picture = pictures[index]["bytes"].as_py()
    if not picture:
        raise ValueError(f"no picture in row {index} of row group {group} of {path}")
    return picture


@functools.lru_cache(maxsize=2)
def _row_group(path: str, group: int) -> Any:
    with import_pyarrow()[1].ParquetFile(path) as file:
        return read_row_group(file, path, group, ["image"])["image"]


def read_row_group(file: Any, path: str, group: int, columns: list[str]) -> dict[str, Any]:
    """Columns of a row group of an open parquet file; raises `OSError` where it is broken."""
    try:
        table = file.read_row_group(group, columns=columns)
    except (import_pyarrow()[0].ArrowException, OSError) as error:
        raise OSError(f"cannot read row group {group} of {path}: {error}") from error
    return {name: table.column(name).combine_chunks() for name in columns}


def import_pyarrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("reading parquet files takes pyarrow: pip install pyarrow") from error
    return pyarrow, pyarrow.parquet
