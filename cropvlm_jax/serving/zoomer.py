# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Looks at the pictures that a request asks about; what fails leaves the request as it came."""

import asyncio
import dataclasses
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np
from absl import logging

from cropvlm_jax.readers.pictures import PictureFormat
from cropvlm_jax.serving.chat import Chat
from cropvlm_jax.serving.engine import Busy, Closed, DeadlineExceeded, Engine
from cropvlm_jax.serving.faults import Fault
from cropvlm_jax.serving.looks import Look
from cropvlm_jax.serving.pictures import PictureReader, Unreadable
from cropvlm_jax.serving.report import Report

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Seen:
    """A picture of a request.

    Attributes:
        file: its bytes; None where it could not be read.
        look: what the cropper says; None where it was not asked, or failed.
    """

    file: bytes | None = None
    look: Look | None = None

    @property
    def crops(self) -> list[np.ndarray]:
        """What is inside the boxes, each uint8 RGB `[h, w, 3]`."""
        return [] if self.look is None else [np.asarray(crop) for crop in self.look.crops]


class Zoomer:
    """Reads pictures and has the cropper look at them."""

    def __init__(self, engine: Engine, reader: PictureReader, most: int):
        """Takes what it works with.

        Args:
            engine: has the cropper.
            reader: of pictures.
            most: pictures of a request that are looked at.
        """
        self._engine, self._reader, self._most = engine, reader, most
        self._format = PictureFormat(compress_level=1)  # crops are small, and clients wait

    async def look(self, chat: Chat, report: Report, deadline: float) -> list[Seen]:
        """The pictures of a request, and what the cropper says about them.

        Args:
            chat: the request.
            report: takes note of looks and of what could not be done.
            deadline: `time.monotonic()` after which nobody waits.

        Raises:
            Busy: too many requests wait.
            Closed: the cropper is not there, yet or any more.
            DeadlineExceeded: the deadline has passed.
            Fault: a picture's address is refused.
            TooLarge: there is never room for so many or such large pictures.
        """
        begun = time.monotonic()
        places = chat.places[: self._most]
        if len(chat.places) > len(places):
            report.warnings.append(f"only the first {len(places)} pictures were looked at")
        with self._engine.expecting():
            files = await _all(
                [self._file(number, place.url, report) for number, place in enumerate(places)]
            )
        report.took("read", begun)
        if chat.policy.looks:
            self._engine.check_room([file for file in files if file is not None])
        seen = await _all(
            [self._look(number, file, chat, report, deadline) for number, file in enumerate(files)]
        )
        return seen + [Seen()] * (len(chat.places) - len(seen))

    async def urls(self, seen: Sequence[Seen], report: Report) -> list[list[str]]:
        """The crops as `data:` URLs, in the format in which a chat endpoint gets them."""
        begun = time.monotonic()
        urls = [
            [await self._reader.run(self._format.data_url, crop) for crop in each.crops]
            for each in seen
        ]
        if any(urls):
            report.took("encode", begun)
        return urls

    async def _file(self, number: int, url: str, report: Report) -> bytes | None:
        """A picture's file."""
        try:
            return await self._reader.file(url)
        except Unreadable as error:
            self._degraded("unreadable", f"picture {number}: {error}", report)
        except Fault:
            raise
        except Exception as error:
            # Not its message, which may have something of the request in it.
            logging.error("reading a picture failed: %s", type(error).__name__)
            self._degraded("unreadable", f"picture {number}: it cannot be read", report)
        return None

    async def _look(
        self, number: int, file: bytes | None, chat: Chat, report: Report, deadline: float
    ) -> Seen:
        """Has the cropper look at a picture, if that is wanted."""
        if file is None or not chat.policy.looks:
            return Seen(file)
        try:
            look = await self._engine.look(
                file, chat.question, policy=chat.policy, deadline=deadline
            )
        except (Busy, Closed, DeadlineExceeded):
            raise
        except (OSError, ValueError) as error:  # whose messages are for users
            self._degraded("refused", f"picture {number}: no crop: {error}", report)
            return Seen(file)
        except Exception as error:
            # Not its message, which may have something of the request in it.
            logging.error("the cropper failed: %s", type(error).__name__)
            self._degraded("failed", f"picture {number}: no crop: the cropper failed", report)
            return Seen(file)
        report.looked(number, look)
        return Seen(file, look)

    def _degraded(self, reason: str, warning: str, report: Report) -> None:
        """Takes note of a picture that goes on without a crop."""
        self._engine.metrics.degraded.labels(reason).inc()
        report.warnings.append(warning)


async def _all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of work that is done at once; the first failure ends the rest."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
