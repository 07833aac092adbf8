# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The results of the looks experiment, from the records of its evaluations.

    python experiments/look/results.py --runs=runs/look --save=experiments/look/results.json

`runs.sh` makes the runs and the evaluations, and calls this. protocol.md says what was asked and
how. Means are over test scenes and seeds; intervals are over scenes, of the means over seeds, which
all have the same scenes; so differences, ratios and curves are paired by scene.

Shape letters: n scenes, R resamples.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from cropvlm_jax import apps
from cropvlm_jax.evals.conditions import NO_CROP, ORACLE
from cropvlm_jax.evals.intervals import RESAMPLES, Groups, resamples
from cropvlm_jax.evals.records import read_records
from cropvlm_jax.evals.tradeoffs import Outcomes, aurcs, confidence_gate, oracle_gate

RUNS = flags.DEFINE_string("runs", "runs/look", "Folder of the runs and of their evaluations.")
SAVE = flags.DEFINE_string("save", None, "File to write.", required=True)

Sample = np.ndarray  # `[1 + R]`: of the scenes, and of each resample of them
PROBE, ORACLE_GATE = "probe", "oracle_gate"
# The three croppers of one price each, by the budget that has their price.
PRICED = {"low": "low", "middle": "gate", "high": "high"}
BARS = {  # of the issue: the least or the most that a figure may be
    "pairs": {"k2_over_k1": (">=", 0.20), "oracle_over_k2": ("<=", 0.15)},
    "mixed": {
        "gate_kept": (">=", 0.98),
        "gate_token_share": ("<=", 0.60),
        "gate_harm_share": ("<=", 0.50),
        "aurc_won_over_always": (">", 0.0),
        "aurc_won_over_probe": (">", 0.0),
    },
    "deep": {"looks2_over_looks1": (">=", 0.15)},
    "budget": {"least_over_curve": (">=", -0.03)},
}
SETTINGS = ("steps", "learning_rate", "batch_size", "seed")
ACTIONS = ("num_generations", "max_boxes", "abstain", "token_price", "looks")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What croppers made of the test scenes.

    Attributes:
        outcomes: by condition, of each seed.
        cluster: int `[n]`, the picture of each scene.
    """

    outcomes: Mapping[str, Sequence[Outcomes]]
    cluster: np.ndarray

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(self.outcomes[NO_CROP])

    def of_seed(self, seed: int) -> "Evaluation":
        """The same with one seed alone."""
        alone = {name: [each[seed]] for name, each in self.outcomes.items()}
        return Evaluation(alone, self.cluster)

    def score(self, name: str) -> Sample:
        """Accuracy under a condition."""
        return self._mean([each.score for each in self.outcomes[name]])

    def tokens(self, name: str) -> Sample:
        """Image tokens of crops, an item."""
        return self._mean([each.crop_tokens for each in self.outcomes[name]])

    def without_crop(self, name: str) -> Sample:
        """Share of the scenes that are shown no crop."""
        return self._mean([(each.crops == 0).astype(float) for each in self.outcomes[name]])

    def harmed(self, name: str) -> Sample:
        """Share of the scenes that are answered worse than without a crop."""
        pairs = zip(self.outcomes[name], self.outcomes[NO_CROP], strict=True)
        return self._mean([(each.score < alone.score).astype(float) for each, alone in pairs])

    def aurc(self, name: str) -> Sample:
        """Area under the risk-coverage curve, surest answers of the target first."""
        areas = [aurcs(each.sure, each.score, self.cluster) for each in self.outcomes[name]]
        return np.mean(areas, 0)

    def _mean(self, columns: Sequence[np.ndarray]) -> Sample:
        """The mean over scenes of the mean over seeds."""
        values = np.mean(columns, 0)
        if np.isnan(values).any():
            raise ValueError("not every scene has an answer: evaluate again, which asks for them")
        weights = resamples(self.cluster.max() + 1)[:, self.cluster]
        return weights @ values / weights.sum(1)


def ratio(part: Sample, whole: Sample) -> Sample:
    """A share, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole != 0)


