# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The pictures that a tool may read by their paths: files in folders that were allowed."""

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cropvlm_jax.serving.pictures import Unreadable


class Folders:
    """Folders in which everything may be read, and outside of which nothing may.

    Where a path leads is decided after `..` and all links are resolved. What is outside is refused
    before it is looked for, so that nobody learns which files there are.
    """

    def __init__(self, folders: Sequence[str | Path]):
        """Resolves the folders.

        Raises:
            OSError: one of them is not there.
        """
        self._folders = [Path(folder).expanduser().resolve() for folder in folders]
        for folder in self._folders:
            if not folder.is_dir():
                raise NotADirectoryError(f"--folder={folder} is no folder")

    def read(self, path: str, most: int) -> bytes:
        """A file of the folders.

        Args:
            path: absolute, or from one of the folders.
            most: bytes of the largest file that is read.

        Raises:
            Unreadable: it is outside of the folders, is not there, is no file, or is too large.
        """
        name = f"{path[:200]!r}"
        try:
            with open(self._found(path, name), "rb", opener=_opened) as file:
                content = file.read(most + 1)
        except OSError as error:
            raise Unreadable(f"{name} cannot be read: {error.strerror}") from None
        if len(content) > most:
            raise Unreadable(f"{name} is larger than {most / 1e6:g} MB")
        return content

    def _found(self, path: str, name: str) -> Path:
        """Where a path leads, without links; of several folders, the first that has the file."""
        if not self._folders:
            raise Unreadable(
                "this server may read no files: start it with --folder=..., or give a data: URL"
            )
        try:
            places = [(folder / path).resolve() for folder in self._folders]
        except (OSError, RuntimeError, ValueError):  # a circle of links, a zero byte
            raise Unreadable(f"{name} is no path") from None
        inside = [each for each in places if any(map(each.is_relative_to, self._folders))]
        if not inside:
            folders = ", ".join(map(str, self._folders))
            raise Unreadable(f"{name} is outside of the folders that may be read: {folders}")
        return next((each for each in inside if each.exists()), inside[0])


def _opened(path: str, flags: int) -> int:
    """Opens a file for `open`; without following a link, and without waiting for a pipe."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file")
    return descriptor
