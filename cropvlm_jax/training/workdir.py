# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whose a run's folder is: the process that writes to it now, and the settings of its run."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from cropvlm_jax import parallel

CONFIG = "config.json"
LOCK = "lock.json"
# What may change between the runs of one folder: how devices compute, never what.
FREE = ("attention.", "mesh.", "checkpoint.", "export_every.", "data.workers.")
# These may change where the learning rates of the steps that are done stay what they were.
LENGTH = ("steps.", "epochs.", "warmup.")
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without them say


@contextlib.contextmanager
def held(workdir: str | os.PathLike) -> Iterator[None]:
    """Holds `workdir` for this run: while one process holds it, others are refused.

    The lock is `flock` on `LOCK` in the folder. The kernel releases it when its holder ends, in
    whatever way. Of several processes of a run process 0 holds it. On NFS all hosts see it, on most
    mounted buckets only the processes of the same host do. The log warns where a file system has no
    locks, and where the last run was on another host and did not release its lock. A folder that
    was made for the run and in which nothing was written is removed again.

    Args:
        workdir: of the run; a local path.

    Raises:
        ValueError: another run holds the folder; its process is named.
    """
    if "://" in str(workdir):
        raise ValueError(f"{workdir}: runs are kept in local folders; mount the bucket")
    folder, lock, holder = Path(workdir), None, ""
    made = not folder.exists()
    if jax.process_index() == 0:
        try:
            lock = _lock(folder)
        except BlockingIOError:
            time.sleep(0.2)  # the holder may have locked it just now, and writes its name next
            holder = _in_words(_read_holder(folder / LOCK))
    if not parallel.on_all_hosts(not holder):
        raise ValueError(
            f"{workdir} is in use by {holder or 'another run, which process 0 names'}: two runs "
            "cannot write to one folder; wait until it ends, or take another folder"
        )
    try:
        yield
    finally:
        if lock is not None:
            (folder / LOCK).unlink(missing_ok=True)
            os.close(lock)
            if made:
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()


def _lock(folder: Path) -> int:
    """Locks a folder, which is made if need be; returns the descriptor of the locked file.

    Raises:
        BlockingIOError: another process has locked it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # another run has just removed the folder
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(lock)
                raise
            logging.warning("%s has no locks: see to it that no other run writes there", folder)
        if os.fstat(lock).st_nlink:  # or its last holder has removed it since it was opened
            break
        os.close(lock)
    if (left := _read_holder(folder / LOCK)) and left["host"] != socket.gethostname():
        logging.warning(
            "the last run in %s did not release its lock: make sure that it has ended (%s)",
            folder,
            _in_words(left),
        )
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    os.truncate(lock, 0)
    os.write(lock, (json.dumps(holder, allow_nan=False) + "\n").encode())
    return lock


def _read_holder(file: Path) -> dict[str, Any]:
    """What the holder of a lock wrote to its file; empty where that cannot be read."""
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        return {key: holder[key] for key in ("pid", "host", "since")}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _in_words(holder: Mapping[str, Any]) -> str:
    """Names the holder of a lock."""
    if not holder:
        return "another process"
    return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"


def check_claim(workdir: str | os.PathLike, config: Mapping[str, Any], resume: bool) -> None:
    """Checks that `workdir` holds no run, or the one that `config` describes.

    Settings in `LENGTH` may differ here: what they may change only the checkpoint tells.

    Args:
        workdir: of the run.
        config: nested settings; JSON.
        resume: whether to go on with a run that is there already.

    Raises:
        ValueError: the folder holds a run of other settings, which are named; or one that was not
            to be resumed; or one whose settings cannot be read.
    """
    file = Path(workdir) / CONFIG
    if not file.is_file():
        return
    if not resume:
        raise ValueError(f"{workdir} holds a run already: resume it, or take another folder")
    try:
        saved = _settings(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged, and tells no longer which run the folder holds: restore it, or "
            f"remove it to go on with the settings that you give now ({error})"
        ) from error
    as_read = json.loads(json.dumps(config, allow_nan=False))  # tuples are lists
    wanted = _settings(as_read)
    differing = [
        f"{key}: {saved.get(key)!r} there, {wanted.get(key)!r} now"
        for key in sorted(saved.keys() | wanted.keys())
        if saved.get(key) != wanted.get(key) and not f"{key}.".startswith(FREE + LENGTH)
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds a run of other settings; take another folder, or set them back:\n"
            + "\n".join(differing)
        )


def claim(workdir: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Makes `workdir` the folder of the run that `config` describes."""
    file = Path(workdir) / CONFIG
    if jax.process_index() == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        temporary.rename(file)


def _settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, Mapping) and value
        found |= _settings(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found
