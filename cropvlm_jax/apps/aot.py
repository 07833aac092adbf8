# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Compiles a run's step for a TPU slice that is not there, and says what memory and time it takes.

This is ahead-of-time compilation (AOT). The TPU compiler runs on any Linux machine:
`pip install -e '.[tpu]'`. The times are lower bounds, at the chip's peak rates.

Example:

    cropvlm aot --topology=v5e-8 --config=experiments/paper/sft_512.py \
        --config.batch_size=64 --save=report.json

No weights are read. A batch that does not fit is followed by a search for the largest that does.
"""

import bisect
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from jax.experimental import topologies
from ml_collections import config_flags

from cropvlm_jax import apps, geometry, parallel
from cropvlm_jax.apps import config_flag
from cropvlm_jax.training.config import TrainConfig, load_config
from cropvlm_jax.training.costs import CHIPS
from cropvlm_jax.training.hlo import collectives
from cropvlm_jax.training.stages import open_stage

CONFIG = config_flag.define_config()
TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "The slice, as Cloud TPU names it, such as v5e-8, or by its shape, such as v5e:2x4.",
    required=True,
)
SAVE = flags.DEFINE_string("save", None, "JSON file to write the report to, besides printing it.")

GIB = 2**30
STEPS = 1000  # of the schedule where the config leaves it to the data: a constant of the program
PACKAGES = ("jax", "jaxlib", "libtpu", "flax")


def shape_name(topology: str) -> str:
    """The compiler's name of a slice: "v5e-8" is "v5e:2x4".

    Numbers are chips of v5e and v6e, which lie in a plane, and cores of v5p, two a chip, in space.

    Raises:
        ValueError: no such slice.
    """
    if ":" in topology:
        return topology
    found = re.fullmatch(r"(v5e|v6e|v5p)-(\d+)", topology)
    if not found:
        raise ValueError(f"topology={topology!r} is neither like v5e-8, v6e-8, v5p-8 nor v5e:2x4")
    kind, chips, axes = found[1], int(found[2]), 2
    if kind == "v5p":
        chips, axes = chips // 2, 3
    power = chips.bit_length() - 1
    if chips != 2**power or chips == 0:
        raise ValueError(f"topology={topology!r} does not have a power of two of chips")
    sides = [2 ** ((power + i) // axes) for i in range(axes)]
    return f"{kind}:" + "x".join(map(str, reversed(sides) if 1 in sides else sides))


class Slice:
    """A TPU slice that is not there, and a run's step to be compiled for it.

    Attributes:
        config: settings of the run.
        chips: how many there are.
        chip: the kind.
        mesh: of the chips, as the config asks for.
        stage: the run, without weights.
        split: chips among which a batch is split.
        multiple: what batches are multiples of, microbatches times `split`.
    """

    def __init__(self, config: TrainConfig, topology: str):
        """Describes the slice and builds the run.

        Args:
            config: of the run.
            topology: name of the slice.

        Raises:
            FileNotFoundError: a model is not there.
            ValueError: a setting is wrong.
        """
        name = shape_name(topology)
        # A host of 2 x 2 chips, the default of some versions, has none for a single one.
        options = {"chips_per_host_bounds": (1, 1, 1)} if name.endswith(":1x1") else {}
        devices: Any = topologies.get_topology_desc(name, "tpu", **options).devices
        self.config = config
        self.chips, self.chip = len(devices), CHIPS[devices[0].device_kind]
        axes = dataclasses.asdict(config.mesh)
        self.mesh = parallel.make_mesh(**axes, devices=devices)
        batched = parallel.batch_sharding(self.mesh)
        self.split = self.chips // batched.shard_shape((self.chips,))[0]
        self.multiple = self.split * config.gradient_accumulation_steps
        if config.batch_size % self.multiple:
            raise ValueError(
                f"batch_size={config.batch_size} is not a multiple of {self.multiple}, the "
                f"microbatches times the chips that split them, on {dict(self.mesh.shape)}"
            )
        self.stage = open_stage(config, abstract=True)
        self._program = self.stage.compile(self.mesh, config.steps or STEPS)
        self._state = jax.eval_shape(self._program.create, self.stage.weights)
        self._key = jax.eval_shape(lambda: jax.random.key(0))

    def batch(self, rows: int) -> Any:
        """Shapes of a batch of square pictures."""
        side = self.config.data.longest_edge
        image = np.zeros((side, side, 3), np.uint8)
        example = {"image": image, "question": "?", "answers": ["0"], "box": geometry.FULL}
        row = self.stage.prepare(example, 0)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype), row)

    def cost(self, rows: int) -> dict[str, float]:
        """Operations of a step on `rows` prompts by phase, over all chips."""
        return self.stage.cost(self._program.trace(self._state, self.batch(rows), self._key))

    def compile(self, rows: int, dump: str | None = None) -> Any:
        """The step compiled for batches of `rows`, or what the compiler says if they do not fit.

        Args:
            rows: of a batch.
            dump: folder where the compiler writes the module as it understands it: jaxlib does not
                read all that newer compilers make, three-part asynchronous operations for one.
        """
        logging.info("compiling for a batch of %d: this may take minutes", rows)
        lowered = self._program.step.lower(self._state, self.batch(rows), self._key)
        try:
            options = {"xla_dump_to": dump, "xla_dump_hlo_as_text": True} if dump else None
            return lowered.compile(options)
        except jax.errors.JaxRuntimeError as error:
            if not re.search("RESOURCE_EXHAUSTED.*HBM", str(error), re.IGNORECASE | re.DOTALL):
                raise
            logging.info("a batch of %d does not fit", rows)
            return str(error)

    def fits(self, rows: int) -> bool:
        """Whether the step fits the chips' memory with batches of `rows`."""
        return not isinstance(self.compile(rows), str)


