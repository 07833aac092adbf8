# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Measures croppers in front of frozen readers on a benchmark, with controls.

The controls are no crop, crops from the centre and at random, the whole picture enlarged, the true
box and, with two croppers or more, the first one's boxes at the scale that was the best on
validation items. Every score has a 95% interval. docs/evaluate.md explains all of it.

Example:

    cropvlm evaluate --targets=zoom_digits/target \
        --croppers=sft=zoom_digits/cropper,grpo=runs/zoom_digits/cropper \
        --expansions=0.25,0.5,2,4,8 --out=runs/zoom_digits --report

Given again after a kill, the same command goes on where it stopped. On several hosts, which share
the items, give it on each with --distributed and an --out that all of them see.
"""

import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from PIL import Image

from cropvlm_jax import apps, json_lines, parallel
from cropvlm_jax.api import CropVLM
from cropvlm_jax.apps import processes, target_processor
from cropvlm_jax.data import sources
from cropvlm_jax.evals import best_scale
from cropvlm_jax.evals.calibration import Calibration
from cropvlm_jax.evals.conditions import boxes_of
from cropvlm_jax.evals.records import read_records
from cropvlm_jax.evals.registry import BENCHMARKS, SCORERS
from cropvlm_jax.evals.run import evaluate
from cropvlm_jax.evals.tradeoffs import shown
from cropvlm_jax.hub.files import read_json
from cropvlm_jax.pixels import host, sheet
from cropvlm_jax.readers.base import ReaderUnavailable
from cropvlm_jax.readers.registry import is_vlm, open_reader

BENCHMARK = flags.DEFINE_enum(
    "benchmark",
    "zoom_digits",
    list(BENCHMARKS),
    "The questions to answer, and how answers are scored.",
)
FOLDER = flags.DEFINE_string(
    "folder", None, "Where the benchmark's data lies; drawn sets (zoom_digits) need none."
)
SPLIT = flags.DEFINE_string(
    "split",
    None,
    "The part of the data to report on, such as val. docs/evaluate.md lists the defaults.",
)
METRIC = flags.DEFINE_enum(
    "metric",
    None,
    sorted(SCORERS),
    "What to report first. Default: the benchmark's own; contains, with an OCR target.",
)
TARGETS = flags.DEFINE_list(
    "targets",
    ["zoom_digits/target"],
    "The frozen readers that answer, with commas between, the one to report first: a VLM's folder, "
    "Hugging Face id or bundled name, openai:MODEL, rapidocr:v4 or :v6, tesseract, some with "
    "@PIXELS, @jpeg85 or @png (docs/readers.md).",
)
CROPPERS = flags.DEFINE_list(
    "croppers",
    None,
    "The croppers as NAME=MODEL, with commas between: the one to compare with first, the one to "
    "report last. A model is a folder, a Hugging Face id or a bundled name.",
    required=True,
)
BUDGETS = flags.DEFINE_list(
    "budgets",
    [],
    "Budgets to tell the last cropper, such as low,high: conditions 'NAME low' and 'NAME high'.",
)
COSTS = flags.DEFINE_bool(
    "costs",
    None,
    "Also tell what looks cost and when they pay. Default: where their number may vary.",
)
EXPANSIONS = flags.DEFINE_list(
    "expansions",
    [],
    "Also evaluate boxes whose areas are multiplied by these factors, such as 0.5,2,4.",
)
BEST_SCALE_SPLIT = flags.DEFINE_string(
    "best_scale_split",
    None,
    "The split, such as val, on which the best scale of the first of several croppers and "
    "thresholds of gates are chosen. Default: the benchmark's own; without one, none are.",
)
BEST_SCALE_ITEMS = flags.DEFINE_integer(
    "best_scale_items",
    best_scale.ITEMS,
    "At most so many items of that split; 0 leaves out what is chosen on them.",
    lower_bound=0,
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "Folder for results.json, the records of all items, and pictures.",
    required=True,
)
LIMIT = flags.DEFINE_integer(
    "limit",
    None,
    "Take only the first items. Default: all; of drawn sets 1,000.",
    lower_bound=1,
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of drawn scenes and of the random crops.")
PROCESSOR = target_processor.define()
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Precision in which VLMs of this package compute."
)
FSDP = flags.DEFINE_integer(
    "fsdp",
    1,
    "Devices of a host that share a copy of the weights, as a 7B reader needs.",
    lower_bound=1,
)
REPORT = flags.DEFINE_bool(
    "report", False, "Also write report.html, which works offline, and its charts."
)
processes.define()
SCENES = 1000
PANELS = 6  # items of the picture sheet


def table(results: dict[str, Any]) -> str:
    """The results as a text table."""
    metric = next(iter(results["protocol"]["metrics"]))
    width = max(10, *map(len, results["accuracy"]))
    lines = []
    for target, found in results["targets"].items():
        lines.append(f"{target}: {metric} of {results['n']} items, 95% interval, gain over no crop")
        lines += [
            f"{name:>{width}}  {condition_line(found['scores'][metric][name], results['n'])}"
            for name in results["accuracy"]
        ]
        if "condition" in results["best_scale"]:
            lines.append(lead_line(results, found["scores"][metric]))
        if found["failures"]:
            lines.append(f"failures: {found['failures']}")
        if "tradeoffs" in results:
            lines += cost_lines(results, target)
    if "left_out" in results["best_scale"]:
        lines.append(f"without the control of the best scale: {results['best_scale']['left_out']}")
    figures = [
        f"{name} {results[name]:.3f}"
        for name in ("coverage", "area", "valid")
        if results[name] is not None
    ]
    lines.append("boxes of the last cropper: " + ", ".join(figures))
    return "\n".join([*lines, pace_line(results["throughput"])])


def cost_lines(results: dict[str, Any], target: str) -> list[str]:
    """What no crop, croppers and gates cost and win with a target, a line each."""
    rows, whose = shown(results, target), results["tradeoffs"][target]["ordered_by"]
    width = max(map(len, rows))
    lines = [f"what looking costs; AURC in the order of the {whose}'s confidence"]
    for name, row in rows.items():
        tokens, area = row["crop_tokens"], row["aurc"]
        figures = [f"{row['crops']:.2f} crops"]
        figures += [] if tokens is None else [f"{tokens:,.1f} tokens of crops"]
        figures += [f"{row['no_crop_rate']:.1%} without a crop", f"score {row['score']:.1%}"]
        figures += [] if row["harm_rate"] is None else [f"{row['harm_rate']:.1%} harmed"]
        figures += [] if area is None else [f"AURC {area:.3f}"]
        lines.append(f"{name:>{width}}  " + ", ".join(figures))
    return lines


def pace_line(throughput: dict[str, Any]) -> str:
    """How fast the evaluation was."""
    line = f"{throughput['items_per_second']:.3g} items a second"
    if throughput["tokens_per_second"] is not None:
        line += f", {throughput['tokens_per_second']:,.0f} tokens a second"
    many = f"{throughput['devices']} devices" if throughput["devices"] > 1 else "one device"
    return f"{line}, on {many}"


def condition_line(row: dict[str, Any], items: int) -> str:
    """A condition's score, gain and counts; where it has none, why.

    Args:
        row: of `summarise`.
        items: that the evaluation has.
    """
    if row["score"] is None:
        return f"not scored: {row['missing']['score']}"
    low, high = row["score_interval"]
    gain = "    n/a" if row["gain"] is None else f"{row['gain']:+7.1%}"
    line = f"{row['score']:6.1%}  [{low:6.1%}, {high:6.1%}]  {gain}"
    line += f"  {row['rescued']} rescued, {row['harmed']} harmed"
    return line if row["n"] == items else f"{line}, of {row['n']} items alone"


def lead_line(results: dict[str, Any], scores: dict[str, Any]) -> str:
    """The last cropper's lead over the first one's boxes at their best scale.

    Args:
        results: of the evaluation.
        scores: of a target by condition.
    """
    best, last = results["best_scale"], list(results["protocol"]["croppers"])[-1]
    row, items = scores[best["condition"]], best["validation"]["n"]
    if row["lead"] is None:
        return f"lead of {last} over {best['condition']}: {row['missing']['lead']}"
    low, high = row["lead_interval"]
    return (
        f"lead of {last} over {best['condition']}: {row['lead']:+.1%}  [{low:+.1%}, {high:+.1%}]  "
        f"(areas x{best['chosen_scale']:g}, chosen on {items} items of {best['split']})"
    )


def unscored(results: dict[str, Any]) -> list[str]:
    """The conditions of each target under which nothing was scored, with the reason."""
    metric = next(iter(results["protocol"]["metrics"]))
    return [
        f"{name} of {target}: {row['missing']['score']}"
        for target, found in results["targets"].items()
        for name, row in found["scores"][metric].items()
        if row["score"] is None
    ]


def picture_sheet(
    source: Any, results: dict[str, Any], records: list[dict[str, Any]]
) -> Image.Image:
    """The first items, a column for each cropper."""
    panels = []
    target, croppers = next(iter(results["targets"])), list(results["protocol"]["croppers"])
    readable = [record for record in records if "unreadable" not in record]
    for record in readable[:PANELS]:
        image = host.to_rgb(source[record["index"]]["image"])
        for name in croppers:
            written, reply = record["boxes"][name], record["replies"][target][name]["text"]
            told = f"{name}: {written} -> {reply!r} (truth {record['answers'][0]})"
            boxes, captions = boxes_of(written), [record["question"], told]
            first = boxes[0] if boxes else None
            panels.append(sheet.panel(Image.fromarray(image), first, captions, others=boxes[1:]))
    return sheet.grid(panels, columns=len(croppers))


def runs(models: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The `target` and `metrics` of the run that made a cropper, by the cropper's name.

    Croppers that are not in a run's folder are left out.

    Args:
        models: by name.

    Raises:
        ValueError: a file of a run is damaged.
    """
    found = {}
    for name, model in models.items():
        folder = pathlib.Path(model).parent
        file = folder / "metrics.jsonl"
        if (folder / "config.json").is_file() and file.is_file():
            config = read_json(folder / "config.json")
            target = config.get("target", "") if config.get("stage") == "grpo" else ""
            found[name] = {"target": target, "metrics": json_lines.read(file)}
    return found


