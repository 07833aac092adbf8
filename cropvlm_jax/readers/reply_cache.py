# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Replies on disk, by the content of their request."""

import hashlib
import json
import os
import threading
from pathlib import Path

from absl import logging

from cropvlm_jax.readers.base import Reply


class ReplyCache:
    """A folder of replies; several threads and processes may use it at once.

    A folder that cannot be read or written costs nothing but the replies being asked for again: it
    is warned of once.
    """

    def __init__(self, folder: str | os.PathLike):
        """Takes a folder, which is made when the first reply is kept; "~" is the user's home."""
        self._folder = Path(os.path.expanduser(folder))
        self._lock, self._warned = threading.Lock(), False

    def get(self, request: str) -> Reply | None:
        """The reply to a request; None where none is kept, or it cannot be read."""
        try:
            kept = json.loads(self._path(request).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn("read", error)
            return None
        except ValueError:  # cut short, as by a full disk
            return None
        match kept:
            case {"text": str(text), "failure": str(failure)}:
                return Reply(text, failure)
        return None

    def put(self, request: str, reply: Reply) -> None:
        """Keeps the reply to a request."""
        path = self._path(request)
        part = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_text(json.dumps(reply._asdict(), allow_nan=False), encoding="utf-8")
                part.replace(path)  # at once, so that no other process reads half of it
            except OSError:
                part.unlink(missing_ok=True)
                raise
        except OSError as error:
            self._warn("written", error)

    def _path(self, request: str) -> Path:
        """The file of the reply to a request."""
        digest = hashlib.sha256(request.encode()).hexdigest()
        return self._folder / digest[:2] / f"{digest}.json"

    def _warn(self, what: str, error: OSError) -> None:
        """Says once that the folder is of no use."""
        with self._lock:
            if self._warned:
                return
            self._warned = True
        logging.warning(
            "the replies kept in %s cannot be %s (%s): the run goes on without, and asks again for "
            "them when it is started again",
            self._folder,
            what,
            error.strerror or error,
        )
