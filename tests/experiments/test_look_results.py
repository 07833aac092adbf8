# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The results of the looks experiment from the records of its evaluations."""

import json
from pathlib import Path

import forked
import look_tables
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "look" / "results.py"
BOX = [10, 10, 30, 20]
# Of four scenes, in two seeds: right or wrong, and crops.
ALONE, TRUE = [1, 1, 0, 0], ([1, 1, 1, 1], [0, 0, 1, 1])
CONDITIONS = {
    "pairs": {
        "k1": [([0, 0, 0, 1], [1] * 4), ([0, 0, 1, 0], [1] * 4)],
        "k2": [([1, 1, 1, 0], [2, 2, 2, 1]), ([1, 1, 0, 1], [2] * 4)],
    },
    "mixed": {
        "always": [([0, 1, 1, 1], [1] * 4)] * 2,
        "gate": [([1, 1, 1, 1], [0, 0, 1, 1]), ([1, 1, 1, 0], [0, 0, 1, 0])],
    },
    "budget": {
        "gate": [([1, 1, 1, 1], [0, 0, 1, 1]), ([1, 1, 1, 0], [0, 0, 1, 0])],
        "low": [([1, 1, 0, 0], [0] * 4)] * 2,
        "high": [([1, 1, 1, 1], [1, 1, 1, 1])] * 2,
        "budget low": [([1, 1, 1, 0], [0, 0, 1, 0])] * 2,
        "budget middle": [([1, 1, 1, 1], [0, 0, 1, 1])] * 2,
        "budget high": [([1, 1, 1, 0], [1, 0, 1, 1])] * 2,
    },
    "deep": {"looks1": [([0, 0, 0, 1], [1] * 4)] * 2, "looks2": [([1, 0, 1, 1], [1] * 4)] * 2},
}


def evaluation(folder, section, seed):
    """The folder of an evaluation, with as much as the results need."""
    told = {name: of_seeds[seed] for name, of_seeds in CONDITIONS[section].items()}
    told |= {"no_crop": (ALONE, [0] * 4), "oracle": TRUE}
    records = []
    for i in range(4):
        counts = {name: crops[i] for name, (_, crops) in told.items()}
        replies = {
            # The target is surer of what is right.
            name: {
                "text": "7",
                "scores": {"exact": float(right[i])},
                "log_prob": -0.1 * (i + 1) - 2.0 * (1 - right[i]),
            }
            for name, (right, _) in told.items()
        }
        records.append(
            {
                "index": i,
                "example_id": f"{section}/{i}",
                "picture": str(i),
                "boxes": {name: [BOX] * count for name, count in counts.items() if count},
                "replies": {"reader": replies},
                "image_tokens": {
                    f"answer/reader/{name}": 16 * (1 + count) for name, count in counts.items()
                },
                "seconds": {},
            }
        )
    folder.mkdir(parents=True)
    lines = [json.dumps(row) + "\n" for row in ({"protocol": {}}, *records)]
    (folder / "records.jsonl").write_text("".join(lines))
    croppers = {name: {} for name in CONDITIONS[section]}
    protocol = {"metrics": {"exact": ""}, "croppers": croppers, "split": "test", "seed": 0}
    results = {
        "records": "records.jsonl",
        "n": 4,
        "targets": {"reader": {}},
        "protocol": protocol | {"versions": {"jax": "1"}},
        "tradeoffs": {"reader": {"thresholds": {"always": -2.35}}},
    }
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    runs = tmp_path_factory.mktemp("look")
    for section in CONDITIONS:
        for seed in range(2):
            evaluation(runs / "test" / f"{section}_{seed}", section, seed)
    config = {"steps": 5, "learning_rate": 1e-3, "batch_size": 4, "seed": 0}
    config |= {"grpo": {"max_boxes": 2, "abstain": False}, "data": {"budgets": {}}}
    (runs / "pairs_k2_0").mkdir()
    (runs / "pairs_k2_0" / "config.json").write_text(json.dumps(config))
    told = forked.python(SCRIPT, f"--runs={runs}", f"--save={runs}/results.json")
    assert told.returncode == 0, told.stderr
    return json.loads((runs / "results.json").read_text())


