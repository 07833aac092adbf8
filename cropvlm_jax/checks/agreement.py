# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Does a tiny step come to the same on this device as on the CPU, and on two devices as on one?

The CPU's step is taken by a process of its own that sees no accelerator: `JAX_PLATFORMS` may keep
this process from having a CPU backend, and only one process may hold a TPU.
"""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np

from cropvlm_jax.checks import tiny_step
from cropvlm_jax.checks.tiny_step import StepResults
from cropvlm_jax.checks.verdict import Verdict, judge

WITH_CPU = "a tiny step = the CPU's"
WITH_CPU_REMEDY = "nothing can be switched off: do not train on this device, and please report it"
TWO_DEVICES = "two devices = one"
TWO_DEVICES_REMEDY = (
    "train on one device (CUDA_VISIBLE_DEVICES=0; of a TPU, docs/check.md), and please report it"
)
MINUTES = 10  # until the CPU's step is given up
# Other devices round weights of the resampling and sums in another way.
OTHER_DEVICE, SAME_DEVICE = 1e-2, 1e-4


def check_with_cpu() -> Verdict:
    """Compares the step on the first device with the CPU's.

    Raises:
        OSError: the process on the CPU failed.
    """
    want = on_cpu()
    return compare(WITH_CPU, take_on(1), want, OTHER_DEVICE, WITH_CPU_REMEDY)


def check_two_devices() -> Verdict:
    """Compares the step on the first two devices with that on the first."""
    count = jax.local_device_count()
    if count < 2:
        return Verdict(TWO_DEVICES, "skipped", "there is one device")
    return compare(TWO_DEVICES, take_on(2), take_on(1), SAME_DEVICE, TWO_DEVICES_REMEDY)


@functools.cache
def take_on(devices: int) -> StepResults:
    """The step on the first devices of this process."""
    return tiny_step.take(jax.local_devices()[:devices])


def on_cpu() -> StepResults:
    """The step of a new process on the CPU.

    Raises:
        OSError: the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "cpu.npz")
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        code = "import sys; from cropvlm_jax.checks import tiny_step; tiny_step.save(sys.argv[1])"
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60 * MINUTES,
        )
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            raise OSError(f"the process that takes the CPU's step ended with: {last}")
        return tiny_step.load(path)


def compare(name: str, got: StepResults, want: StepResults, bound: float, remedy: str) -> Verdict:
    """The verdict on two results of the step.

    Args:
        name: of the check.
        got: the results to be judged.
        want: the reference.
        bound: for loss and rewards, of the larger of 1 and the value; for gradients, of the length
            of their vector.
        remedy: what to do where they differ.
    """
    unequal = int((got.boxes != want.boxes).any(-1).sum())
    boxes = int(np.prod(want.boxes.shape[:-1]))
    length = np.linalg.norm(want.gradients)
    errors = {
        "loss": _off(got.loss, want.loss),
        "rewards": _off(got.rewards, want.rewards),
        "gradients": float(np.linalg.norm(got.gradients - want.gradients) / length),
    }
    within = all(error <= bound for error in errors.values())  # NaN is not
    return judge(
        name,
        within and not unequal,
        f"{boxes - unequal} of {boxes} boxes equal; "
        + ", ".join(f"{part} off by {error:.1e}" for part, error in errors.items())
        + f", bound {bound:.0e}",
        remedy,
        boxes=boxes,
        unequal_boxes=unequal,
        errors=errors,
        bound=bound,
        loss=float(want.loss),
        gradient_norm=float(length),
    )


def _off(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, of the larger of 1 and the wanted value."""
    return float((np.abs(got - want) / np.maximum(np.abs(want), 1)).max())
