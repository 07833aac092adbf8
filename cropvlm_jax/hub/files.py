# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""JSON files of model and adapter folders, read strictly: what is wrong is said with its file."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is no such file.

    Raises:
        ValueError: the file is not one JSON object in UTF-8; the message names it.
    """
    if not path.is_file():
        return {}
    content = path.read_bytes()
    if content.startswith(_BYTE_ORDER_MARK):
        raise ValueError(f"{path} begins with a byte order mark: save it as UTF-8 without one")
    if not content.strip():
        raise ValueError(f"{path} is empty: download or copy it again")
    try:
        parsed = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not JSON ({error}): cut short, or a git-lfs pointer? Download it again"
        ) from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{path} holds a {type(parsed).__name__}, not a JSON object")
    return parsed


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file as `transformers` formats it."""
    path.write_text(
        json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


@contextlib.contextmanager
def blamed_on(path: Path) -> Iterator[None]:
    """Puts a file's or folder's name before the message of a ValueError that leaves the block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
