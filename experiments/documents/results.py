# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The results of the documents experiment, from the records of its evaluations.

    python experiments/documents/results.py --evaluations=runs/documents/test \
        --expansions=runs/documents/expansions --reader=runs/documents/test/reader.json \
        --save=experiments/documents/results.json

`evaluate.sh` makes the evaluations, a folder `SUITE/READER/SEED` each, and those at several
expansions, a folder `SUITE/READER` each, and calls this. protocol.md
says what is in the headline. Scores are means over questions and seeds; intervals are over
documents, of the means over seeds; differences are paired by question.
"""

import collections
import json
import pathlib
from typing import Any

import numpy as np
from absl import flags

from cropvlm_jax import apps, geometry
from cropvlm_jax.evals.conditions import NO_CROP, ORACLE, best_scale_of, expanded
from cropvlm_jax.evals.intervals import METHOD, Groups, estimate
from cropvlm_jax.evals.records import Record, read_records
from cropvlm_jax.evals.statistics import score_of

EVALUATIONS = flags.DEFINE_string("evaluations", None, "Folder of the evaluations.", required=True)
EXPANSIONS = flags.DEFINE_string("expansions", None, "Folder of those at several expansions.")
READER = flags.DEFINE_string("reader", None, "What measure_reader.py wrote.")
SAVE = flags.DEFINE_string("save", None, "File to write.", required=True)

METRICS = ("contains", "anls")  # the one of the headline first
MOST_LETTERS = 12  # of the answers about pages that are in the headline
SFT_BEST = best_scale_of("sft")
LAST = "grpo_likelihood"  # whose leads are reported
ARMS = ("grpo_accuracy", "grpo_black_box", LAST)
TRAINED = {"grpo_likelihood": "reader", "grpo_accuracy": "reader", "grpo_black_box": "rapidocr_v4"}


def in_headline(suite: str, record: Record) -> bool:
    """Whether a question is in the headline, as protocol.md says."""
    if "unreadable" in record:
        return False
    if suite == "receipts":
        return record["category"] in ("total", "date")
    return suite != "pages" or len(record["answers"][0]) <= MOST_LETTERS


def document(record: Record) -> str:
    """The document of a question: the PDF of a page, or else the picture."""
    name, is_pdf, _ = record["example_id"].partition(".pdf/")
    return name if is_pdf else record["picture"]


def of_reader(suite: str, seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """What a reader says about a suite.

    Args:
        suite: its name.
        seeds: for each seed the `results` of an evaluation with that reader alone, and its
            `records`.

    Raises:
        ValueError: the seeds' evaluations are about different questions.
    """
    asked = [[r for r in seed["records"] if in_headline(suite, r)] for seed in seeds]
    ids = [[record["example_id"] for record in records] for records in asked]
    if any(other != ids[0] for other in ids):
        raise ValueError(f"{suite}: the evaluations of the seeds are about different questions")
    clusters = np.unique([document(record) for record in asked[0]], return_inverse=True)[1]
    groups = Groups(clusters, np.zeros_like(clusters))
    (reader,) = seeds[0]["results"]["targets"]
    found: dict[str, Any] = {"n": len(ids[0]), "documents": int(clusters.max()) + 1}
    for metric in METRICS:
        values = _values(asked, reader, metric)
        means = {name: of_seeds.mean(0) for name, of_seeds in values.items()}
        found[metric] = {name: _with_interval(mean, groups) for name, mean in means.items()}
        if metric == METRICS[0]:
            found |= _leads(values, groups)
    found["boxes"] = _boxes(asked)
    found["sft_scale"] = [s["results"]["best_scale"].get("chosen_scale") for s in seeds]
    return found


def _values(asked: list[list[Record]], reader: str, metric: str) -> dict[str, np.ndarray]:
    """Scores by condition, `[seeds, questions]`, of the conditions that every seed has.

    Where a condition's own factor differs between seeds, its name ends in "own_scale".
    """
    found: dict[str, list[list[float]]] = collections.defaultdict(list)
    for records in asked:
        replies = [record["replies"][reader] for record in records]
        for name in dict.fromkeys(name for row in replies for name in row):
            scores = [score_of(row, name, metric) for row in replies]
            arm, is_scaled, _ = name.partition(" x")
            found[f"{arm}_own_scale" if is_scaled else name].append(scores)
    return {name: np.array(rows) for name, rows in found.items() if len(rows) == len(asked)}


def _with_interval(values: np.ndarray, groups: Groups, *, differences: bool = False) -> dict:
    """Mean and 95% interval of a value a question."""
    means, ends = estimate(values[:, None], groups, differences=differences)
    return {"mean": float(means[0]), "interval": [float(end) for end in ends[:, 0]]}


def _leads(values: dict[str, np.ndarray], groups: Groups) -> dict[str, Any]:
    """What the cropper that was trained with likelihoods wins, and what its crops harm."""
    last, alone = values[LAST], values[NO_CROP]
    true_box = np.nanmean(values[ORACLE] - alone)

    def lead(over: str, of: str = LAST) -> dict[str, Any]:
        return _with_interval((values[of] - values[over]).mean(0), groups, differences=True)

    found = {
        "lead_over_sft_best_scale": lead(SFT_BEST),
        "lead_over_sft": lead("sft"),
        "lead_over_no_crop": lead(NO_CROP),
        "lead_over_accuracy_reward": lead("grpo_accuracy"),
        "share_of_true_box_gain": float(np.nanmean(last - alone) / true_box),
        "harmed": float((last < alone).sum(1).mean()),
        "rescued": float((last > alone).sum(1).mean()),
    }
    own = f"{LAST}_own_scale"
    if own in values:
        found["own_scale_lead_over_sft_best_scale"] = lead(SFT_BEST, own)
    return found


def _boxes(asked: list[list[Record]]) -> dict[str, dict[str, float]]:
    """Area, and coverage of the true box, of each cropper's boxes; 0..1, means over seeds."""
    found = {}
    for arm in ("sft", *ARMS):
        rows = [r["boxes"] for records in asked for r in records if ORACLE in r["boxes"]]
        boxes = np.array([row[arm] for row in rows])
        truth = np.array([row[ORACLE] for row in rows])
        found[arm] = {
            "area": float(geometry.area(boxes).mean()),
            "coverage": float(geometry.coverage(boxes, truth).mean()),
        }
    return found


