# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes every published figure from the committed JSON files: no figure is typed by hand.

    python experiments/make_results.py

It writes `docs/results.md`, `docs/expansion.svg`, and in `README.md` what stands between
`<!-- figures: NAME -->` and `<!-- end of figures -->`. Figures inside sentences are listed in
`PROSE`. `tests/docs/test_figures.py` fails where a page differs from what this script writes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
SEEDS = ("seed0", "seed1", "seed2")
BEST_SCALE = "sft_best_scale"
NAMES = {
    "no_crop": "no crop",
    "centre": "centre crop",
    "random": "random crop",
    "upscaled": "picture enlarged",
    "sft": "SFT",
    BEST_SCALE: "SFT, best size",
    "grpo_tesseract": "GRPO rewarded by Tesseract",
    "grpo": "GRPO",
    "oracle": "true box",
}
SLICES = {  # of the compiler's reports, in the order of the table
    "v5e-1": "v5e, 1 chip of 16 GiB",
    "v5e-8": "v5e, 8 chips of 16 GiB",
    "v6e-8": "v6e, 8 chips of 32 GiB",
    "v5p-8": "v5p, 4 chips of 95 GiB",
    "v5e-256": "v5e, 256 chips of 16 GiB",
}
EDGES = (512, 1024, 2048)

# What hours and dollars are computed with. No TPU was used: these are assumptions.
UTILISATION = 0.25  # of the chip's peak rate; one H100 reached 0.26
DOLLARS = {"v5e": 1.20, "v6e": 2.70, "v5p": 4.20}  # a chip and hour, list price on demand
PROMPTS = 62_159  # of the paper's GRPO stage: half of 124,319 questions

# Figures inside the sentences of README.md: each line must stand there, filled in.
PROSE = (
    "{gpu_prompts:.0f} prompts a second",
    "{gpu_ratio:.0f} times",
    "{gpu_mfu:.0%} of its peak rate",
    "{cpu_ratio_512:.1f} times as fast at 512 px and {cpu_ratio_1024:.1f} times at 1024 px",
    "{other_ratio_512:.1f} and {other_ratio_1024:.1f} times",
)
MISSING = "Not measured yet: `{path}` is not there."


