# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run tells: metrics to TensorBoard and JSONL, progress to the terminal or the log."""

import json
import pathlib
import sys
import time
from collections.abc import Mapping

import tensorboardX
from absl import logging


class MetricWriter:
    """Appends scalars to `metrics.jsonl` and TensorBoard files of a run's folder."""

    def __init__(self, workdir: str | pathlib.Path, start: int = 0):
        """Opens the folder, which is made if need be.

        Args:
            workdir: of the run.
            start: steps done before; what a killed run wrote of later ones is dropped.
        """
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        file = workdir / "metrics.jsonl"
        written = file.read_text(encoding="utf-8").splitlines(True) if file.is_file() else []
        temporary = file.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as kept:
            # A line without its end was cut short by the kill.
            kept.writelines(
                line for line in written if line[-1] == "\n" and json.loads(line)["step"] <= start
            )
        temporary.rename(file)
        self._jsonl = file.open("a", encoding="utf-8")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start + 1
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the scalars of a step."""
        row = {"step": step} | {name: float(value) for name, value in sorted(metrics.items())}
        self._jsonl.write(json.dumps(row) + "\n")
        self._jsonl.flush()
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, float(value), step)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._jsonl.close()
        self._tensorboard.close()


class Progress:
    """Steps done, rate and time left: one living line on a terminal, plain log lines elsewhere."""

    def __init__(self, total: int, start: int = 0, what: str = "step", every_seconds: float = 10):
        """Starts the clock.

        Args:
            total: steps in all.
            start: steps done before, by an earlier process.
            what: name of a step.
            every_seconds: between plain lines.
        """
        self._total, self._start, self._what = total, start, what
        self._began, self._last = time.monotonic(), float("-inf")
        self._every, self._terminal = every_seconds, sys.stderr.isatty()

    def update(self, done: int, note: str = "") -> None:
        """Tells that `done` steps are done."""
        now = time.monotonic()
        finished = done >= self._total
        if now - self._last < (0.2 if self._terminal else self._every) and not finished:
            return
        self._last = now
        rate = (done - self._start) / max(now - self._began, 1e-9)
        left = (self._total - done) / rate if rate else float("inf")
        eta = f"{int(left // 60)}:{int(left % 60):02d}" if rate else "?"
        line = f"{self._what} {done}/{self._total}  {rate:.2f}/s  {eta} left  {note}"
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if finished else ""))
            sys.stderr.flush()
        else:
            logging.info("%s", line)