def read_croppers(pairs: list[str]) -> dict[str, str]:
    """Models by name, from what --croppers says."""
    split = [pair.split("=", 1) for pair in pairs]
    if any(len(parts) != 2 for parts in split):
        raise app.UsageError(f"--croppers takes name=model pairs, got {pairs}")
    return {name: model for name, model in split}


def told_names(name: str, models: dict[str, str]) -> list[str]:
    """The conditions of a cropper: its name, or of the last one, with --budgets, one for each.

    Raises:
        UsageError: there are other conditions of such a name.
    """
    if not BUDGETS.value or name != list(models)[-1]:
        return [name]
    names = [f"{name} {budget}" for budget in BUDGETS.value]
    if len({*names, *models}) < len(names) + len(models):
        raise app.UsageError(f"--budgets={','.join(BUDGETS.value)}: names need to be different")
    return names


def told_budgets(croppers: dict[str, CropVLM], models: dict[str, str]) -> dict[str, CropVLM]:
    """The croppers by condition; the last one is told each of the --budgets.

    Raises:
        UsageError: a cropper that was trained with budgets is told none.
    """
    found: dict[str, CropVLM] = {}
    for name, cropper in croppers.items():
        names = told_names(name, models)
        if names == [name]:
            if known := ",".join(cropper.source.replies.budgets):
                raise app.UsageError(
                    f"{name} was trained with budgets: name it last in --croppers and give "
                    f"--budgets={known}"
                )
            found[name] = cropper
        else:
            told = zip(names, BUDGETS.value, strict=True)
            found |= {each: cropper.with_budget(budget) for each, budget in told}
    return found


