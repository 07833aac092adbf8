# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Digests of the files of a checkpoint, by which damage is noticed.

Orbax notices files that are cut short, but not every bit that has changed. So a save ends with the
SHA-256 digests of all of its files, before the rename that makes it a checkpoint.
"""

import asyncio
import hashlib
import json
import math
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

from orbax.checkpoint.path import atomicity

FILE = "digests.json"
SMALL = 2**16  # bytes; files of metadata are no larger
MISSING = "is missing"


class Damage(NamedTuple):
    """What is wrong with a file.

    Attributes:
        file: its path in the folder.
        reason: the rest of a sentence about it; `MISSING` where it is not there.
    """

    file: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file} {self.reason}"


class DigestedPath(atomicity.AtomicRenameTemporaryPath):  # type: ignore[misc]
    """Orbax's temporary folder of a save, which gets its digests before it is renamed.

    Process 0 alone calls `finalize`, once all processes have written their files. Orbax writes its
    last files there and renames the folder; here it is renamed to another temporary name first. A
    save that is killed on its way leaves a temporary folder, which the next run clears away.
    """

    async def finalize(self) -> None:
        """Commits the save: Orbax's last files, the digests of all files, the final name."""
        final = self._final_path  # type: ignore[has-type]
        if atomicity.TMP_DIR_SUFFIX in final.parent.name:  # an item of a save, inside of its folder
            return await super().finalize()
        self._final_path = final.with_name(f"{final.name}.digests{atomicity.TMP_DIR_SUFFIX}")
        try:
            await super().finalize()
            complete = Path(self._final_path)
        finally:
            self._final_path = final
        await asyncio.to_thread(write, complete)
        complete.rename(final)


def write(folder: Path) -> None:
    """Writes the digests of all files in a folder to `FILE` in it, and one of these digests."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    found = _digests(files, folder)
    text = json.dumps({"files": found, "sha256": _digest_of(found)}, indent=1, allow_nan=False)
    (folder / FILE).write_text(text, encoding="utf-8")


def find_damage(folder: Path, largest: int | None = None) -> Damage | None:
    """What is wrong with the files in a folder.

    Args:
        folder: where `write` has been.
        largest: bytes of the largest file whose contents are read; None reads all.

    Returns:
        The first file that is not as it was written, and why; None where all are.
    """
    try:
        written = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if written["sha256"] != _digest_of(written["files"]):
            return Damage(FILE, "has changed")
    except FileNotFoundError:
        return Damage(FILE, MISSING)
    except (OSError, ValueError, TypeError, KeyError) as error:
        return Damage(FILE, f"cannot be read ({type(error).__name__}: {error})")
    expected: dict[str, dict[str, Any]] = written["files"]
    try:
        for name, entry in expected.items():
            if not (folder / name).is_file():
                return Damage(name, MISSING)
            if (size := (folder / name).stat().st_size) != entry["bytes"]:
                return Damage(name, f"has {size} bytes instead of {entry['bytes']}")
        limit = math.inf if largest is None else largest
        files = [folder / name for name, entry in expected.items() if entry["bytes"] <= limit]
        found = _digests(files, folder)
    except OSError as error:
        return Damage(str(error.filename), f"cannot be read: {error.strerror}")
    changed = [name for name, entry in found.items() if entry != expected[name]]
    return Damage(changed[0], "has changed") if changed else None


def _digest_of(entries: dict[str, dict[str, Any]]) -> str:
    """The digest of the digests of files."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _digests(files: list[Path], folder: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of files, by their path in a folder; several at once."""
    with futures.ThreadPoolExecutor() as pool:
        digests = list(pool.map(_digest, files))
    return {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, digests, strict=True)
    }


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