def largest(fits: Callable[[int], bool], multiple: int, too_large: int) -> int:
    """The largest multiple below `too_large` that fits, found by bisection; 0 if none does."""
    sizes = range(multiple, too_large, multiple)
    return multiple * bisect.bisect_left(sizes, True, key=lambda size: not fits(size))


def make_report(config: TrainConfig, topology: str) -> dict[str, Any]:
    """What the step of a run takes on a slice.

    Args:
        config: of the run.
        topology: name of the slice.

    Returns:
        What `table` prints. Sizes, times and traffic of the compiled program are None where the
        batch does not fit.
    """
    tpu = Slice(config, topology)
    return describe(tpu, topology) | measure(tpu)


def describe(tpu: Slice, topology: str) -> dict[str, Any]:
    """The part of a report that is known before compiling: the run, its work, and its bounds."""
    config, chip, batch = tpu.config, tpu.chip, tpu.batch(tpu.config.batch_size)
    flops = tpu.cost(config.batch_size)
    read = tpu.stage.decoding(tpu.batch(config.batch_size // tpu.split))
    compute = {phase: 1e3 * count / tpu.chips / chip.flops for phase, count in flops.items()}
    memory = {phase: 1e3 * count / chip.hbm for phase, count in read.items()}
    is_grpo = config.stage == "grpo"
    return {
        "topology": topology,
        "chip": chip.name,
        "chips": tpu.chips,
        "mesh": dict(tpu.mesh.shape),
        "stage": config.stage,
        "prompts": config.batch_size,
        "group": config.grpo.num_generations if is_grpo else None,
        "longest_edge": config.data.longest_edge,
        "tiles": jax.tree.leaves(batch.tiles if is_grpo else batch.images)[0].shape[1],
        "flops": flops,
        "decode_bytes": read,
        "roofline_ms": {phase: max(compute[phase], memory.get(phase, 0)) for phase in flops},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "date": datetime.date.today().isoformat(),
    }


def measure(tpu: Slice) -> dict[str, Any]:
    """The part of a report that is known from compiling: what fits, memory and exchanges."""
    rows, began = tpu.config.batch_size, time.monotonic()
    unknown = dict.fromkeys(
        ("largest_prompts", "hbm_gib", "compiler_flops", "collectives", "compile_seconds")
    )
    with tempfile.TemporaryDirectory() as folder:
        compiled = tpu.compile(rows, folder)
        modules = [path.read_text() for path in pathlib.Path(folder).glob("*.after_codegen.txt")]
    if isinstance(compiled, str):
        logging.info("%s", compiled)
        needed = re.search(r"([\d.]+)G\b", compiled)  # the first figure; then what there is
        return unknown | {
            "fits": False,
            "peak_hbm_gib": float(needed[1]) if needed else None,
            "largest_prompts": largest(tpu.fits, tpu.multiple, rows),
        }
    found = compiled.memory_analysis()
    parts = {
        "arguments": found.argument_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
    }
    return unknown | {
        "fits": True,
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
    lines = [
        f"{report['topology']}: {report['chips']} x {chip.name}, mesh {mesh}",
        f"{report['stage']}: {report['prompts']} prompts{rollouts}, {report['longest_edge']} px, "
        f"tiles: {report['tiles']}",
        "",
    ]
    peak = f"{report['peak_hbm_gib'] or math.inf:.2f} of {chip.hbm_gib} GiB a chip"
    if report["fits"]:
        parts = ", ".join(f"{name} {size:.2f}" for name, size in report["hbm_gib"].items())
        lines += [f"fits: peak HBM {peak} ({parts})"]
        lines += [f"compiled in {report['compile_seconds']:.0f} s"]
    else:
        lines += [f"does not fit: needs {peak}; {report['largest_prompts']} prompts do"]
    lines += ["", f"{'phase':<10} {'TFLOP':>9} {'decoding GB/chip':>17} {'at least ms':>12}"]
    for phase, count in report["flops"].items():
        read = report["decode_bytes"].get(phase, 0)
        least = report["roofline_ms"][phase]
        lines += [f"{phase:<10} {count / 1e12:>9.3f} {read / 1e9:>17.2f} {least:>12.2f}"]
    total, least = sum(report["flops"].values()), sum(report["roofline_ms"].values())
    lines += [f"{'step':<10} {total / 1e12:>9.3f} {'':>17} {least:>12.2f}"]
    if report["fits"]:
        counted = report["compiler_flops"] * report["chips"] / 1e12
        lines += [f"{'compiler':<10} {counted:>9.3f}  (its count: a loop's body once)", ""]
        lines += [
            f"{kind}: {found['count']} a step, {found['bytes'] / 2**20:.1f} MiB a chip"
            for kind, found in report["collectives"].items()
        ] or ["no collectives"]
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Makes, prints and saves the report that the flags ask for."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: settings are --config.name=value")
    if not importlib.util.find_spec("libtpu"):
        raise app.UsageError("the TPU compiler is missing: pip install libtpu")
    # The compiler needs no chip, and is not to look for one, nor for the cloud's metadata.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # other compilers may be at work
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # the time is to be the compiler's
    report = make_report(load_config(CONFIG.value), TOPOLOGY.value)
    flag = flags.FLAGS["config"]
    report["config"] = config_flags.get_config_filename(flag)
    report["overrides"] = config_flags.get_override_values(flag)
    print(table(report))
    if SAVE.value:
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
        pathlib.Path(SAVE.value).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    apps.run(main)