def read_expansions(factors: list[str]) -> list[float]:
    """Factors, from what --expansions says."""
    try:
        numbers = [float(factor) for factor in factors]
    except ValueError:
        numbers = [0.0]
    if any(not 0 < number < math.inf for number in numbers):
        raise app.UsageError(f"--expansions takes positive numbers, got {factors}")
    return numbers


def load_options() -> dict[str, Any]:
    """How models are loaded: their type, and where there are several devices, their mesh."""
    devices = jax.local_devices()
    several = max(len(devices), FSDP.value) > 1
    mesh = parallel.make_mesh(fsdp=FSDP.value, devices=devices) if several else None
    return {"dtype": jnp.dtype(DTYPE.value), "mesh": mesh}


def main(argv: list[str]) -> None:
    """Evaluates as the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    if REPORT.value:
        from cropvlm_jax.evals import report  # noqa: F401  needs matplotlib: say so before the work
    with processes.joined():
        results = evaluate_and_write()
        parallel.on_all_hosts(True)  # or the others would end while the results are written
        if told := unscored(results):
            raise ReaderUnavailable(f"not scored, and asked again by the same command: {told[0]}")


def evaluate_and_write() -> dict[str, Any]:
    """Evaluates; process 0 writes and prints the results, which all processes return."""
    models, expansions = read_croppers(CROPPERS.value), read_expansions(EXPANSIONS.value)
    out, benchmark = pathlib.Path(OUT.value), BENCHMARKS[BENCHMARK.value]
    told_names(list(models)[-1], models)  # likewise
    if METRIC.value:
        benchmark.with_metric(METRIC.value)  # or it would be refused once the models are loaded
    source, trained = benchmark.open(FOLDER.value, SEED.value, SPLIT.value), runs(models)
    summary = read_json(out / "summary.json")
    results = run_evaluation(source, models, expansions, out)
    if jax.process_index():
        return results
    items = results["n"] + len(results["unreadable"])
    records = read_records(out / results["records"])[:items]
    results["trained_with"] = {
        told: run["target"] for name, run in trained.items() for told in told_names(name, models)
    }
    results |= summary
    text = json.dumps(results, indent=2, allow_nan=False) + "\n"
    (out / "results.json").write_text(text, encoding="utf-8")
    if "calibration" in results:
        Calibration(**results["calibration"]).write(out / "calibration.json")
    picture_sheet(source, results, records).save(out / "before_after.png")
    if REPORT.value:
        from cropvlm_jax.evals import report

        curves = {name: run["metrics"] for name, run in trained.items()}
        report.write(out, results, records, source, curves)
    print(table(results))
    logging.info("results are in %s", out)
    return results


def run_evaluation(
    source: Any, models: dict[str, str], expansions: list[float], out: pathlib.Path
) -> dict[str, Any]:
    """The results of the evaluation that the flags ask for.

    Args:
        source: of the items.
        models: croppers by name.
        expansions: factors of the boxes' areas.
        out: folder for the records.
    """
    options = load_options()
    croppers = {name: CropVLM.from_pretrained(model, **options) for name, model in models.items()}
    processor = target_processor.read(PROCESSOR.value, TARGETS.value)
    return evaluate(
        BENCHMARK.value,
        source,
        [
            open_reader(spec, processor=processor if is_vlm(spec) else None, **options)
            for spec in TARGETS.value
        ],
        told_budgets(croppers, models),
        out,
        expansions=expansions,
        limit=LIMIT.value or (SCENES if BENCHMARK.value in sources.DRAWN else None),
        seed=SEED.value,
        split=SPLIT.value,
        metric=METRIC.value,
        costs=COSTS.value,
        validation=best_scale.open_validation(
            BENCHMARK.value,
            source,
            FOLDER.value,
            SEED.value,
            split=BEST_SCALE_SPLIT.value,
            limit=BEST_SCALE_ITEMS.value,
        ),
    )


if __name__ == "__main__":
    apps.run(main)
