# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run takes, said before it starts: steps, memory, hours, requests and dollars.

Nothing is trained, written or measured, no weights are read and no reader is asked. What cannot be
known here is said to be unknown, with what would tell.
"""

import dataclasses
import os
import re
import time
from collections.abc import Sequence
from typing import Any

from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.training.config import TrainConfig
from cropvlm_jax.training.costs import UTILISATION
from cropvlm_jax.training.planned_step import GIB, PlannedStep
from cropvlm_jax.training.stages import models_of
from cropvlm_jax.training.workload import Workload

SHAPE = (
    "To plan without a model, name a folder with its config.json, tokenizer.json and processor "
    "files, as --config.cropper=FOLDER or --config.target=FOLDER; of a cropper that an earlier run "
    "is to write, those of the model which that run begins with. `python "
    "experiments/smolvlm_shape.py FOLDER` writes SmolVLM-256M's"
)


@dataclasses.dataclass(frozen=True)
class Prices:
    """What the user pays; None where that was not said.

    Attributes:
        hour: dollars an hour of all devices together.
        requests: dollars of 1,000 requests to the reader.
    """

    hour: float | None = None
    requests: float | None = None


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What a step takes on the devices.

    Attributes:
        peak: bytes on a device at most, with the batches that wait there; None where the step does
            not fit and the compiler does not say.
        limit: bytes that a device has; None where that is not known.
        fits: whether they fit in.
        compile_seconds: what compiling took.
        step_seconds: of a step; None where the peak rates of the devices are not known.
    """

    peak: float | None
    limit: float | None
    fits: bool
    compile_seconds: float
    step_seconds: float | None

    @classmethod
    def of(cls, planned: PlannedStep, devices: Sequence[Any]) -> "Footprint":
        """Compiles a step and counts its work.

        Args:
            planned: the step.
            devices: that it is compiled for.
        """
        seconds, limit = None, memory_of(devices[0])
        if planned.chip:
            seconds = sum(planned.work().at_least(planned.chip).values()) / UTILISATION
            limit = planned.chip.hbm_gib * GIB
        began = time.monotonic()
        found = planned.peak_memory()
        if isinstance(found, str):
            needed = re.search(r"([\d.]+)G\b", found)  # the first figure; then what there is
            peak = float(needed[1]) * GIB if needed else None
        else:
            peak = float(found + planned.next_batches(planned.config.batch_size))
        fits = not isinstance(found, str) and (limit is None or float(peak or 0) <= limit)
        return cls(peak, limit, fits, time.monotonic() - began, seconds)


def memory_of(device: Any) -> float | None:
    """Bytes of memory of a device; None where it does not say."""
    if device.platform == "cpu":
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except Exception:  # a device that is not there has none, and raises what it likes
        return None


def missing_models(config: TrainConfig) -> list[str]:
    """The models of a run whose shapes are not here, a sentence each.

    Raises:
        ValueError: a model is here and cannot be used.
    """
    missing = []
    for name in models_of(config):
        try:
            Pretrained.open(getattr(config, name), weights=False)
        except FileNotFoundError as error:
            missing.append(f"{name}: {error}")
    return missing


def report(config: TrainConfig, devices: Sequence[Any], prices: Prices) -> list[tuple[str, str]]:
    """What a run takes, as lines of a label and a text.

    Args:
        config: settings of the run.
        devices: that it is to run on; they need not be there.
        prices: of the user.

    Raises:
        ValueError: a setting is wrong, or data or models are here and cannot be used.
    """
    workload = Workload.of(config)
    missing = missing_models(config)
    footprint = None
    if not missing:
        footprint = Footprint.of(PlannedStep(config, devices), devices)
    hours = hours_of(config, workload, footprint)
    lines = [("examples", _examples(workload)), ("steps", _steps(config, workload))]
    lines.append(("evaluations", _evaluations(config, workload)))
    lines += _on_devices(footprint, devices)
    lines += [("hours", _hours(workload, footprint, hours)), *_requests(config, workload)]
    lines.append(("dollars", _dollars(prices, hours, workload.requests)))
    needed = [*workload.examples.missing, *workload.held_out.missing, *missing]
    lines += [("missing here", text) for text in needed]
    return [*lines, ("", SHAPE)] if missing else lines


def hours_of(config: TrainConfig, workload: Workload, footprint: Footprint | None) -> float | None:
    """Hours of all batches; None where their number or the time of one is not known."""
    batches = workload.batches(config.batch_size)
    if batches is None or footprint is None or footprint.step_seconds is None:
        return None
    return batches * footprint.step_seconds / 3600


