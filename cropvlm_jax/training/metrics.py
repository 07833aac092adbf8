# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics of a run: written to TensorBoard and JSONL files, and those of its speed measured."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

PEAK = "peak_bytes_in_use"  # of `Device.memory_stats`
NOT_FINITE = "not_finite"  # of a line of metrics.jsonl


class MetricWriter:
    """Appends scalars to `metrics.jsonl` and TensorBoard files of a run's folder."""

    def __init__(self, workdir: str | pathlib.Path, start: int = 0):
        """Opens the folder, which is made if need be.

        Args:
            workdir: of the run.
            start: steps done before; what a killed run wrote of later ones is dropped.
        """
        import tensorboardX  # not for who writes nothing: it imports torch where there is one

        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        file = workdir / "metrics.jsonl"
        written = file.read_bytes().splitlines(True) if file.is_file() else []
        temporary = file.with_suffix(".tmp")
        with temporary.open("wb") as kept:
            # A line without its end was cut short by the kill.
            kept.writelines(
                line for line in written if line[-1:] == b"\n" and _step(line, file) <= start
            )
        temporary.rename(file)
        self._jsonl = file.open("a", encoding="utf-8")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start + 1
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the scalars of a step."""
        row = {"step": step} | without_nan({k: float(v) for k, v in sorted(metrics.items())})
        self._jsonl.write(json.dumps(row, allow_nan=False) + "\n")
        self._jsonl.flush()
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, float(value), step)

    def draw(self, step: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture, uint8 RGB `[H, W, 3]`, to the TensorBoard files."""
        self._tensorboard.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and closes the files."""
        self._jsonl.close()
        self._tensorboard.close()


def without_nan(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Metrics as JSON can have them: one that is not finite is null.

    What it is instead, "nan", "inf" or "-inf", is then said under `NOT_FINITE`, by name.
    """
    strange = {name: str(value) for name, value in metrics.items() if not math.isfinite(value)}
    row: dict[str, Any] = {name: None if name in strange else v for name, v in metrics.items()}
    return row | {NOT_FINITE: strange} if strange else row


def _step(line: bytes, file: pathlib.Path) -> float:
    """The step of a line of a metrics file; endless where it is damaged, which the log tells."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        logging.warning("dropped a damaged line of %s: %.80r", file, line)
        return math.inf


class Throughput:
    """How fast the steps are, as metrics `perf/...`.

    Steps take from one reading of metrics to the next. As the metrics of a step are read while the
    next one runs, nothing waits for the sake of the clock. What else a run does in between, such as
    to compile, evaluate or save, is left out by `restart`.
    """

    def __init__(
        self,
        chips: int,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts the clock.

        Args:
            chips: that the steps run on.
            peak_flops: of a chip, per second; None where it is not known.
            clock: gives the time in seconds.
        """
        self._chips, self._peak_flops, self._clock = chips, peak_flops, clock
        self.restart()

    def restart(self) -> None:
        """Begins the next step now: what came before it was no step."""
        self._began, self._waited = self._clock(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        began = self._clock()
        yield
        self._waited += self._clock() - began

    def steps(self, work: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Measures the steps that were done since the last call, or since `restart`.

        Args:
            work: what each of them did on all chips: `flops`, and how many of other things.

        Returns:
            Seconds a step; the share of them that the host waited for data; of each kind of work
            how much a second and chip; `mfu` (model FLOPs utilization) where the peak is known; the
            most memory used so far on one of this host's devices, where they tell.
        """
        seconds = self._clock() - self._began
        done = {name: sum(step[name] for step in work) for name in work[0]}
        rates = {name: count / seconds / self._chips for name, count in done.items()}
        flops = rates.pop("flops")
        found = {f"{name}_per_second_per_chip": rate for name, rate in rates.items()}
        found["tflops_per_second_per_chip"] = flops / 1e12
        found["step_seconds"] = seconds / len(work)
        found["data_wait_share"] = self._waited / seconds
        if self._peak_flops:
            found["mfu"] = flops / self._peak_flops
        memory = [device.memory_stats() or {} for device in jax.local_devices()]
        if peaks := [stats[PEAK] for stats in memory if PEAK in stats]:
            found["peak_hbm_gib"] = max(peaks) / 2**30
        self.restart()
        return {f"perf/{name}": value for name, value in found.items()}