def pairs(tested: Evaluation) -> dict[str, Sample]:
    """One box against two."""
    found = {name: tested.score(name) for name in ("k1", "k2", ORACLE)}
    found["never"] = tested.score(NO_CROP)
    found |= {f"{name}_tokens": tested.tokens(name) for name in ("k1", "k2", ORACLE)}
    found["k2_over_k1"] = found["k2"] - found["k1"]
    found["oracle_over_k2"] = found[ORACLE] - found["k2"]
    return found


def mixed(tested: Evaluation) -> dict[str, Sample]:
    """A crop always, never, as the cropper says, and by gates that need no training."""
    shown = {"always": "always", "gate": "gate", "never": NO_CROP, PROBE: PROBE, ORACLE: ORACLE}
    shown[ORACLE_GATE] = ORACLE_GATE
    found = {key: tested.score(name) for key, name in shown.items()}
    found |= {f"{key}_tokens": tested.tokens(name) for key, name in shown.items()}
    found |= {f"{key}_harmed": tested.harmed(name) for key, name in shown.items()}
    found |= {f"{key}_no_crop": tested.without_crop(name) for key, name in shown.items()}
    found |= {f"{key}_aurc": tested.aurc(name) for key, name in shown.items()}
    found["gate_kept"] = ratio(found["gate"], found["always"])
    found["gate_token_share"] = ratio(found["gate_tokens"], found["always_tokens"])
    found["gate_harm_share"] = ratio(found["gate_harmed"], found["always_harmed"])
    for rival in ("always", PROBE):
        found[f"aurc_won_over_{rival}"] = found[f"{rival}_aurc"] - found["gate_aurc"]
    return found


def deep(tested: Evaluation) -> dict[str, Sample]:
    """One look against two."""
    found = {name: tested.score(name) for name in ("looks1", "looks2", ORACLE)}
    found["never"] = tested.score(NO_CROP)
    found["looks2_over_looks1"] = found["looks2"] - found["looks1"]
    return found


def budget(tested: Evaluation) -> dict[str, Sample]:
    """One cropper that is told budgets against three of one price each.

    The curve goes from no crop through the three croppers in the order of their tokens, and stays
    level after the last one.
    """
    found: dict[str, Sample] = {}
    for name, cropper in PRICED.items():
        for key, condition in ((name, f"budget {name}"), (f"price_{name}", cropper)):
            found[key] = tested.score(condition)
            found[f"{key}_tokens"] = tested.tokens(condition)
    ends = [("never", tested.score(NO_CROP), np.zeros(1 + RESAMPLES))]
    priced = [(n, found[f"price_{n}"], found[f"price_{n}_tokens"]) for n in PRICED]
    scores = np.stack([score for _, score, _ in (*ends, *priced)])
    tokens = np.stack([spent for _, _, spent in (*ends, *priced)])
    order = np.argsort(tokens, 0, kind="stable")
    scores, tokens = (np.take_along_axis(each, order, 0) for each in (scores, tokens))
    for name in PRICED:
        spent = found[f"{name}_tokens"]
        points = zip(spent, tokens.T, scores.T, strict=True)
        curve = np.array([np.interp(x, xs, ys) for x, xs, ys in points])
        found[f"{name}_over_curve"] = found[name] - curve
    found["least_over_curve"] = np.min([found[f"{name}_over_curve"] for name in PRICED], 0)
    return found


# What is told of each section, which has an evaluation of its own.
SECTIONS: dict[str, Callable[[Evaluation], dict[str, Sample]]] = {
    "pairs": pairs,
    "mixed": mixed,
    "deep": deep,
    "budget": budget,
}


def read(folders: Sequence[pathlib.Path]) -> tuple[Evaluation, dict[str, Any]]:
    """The evaluation of all seeds, and the results of the first one.

    Args:
        folders: of the evaluations of each seed.

    Raises:
        ValueError: the seeds' evaluations are about different scenes.
    """
    read_ones = [_read_one(folder) for folder in folders]
    groups, names, _, results = read_ones[0]
    for folder, (_, others, _, _) in zip(folders, read_ones, strict=True):
        if others != names:
            raise ValueError(f"{folder} is about other scenes than {folders[0]}: use one --limit")
    conditions = read_ones[0][2]
    outcomes = {name: [found[name] for _, _, found, _ in read_ones] for name in conditions}
    return Evaluation(outcomes, groups.cluster), results


