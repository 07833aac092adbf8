# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every published figure is what its JSON file says."""

import json
import re
from pathlib import Path

import make_results
import pipeline_needs
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_results_page_is_current():
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert page == make_results.results_page(), "run python experiments/make_results.py"


def test_drawing_is_current():
    drawing = make_results.expansion_svg()
    path = ROOT / "docs/expansion.svg"
    assert (path.read_text(encoding="utf-8") if path.is_file() else None) == drawing


def test_readme_tables_are_current():
    names = make_results.MARKED.findall(README)
    assert sorted(names) == sorted(make_results.BLOCKS)
    assert make_results.fill(README) == README, "run python experiments/make_results.py"


@pytest.mark.parametrize("template", make_results.PROSE)
def test_figure_in_a_sentence(template: str):
    told = template.format(**make_results.figures())
    assert told in " ".join(README.split()), f"README.md does not say {told!r}"


def test_readme_has_no_figure_of_its_own():
    """Shares, dollars and ratios stand in tables from files, or are listed in `PROSE`."""
    told = " ".join(make_results.MARKED.sub("", README).split())
    told = re.sub(r"```.*?```|`[^`]*`", "", told)
    for template in make_results.PROSE:
        told = told.replace(template.format(**make_results.figures()), "")
    loose = re.findall(r"\d[\d.,]*\s?%|\$\d[\d.,]*|\d[\d.,]* (?:times|points)", told)
    assert not loose, f"figures that come from no file: {loose}"


def results_of(lead: float = 0.2) -> dict:
    """An evaluation in the shape of results.json, as small as the pages allow."""

    def row(score: float) -> dict:
        return {
            "score": score,
            "score_interval": [score - 0.05, score + 0.05],
            "lead": 0.65 - score,
            "lead_interval": [lead - 0.05, lead + 0.05],
        }

    scores = {
        "no_crop": row(0.1),
        "sft": row(0.4),
        "sft_best_scale": row(0.45),
        "grpo": row(0.65),
        "oracle": row(0.9),
    }
    scores |= {f"{name} x2": row(0.5) for name in ("sft", "grpo", "oracle")}
    return {
        "protocol": {"metrics": {"exact": "as it is"}, "expansions": [2.0]},
        "n": 100,
        "coverage": 0.8,
        "area": 0.04,
        "valid": 1.0,
        "train_seconds": 300.0,
        "best_scale": {"chosen_scale": 0.5},
        "targets": {"zoom_digits/target": {"scores": {"exact": scores}}},
    }


def test_pages_of_new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "zoom_digits").mkdir()
    for name in (*make_results.SEEDS, "expansion"):
        path = tmp_path / "zoom_digits" / f"{name}.json"
        path.write_text(json.dumps(results_of()), encoding="utf-8")
    monkeypatch.setattr(make_results, "EXPERIMENTS", tmp_path)
    means = make_results.digits_means().splitlines()
    assert means[0] == "| mean of 3 seeds | no crop | SFT | SFT, best size | GRPO | true box |"
    assert means[2] == "| accuracy | 10.0% | 40.0% | 45.0% | 65.0% | 90.0% |"
    assert means[3] == "| GRPO's lead, points | +55.0 | +25.0 | +20.0 |  |  |"
    assert "| 1 | +20.0 [15.0, 25.0] |" not in make_results.digits_seeds()
    assert "+20.0 [15.0, 25.0] |" in make_results.digits_seeds()
    assert "| SFT | 40.0% [35.0, 45.0] | 50.0% [45.0, 55.0] |" in make_results.expansion_table()
    drawing = make_results.expansion_svg()
    assert drawing and drawing.count("<polyline") == 3


def test_the_page_of_the_server_tells_what_was_measured():
    measured = make_results.load("bench_serve.json")
    load, told = measured["load"], " ".join((ROOT / "docs/serve.md").read_text().split())
    memory = load["memory_mib"]
    assert load["wrong"] == load["lost"] == 0 and set(load["statuses"]) == {"200"}
    for figure in (
        f"{load['requests']:,} requests, none wrong",
        f"{load['requests_a_second']:.1f} requests a second",
        f"{measured['throughput_ratio']:.1f} times a loop",
        f"{load['p50_ms']:.0f} ms at the median and {load['p99_ms']:,.0f} ms",
        f"memory {memory['start']:,.0f} MiB before and {memory['end']:,.0f} MiB after",
        f"takes {measured['proxy']['overhead_p50_ms']:.1f} ms more",
    ):
        assert figure in told, figure


def test_cores_that_chips_need_are_those_of_the_reports():
    found = make_results.load("pipeline.json")
    assert found["needs"] == pipeline_needs.needs(found["cases"])


def test_the_page_of_evaluations_tells_what_was_measured():
    found = make_results.load("evaluation_speed.json")
    told = " ".join((ROOT / "docs/evaluate.md").read_text(encoding="utf-8").split())
    assert found["ratio"] == round(found["before_seconds_an_item"] / found["seconds_an_item"], 2)
    for figure in (
        f"takes {found['seconds_an_item']:.4f} seconds, and took "
        f"{found['before_seconds_an_item']:.4f} before ({found['ratio']:.2f} times",
        f"with {found['equal_replies']} of {found['replies']} replies equal",
        f"time {found['cpu_seconds_an_item']:.4f} and {found['before_cpu_seconds_an_item']:.4f},",
    ):
        assert figure in told, figure


def test_the_lab_tells_how_far_tiles_of_the_device_are_from_the_hosts():
    found = make_results.load("check_tiles.json")
    told = " ".join((ROOT / "docs/lab.md").read_text(encoding="utf-8").split())
    edges = [one["longest_edge"] for one in found["summary"]]
    assert edges == [512, 1024, 2048] and found["asked"] == 1000
    assert all(one["pictures"] == 1000 for one in found["summary"])
    largest = max(one["largest_difference"] for one in found["summary"])
    assert largest <= 3  # this and the next are the bounds of crops
    assert all(one["share_over_1"] <= 1e-3 for one in found["summary"])
    shares = " / ".join(f"{one['share_differing']:.4%}" for one in found["summary"])
    assert f"by at most {largest} levels of 255, {shares} of them at all" in told
