# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The next batch is on its way while a step runs, and no more than that one."""

import threading
import weakref

import numpy as np
import pytest

from cropvlm_jax.training.feed import one_ahead


def test_the_next_batch_is_put_while_the_one_before_is_used_and_no_other():
    put, done = [], threading.Semaphore(0)

    def note(batch: int) -> str:
        put.append(batch)
        done.release()
        return f"device {batch}"

    feed = one_ahead(iter(range(5)), note)
    done_before = 0
    for number, fed in enumerate(feed):
        assert (fed.batch, fed.on_devices) == (number, f"device {number}")
        for _ in range(min(number + 2, 5) - done_before):
            assert done.acquire(timeout=20)  # without being asked for
        done_before = min(number + 2, 5)
        assert put == list(range(done_before))
    assert put == list(range(5))


def test_what_fails_on_the_way_is_raised_where_the_batch_is_wanted():
    def fails_at_2(batch: int) -> int:
        if batch == 2:
            raise ValueError("as a test wants it")
        return batch

    feed = one_ahead(iter(range(5)), fails_at_2)
    assert [next(feed).batch, next(feed).batch] == [0, 1]
    with pytest.raises(ValueError, match="as a test wants it"):
        next(feed)


def test_a_run_that_stops_leaves_no_thread():
    before = threading.active_count()
    feed = one_ahead(iter(range(5)), lambda batch: batch)
    next(feed)
    assert threading.active_count() == before + 1
    feed.close()
    assert threading.active_count() == before


def test_what_was_taken_is_not_kept():
    feed = one_ahead((np.full(2, number) for number in range(3)), np.copy)
    fed = next(feed)
    parts = [weakref.ref(part) for part in fed]
    del fed
    assert [part() for part in parts] == [None, None]
    assert next(feed).batch.tolist() == [1, 1]