def _read_one(
    folder: pathlib.Path,
) -> tuple[Groups, list[str], dict[str, Outcomes], dict[str, Any]]:
    """Groups and names of the scenes of an evaluation, its outcomes by condition, its results."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    records = read_records(folder / results["records"])
    metric, target = next(iter(results["protocol"]["metrics"])), next(iter(results["targets"]))
    names = (NO_CROP, *results["protocol"]["croppers"], ORACLE)
    found = {name: Outcomes.read(records, target, name, metric) for name in names}
    if "always" in found:
        told = results["tradeoffs"][target]["thresholds"]
        if "always" not in told:
            raise ValueError(f"{folder} has no threshold of the probe: {results['gates']}")
        found[PROBE] = confidence_gate(found["always"], found[NO_CROP], told["always"])
        found[ORACLE_GATE] = oracle_gate(found["always"], found[NO_CROP])
    return Groups.of(records), [r["example_id"] for r in records], found, results


def told(section: str, tested: Evaluation) -> dict[str, dict[str, Any]]:
    """Means, intervals and the means of each seed of a section, and how it stands to its bars."""
    measure = SECTIONS[section]
    found = measure(tested)
    seeds = [measure(tested.of_seed(seed)) for seed in range(tested.seeds)]
    means = {key: _number(sample[0]) for key, sample in found.items()}
    ends = {key: np.nanpercentile(sample[1:], [2.5, 97.5]) for key, sample in found.items()}
    bars = {}
    for key, (sign, bar) in BARS[section].items():
        value = found[key][0]
        met = {">=": value >= bar, "<=": value <= bar, ">": value > bar}[sign]
        bars[key] = {"bar": f"{sign} {bar:g}", "met": bool(met)}
    return {
        "means": means,
        "intervals": {key: [_number(end) for end in pair] for key, pair in ends.items()},
        "seeds": {key: [_number(seed[key][0]) for seed in seeds] for key in found},
        "bars": bars,
    }


def _number(value: float) -> float | None:
    """A figure as JSON has it; None for the share of nothing."""
    return None if np.isnan(value) else round(float(value), 5)


def settings(runs: pathlib.Path) -> dict[str, dict[str, Any]]:
    """What the runs of seed 0 were made with, by variant."""
    found = {}
    for file in sorted(runs.glob("*_0/config.json")):
        config = json.loads(file.read_text(encoding="utf-8"))
        kept = {key: config[key] for key in SETTINGS}
        kept |= {key: config["grpo"][key] for key in ACTIONS if key in config["grpo"]}
        found[file.parent.name.removesuffix("_0")] = kept | {"budgets": config["data"]["budgets"]}
    return found


def main(argv: list[str]) -> None:
    del argv
    runs = pathlib.Path(RUNS.value)
    saved: dict[str, Any] = {"intervals": {}, "seeds": {}}
    protocol: dict[str, Any] = {
        "text": "experiments/look/protocol.md",
        "intervals": "95% percentile bootstrap over test scenes, of means over seeds",
        "bars": {},
        "evaluations": {},
        "runs": settings(runs),
    }
    for section in SECTIONS:
        folders = sorted(file.parent for file in runs.glob(f"test/{section}_*/results.json"))
        if not folders:
            print(f"{section}: there is no evaluation in {runs}/test/{section}_*")
            continue
        tested, results = read(folders)
        found = told(section, tested)
        saved[section] = found["means"]
        saved["intervals"][section], saved["seeds"][section] = found["intervals"], found["seeds"]
        protocol["bars"][section] = found["bars"]
        protocol["evaluations"][section] = {
            "scenes": results["n"],
            "seeds": len(folders),
            **{key: results["protocol"][key] for key in ("split", "metrics", "seed", "versions")},
        }
        for key, bar in found["bars"].items():
            kept = "met" if bar["met"] else "missed"
            print(f"{section}: {key} {found['means'][key]} {found['intervals'][key]}")
            print(f"  {bar['bar']}: {kept}")
    path = pathlib.Path(SAVE.value)
    text = json.dumps(saved | {"protocol": protocol}, indent=1, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    apps.run_script(main)
