# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Compiles a run's step for a TPU slice that is not there, and says what memory and time it takes.

`--program=evaluation` compiles the evaluation of held-out batches instead.

This is ahead-of-time compilation (AOT). The TPU compiler runs on any Linux machine:
`pip install -e '.[tpu]'`. The times are lower bounds, at the chip's peak rates.

Example:

    cropvlm aot --topology=v5e-8 --config=experiments/paper/sft_512.py \
        --config.batch_size=64 --save=report.json

No weights are read. A batch that does not fit is followed by a search for the largest that does;
with `--search`, for the fewest microbatches and the largest `grpo.reward_chunk` with which it does.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import re
import tempfile
import time
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from cropvlm_jax import apps, parallel
from cropvlm_jax.apps import config_flag, tpu_compiler
from cropvlm_jax.pixels.plans import count_images
from cropvlm_jax.readers.registry import is_black_box
from cropvlm_jax.training.config import TrainConfig, load_config
from cropvlm_jax.training.costs import CHIPS
from cropvlm_jax.training.fitting import fastest, largest
from cropvlm_jax.training.hlo import collectives
from cropvlm_jax.training.planned_step import GIB, PlannedEvaluation, PlannedStep

CONFIG = config_flag.define_config()
TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "The slice, as Cloud TPU names it, such as v5e-8, or by its shape, such as v5e:2x4.",
    required=True,
)
SAVE = flags.DEFINE_string("save", None, "JSON file to write the report to, besides printing it.")

PROGRAM = flags.DEFINE_enum(
    "program",
    "step",
    ["step", "evaluation"],
    "What to compile: the training step, or the evaluation of held-out batches of as many prompts.",
)
SEARCH = flags.DEFINE_bool(
    "search",
    False,
    "Whether to choose gradient_accumulation_steps and grpo.reward_chunk: the fastest that fit. "
    "Each trial takes as long as compiling.",
)

PACKAGES = ("jax", "jaxlib", "libtpu", "flax")


def make_report(
    config: TrainConfig, topology: str, program: str = "step", search: bool = False
) -> dict[str, Any]:
    """What a program of a run takes on a slice.

    Args:
        config: of the run.
        topology: name of the slice.
        program: "step" or "evaluation".
        search: whether to choose microbatches and `reward_chunk` of the step.

    Returns:
        What `table` prints. Sizes, times and traffic of the compiled program are None where the
        batch does not fit.

    Raises:
        ValueError: a setting is wrong, or there is no such program.
    """
    if config.stage == "grpo" and is_black_box(config.target):
        raise ValueError(
            f"target={config.target!r} is outside of the graph, so that there is no one step to "
            "compile: `cropvlm train --dry_run` tells what its parts take"
        )
    devices = tpu_compiler.slice_devices(topology)
    if program == "evaluation":
        if search:
            raise ValueError(
                "--search chooses settings of the step: leave out --program=evaluation"
            )
        planned = PlannedEvaluation(config, devices)
        return describe(planned, topology, program) | measured(planned)
    if search:
        return found_by_search(config, topology, devices)
    step = PlannedStep(config, devices)
    return describe(step, topology, program) | measured(step)


def found_by_search(config: TrainConfig, topology: str, devices: list[Any]) -> dict[str, Any]:
    """The report of the fastest settings that fit, with what was tried; of the last where none do.

    Args:
        config: of the run.
        topology: name of the slice.
        devices: of the slice.
    """
    trials: list[dict[str, Any]] = []

    def fits(config: TrainConfig) -> bool:
        step = PlannedStep(config, devices)
        trials.append(describe(step, topology, "step") | compiled_sizes(step))
        logging.info("%s: fits: %s", settings_of(trials[-1]), trials[-1]["fits"])
        return trials[-1]["fits"]

    mesh = parallel.make_mesh(**dataclasses.asdict(config.mesh), devices=devices)
    fastest(config, parallel.parts_of_a_batch(mesh), fits)
    best = next((trial for trial in reversed(trials) if trial["fits"]), trials[-1])
    shown = ("microbatches", "reward_chunk", "fits", "peak_hbm_gib", "roofline_ms")
    tried = [{name: trial[name] for name in shown} for trial in trials]
    return best | {"searched": tried}


def settings_of(report: dict[str, Any]) -> str:
    """The flags of the settings that a search chooses."""
    flag = f"--config.gradient_accumulation_steps={report['microbatches']}"
    chunk = report["reward_chunk"]
    return f"{flag} --config.grpo.reward_chunk={chunk}" if chunk else flag


def describe(tpu: PlannedStep, topology: str, program: str) -> dict[str, Any]:
    """The part of a report that is known before compiling: the run, its work, and its bounds."""
    config, chip, batch = tpu.config, tpu.chip, tpu.batch(tpu.config.batch_size)
    assert chip is not None  # of every TPU that the compiler knows
    work = tpu.work()
    is_grpo, is_step = config.stage == "grpo", program == "step"
    group = config.grpo.num_generations if is_grpo and is_step else None
    return {
        "topology": topology,
        "chip": chip.name,
        "chips": tpu.chips,
        "mesh": dict(tpu.mesh.shape),
        "stage": config.stage,
        "program": program,
        "prompts": config.batch_size,
        "microbatches": config.gradient_accumulation_steps if is_step else 1,
        "group": group,
        "reward_chunk": group and (config.grpo.reward_chunk or group),
        "longest_edge": config.data.longest_edge,
        "tiles": count_images(batch.tiles if is_grpo else batch.images),
        "flops": work.flops,
        "decode_bytes": work.decoding_bytes,
        "roofline_ms": {name: 1e3 * seconds for name, seconds in work.at_least(chip).items()},
        "resampling_ms": 1e3 * work.resampling / tpu.chips / chip.flops,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "date": datetime.date.today().isoformat(),
    }


