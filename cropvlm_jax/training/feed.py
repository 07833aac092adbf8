# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Batches on their way to the devices: the next one travels while a step runs."""

import itertools
from collections.abc import Callable, Generator, Iterator
from concurrent import futures
from typing import Any, NamedTuple

WAITING = 2  # batches on the devices at most, beside the one that a step runs on


class Fed(NamedTuple):
    """A batch that is ready for a step.

    Attributes:
        batch: as it was prepared, NumPy arrays.
        on_devices: as the step takes it.
    """

    batch: Any
    on_devices: Any


def one_ahead(batches: Iterator[Any], put: Callable[[Any], Any]) -> Generator[Fed]:
    """Batches, each put on the devices by a thread while the one before is used.

    While a step runs and the next one waits behind it, a third batch may be on its way: `WAITING`
    of them beside the step's own. What was yielded is not kept here.

    Args:
        batches: NumPy arrays.
        put: what puts a batch on the devices.
    """

    def load() -> list[Fed]:
        """The next batch; nothing after the last."""
        return [Fed(batch, put(batch)) for batch in itertools.islice(batches, 1)]

    with futures.ThreadPoolExecutor(1, "feed") as thread:
        coming = thread.submit(load)
        while ready := coming.result():
            coming = thread.submit(load)
            yield ready.pop()