def load(path: str) -> dict[str, Any]:
    """A JSON file below `experiments/`."""
    return json.loads((EXPERIMENTS / path).read_text(encoding="utf-8"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float) -> str:
    """A share as percent with one decimal."""
    return f"{100 * value:.1f}%"


def points(value: float, interval: Sequence[float]) -> str:
    """A difference in percentage points with its 95% interval."""
    low, high = interval
    return f"{100 * value:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"


# The digits task ----------------------------------------------------------------------------------


def scores_of(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows by condition of the first reader and the metric that is reported first."""
    metric = next(iter(results["protocol"]["metrics"]))
    return next(iter(results["targets"].values()))["scores"][metric]


def digits_runs() -> dict[str, dict[str, Any]]:
    """The evaluations of the digits task by seed, as far as they are there."""
    files = {seed: EXPERIMENTS / f"zoom_digits/{seed}.json" for seed in SEEDS}
    return {
        seed: load(f"zoom_digits/{seed}.json") for seed, file in files.items() if file.is_file()
    }


def digits_means() -> str:
    """The table of README.md: accuracy by condition, mean over the seeds, and GRPO's lead."""
    runs = [scores_of(results) for results in digits_runs().values()]
    if not runs:
        return MISSING.format(path="experiments/zoom_digits/seed0.json")
    shown = [name for name in NAMES if all(name in run for run in runs)]

    def mean(name: str, key: str) -> float:
        return sum(run[name][key] for run in runs) / len(runs)

    def lead(name: str) -> str:
        return "" if name in ("grpo", "oracle") else f"{100 * mean(name, 'lead'):+.1f}"

    rows = [
        ["accuracy", *(percent(mean(name, "score")) for name in shown)],
        ["GRPO's lead, points", *(lead(name) for name in shown)],
    ]
    return table([f"mean of {len(runs)} seeds", *(NAMES[name] for name in shown)], rows)


def digits_seeds() -> str:
    """The table of results.md: a row a seed, intervals, and the shape of the boxes."""
    runs = digits_runs()
    if not runs:
        return MISSING.format(path="experiments/zoom_digits/seed0.json")
    first = scores_of(next(iter(runs.values())))
    shown = [name for name in NAMES if name in first]
    accuracy, leads, boxes = [], [], []
    for seed, results in runs.items():
        scores, number = scores_of(results), seed.removeprefix("seed")
        cells = []
        for name in shown:
            low, high = scores[name]["score_interval"]
            value = scores[name]["score"]
            cells.append(f"{percent(value)} [{100 * low:.1f}, {100 * high:.1f}]")
        accuracy.append([number, *cells])
        leads.append(
            [
                number,
                *(
                    points(scores[name]["lead"], scores[name]["lead_interval"])
                    for name in shown
                    if name not in ("grpo", "oracle")
                ),
            ]
        )
        found = [results["coverage"], results["area"], results["valid"]]
        seconds = results.get("train_seconds")
        boxes.append(
            [
                number,
                str(results["n"]),
                *(percent(value) for value in found),
                f"{seconds:.0f} s" if seconds else "-",
            ]
        )
    compared = [NAMES[name] for name in shown if name not in ("grpo", "oracle")]
    return "\n\n".join(
        [
            "Accuracy of the frozen reader, with 95% intervals over scenes:",
            table(["seed", *(NAMES[name] for name in shown)], accuracy),
            "GRPO's lead over each condition, in percentage points, paired by scene:",
            table(["seed", *compared], leads),
            "GRPO's boxes, and the time that training took:",
            table(
                ["seed", "scenes", "true box covered", "area", "valid", "training"],
                boxes,
            ),
        ]
    )


def expansion_rows() -> tuple[list[float], dict[str, list[tuple[float, float, float]]]] | None:
    """Factors of the area, and by cropper score and interval at each; None without the file."""
    if not (EXPERIMENTS / "zoom_digits/expansion.json").is_file():
        return None
    results = load("zoom_digits/expansion.json")
    scores = scores_of(results)
    factors = sorted({1.0, *results["protocol"]["expansions"]})
    found = {}
    for name in ("sft", "grpo", "oracle"):
        rows = [scores[name if factor == 1 else f"{name} x{factor:g}"] for factor in factors]
        found[name] = [(row["score"], *row["score_interval"]) for row in rows]
    return factors, found


def expansion_table() -> str:
    """Accuracy as the boxes' areas grow and shrink."""
    found = expansion_rows()
    if found is None:
        return MISSING.format(path="experiments/zoom_digits/expansion.json")
    factors, curves = found
    n = load("zoom_digits/expansion.json")["n"]
    rows = [
        [NAMES[name], *(f"{percent(v)} [{100 * a:.1f}, {100 * b:.1f}]" for v, a, b in curve)]
        for name, curve in curves.items()
    ]
    return table([f"area, {n} scenes", *(f"x{factor:g}" for factor in factors)], rows)


def expansion_svg() -> str | None:
    """The same as a drawing; None without the file."""
    found = expansion_rows()
    if found is None:
        return None
    factors, curves = found
    width, height, left, right, top, bottom = 720, 320, 50, 110, 20, 45
    colours = {"sft": "#0072b2", "grpo": "#d55e00", "oracle": "#009e73"}

    def x(index: int) -> float:
        return left + index * (width - left - right) / (len(factors) - 1)

    def y(share: float) -> float:
        return top + (1 - share) * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="DejaVu Sans, Arial, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            f'<path d="M{left} {y(share):.1f}H{width - right}" stroke="#dde3ea"/>'
            f'<text x="{left - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        )
    for index, factor in enumerate(factors):
        parts.append(
            f'<text x="{x(index):.1f}" y="{height - bottom + 18}" text-anchor="middle">'
            f"x{factor:g}</text>"
        )
    middle = (left + width - right) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{height - 8}" text-anchor="middle">'
        "area of the box, times that of the proposed one</text>"
    )
    ends = sorted(curves, key=lambda name: -curves[name][-1][0])
    place = -1e9
    for name in ends:
        curve, colour = curves[name], colours[name]
        upper = [f"{x(i):.1f},{y(high):.1f}" for i, (_, _, high) in enumerate(curve)]
        lower = [f"{x(i):.1f},{y(low):.1f}" for i, (_, low, _) in enumerate(curve)]
        line = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, (value, _, _) in enumerate(curve))
        place = max(place + 16, y(curve[-1][0]) + 4)
        parts += [
            f'<polygon points="{" ".join(upper + lower[::-1])}" fill="{colour}" opacity="0.15"/>',
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>',
            f'<text x="{width - right + 8}" y="{place:.1f}" fill="{colour}" font-weight="bold">'
            f"{NAMES[name]}</text>",
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


# Receipts -----------------------------------------------------------------------------------------


def receipts() -> str:
    """Readers in rows, conditions in columns, and the lead of GRPO."""
    saved = load("receipts/results.json")
    first = next(iter(saved["intervals"].values()))
    shown = [name for name in NAMES if name in first]
    rows, leads = [], []
    for reader, scores in saved["intervals"].items():
        seen = "rewarded GRPO" if reader == saved["trained_with"] else "never seen"
        rows.append([f"`{reader}`, {seen}", *(percent(scores[name]["score"]) for name in shown)])
        leads.append(
            [
                f"`{reader}`",
                *(
                    points(scores[name]["lead"], scores[name]["lead_interval"])
                    for name in shown
                    if name not in ("grpo", "oracle")
                ),
            ]
        )
    compared = [NAMES[name] for name in shown if name not in ("grpo", "oracle")]
    return "\n\n".join(
        [
            f"How often the reader's text contains the answer, {saved['n']} questions:",
            table(["reader", *(NAMES[name] for name in shown)], rows),
            "GRPO's lead, in percentage points, with 95% intervals over receipts:",
            table(["reader", *compared], leads),
        ]
    )


# The step -----------------------------------------------------------------------------------------


def phases(found: Mapping[str, float] | None) -> str:
    """Seconds by phase in brackets."""
    if not found:
        return ""
    return " (" + ", ".join(f"{name} {seconds:.1f}" for name, seconds in found.items()) + ")"


def step_case(case: Mapping[str, Any]) -> list[str]:
    """A row of the table of steps on a CPU."""
    what = f"{case['longest_edge']} px, {case['tiles']} tile{'s' * (case['tiles'] > 1)}"
    what += ", bf16" if case["dtype"] == "bfloat16" else ", fp32"
    what += ", adapters on the decoder alone" if case["mode"] == "lora_text" else ""
    what += ", an earlier run" if case.get("earlier") else ""
    official, memory = case["official_seconds"], case["official_peak_mib"]
    return [
        what,
        f"{official:.1f} s{phases(case['official_phases'])}" if official else "not run",
        f"{case['ours_seconds']:.1f} s{phases(case['ours_phases'])}",
        f"{case['ratio']:.1f}" if case["ratio"] else "-",
        f"{case['floor_seconds']:.1f} s{phases(case['floor_phases'])}",
        f"{memory / 1024:.1f} / {case['peak_mib'] / 1024:.1f} GiB"
        if memory
        else f"- / {case['peak_mib'] / 1024:.1f} GiB",
    ]


def step_cpu(path: str) -> str:
    """The step beside the official algorithm on the CPU of a file."""
    found = load(path)
    rates = found["machine"]["matmul_flops"]["float32"]
    rows = [step_case(case) for case in found["cases"] if not case["error"]]
    head = ["case", "official", "here", "ratio", "floor", "memory, official / here"]
    told = (
        f"Matmuls in fp32 reach {rates['jax'] / 1e9:.0f} GFLOP/s in XLA and "
        f"{rates['torch'] / 1e9:.0f} in PyTorch (`experiments/{path}`):"
    )
    return told + "\n\n" + table(head, rows)


def step_gpu() -> str:
    """The step beside the official algorithm on one H100."""
    cases = load("bench_step_h100.json")["cases"]
    first = cases[0]
    rows = [
        [
            "official algorithm, 1 prompt",
            f"{first['official_seconds']:.2f} s{phases(first['official_phases'])}",
            f"{1 / first['official_seconds']:.2f}",
            "1",
            "-",
            f"{first['official_peak_mib'] / 1024:.1f} GiB",
        ]
    ]
    for case in cases:
        attention = "XLA" if case["attention"] == "xla" else "cuDNN"
        rows.append(
            [
                f"here, {case['prompts']} prompts, attention by {attention}",
                f"{case['ours_seconds']:.3f} s",
                f"{case['prompts_per_second']:.0f}",
                f"{case['ratio']:.0f}",
                f"{case['mfu']:.0%}",
                f"{case['peak_mib'] / 1024:.1f} GiB",
            ]
        )
    head = ["", "a step", "prompts a second", "ratio", "of the peak rate", "GPU memory"]
    return table(head, rows)


# TPUs, from the compiler --------------------------------------------------------------------------


def microbatches(report: Mapping[str, Any]) -> int:
    """How many microbatches a report's step has."""
    return report["overrides"].get("gradient_accumulation_steps", 1)


def peak_seconds(report: Mapping[str, Any]) -> float:
    """Seconds that the arithmetic of a report's step takes at the chip's peak rate."""
    return sum(report["roofline_ms"].values()) / 1000


def memory() -> str:
    """Peak memory of a chip by slice and resolution."""
    rows = []
    for name, title in SLICES.items():
        reports = [load(f"aot/{name}_{edge}.json") for edge in EDGES]
        prompts, split = reports[0]["prompts"], microbatches(reports[0])
        asked = f"{prompts:,}" + (f" in {split} microbatches" if split > 1 else "")
        cells = [
            f"{report['peak_hbm_gib']:.1f} GiB" if report["fits"] else "does not fit"
            for report in reports
        ]
        rows.append([title, asked, *cells])
    tiles = [load(f"aot/v5e-8_{edge}.json")["tiles"] for edge in EDGES]
    heads = [
        f"{edge} px ({count} tile{'s' * (count > 1)})"
        for edge, count in zip(EDGES, tiles, strict=True)
    ]
    return table(["slice", "prompts a step", *heads], rows)


def memory_7b() -> str:
    """The same with a frozen 7B reader."""
    rows = []
    for name, title in (("qwen7b", "Qwen2.5-VL-7B"), ("llava7b", "LLaVA-1.5-7B")):
        report = load(f"aot/v5e-8_{name}.json")
        hbm, mesh = report["hbm_gib"], report["mesh"]
        moved = {kind: found["bytes"] / 1e9 for kind, found in report["collectives"].items()}
        rows.append(
            [
                f"{title}'s shape, {report['prompts']} prompts, fsdp={mesh['fsdp']} x "
                f"tensor={mesh['tensor']}",
                f"{report['peak_hbm_gib']:.1f} / {hbm['arguments']:.1f} / "
                f"{hbm['temporaries']:.1f} GiB",
                ", ".join(f"{kind} {size:.1f}" for kind, size in moved.items()),
                f"{peak_seconds(report):.2f} s",
            ]
        )
    head = [
        "reader, on 8 chips of v5e",
        "peak / arguments / temporaries",
        "GB moved a chip and step",
    ]
    return table([*head, "arithmetic at the peak rate"], rows)


def costs(name: str) -> list[str]:
    """Minutes and dollars of the paper's GRPO stage on a slice, by resolution."""
    cells = []
    for edge in EDGES:
        report = load(f"aot/{name}_{edge}.json")
        seconds = PROMPTS / report["prompts"] * peak_seconds(report) / UTILISATION
        dollars = seconds / 3600 * report["chips"] * DOLLARS[report["chip"]]
        cells.append(f"{seconds / 60:.0f} min, ${dollars:.2f} ({PROMPTS / seconds:.0f} a second)")
    return cells


def computed_cost() -> str:
    """Minutes and dollars of the paper's GRPO stage, computed and never measured."""
    names = ("v5e-8", "v6e-8", "v5p-8")
    rows = [[SLICES[name].rpartition(" of ")[0], *costs(name)] for name in names]
    return table(["slice", *(f"{edge} px" for edge in EDGES)], rows)


def assumptions() -> str:
    """What `computed_cost` assumes, in words."""
    prices = ", ".join(f"{chip} ${price:.2f}" for chip, price in DOLLARS.items())
    return (
        f"Computed, never run: {PROMPTS:,} prompts (the paper's GRPO stage), 8 rollouts, all "
        f"weights trained, at {UTILISATION:.0%} of the peak rate (one H100 reached "
        f"{figures()['gpu_mfu']:.0%}), and list prices of a chip and hour on demand ({prices}), "
        "which you should look up. In brackets: pictures a second that the host must prepare for "
        "that. Compiling, supervised training, evaluation, downloads and seed boxes come on top."
    )


def cost_line() -> str:
    """The sentence of README.md about `computed_cost`."""
    found = [cost.partition(" (")[0].replace(",", " and") for cost in costs("v5e-8")]
    cells = [f"{cost} at {edge} px" for cost, edge in zip(found, EDGES, strict=True)]
    return (
        f"The paper's GRPO stage on 8 chips of v5e: {cells[0]}, {cells[1]},\n{cells[2]}. "
        "Computed from the compiler's reports, never run; it does not count the other stages:\n"
        "[what they assume](docs/results.md#hours-and-dollars-computed)."
    )


def figures() -> dict[str, float]:
    """The figures of `PROSE` by name."""
    gpu = max(load("bench_step_h100.json")["cases"], key=lambda case: case["prompts"])
    cpu, other = (
        {
            case["longest_edge"]: case["ratio"]
            for case in load(path)["cases"]
            if case["dtype"] == "float32" and case["mode"] == "lora" and case["ratio"]
        }
        for path in ("bench_step.json", "bench_step_213_gflops.json")
    )
    return {
        "gpu_prompts": gpu["prompts_per_second"],
        "gpu_ratio": gpu["ratio"],
        "gpu_mfu": gpu["mfu"],
        "cpu_ratio_512": cpu[512],
        "cpu_ratio_1024": cpu[1024],
        "other_ratio_512": other[512],
        "other_ratio_1024": other[1024],
    }


# Pages --------------------------------------------------------------------------------------------

RESULTS = """\
# Results

Written by `python experiments/make_results.py` from the files that are named here; do not edit.
A test fails where this page differs from these files. Words are used as in
[concepts.md](concepts.md); trials that are no longer current are in [lab.md](lab.md).

## The digits task

`bash launch/local.sh`: 200 steps of 16 questions and 8 rollouts from the bundled start weights, on
scenes of small handwritten digits. No handwriting of a test scene is in a training scene. Settings
are chosen on the validation split; these are scenes of the test split. "SFT, best size" has the SFT
cropper's boxes at the fixed size that is best on validation scenes: what GRPO wins over it is not
size alone. Files: `experiments/zoom_digits/seed0.json`, `seed1.json`, `seed2.json`.

{digits_seeds}

## The size of the box

What the same reader gets right if every box's area is multiplied by a factor
(`experiments/zoom_digits/expansion.json`). GRPO learns boxes of the size that its reader wants.

{expansion}

## Receipts

Scanned receipts (SROIE), real OCR readers at 160 px, totals and dates of 72 test receipts
(`experiments/receipts/results.json`; the commands are in `experiments/receipts.py`). GRPO was
rewarded by PP-OCRv4. The number of steps was raised once after a first result had been seen on
these receipts, and the run has one seed: read the figures as a little kind.

{receipts}

## The step on a CPU

SmolVLM-256M's shape, one prompt, 6 rollouts, LoRA of rank 128, two cores. The peer is the official
algorithm in PyTorch (`experiments/official_step.py`), run in turn by `experiments/bench_step.py`.
"Floor" is the time of the arithmetic alone at the best matmul rate of both libraries. How much
faster this step is depends on the processor.

{step_cpu}

{step_cpu_other}

## The step on a GPU

One NVIDIA H100, once, bf16, 512 px, 6 rollouts, LoRA of rank 128
(`experiments/bench_step_h100.json`, which says how it was made).

{step_gpu}

## Memory on TPUs, from the compiler

What the TPU compiler says of a GRPO step of SmolVLM-256M's shape: all weights trained with Adam,
a frozen reader and a KL reference of the same shape, 8 rollouts, bf16. No TPU was used. Files:
`experiments/aot/*.json`, made by `experiments/aot/make.sh`. Peak memory of a chip:

{memory}

With a frozen 7B reader, LoRA, 6 rollouts, 512 px:

{memory_7b}

## Hours and dollars, computed

{assumptions}

{computed_cost}
"""


def results_page() -> str:
    """The text of `docs/results.md`."""
    drawing = "![accuracy as boxes grow and shrink](expansion.svg)\n\n"
    return RESULTS.format(
        digits_seeds=digits_seeds(),
        expansion=(drawing if expansion_rows() else "") + expansion_table(),
        receipts=receipts(),
        step_cpu=step_cpu("bench_step.json"),
        step_cpu_other=step_cpu("bench_step_213_gflops.json"),
        step_gpu=step_gpu(),
        memory=memory(),
        memory_7b=memory_7b(),
        computed_cost=computed_cost(),
        assumptions=assumptions(),
    )


BLOCKS = {"digits": digits_means, "memory": memory, "cost": cost_line}
MARKED = re.compile(r"<!-- figures: (\w+) -->\n.*?<!-- end of figures -->", re.DOTALL)


def fill(page: str) -> str:
    """A page with what stands between its markers written anew."""

    def block(found: re.Match[str]) -> str:
        name = found[1]
        return f"<!-- figures: {name} -->\n{BLOCKS[name]()}\n<!-- end of figures -->"

    return MARKED.sub(block, page)


def main() -> None:
    (ROOT / "docs/results.md").write_text(results_page(), encoding="utf-8")
    if drawing := expansion_svg():
        (ROOT / "docs/expansion.svg").write_text(drawing, encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