def measured(tpu: PlannedStep) -> dict[str, Any]:
    """The part of a report that is known from compiling, and how many prompts fit if not all."""
    found = compiled_sizes(tpu)
    if found["fits"]:
        return found
    return found | {"largest_prompts": largest(tpu.fits, tpu.multiple, tpu.config.batch_size)}


def compiled_sizes(tpu: PlannedStep) -> dict[str, Any]:
    """The part of a report that is known from compiling once: memory and exchanges."""
    rows, began = tpu.config.batch_size, time.monotonic()
    unknown = dict.fromkeys(
        ("largest_prompts", "hbm_gib", "compiler_flops", "collectives", "compile_seconds")
    ) | {"next_batches_gib": tpu.next_batches(rows) / GIB}
    with tempfile.TemporaryDirectory() as folder:
        compiled = tpu.compile(rows, folder)
        modules = [path.read_text() for path in pathlib.Path(folder).glob("*.after_codegen.txt")]
    if isinstance(compiled, str):
        logging.info("%s", compiled)
        needed = re.search(r"([\d.]+)G\b", compiled)  # the first figure; then what there is
        return unknown | {
            "fits": False,
            "peak_hbm_gib": float(needed[1]) if needed else None,
        }
    found = compiled.memory_analysis()
    parts = {
        "arguments": found.argument_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
    }
    return unknown | {
        "fits": tpu.has_room(found.peak_memory_in_bytes, rows),
        "compile_seconds": round(time.monotonic() - began, 1),
        "peak_hbm_gib": found.peak_memory_in_bytes / GIB,
        "hbm_gib": {name: size / GIB for name, size in parts.items()},
        "compiler_flops": compiled.cost_analysis()["flops"],
        "collectives": collectives(modules[0]),
    }


def table(report: dict[str, Any]) -> str:
    """A report for people."""
    chip = next(chip for chip in CHIPS.values() if chip.name == report["chip"])
    mesh = ", ".join(f"{name}={size}" for name, size in report["mesh"].items())
    rollouts = f" x {report['group']} rollouts" if report["group"] else ""
    program = "" if report["program"] == "step" else f" ({report['program']})"
    parts = report["microbatches"]
    lines = [
        f"{report['topology']}: {report['chips']} x {chip.name}, mesh {mesh}",
        f"{report['stage']}{program}: {report['prompts']} prompts{rollouts}, "
        f"{report['longest_edge']} px, tiles: {report['tiles']}"
        f"{f', in {parts} microbatches' if parts > 1 else ''}",
        "",
    ]
    for trial in report.get("searched", ()):
        verdict = "fits" if trial["fits"] else "does not fit"
        lines += [f"tried {settings_of(trial)}: {verdict}, {gib(trial['peak_hbm_gib'])} GiB"]
    if "searched" in report:
        lines += [f"take {settings_of(report)}" if report["fits"] else "none fits", ""]
    peak = f"{gib(report['peak_hbm_gib'])} of {chip.hbm_gib} GiB a chip"
    beside = f"next batches beside it {report['next_batches_gib']:.2f}"
    if report["fits"]:
        sizes = ", ".join(f"{name} {size:.2f}" for name, size in report["hbm_gib"].items())
        lines += [f"fits: peak HBM {peak} ({sizes}; {beside})"]
        lines += [f"compiled in {report['compile_seconds']:.0f} s"]
    else:
        fewer = report["largest_prompts"]
        others = "" if fewer is None else f"; {fewer} prompts do"
        lines += [f"does not fit: needs {peak}, {beside}{others}"]
    lines += ["", f"{'phase':<10} {'TFLOP':>9} {'decoding GB/chip':>17} {'at least ms':>12}"]
    for phase, count in report["flops"].items():
        read = report["decode_bytes"].get(phase, 0)
        least = report["roofline_ms"][phase]
        lines += [f"{phase:<10} {count / 1e12:>9.3f} {read / 1e9:>17.2f} {least:>12.2f}"]
    total, least = sum(report["flops"].values()), sum(report["roofline_ms"].values())
    lines += [f"{'all':<10} {total / 1e12:>9.3f} {'':>17} {least:>12.2f}"]
    lines += [f"of it crops and tiles, each digit counted: {report['resampling_ms']:.2f} ms"]
    if report["fits"]:
        counted = report["compiler_flops"] * report["chips"] / 1e12
        lines += [f"{'compiler':<10} {counted:>9.3f}  (its count: a loop's body once)", ""]
        lines += [
            f"{kind}: {found['count']} a {report['program']}, {found['bytes'] / 2**20:.1f} MiB a "
            f"chip, {found['gradient_bytes'] / 2**20:.1f} of them gradients"
            for kind, found in report["collectives"].items()
        ] or ["no collectives"]
    return "\n".join(lines)


def gib(size: float | None) -> str:
    """A size in GiB; None where the compiler did not tell."""
    return "unknown" if size is None else f"{size:.2f}"


def main(argv: list[str]) -> None:
    """Makes, prints and saves the report that the flags ask for."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: settings are --config.name=value")
    tpu_compiler.use()
    jax.config.update("jax_enable_compilation_cache", False)  # the time is to be the compiler's
    config = load_config(CONFIG.value)
    report = make_report(config, TOPOLOGY.value, PROGRAM.value, SEARCH.value)
    flag = flags.FLAGS["config"]
    report["config"] = config_flags.get_config_filename(flag)
    report["overrides"] = config_flags.get_override_values(flag)
    print(table(report))
    if SAVE.value:
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
        pathlib.Path(SAVE.value).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    apps.run(main)