def test_means_are_over_scenes_and_seeds(found):
    pairs, mixed, deep = found["pairs"], found["mixed"], found["deep"]
    assert (pairs["k1"], pairs["k2"], pairs["oracle"], pairs["never"]) == (0.25, 0.75, 1, 0.5)
    assert pairs["k2_over_k1"] == 0.5 and pairs["oracle_over_k2"] == 0.25
    assert pairs["k2_tokens"] == 16 * 15 / 8 and found["seeds"]["pairs"]["k2"] == [0.75, 0.75]
    assert (mixed["always"], mixed["gate"], mixed["never"]) == (0.75, 0.875, 0.5)
    assert (mixed["always_tokens"], mixed["gate_tokens"]) == (16, 16 * 3 / 8)
    assert (mixed["always_harmed"], mixed["gate_harmed"]) == (0.25, 0)
    assert mixed["gate_kept"] == pytest.approx(0.875 / 0.75, abs=1e-5)
    assert mixed["gate_token_share"] == 3 / 8 and mixed["gate_harm_share"] == 0
    assert mixed["oracle_gate"] == 1 and mixed["oracle_gate_tokens"] == 8
    assert mixed["probe"] == 0.75 and mixed["probe_no_crop"] == 0.75
    assert (deep["looks1"], deep["looks2"], deep["looks2_over_looks1"]) == (0.25, 0.75, 0.5)


def test_areas_under_the_risk_coverage_curve(found):
    mixed = found["mixed"]
    # Right answers are the surest: the risk is 0 up to the last one.
    assert mixed["always_aurc"] == pytest.approx(1 / 4 / 4)
    assert mixed["gate_aurc"] == pytest.approx((0 + 1 / 4 / 4) / 2)
    assert mixed["aurc_won_over_always"] == pytest.approx(1 / 4 / 4 / 2, abs=1e-5)
    assert mixed["aurc_won_over_probe"] == mixed["probe_aurc"] - mixed["gate_aurc"]


def test_budgets_against_the_curve_of_single_prices(found):
    budget = found["budget"]
    # No crop and the low price (0, 0.5), the middle one (6, 0.875), the high one (16, 1).
    assert (budget["price_middle"], budget["price_middle_tokens"]) == (0.875, 6)
    assert budget["low_over_curve"] == pytest.approx(0.75 - (0.5 + 0.375 * 4 / 6), abs=1e-5)
    assert budget["middle_over_curve"] == pytest.approx(1 - (0.875 + 0.125 * 2 / 10), abs=1e-5)
    assert budget["high_over_curve"] == pytest.approx(0.75 - (0.875 + 0.125 * 6 / 10), abs=1e-5)
    assert budget["least_over_curve"] == budget["high_over_curve"]


def test_intervals_bars_and_protocol_are_beside_the_means(found):
    for section in ("pairs", "mixed", "deep", "budget"):
        assert found[section].keys() == found["intervals"][section].keys()
        for key, (low, high) in found["intervals"][section].items():
            assert low is None or low <= found[section][key] <= high or np.isclose(low, high)
    bars = found["protocol"]["bars"]
    assert bars["pairs"]["k2_over_k1"] == {"bar": ">= 0.2", "met": True}
    assert bars["pairs"]["oracle_over_k2"]["met"] is False
    assert bars["budget"]["least_over_curve"]["met"] is False
    assert found["protocol"]["evaluations"]["mixed"]["seeds"] == 2
    assert found["protocol"]["runs"]["pairs_k2"]["max_boxes"] == 2


def test_the_tables_of_the_page_have_every_claim_and_section(found):
    head, *rows = look_tables.claim_rows(found)
    claims = sum(len(bars) for bars in found["protocol"]["bars"].values())
    assert len(rows) == claims and all(len(row) == len(head) for row in rows)
    assert ["one or two boxes over one box", "50.0 [0.0, 100.0]", ">= 20", "met"] in rows
    sections = dict(look_tables.sections(found))
    assert len(sections) == len(CONDITIONS)
    mixed = sections[look_tables.SECTIONS["mixed"][0]]
    assert ["the cropper decides", "87.5 [62.5, 100.0]", "6.0"] == mixed[3][:3]
    assert mixed[0] == ["", "accuracy", "image tokens of crops", "harmed", "AURC"]
