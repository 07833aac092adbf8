# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is chosen on validation questions, and the results of the documents experiment's records."""

import json
from pathlib import Path

import forked
import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "documents"
RIGHT = {  # of 6 questions, in two seeds
    "no_crop": ([0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]),
    "oracle": ([1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]),
    "sft": ([1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]),
    "sft_best_scale": ([1, 1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 1]),
    "grpo_accuracy": ([1, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 1]),
    "grpo_black_box": ([1, 1, 0, 0, 0, 1], [1, 1, 0, 0, 0, 1]),
    "grpo_likelihood": ([1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 1]),
}


def _run(script, *flags):
    return forked.python(FOLDER / script, *flags)


def _evaluation(folder, seed, own_scale):
    conditions = RIGHT | {f"grpo_likelihood x{own_scale:g}": RIGHT["sft"]}
    records = []
    for i in range(7):
        scores = {name: float(rows[seed][min(i, 5)]) for name, rows in conditions.items()}
        box = {name: [10, 10, 30, 20] for name in conditions if name not in ("no_crop",)}
        records.append(
            {
                "index": i,
                "example_id": f"pages/a/{i // 2}.pdf/{i}/page_number",
                "picture": str(i),
                "answers": ["7" if i < 6 else "a long heading that no bar is about"],
                "category": "page number",
                "boxes": box | {"oracle": [10, 10, 20, 20]},
                "replies": {
                    "a reader": {
                        name: {"text": "7", "scores": {"contains": score, "anls": score}}
                        for name, score in scores.items()
                    }
                },
            }
        )
    folder.mkdir(parents=True)
    lines = [json.dumps(row) + "\n" for row in ({"protocol": {}}, *records)]
    (folder / "records.jsonl").write_text("".join(lines))
    results = {
        "records": "records.jsonl",
        "targets": {"a reader": {}},
        "best_scale": {"chosen_scale": 2.0},
        "protocol": {"versions": {"jax": "1"}},
    }
    (folder / "results.json").write_text(json.dumps(results))


def test_results_are_means_over_seeds_with_leads_paired_by_question(tmp_path):
    for seed in range(2):
        _evaluation(tmp_path / "test" / "pages" / "reader" / str(seed), seed, (0.5, 2)[seed])
    told = _run("results.py", f"--evaluations={tmp_path}/test", f"--save={tmp_path}/results.json")
    assert told.returncode == 0, told.stderr
    suite = json.loads((tmp_path / "results.json").read_text())["suites"]["pages"]
    assert suite["n"] == 6 and suite["seeds"] == 2  # without the long answer
    (found,) = suite["readers"].values()
    assert found["documents"] == 3 and found["trained"] == ["grpo_likelihood", "grpo_accuracy"]
    for name, rows in RIGHT.items():
        assert found["contains"][name]["mean"] == pytest.approx(np.mean(rows))
        low, high = found["contains"][name]["interval"]
        assert low <= found["contains"][name]["mean"] <= high
    likelihood, best = np.array(RIGHT["grpo_likelihood"]), np.array(RIGHT["sft_best_scale"])
    assert found["lead_over_sft_best_scale"]["mean"] == pytest.approx((likelihood - best).mean())
    assert found["share_of_true_box_gain"] == pytest.approx((8 / 12 - 2 / 12) / (1 - 2 / 12))
    assert found["harmed"] == 0.5 and found["rescued"] == 3.5
    assert found["contains"]["grpo_likelihood_own_scale"]["mean"] == np.mean(RIGHT["sft"])
    assert found["boxes"]["sft"] == {"area": pytest.approx(0.02), "coverage": 1.0}


def test_results_hold_the_reader_and_the_accuracy_by_expansion(tmp_path):
    _evaluation(tmp_path / "expansions" / "pages" / "tesseract", 0, 2)
    file = tmp_path / "expansions" / "pages" / "tesseract" / "results.json"
    results = json.loads(file.read_text())
    results["protocol"] |= {"croppers": {"grpo_likelihood": {}}, "expansions": [2.0]}
    file.write_text(json.dumps(results))
    file = file.with_name("records.jsonl")
    x2 = '"oracle x2": {"text": "7", "scores": {"contains": 0.25, "anls": 0}}, "no_crop"'
    file.write_text(file.read_text().replace('"no_crop"', x2))
    (tmp_path / "reader.json").write_text('{"exact": {"pages": {"x1": 0.5}}}')
    flags = [f"--expansions={tmp_path}/expansions", f"--reader={tmp_path}/reader.json"]
    flags += [f"--evaluations={tmp_path}/test", f"--save={tmp_path}/results.json"]
    told = _run("results.py", *flags)
    assert told.returncode == 0, told.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["reader"]["exact"]["pages"] == {"x1": 0.5}
    assert found["expansions"]["pages"]["tesseract"] == {
        "grpo_likelihood": {"x1": pytest.approx(4 / 6), "x2": pytest.approx(2 / 6)},
        "oracle": {"x1": 1.0, "x2": 0.25},
    }


def test_results_of_other_questions_are_refused(tmp_path):
    _evaluation(tmp_path / "pages" / "reader" / "0", 0, 2)
    _evaluation(tmp_path / "pages" / "reader" / "1", 1, 2)
    file = tmp_path / "pages" / "reader" / "1" / "records.jsonl"
    file.write_text(file.read_text().replace("pages/a/0.pdf/0/", "pages/a/0.pdf/9/"))
    told = _run("results.py", f"--evaluations={tmp_path}", f"--save={tmp_path}/results.json")
    assert told.returncode and "different questions" in told.stderr


def test_validation_chooses_the_cropper_and_the_expansion(tmp_path):
    rows = [{"step": 100, "eval/reward": 0.4}, {"step": 200, "eval/reward": 0.6}]
    rows += [{"step": 250, "eval/reward": 0.9}, {"step": 300, "reward": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (100, 200, 300):
        (tmp_path / f"cropper-{step}").mkdir()
    told = _run("chosen.py", f"--run={tmp_path}")
    assert told.stdout.strip() == str(tmp_path / "cropper-200"), told.stderr

    scores = {"grpo": 0.5, "grpo x0.25": 0.1, "grpo x0.5": 0.7, "grpo x4": 0.7}
    results = {
        "protocol": {"croppers": {"grpo": {}}, "expansions": [0.25, 0.5, 4.0]},
        "targets": {
            "a": {"scores": {"contains": {n: {"score": s} for n, s in scores.items()}, "anls": {}}}
        },
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert _run("chosen.py", f"--evaluation={tmp_path}").stdout == "0.5\n"
    assert "--run or an --evaluation" in _run("chosen.py").stderr
