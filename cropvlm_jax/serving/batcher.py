# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Requests that come one by one, run together on one device.

An idle device begins as soon as there is nothing left to wait for:

- a batch is full; or
- no request is being prepared, and none has come for `wait` seconds; or
- the oldest one has waited for as long as the device takes for a full batch; or for `DOUBLING`
  times that, as long as what is being prepared would at least double the batch.

What comes while the device works waits for it. A full batch is put together meanwhile, so that the
device goes on at once.
"""

import asyncio
import collections
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from absl import logging

from cropvlm_jax.serving.metrics import Metrics

DOUBLING = 4  # times as long is waited for a batch that is twice as large


class Lane(Protocol):
    """Requests that may run together. Lanes that are equal are the same."""

    @property
    def kind(self) -> str:
        """What is asked, for metrics."""

    @property
    def most(self) -> int:
        """Most requests of a batch."""

    @property
    def seconds(self) -> float:
        """That the device takes for a full batch."""

    def assemble(self, items: Sequence[Any]) -> Any:
        """Requests as a batch; runs while the device works."""

    def call(self, batch: Any) -> Sequence[Any]:
        """Runs the device; gives at least a result for each request."""


class Done(NamedTuple):
    """A result.

    Attributes:
        value: what the lane said.
        queued: seconds that the request waited.
        worked: seconds that the device worked on its batch.
    """

    value: Any
    queued: float
    worked: float


@dataclasses.dataclass(frozen=True, eq=False)
class _Waiting:
    """A request that is not on the device.

    Attributes:
        lane: where it waits.
        item: what is asked.
        future: its result; done where nobody waits for that any more.
        since: when it was ready, by `time.monotonic()`.
    """

    lane: Lane
    item: Any
    future: asyncio.Future[Done]
    since: float


class Batcher:
    """Collects requests, and runs those of a lane together, in the order in which they came."""

    def __init__(self, wait: float, metrics: Metrics):
        """Makes a batcher that has not started.

        Args:
            wait: seconds for which an idle device waits for one more request.
            metrics: where calls are counted.
        """
        self._wait, self._metrics = wait, metrics
        self._waiting: list[_Waiting] = []
        self._coming: collections.Counter[str] = collections.Counter()  # by kind
        self._batches: set[asyncio.Task[None]] = set()  # on the device, or next
        self._changed = asyncio.Event()
        self._device = ThreadPoolExecutor(1, "device")
        self._assembly = ThreadPoolExecutor(1, "assembly")
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to serve, on the running event loop."""
        self._loop = asyncio.create_task(self._serve())

    async def close(self) -> None:
        """Ends what `start` began; requests that still wait are not answered."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop, *self._batches])
        self._assembly.shutdown()
        self._device.shutdown()

    async def on_device(self, function: Any) -> None:
        """Calls a function in the thread that owns the device."""
        await asyncio.get_running_loop().run_in_executor(self._device, function)

    @contextlib.contextmanager
    def coming(self, kind: str) -> Iterator[None]:
        """Says that a request is being prepared, so that others wait for it a little."""
        self._coming[kind] += 1
        try:
            yield
        finally:
            self._coming[kind] -= 1
            self._changed.set()

    async def submit(self, lane: Lane, item: Any) -> Done:
        """The result of a request. Where this is cancelled, the request leaves its place.

        Raises:
            Exception: what the lane raised for this request alone.
        """
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(lane, item, future, time.monotonic()))
        self._changed.set()
        return await future

    async def _serve(self) -> None:
        """Starts batches for ever."""
        while True:
            self._waiting = [waiting for waiting in self._waiting if not waiting.future.done()]
            batch = self._next()
            delay = self._due(batch) - time.monotonic() if batch else None
            if delay is not None and delay <= 0:
                self._start(batch)
                continue
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), delay)

    def _next(self) -> list[_Waiting]:
        """The requests that should run next, the oldest first; none where they must wait."""
        lanes: dict[Lane, list[_Waiting]] = {}
        for waiting in self._waiting:
            lanes.setdefault(waiting.lane, []).append(waiting)
        batches = [same[: lane.most] for lane, same in lanes.items()]
        if self._batches:
            batches = [batch for batch in batches if len(batch) == batch[0].lane.most]
        if len(self._batches) > 1 or not batches:
            return []
        return min(batches, key=self._due)

    def _due(self, batch: Sequence[_Waiting]) -> float:
        """When a batch should start, by `time.monotonic()`, if the device is free."""
        oldest, newest = batch[0], batch[-1]
        if len(batch) == oldest.lane.most:
            return oldest.since
        coming, patience = self._coming[oldest.lane.kind], max(oldest.lane.seconds, self._wait)
        if coming >= len(batch):
            patience *= DOUBLING
        latest = oldest.since + patience
        return latest if coming else min(newest.since + self._wait, latest)

    def _start(self, batch: Sequence[_Waiting]) -> None:
        """Hands a batch to the threads."""
        self._waiting = [waiting for waiting in self._waiting if waiting not in batch]
        task = asyncio.create_task(self._run(batch))
        self._batches.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        self._changed.set()

    async def _run(self, batch: Sequence[_Waiting]) -> None:
        """Runs a batch; one that fails is run again request by request."""
        lane, items = batch[0].lane, [waiting.item for waiting in batch]
        loop = asyncio.get_running_loop()
        try:
            assembled = await loop.run_in_executor(self._assembly, lane.assemble, items)
            begun, values, ended = await loop.run_in_executor(self._device, _timed, lane, assembled)
        except Exception as error:
            # Not its message, which may have something of a request in it.
            what = type(error).__name__
            logging.warning("a batch of %d: %s; each is tried alone", len(items), what)
            begun = time.monotonic()
            values = await loop.run_in_executor(self._device, _each_alone, lane, items)
            ended = time.monotonic()
        self._metrics.batch_rows.labels(lane.kind).observe(len(items))
        for waiting, value in zip(batch, values, strict=False):
            if waiting.future.done():
                continue
            if isinstance(value, Exception):
                waiting.future.set_exception(value)
            else:
                waiting.future.set_result(Done(value, begun - waiting.since, ended - begun))


def _timed(lane: Lane, batch: Any) -> tuple[float, Sequence[Any], float]:
    """The results of a batch, between the times when the call began and ended."""
    begun = time.monotonic()
    values = lane.call(batch)
    return begun, values, time.monotonic()


def _each_alone(lane: Lane, items: Sequence[Any]) -> list[Any]:
    """The result of each request in a batch of its own, or the error that it causes."""
    found: list[Any] = []
    for item in items:
        try:
            found.append(lane.call(lane.assemble([item]))[0])
        except Exception as error:
            found.append(error)
    return found