def _examples(workload: Workload) -> str:
    """The examples to train on."""
    if workload.examples.count is None:
        return "not known: not all of the data are here"
    by_name = " (not all of them are here)" if workload.examples.missing else ""
    return f"{workload.examples.count:,}{by_name}"


def _steps(config: TrainConfig, workload: Workload) -> str:
    """The steps, and what a step is."""
    count = f"{workload.steps:,}" if workload.steps else "not known (--config.steps sets them)"
    rollouts = f" x {config.grpo.num_generations} rollouts" if config.stage == "grpo" else ""
    parts = config.gradient_accumulation_steps
    split = f", in {parts} microbatches" if parts > 1 else ""
    return f"{count}, each of {config.batch_size} prompts{rollouts}{split}"


def _evaluations(config: TrainConfig, workload: Workload) -> str:
    """The evaluations while the run trains."""
    if not config.eval.every:
        return "none: eval.every=0"
    count = f"{workload.evaluations:,}" if workload.evaluations else "not known"
    return f"{count}, each of at most {workload.evaluated:,} held-out examples"


def _on_devices(footprint: Footprint | None, devices: Sequence[Any]) -> list[tuple[str, str]]:
    """Devices, memory, compiling and time of a step."""
    kind = devices[0].device_kind
    lines = [("devices", f"{len(devices)} x {kind}")]
    if footprint is None:
        unknown = "not known: a model's shape is not here, see below"
        return [*lines, ("memory", unknown), ("seconds a step", unknown)]
    there = f" of {footprint.limit / GIB:.1f}" if footprint.limit else ""
    peak = f"{footprint.peak / GIB:.2f}{there} GiB a device" if footprint.peak else "too much"
    verdict = "fits" if footprint.fits else "does NOT fit: docs/troubleshooting.md says what helps"
    lines.append(("memory", f"{peak}, by the compiler, next batches included; {verdict}"))
    lines.append(("compiling", f"{footprint.compile_seconds:.0f} s on this machine"))
    if footprint.step_seconds is None:
        text = f"not known on this device: {kind!r} has no peak rate here; --topology tells of TPUs"
    else:
        text = (
            f"{footprint.step_seconds:.3g}, computed and not measured: at {UTILISATION:.0%} of the "
            "peak rate"
        )
    return [*lines, ("seconds a step", text)]


def _hours(workload: Workload, footprint: Footprint | None, hours: float | None) -> str:
    """The hours of the run."""
    if hours is None:
        lacking = []
        if workload.steps is None:
            lacking.append("the steps are not known")
        if footprint is None or footprint.step_seconds is None:
            lacking.append("the seconds a step are not known")
        return f"not known: {' and '.join(lacking)}"
    outside = ", without the reader's answers" if workload.requests_a_step else ""
    counted = "; a batch of an evaluation counts as a step" if workload.evaluations else ""
    return f"{hours:.3g}{outside}{counted}; compiling, loading and saving come on top"


def _requests(config: TrainConfig, workload: Workload) -> list[tuple[str, str]]:
    """The requests to a reader outside of the step."""
    if not workload.requests_a_step:
        return [("requests", "none: no reader outside of the step is asked")]
    total = "not known" if workload.requests is None else f"{workload.requests:,}"
    text = (
        f"to {config.target}, at most: {workload.requests_a_step:,} a step, "
        f"{workload.requests_an_evaluation:,} an evaluation, {total} in all; equal boxes are asked "
        "about once"
    )
    if not config.target.startswith("openai:"):
        return [("requests", f"{text}; this reader runs here, so that they cost time only")]
    limit = re.search(r"@(\d+)", config.target)
    size = f"at most {limit[1]} px long" if limit else "as large as the data have them"
    pictures = (
        f"{1 + config.grpo.max_boxes} a request, picture and crops, {size} (@PIXELS limits them); "
        "how many tokens they are only the server says, with its replies"
    )
    retries = f"{text}; replies are kept, and failed requests are sent again"
    return [("requests", retries), ("pictures", pictures)]


def _dollars(prices: Prices, hours: float | None, requests: int | None) -> str:
    """What the run costs at the user's prices."""
    parts, total = [], 0.0
    for price, amount, what in (
        (prices.hour, hours, "hours"),
        (prices.requests, None if requests is None else requests / 1000, "requests"),
    ):
        if price is None:
            continue
        if amount is None:
            parts.append(f"{what} not known")
            continue
        total += price * amount
        parts.append(f"{what} ${price * amount:,.2f}")
    if not parts:
        return "not known: --dollars_per_hour and --dollars_per_1000_requests say the prices"
    unknown = sum("not known" in part for part in parts)
    if unknown == len(parts):
        return ", ".join(parts)
    return f"{'at least ' * bool(unknown)}${total:,.2f} ({', '.join(parts)})"
