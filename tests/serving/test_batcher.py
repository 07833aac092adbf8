# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How requests share calls of the device, on a lane that only adds numbers."""

import asyncio
import threading

import pytest

from cropvlm_jax.serving import batcher
from cropvlm_jax.serving.batcher import Batcher
from cropvlm_jax.serving.metrics import LOOK, Metrics

WAIT = 0.02  # seconds
HANG = 20  # seconds after which a test has failed


class Lane:
    """Adds one to numbers; an even larger batch fails where a number is negative."""

    kind = LOOK

    def __init__(self, most=4, seconds=HANG):
        self.most, self.seconds, self.batches = most, seconds, []
        self.free = threading.Event()
        self.free.set()

    def assemble(self, items):
        return items

    def call(self, batch):
        self.free.wait(HANG)
        self.batches.append(list(batch))
        if min(batch) < 0:
            raise ValueError(f"{min(batch)} is negative")
        return [number + 1 for number in batch] + [0]  # as if the batch were padded


def run(scenario, **options):
    """Runs `scenario(batcher)`."""

    async def whole():
        made = Batcher(wait=WAIT, metrics=Metrics())
        made.start()
        try:
            return await asyncio.wait_for(scenario(made), HANG)
        finally:
            await made.close()

    return asyncio.run(whole())


def test_requests_at_once_share_calls():
    lane = Lane()

    async def scenario(made):
        done = await asyncio.gather(*(made.submit(lane, number) for number in range(6)))
        return [each.value for each in done]

    assert run(scenario) == [1, 2, 3, 4, 5, 6]
    assert lane.batches == [[0, 1, 2, 3], [4, 5]]


def test_what_comes_while_the_device_works_goes_together_in_its_order():
    lane = Lane()

    async def scenario(made):
        lane.free.clear()
        first = asyncio.create_task(made.submit(lane, 0))
        await asyncio.sleep(3 * WAIT)
        others = []
        for number in (1, 2, 3):
            others.append(asyncio.create_task(made.submit(lane, number)))
            await asyncio.sleep(0.001)
        lane.free.set()
        await asyncio.gather(first, *others)

    run(scenario)
    assert lane.batches == [[0], [1, 2, 3]]


def test_lanes_do_not_mix():
    one, other = Lane(), Lane()

    async def scenario(made):
        await asyncio.gather(*(made.submit((one, other)[n % 2], n) for n in range(6)))

    run(scenario)
    assert one.batches == [[0, 2, 4]] and other.batches == [[1, 3, 5]]


def test_one_that_fails_fails_alone():
    lane = Lane()

    async def scenario(made):
        asked = (made.submit(lane, number) for number in (5, -1, 7))
        return await asyncio.gather(*asked, return_exceptions=True)

    five, error, seven = run(scenario)
    assert (five.value, seven.value) == (6, 8)
    assert isinstance(error, ValueError) and "-1 is negative" in str(error)


def test_who_leaves_is_not_worked_on():
    lane = Lane()

    async def scenario(made):
        lane.free.clear()
        tasks = [asyncio.create_task(made.submit(lane, 0))]
        await asyncio.sleep(3 * WAIT)
        tasks += [asyncio.create_task(made.submit(lane, number)) for number in (1, 2)]
        await asyncio.sleep(0)
        tasks[0].cancel()  # on the device: its result is thrown away
        tasks[1].cancel()
        lane.free.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        return tasks[2].result().value

    assert run(scenario) == 3
    assert lane.batches == [[0], [2]]


@pytest.mark.parametrize("seconds", [WAIT, HANG])
def test_a_batch_waits_for_what_is_being_prepared_but_not_longer_than_it_takes(seconds):
    lane = Lane(seconds=seconds)

    async def slow(made):
        with made.coming(LOOK):
            await asyncio.sleep(10 * WAIT)
        return await made.submit(lane, 2)

    async def scenario(made):
        second = asyncio.create_task(slow(made))
        await asyncio.sleep(0)
        first = await made.submit(lane, 1)
        await second
        return first.queued

    queued = run(scenario)
    if seconds < HANG:
        assert lane.batches == [[1], [2]] and queued >= batcher.DOUBLING * seconds
    else:
        assert lane.batches == [[1, 2]] and queued >= 9 * WAIT
