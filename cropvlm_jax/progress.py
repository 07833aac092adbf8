# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How far a long job has come, on a terminal or in a log."""

import math
import sys
import time

from absl import logging


class Progress:
    """Steps done, rate and time left: one living line on a terminal, plain log lines elsewhere."""

    def __init__(self, total: int, start: int = 0, what: str = "step", every_seconds: float = 10):
        """Starts the clock.

        Args:
            total: How many steps there are in all.
            start: How many of them an earlier process has done.
            what: What a step is called.
            every_seconds: How long it takes from one plain line to the next.
        """
        self._total, self._start, self._what = total, start, what
        self._began, self._last = time.monotonic(), float("-inf")
        self._every, self._terminal = every_seconds, sys.stderr.isatty()

    def update(self, done: int, note: str = "") -> None:
        """Shows that `done` steps are done, where the last line is old enough or all are done."""
        now = time.monotonic()
        finished = done >= self._total
        if now - self._last < (0.2 if self._terminal else self._every) and not finished:
            return
        self._last = now
        rate = (done - self._start) / max(now - self._began, 1e-9)
        left = (self._total - done) / rate if rate else float("inf")
        speed = f"{rate:.2f}/s" if rate >= 1 or not rate else f"{1 / rate:.2f} s each"
        line = f"{self._what} {done}/{self._total}  {speed}  {clock(left)} left  {note}".rstrip()
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if finished else ""))
            sys.stderr.flush()
        else:
            logging.info("%s", line)


def clock(seconds: float) -> str:
    """A time such as "0:07", "12:30" or "3:05:00"; "?" where it is endless."""
    if math.isinf(seconds):
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
