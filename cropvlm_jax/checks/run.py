# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""All checks in their order, and the report of what they found."""

import dataclasses
import datetime
import importlib.metadata
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from cropvlm_jax.checks import agreement, attention, pixels, speed
from cropvlm_jax.checks.pages import Pages
from cropvlm_jax.checks.speed import Workload
from cropvlm_jax.checks.verdict import Verdict, guarded, table
from cropvlm_jax.models import kernels
from cropvlm_jax.models.kernel_trial import Shape

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "pillow")
SPEED = "the step at {} px"
SPEED_REMEDY = "docs/troubleshooting.md, Memory and time, says what takes less memory"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is checked.

    Attributes:
        attention: shape of the attention.
        boxes: what is cut.
        workloads: the steps that are timed.
    """

    attention: Shape
    boxes: pixels.Boxes
    workloads: Sequence[Workload]


EDGES = (512, 1024, 2048)  # pixels at which a step is timed
TINY = Plan(
    attention.TINY,
    pixels.TINY,
    [
        Workload(
            model="zoom_digits/cropper",
            longest_edge=64,
            group=2,
            dtype="float32",
            canvas=(512, 512),
            pages=Pages(4, 300, 200),
            seconds=0,
        )
    ],
)


def full(longest_edges: Sequence[int] = EDGES) -> Plan:
    """The checks of an accelerator.

    Args:
        longest_edges: pixels at which a step is timed.
    """
    workloads = [Workload(longest_edge=edge) for edge in longest_edges]
    return Plan(attention.TOWER, pixels.Boxes(), workloads)


def run(plan: Plan) -> dict[str, Verdict]:
    """Makes the checks of a plan.

    A kernel that fails is not used by the checks after it, as it is not by a run.

    Args:
        plan: what to check.

    Returns:
        The verdicts by letter; those of step times are "e1", "e2" and so on.
    """
    found = {
        "a": guarded(attention.NAME, attention.REMEDY, lambda: attention.check(plan.attention))
    }
    kernels.allow(not found["a"].failed)
    found["b"] = guarded(pixels.NAME, pixels.REMEDY, lambda: pixels.check(plan.boxes))
    found["c"] = guarded(agreement.WITH_CPU, agreement.WITH_CPU_REMEDY, agreement.check_with_cpu)
    found["d"] = guarded(
        agreement.TWO_DEVICES, agreement.TWO_DEVICES_REMEDY, agreement.check_two_devices
    )
    for number, workload in enumerate(plan.workloads, 1):
        found[f"e{number}"] = time_step(workload)
    return found


def time_step(workload: Workload) -> Verdict:
    """Times a step; it is "ok" where it runs and stays finite, however long it takes."""
    name = SPEED.format(workload.longest_edge)

    def measured() -> Verdict:
        figures = speed.measure(workload)
        return Verdict(name, "ok", in_words(figures), figures=figures)

    return guarded(name, SPEED_REMEDY, measured)


def in_words(figures: Mapping[str, Any]) -> str:
    """What `speed.measure` found, in one line."""
    mfu = "not known, as this device's peak" if figures["mfu"] is None else f"{figures['mfu']:.1%}"
    return (
        f"{figures['prompts_per_second']:.3g} prompts/s, {figures['step_seconds']:.3g} s a step of "
        f"{figures['prompts']} x {figures['rollouts']} rollouts, MFU {mfu}; "
        f"{figures['peak_gib']:.1f} GiB a device; compiled in {figures['compile_seconds']:.0f} s; "
        f"fed from JPEGs {figures['fed']['step_seconds']:.3g} s, waiting "
        f"{figures['fed']['data_wait_share']:.1%}"
    )


def to_text(verdicts: Mapping[str, Verdict]) -> str:
    """The verdicts and the seconds by phase, for people."""
    lines = [table(verdicts), ""]
    for verdict in verdicts.values():
        if seconds := verdict.figures.get("phase_seconds"):
            parts = ", ".join(f"{phase} {taken:.3g}" for phase, taken in seconds.items())
            lines.append(f"{verdict.name}, seconds by phase, each by itself: {parts}")
    failed = [letter for letter, verdict in verdicts.items() if verdict.failed]
    lines.append(
        f"FAILED: {', '.join(failed)}" if failed else "All that was checked on this machine is ok."
    )
    return "\n".join(lines)


def as_json(verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """The verdicts with their figures and the machine; what is not finite is null."""
    devices = jax.local_devices()
    return {
        "ok": not any(verdict.failed for verdict in verdicts.values()),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "cores": len(os.sched_getaffinity(0)),
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "checks": {letter: _finite(dataclasses.asdict(v)) for letter, v in verdicts.items()},
    }


def versions() -> dict[str, str]:
    """Versions of the packages that decide, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _finite(tree: Any) -> Any:
    """A tree for JSON, which has no NaN and no infinity."""
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
