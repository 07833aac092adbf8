# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiling a step, and what that asks of the process that does it."""

import ctypes
import sys
import time
from typing import Any

import jax
from absl import logging

from cropvlm_jax.train_state import TrainState


def compile_step(step: Any, state: TrainState, batch: Any, key: jax.Array) -> jax.stages.Compiled:
    """Compiles a jitted step for the shapes of a batch, and logs what that took.

    Args:
        step: what `jax.jit` returned, of state, batch and key.
        state: arrays or their shapes; so are `batch` and `key`.
        batch: the batch, a named tuple.
        key: of the step.
    """
    arrays = {name: x for name, x in batch._asdict().items() if hasattr(x, "dtype")}
    shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in arrays.items() if x.dtype != bool)
    logging.info("compiling the step for %s", shapes)
    began = time.monotonic()
    compiled = step.lower(state, batch, key).compile(compiler_options(jax.default_backend()))
    logging.info("compiled in %.1f s", time.monotonic() - began)
    return_freed_memory()
    log_memory(compiled)
    return compiled


def compiler_options(platform: str) -> dict[str, Any]:
    """Options of the compiler for devices of a platform, such as "cpu".

    By default XLA runs a program on a CPU in an order that keeps more arrays alive, and is no
    faster.
    """
    if platform == "cpu":
        return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    return {}


def return_freed_memory() -> None:
    """Gives memory that is free back to the system: glibc keeps what compiling took, most of a GB.

    Nothing happens where the C library is another one.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def log_memory(compiled: jax.stages.Compiled) -> None:
    """Logs how much memory a compiled program takes on a device, where that is known."""
    memory = compiled.memory_analysis()
    if not memory:
        return
    logging.info(
        "MiB a device: arguments %.0f, outputs %.0f (in place of arguments: %.0f), temporary "
        "%.0f, code %.0f",
        memory.argument_size_in_bytes / 2**20,
        memory.output_size_in_bytes / 2**20,
        memory.alias_size_in_bytes / 2**20,
        memory.temp_size_in_bytes / 2**20,
        memory.generated_code_size_in_bytes / 2**20,
    )


def peak_memory(compiled: jax.stages.Compiled) -> int:
    """Bytes that a compiled program takes on a device at most, its arguments included."""
    memory = compiled.memory_analysis()
    assert memory is not None  # as it is on TPUs, GPUs and CPUs
    # On a CPU the compiler's own peak leaves temporary arrays out.
    arrays = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return max(memory.peak_memory_in_bytes, arrays)
