# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Times a GRPO step of random weights in a real shape, alone and fed from JPEG files.

It is the very step of a run: all weights of the cropper are trained, with a KL reference, as in the
reports of `experiments/aot`, so that what was computed there is measured here.
"""

import contextlib
import dataclasses
import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Generator, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging

from cropvlm_jax import parallel
from cropvlm_jax.checks.pages import Pages
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training import compilation, phases
from cropvlm_jax.training.config import TrainConfig, load_config
from cropvlm_jax.training.costs import CHIPS
from cropvlm_jax.training.feed import Fed, one_ahead
from cropvlm_jax.training.metrics import PEAK, Throughput
from cropvlm_jax.training.presets import paper_grpo
from cropvlm_jax.training.stages import open_stage
from cropvlm_jax.training.stages.grpo import GRPOStage
from cropvlm_jax.training.stages.program import Program, Step
from cropvlm_jax.training.training_data import TrainingData

GIB = 2**30
SPREAD = 0.02  # of random weights, as small as those of a new model
MEMORY_OF_4_PROMPTS = 16 * GIB  # at any number of pixels, with room to spare
PLANNED = 2000  # steps of the run; fewer are taken
PREFETCHED = 6  # batches that were prepared while nothing read them, at most


@dataclasses.dataclass(frozen=True)
class Workload:
    """The step that is measured.

    Attributes:
        model: of cropper and target; only its shape is read.
        longest_edge: pixels that the cropper sees.
        prompts: a device; 0 takes what fits its memory.
        group: rollouts a prompt.
        dtype: of the computation.
        canvas: height and width of the original pixels; None takes a run's own.
        pages: that the fed steps read.
        seconds: that the timed steps take at least, alone and fed.
    """

    model: str = "shapes/256m"
    longest_edge: int = 512
    prompts: int = 0
    group: int = 8
    dtype: str = "bfloat16"
    canvas: tuple[int, int] | None = None
    pages: Pages = Pages()
    seconds: float = 10.0

    def config(self, prompts: int, devices: int, folder: pathlib.Path) -> TrainConfig:
        """Settings of the run.

        Args:
            prompts: a device.
            devices: that take part.
            folder: of the pages.
        """
        config = paper_grpo(self.longest_edge, "likelihood")
        config.cropper = config.target = self.model
        config.dtype = self.dtype
        config.lora.rank = 0
        config.grpo.num_generations = self.group
        config.batch_size, config.gradient_accumulation_steps = prompts * devices, 1
        config.steps = PLANNED
        if self.canvas is not None:
            config.data.canvas = self.canvas
        values = config.to_dict()
        values["data"]["sources"] = {"pages": {"kind": "jsonl", "folder": str(folder)}}
        return load_config(values)


def measure(workload: Workload) -> dict[str, Any]:
    """Measures a step on all devices of this process.

    Where the memory is too small, half as many prompts are tried, down to one a device. The time of
    compiling is that of the compiler where JAX's compilation cache is off.

    Args:
        workload: the step.

    Returns:
        What was found, by name.

    Raises:
        FloatingPointError: loss or gradient are not finite.
        JaxRuntimeError: not even one prompt a device fits, or the compiler failed.
    """
    prompts = workload.prompts or fitting_prompts(jax.local_devices()[0])
    with tempfile.TemporaryDirectory() as folder:
        workload.pages.write(pathlib.Path(folder))
        while True:
            try:
                return _measure(workload, prompts, pathlib.Path(folder))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or prompts == 1:
                    raise
                logging.info("%d prompts a device do not fit: half as many are tried", prompts)
                prompts //= 2


def fitting_prompts(device: Any) -> int:
    """How many prompts a device holds: 4 for 16 GiB, and a power of two; 1 where it tells none."""
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    shares = round(limit / MEMORY_OF_4_PROMPTS)
    return 4 << (shares.bit_length() - 1) if shares else 1


def _measure(workload: Workload, prompts: int, folder: pathlib.Path) -> dict[str, Any]:
    """`measure` at a number of prompts a device."""
    mesh = parallel.make_mesh()
    config = workload.config(prompts, mesh.size, folder)
    stage = open_stage(config, abstract=True, mesh=mesh)
    assert isinstance(stage, GRPOStage)
    program = stage.compile(mesh, config.steps)
    rows = parallel.local_rows(parallel.batch_sharding(mesh), config.batch_size)
    batches = TrainingData.open(config, stage, rows).batches(0)
    put = functools.partial(program.put, batch_size=config.batch_size)
    with contextlib.closing(one_ahead(batches, put)) as feed:
        return _measure_on(feed, workload, stage, program)


def _measure_on(
    feed: Generator[Fed], workload: Workload, stage: GRPOStage, program: Program
) -> dict[str, Any]:
    """`measure` on the batches of a run."""
    config, mesh = stage.config, program.mesh
    batch = next(feed).on_devices
    key = jax.device_put(jax.random.key(0), parallel.replicated(mesh))
    state = random_state(stage, program, config.steps)
    flops = stage.cost(program.trace(state, batch, key))
    began = time.monotonic()
    step = compilation.compile_step(program.step, state, batch, key)
    compile_seconds = time.monotonic() - began
    state, seconds = time_alone(step, state, batch, key, workload.seconds)
    chip = CHIPS.get(jax.devices()[0].device_kind)
    rate = sum(flops.values()) / seconds / mesh.size
    found = {
        "longest_edge": workload.longest_edge,
        "prompts": config.batch_size,
        "rollouts": workload.group,
        "images": stage.work(batch)["images"],
        "canvas": list(batch.canvas.shape[1:3]),
        "step_seconds": seconds,
        "prompts_per_second": config.batch_size / seconds,
        "tflops_per_second_per_chip": rate / 1e12,
        "mfu": rate / chip.flops if chip else None,
        "compile_seconds": compile_seconds,
        "peak_gib": compilation.peak_memory(step) / GIB,
        "peak_gib_of_process": peak_of_process(),
        "flops": flops,
    }
    state, found["fed"] = time_fed(step, state, feed, key, workload.seconds)
    share = jax.tree.map(lambda x: x[: config.batch_size // mesh.size], batch)
    found["phase_seconds"] = phases_on_one_device(stage, state, share, workload.seconds)
    return found


def random_state(stage: GRPOStage, program: Program, steps: int) -> TrainState:
    """A train state of random weights, made on the devices."""

    def create(key: jax.Array) -> TrainState:
        count = iter(range(1_000_000))

        def draw(path: Any, x: jax.ShapeDtypeStruct) -> jax.Array:
            own = jax.random.fold_in(key, next(count))
            keeps_scale = "scale" in jax.tree_util.keystr(path)
            return (SPREAD * jax.random.normal(own, x.shape) + keeps_scale).astype(x.dtype)

        return stage.init(jax.tree.map_with_path(draw, stage.weights), steps)

    state: TrainState = jax.jit(create, out_shardings=program.shardings)(jax.random.key(0))
    return state


def time_alone(
    step: Step, state: TrainState, batch: Any, key: jax.Array, at_least: float
) -> tuple[TrainState, float]:
    """Times steps on one batch, which is on the devices already.

    Args:
        step: compiled; it takes the state for good.
        state: of the run.
        batch: on the devices.
        key: of the run.
        at_least: seconds that the steps but the first take together.

    Returns:
        The state after them, and the median of their seconds.

    Raises:
        FloatingPointError: loss or gradient are not finite.
    """
    seconds: list[float] = []
    while not phases.enough(seconds, at_least):
        of_step = jax.random.fold_in(key, len(seconds))
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch, of_step))
        seconds.append(time.perf_counter() - began)
        for name in ("loss", "grad_norm"):
            if not np.isfinite(metrics[name]):
                raise FloatingPointError(f"{name} of step {len(seconds)} is {metrics[name]}")
    return state, statistics.median(seconds[1:])


def time_fed(
    step: Step, state: TrainState, feed: Iterator[Fed], key: jax.Array, at_least: float
) -> tuple[TrainState, dict[str, float]]:
    """Times steps that read JPEG files, as a run takes them.

    Args:
        step: compiled; it takes the state for good.
        state: of the run.
        feed: batches of the run.
        key: of the run.
        at_least: seconds that the timed steps take.

    Returns:
        The state after them; the seconds a step, and the share of them that the host waited for
        data.
    """
    clock, taken, metrics = Throughput(jax.device_count()), 0, None
    for _ in range(PREFETCHED):
        next(feed)
    clock.restart()
    began = time.monotonic()
    while taken < 2 or time.monotonic() - began < at_least:
        with clock.waiting():
            batch = next(feed).on_devices
        before = metrics
        state, metrics = step(state, batch, jax.random.fold_in(key, taken))
        jax.block_until_ready(before)  # a run reads them now
        taken += 1
    jax.block_until_ready(metrics)
    speed = clock.steps([{"flops": 0.0}] * taken)
    share, seconds = speed["perf/data_wait_share"], speed["perf/step_seconds"]
    return state, {"steps": taken, "step_seconds": seconds, "data_wait_share": share}


def phases_on_one_device(
    stage: GRPOStage, state: TrainState, batch: Any, at_least: float
) -> dict[str, float] | None:
    """Seconds of the phases of a step on one device; None where they do not fit its memory.

    Args:
        stage: of the step.
        state: of the run.
        batch: one device's share of a batch.
        at_least: seconds that the timed rounds take together.
    """
    step = stage.step()

    def take(inputs: tuple[TrainState, Any]) -> Any:
        return step(inputs[0], inputs[1], jax.random.key(0))

    inputs = jax.device_put((state, batch), jax.local_devices()[0])
    try:
        return phases.time_apart(take, inputs, at_least)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        logging.info("phases take more memory than there is: not timed")
        return None


def peak_of_process() -> float | None:
    """The most GiB that one of this process's devices ever held; None where they do not tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [found[PEAK] for found in stats if PEAK in found]
    return max(peaks) / GIB if peaks else None