def read(folder: pathlib.Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The evaluations by suite and reader, the seeds in order."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for file in sorted(folder.glob("*/*/*/results.json")):
        suite, reader, _ = file.parent.relative_to(folder).parts
        results = json.loads(file.read_text(encoding="utf-8"))
        seed = {"results": results, "records": read_records(file.parent / results["records"])}
        found.setdefault(suite, {}).setdefault(reader, []).append(seed)
    return found


def by_expansion(suite: str, folder: pathlib.Path) -> dict[str, dict[str, float]]:
    """Accuracy by expansion, of the boxes of the one cropper of an evaluation and of the true box.

    Args:
        suite: its name.
        folder: of the evaluation.
    """
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    asked = [r for r in read_records(folder / results["records"]) if in_headline(suite, r)]
    (reader,) = results["targets"]
    replies = [record["replies"][reader] for record in asked if ORACLE in record["boxes"]]
    return {
        name: {
            f"x{factor:g}": float(
                np.mean([score_of(row, expanded(name, factor), METRICS[0]) for row in replies])
            )
            for factor in sorted([1.0, *results["protocol"]["expansions"]])
        }
        for name in (*results["protocol"]["croppers"], ORACLE)
    }


def main(argv: list[str]) -> None:
    del argv
    evaluations = read(pathlib.Path(EVALUATIONS.value))
    suites: dict[str, Any] = {}
    for suite, readers in evaluations.items():
        of_readers = {
            reader: {"trained": [arm for arm, by in TRAINED.items() if by == reader]}
            | of_reader(suite, seeds)
            for reader, seeds in readers.items()
        }
        seeds = next(iter(readers.values()))
        suites[suite] = {
            "n": next(iter(of_readers.values()))["n"],
            "seeds": len(seeds),
            "versions": seeds[0]["results"]["protocol"]["versions"],
            "readers": of_readers,
        }
    saved: dict[str, Any] = {"intervals": METHOD, "suites": suites}
    if READER.value:
        saved["reader"] = json.loads(pathlib.Path(READER.value).read_text(encoding="utf-8"))
    if EXPANSIONS.value:
        saved["expansions"] = collections.defaultdict(dict)
        for file in sorted(pathlib.Path(EXPANSIONS.value).glob("*/*/results.json")):
            suite, reader = file.parent.parts[-2:]
            saved["expansions"][suite][reader] = by_expansion(suite, file.parent)
    path = pathlib.Path(SAVE.value)
    path.write_text(json.dumps(saved, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for suite, found in suites.items():
        for reader, row in found["readers"].items():
            lead = row["lead_over_sft_best_scale"]
            print(f"{suite}, {reader}: {LAST} {row['contains'][LAST]['mean']:.1%}, over {SFT_BEST}")
            print(f"  {lead['mean']:+.1%} {np.round(lead['interval'], 3).tolist()}")


if __name__ == "__main__":
    apps.run_script(main)
