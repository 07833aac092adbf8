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
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import look_tables
from draw_curves import draw_curves

from cropvlm_jax import apps
from cropvlm_jax.training.costs import UTILISATION

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
TEMPLATE = EXPERIMENTS / "results_template.md"
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


def share_with_interval(row: Mapping[str, Any]) -> str:
    """A score as percent with its 95% interval."""
    low, high = row["score_interval"]
    return f"{percent(row['score'])} [{100 * low:.1f}, {100 * high:.1f}]"


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
        return "" if name not in compared(shown) else f"{100 * mean(name, 'lead'):+.1f}"

    rows = [
        ["accuracy", *(percent(mean(name, "score")) for name in shown)],
        ["GRPO's lead, points", *(lead(name) for name in shown)],
    ]
    return table([f"mean of {len(runs)} seeds", *(NAMES[name] for name in shown)], rows)


def compared(shown: Sequence[str]) -> list[str]:
    """The conditions over which GRPO's lead is told."""
    return [name for name in shown if name not in ("grpo", "oracle")]


def leads(scores: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    """GRPO's lead over each of the other conditions."""
    rows = [scores[name] for name in compared(shown)]
    return [points(row["lead"], row["lead_interval"]) for row in rows]


def digits_seeds() -> str:
    """The table of results.md: a row a seed, intervals, and the shape of the boxes."""
    runs = {seed.removeprefix("seed"): results for seed, results in digits_runs().items()}
    if not runs:
        return MISSING.format(path="experiments/zoom_digits/seed0.json")
    scores = {seed: scores_of(results) for seed, results in runs.items()}
    shown = [name for name in NAMES if name in next(iter(scores.values()))]
    accuracy = [
        [seed, *(share_with_interval(found[name]) for name in shown)]
        for seed, found in scores.items()
    ]
    boxes = []
    for seed, results in runs.items():
        shares = [percent(results[name]) for name in ("coverage", "area", "valid")]
        seconds = f"{results['train_seconds']:.0f} s" if "train_seconds" in results else "-"
        scale = results["best_scale"].get("chosen_scale")
        size = f"area x{scale:g}" if scale else "-"
        boxes.append([seed, str(results["n"]), *shares, seconds, size])
    return "\n\n".join(
        [
            "Accuracy of the frozen reader, with 95% intervals over scenes:",
            table(["seed", *(NAMES[name] for name in shown)], accuracy),
            "GRPO's lead over each condition, in percentage points, paired by scene:",
            table(
                ["seed", *(NAMES[name] for name in compared(shown))],
                [[seed, *leads(found, shown)] for seed, found in scores.items()],
            ),
            "GRPO's boxes, the time that training took, and the best size of SFT's boxes:",
            table(
                [
                    "seed",
                    "scenes",
                    "true box covered",
                    "area",
                    "valid",
                    "training",
                    "SFT, best size",
                ],
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
    return found and draw_curves(*found, names=NAMES)


# Receipts -----------------------------------------------------------------------------------------


def receipts() -> str:
    """Readers in rows, conditions in columns, and the lead of GRPO."""
    saved = load("receipts/results.json")
    readers = saved["intervals"]
    shown = [name for name in NAMES if name in next(iter(readers.values()))]
    rows = []
    for reader, scores in readers.items():
        seen = "rewarded GRPO" if reader == saved["trained_with"] else "never seen"
        rows.append([f"`{reader}`, {seen}", *(percent(scores[name]["score"]) for name in shown)])
    return "\n\n".join(
        [
            f"How often the reader's text contains the answer, {saved['n']} questions:",
            table(["reader", *(NAMES[name] for name in shown)], rows),
            "GRPO's lead, in percentage points, with 95% intervals over receipts:",
            table(
                ["reader", *(NAMES[name] for name in compared(shown))],
                [[f"`{reader}`", *leads(scores, shown)] for reader, scores in readers.items()],
            ),
        ]
    )


# Looks --------------------------------------------------------------------------------------------


def looks() -> str:
    """What was claimed of cropping only where it pays, and the tables of its sections."""
    if not (EXPERIMENTS / "look/results.json").is_file():
        return MISSING.format(path="experiments/look/results.json")
    results = load("look/results.json")
    head, *rows = look_tables.claim_rows(results)
    parts = [table(head, rows)]
    for title, (head, *rows) in look_tables.sections(results):
        parts += [f"**{title}.**", table(head, rows)]
    return "\n\n".join(parts)


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


# The input pipeline -------------------------------------------------------------------------------

PICTURES = {
    "jpeg_2200x1700": "JPEG, page of 2200 x 1700 px",
    "parquet_2200x1700": "the same, in parquet",
    "jpeg_4032x3024": "JPEG, photo of 4032 x 3024 px",
    "png_1024": "PNG, page of 1024 x 1024 px",
}


def pipeline() -> str:
    """Pictures a second that one core prepares, by kind, at all resolutions."""
    cases = {(one["kind"], one["longest_edge"]): one for one in load("pipeline.json")["cases"]}

    def cell(kind: str, figure: str) -> str:
        return " / ".join(f"{cases[kind, edge][figure]:.1f}" for edge in EDGES)

    figures = ("ours_per_core", "decode_per_core", "huggingface_per_core", "ratio")
    rows = [[title, *(cell(kind, one) for one in figures)] for kind, title in PICTURES.items()]
    return table(["pictures", "here", "decoding alone", "Hugging Face", "ratio"], rows)


def pipeline_machine() -> str:
    """What the pipeline was measured on, and with."""
    found = load("pipeline.json")["machine"]
    names = ("pillow", "simplejpeg", "transformers")
    return ", ".join([found["processor"], found["date"], *(f"{n} {found[n]}" for n in names)])


def pipeline_needs() -> str:
    """Cores that chips need to be fed with pages and photos, beside those of their hosts."""
    rows = []
    needs = load("pipeline.json")["needs"]
    for name in dict.fromkeys(need["slice"] for need in needs):
        of_slice = {need["longest_edge"]: need for need in needs if need["slice"] == name}
        cells = [
            " / ".join(f"{of_slice[edge]['cores'][kind]:.1f}" for edge in EDGES)
            for kind in ("jpeg_2200x1700", "jpeg_4032x3024")
        ]
        asked = " / ".join(f"{of_slice[edge]['pictures_per_second']:.0f}" for edge in EDGES)
        rows.append([name, asked, *cells, str(of_slice[EDGES[0]]["host_cores"])])
    head = ["chips", "pictures a second", "cores for pages", "cores for photos", "cores they have"]
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
    """The same with a large frozen reader."""
    rows = []
    titles = {"qwen7b": "Qwen2.5-VL-7B", "qwen3_4b": "Qwen3-VL-4B", "qwen3_8b": "Qwen3-VL-8B"}
    for name, title in {**titles, "llava7b": "LLaVA-1.5-7B"}.items():
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
    text = (
        f"Computed, never run: {PROMPTS:,} prompts (the paper's GRPO stage), 8 rollouts, all "
        f"weights trained, at {UTILISATION:.0%} of the peak rate (one H100 reached "
        f"{figures()['gpu_mfu']:.0%}), and list prices of a chip and hour on demand ({prices}), "
        "which you should look up. In brackets: pictures a second that the host must prepare for "
        "that. Compiling, supervised training, evaluation, downloads and seed boxes come on top."
    )
    return textwrap.fill(text, 116)


def speedrun_cost() -> str:
    """What `launch/speedrun.sh` should take, from the script that its head names."""
    from speedrun_cost import lines  # which takes assumptions from this module

    return "\n".join(f"- {line}" for line in lines())


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


def results_page() -> str:
    """The text of `docs/results.md`."""
    drawing = "![accuracy as boxes grow and shrink](expansion.svg)\n\n"
    template = TEMPLATE.read_text(encoding="utf-8")
    return template.format(
        digits_seeds=digits_seeds(),
        expansion=(drawing if expansion_rows() else "") + expansion_table(),
        receipts=receipts(),
        looks=looks(),
        step_cpu=step_cpu("bench_step.json"),
        step_cpu_other=step_cpu("bench_step_213_gflops.json"),
        step_gpu=step_gpu(),
        pipeline=pipeline(),
        pipeline_machine=pipeline_machine(),
        pipeline_needs=pipeline_needs(),
        memory=memory(),
        memory_7b=memory_7b(),
        computed_cost=computed_cost(),
        assumptions=assumptions(),
        speedrun_cost=speedrun_cost(),
    )


BLOCKS = {"digits": digits_means, "memory": memory, "cost": speedrun_cost}
MARKED = re.compile(r"<!-- figures: (\w+) -->\n.*?<!-- end of figures -->", re.DOTALL)


def fill(page: str) -> str:
    """A page with what stands between its markers written anew."""

    def block(found: re.Match[str]) -> str:
        name = found[1]
        return f"<!-- figures: {name} -->\n{BLOCKS[name]()}\n<!-- end of figures -->"

    return MARKED.sub(block, page)


def main(argv: list[str]) -> None:
    del argv
    (ROOT / "docs/results.md").write_text(results_page(), encoding="utf-8")
    if drawing := expansion_svg():
        (ROOT / "docs/expansion.svg").write_text(drawing, encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    apps.run_script(main)
