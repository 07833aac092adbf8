# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reports the steps of a run: metric files, progress line, speed; and traces one of them."""

import contextlib
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from cropvlm_jax.progress import Progress
from cropvlm_jax.training import costs
from cropvlm_jax.training.metrics import MetricWriter, Throughput

# On the progress line: of GRPO, whose loss is near 0 whatever it learns, and of other stages.
SHOWN_OF_GRPO = ("reward", "area", "kl", "kl_k3")
SHOWN_OF_OTHERS = ("loss",)
SHOWN_OF_HELD_OUT = ("eval/reward", "eval/loss", "eval/exact")
REMEDY = "Start again with a lower learning rate, in another folder"


class PendingStep(NamedTuple):
    """A step that is not reported yet.

    Attributes:
        number: of the step, from 1 on.
        metrics: scalars, which the devices may still compute.
        work: what it did, as `Throughput.steps` takes it.
    """

    number: int
    metrics: Mapping[str, Any]
    work: Mapping[str, float]


class Reporter:
    """Reads the metrics of steps while the next one runs, so that no device waits for the host."""

    def __init__(self, workdir: pathlib.Path, steps: int, start: int):
        """Opens the files.

        Args:
            workdir: of the run; process 0 writes.
            steps: of the run.
            start: steps done before.
        """
        self._steps = steps
        self._writer = MetricWriter(workdir, start) if jax.process_index() == 0 else None
        self._progress = Progress(steps, start)
        chip = costs.CHIPS.get(jax.devices()[0].device_kind)
        self.throughput = Throughput(jax.device_count(), chip and chip.flops)
        self._pending: list[PendingStep] = []
        self._held_out: Mapping[str, float] = {}

    def add(self, number: int, metrics: Mapping[str, Any], work: Mapping[str, float]) -> None:
        """Takes note of a step, whose metrics need not be there yet."""
        self._pending.append(PendingStep(number, metrics, work))

    def report(self, behind: int = 0) -> None:
        """Reports all pending steps but the last `behind`, for which the host would have to wait.

        Where none is pending, the clock starts anew: what was done since the last report is no part
        of the next step.

        Raises:
            FloatingPointError: a loss or a gradient was not finite.
        """
        if not self._pending:
            self.throughput.restart()
        done = self._pending[: len(self._pending) - behind]
        if not done:
            return
        del self._pending[: len(done)]
        read = jax.device_get([dict(step.metrics) for step in done])
        speed = self.throughput.steps([step.work for step in done])
        for step, metrics in zip(done, read, strict=True):
            self.write(step.number, metrics | speed)
            if self._writer:
                self._progress.update(step.number, progress_note(metrics, self._held_out))
            for name, value in (("loss", metrics["loss"]), ("gradient", metrics["grad_norm"])):
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"the {name} of step {step.number} is not finite, so neither are the "
                        f"weights; what was saved before stays. {REMEDY}"
                    )

    def write(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Writes metrics after a step."""
        if self._writer:
            self._writer.write(number, metrics)

    def write_held_out(self, number: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of an evaluation, which the progress line shows until the next one."""
        self._held_out = metrics
        self.write(number, metrics)

    def draw(self, number: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture, uint8 RGB `[H, W, 3]`, to TensorBoard, as of after a step."""
        if self._writer:
            self._writer.draw(number, name, picture)

    def begin_again(self, done: int) -> None:
        """Restarts progress and clock after step `done`: compiling is no part of any step."""
        self._progress = Progress(self._steps, done)
        self.throughput.restart()

    def close(self) -> None:
        """Closes the files."""
        if self._writer:
            self._writer.close()


def progress_note(metrics: Mapping[str, float], held_out: Mapping[str, float]) -> str:
    """What the progress line says of a step: what means something for the stage of the run.

    Args:
        metrics: of the step.
        held_out: of the latest evaluation; empty before the first one.
    """
    shown = SHOWN_OF_GRPO if "reward" in metrics else SHOWN_OF_OTHERS
    found = [(name, metrics[name]) for name in shown if name in metrics]
    if metrics.get("unscored"):
        found.append(("unscored", metrics["unscored"]))
    found += [(name, held_out[name]) for name in SHOWN_OF_HELD_OUT if name in held_out]
    return "  ".join(f"{name} {value:.3f}" for name, value in found)


class StepTracer:
    """Traces one step with JAX's profiler."""

    def __init__(self, step: int | None, workdir: pathlib.Path, reporter: Reporter):
        """Traces nothing yet.

        Args:
            step: number of the step, from 1 on; None traces none.
            workdir: of the run; the trace goes to `profile` inside of it.
            reporter: reports the steps before the trace, and then the traced one.
        """
        self._step, self._reporter = step, reporter
        self._folder = workdir / "profile"

    @contextlib.contextmanager
    def around(self, number: int) -> Iterator[None]:
        """Marks the step that runs inside, and traces it on process 0 if it is the one to trace."""
        traced = number == self._step and jax.process_index() == 0
        if traced:
            self._reporter.report()  # or the step before would be in the trace
            jax.profiler.start_trace(self._folder)
            self._reporter.throughput.restart()
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield
        if traced:
            self._reporter.report()
            jax.profiler.stop_trace()
            logging.info(
                "the trace of step %d is in %s: pip install xprof, then xprof or TensorBoard with "
                "--logdir=%s",
                number,
                self._folder,
                self._folder,
            )
