# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tries the device's attention kernel, and decides whether programs use it.

A kernel may fail to compile on a chip or with a compiler that it was never run on. That must not
end a run: it is tried when a process starts, and XLA computes attention where it fails.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from cropvlm_jax import parallel
from cropvlm_jax.models import attention, kernels

BOUND = 5e-3  # of the largest value; bf16 resolves 4e-3
SLACK = 1.2  # by how much more than XLA's own bf16 a kernel may be off
PARTS = ("output", "gradient of queries", "gradient of keys", "gradient of values")


class Shape(NamedTuple):
    """Shape of attention: N images, P patches, H heads of C channels."""

    images: int
    patches: int
    heads: int
    channels: int


class Error(NamedTuple):
    """Largest distances from attention in fp32, in parts of the largest value there.

    Attributes:
        device: of attention as this device computes it for a model, in bf16.
        xla: of the same in bf16 by plain XLA.
    """

    device: float
    xla: float

    @property
    def bound(self) -> float:
        """The largest `device` that is right."""
        return max(BOUND, SLACK * self.xla)

    @property
    def is_right(self) -> bool:
        """Whether the device is as accurate as it has to be; NaN is not."""
        return self.device <= self.bound


TRIED = Shape(1, attention.MAX_PATCHES, 2, 64)  # the most on-chip memory that the kernel takes


def measure(shape: Shape, seed: int = 0) -> dict[str, Error]:
    """Compares attention and its gradients with those in fp32.

    Args:
        shape: of random queries, keys, values and gradient.
        seed: of the numbers.

    Returns:
        Errors by the names in `PARTS`.

    Raises:
        Exception: whatever a compiler or a device raises where the kernel fails.
    """
    rng = np.random.default_rng(seed)
    width = shape.heads * shape.channels
    arrays = rng.normal(0, 1, (4, shape.images, shape.patches, width)).astype(np.float32)
    arrays[0] *= 2 * shape.channels**-0.5
    rounded = jnp.asarray(arrays, jnp.bfloat16)  # so that all compute with the same numbers

    def results(attend: Any, dtype: Any, precision: Any) -> list[np.ndarray]:
        def run(arrays: jax.Array) -> tuple[jax.Array, ...]:
            queries, keys, values, gradient = arrays.astype(dtype)
            ours = functools.partial(attend, heads=shape.heads, precision=precision)
            out, pull_back = jax.vjp(ours, queries, keys, values)
            return (out, *pull_back(gradient))

        return [np.asarray(x, np.float32) for x in jax.jit(run)(rounded)]

    with kernels.allowed_for_now():
        device = results(attention.bidirectional_attention, jnp.bfloat16, None)
    xla = results(attention.by_xla, jnp.bfloat16, None)
    exact = results(attention.by_xla, jnp.float32, jax.lax.Precision.HIGHEST)
    return {
        name: Error(_distance(ours, want), _distance(other, want))
        for name, ours, other, want in zip(PARTS, device, xla, exact, strict=True)
    }


def _distance(got: np.ndarray, want: np.ndarray) -> float:
    """The largest distance, in parts of the largest wanted value."""
    return float(np.abs(got - want).max() / np.abs(want).max())


def decide(setting: Literal["auto", "xla"]) -> None:
    """Decides for this process, and so for all of a run: kernels are used on all hosts or on none.

    All processes of a run are to call it. A kernel that fails is told by one line of the log.

    Args:
        setting: "auto" uses the kernels of the device if they work, "xla" none.
    """
    if setting == "xla":
        kernels.allow(False)
        return
    fault = find_fault()
    works = parallel.on_all_hosts(not fault)
    if not works:
        logging.warning(
            "XLA computes attention, which is slower: the kernel of %s fails %s. `cropvlm check` "
            "tells more; --config.attention=xla uses no kernel from the start",
            jax.local_devices()[0].device_kind,
            f"here ({fault})" if fault else "on another host",
        )
    kernels.allow(works)


def decide_if_nobody_has() -> None:
    """What `decide("auto")` does, once a process."""
    if not kernels.is_decided():
        decide("auto")


def find_fault() -> str:
    """What is wrong with this device's attention kernel; "" where it works or there is none."""
    if not attention.has_kernel(jax.local_devices()[0]):
        return ""
    try:
        errors = measure(TRIED)
    except Exception as error:  # compilers and devices raise what they like
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    wrong = [name for name, error in errors.items() if not error.is_right]
    return f"wrong: {', '.join(wrong)}" if wrong else ""
