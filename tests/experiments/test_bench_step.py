# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import bench_step
import pytest

RATES = {"float32": {"torch": 2e9, "jax": 1e9}, "bfloat16": {"torch": 4e9, "jax": 1e9}}
OURS = {
    "seconds": 4.0,
    "compile_seconds": 9.0,
    "peak_mib": 1000,
    "decode_iterations": 8,
    "flops": {"prefix": 2e9, "update": 4e9},
    "mfu": 0.25,
    "phases": {"prefix": 1.5, "update": 2.0},
}
OFFICIAL = {"seconds": 20.0, "phases": {"generate": 15.0, "update": 5.0}, "peak_mib": 4000}


def test_a_case_compares_both_sides_with_the_floor():
    case = bench_step.Case.parse("1024-bfloat16-lora_text")
    assert case == bench_step.Case(1024, "bfloat16", "lora_text")
    row = bench_step.compare(case, 5, OURS, OFFICIAL, RATES)
    assert row["ratio"] == 5.0
    assert row["floor_phases"] == {"prefix": 0.5, "update": 1.0}
    assert row["floor_seconds"] == 1.5
    assert (row["peak_mib"], row["official_peak_mib"]) == (1000, 4000)
    many = bench_step.Case.parse("1024-bfloat16-lora_text", prompts=3)  # in the same four seconds
    assert bench_step.compare(many, 5, OURS, OFFICIAL, RATES)["ratio"] == 15.0


@pytest.mark.parametrize("text", ["512", "512-float16-lora", "512-float32-all"])
def test_what_is_no_case_is_refused(text):
    with pytest.raises(ValueError, match="not a case"):
        bench_step.Case.parse(text)


def test_a_report_has_dashes_where_nothing_could_be_measured():
    case, failed = bench_step.Case(2048), {"error": "exit status 1"}
    report = {
        "machine": {"cpu": "a CPU", "cores": 2, "matmul_flops": RATES},
        "cases": [
            bench_step.compare(bench_step.Case(), 1, OURS, OFFICIAL, RATES),
            bench_step.compare(case, 17, OURS, failed, RATES),
            bench_step.compare(case, 17, failed, failed, RATES),
        ],
        "sweeps": {"size": [bench_step.describe_point(case, found) for found in (OURS, failed)]},
    }
    report = json.loads(json.dumps(report))
    assert [row["ratio"] for row in report["cases"]] == [5.0, None, None]
    assert [point["prompts_per_second"] for point in report["sweeps"]["size"]] == [0.25, None]
    lines = bench_step.to_text(report).splitlines()
    both, ours, neither = (line.split() for line in lines if line.split()[1:2] in (["1"], ["17"]))
    assert both[1:] == ["1", "20.0", "4.0", "5.0", "3.0", "4,000", "1,000", "8", "25.0"]
    assert ours[1:] == ["17", "-", "4.0", "-", "3.0", "-", "1,000", "8", "25.0"]
    assert neither[1:] == ["17", *"--------"]


def test_our_step_is_measured():
    case = bench_step.Case(64, mode="full", group=2)
    task = dict(model="zoom_digits/cropper", at_least=0, apart=False)
    (found,) = bench_step.work(json.dumps({"case": dataclasses.asdict(case), **task}))
    assert found["decode_iterations"] == 8
    assert min(found[name] for name in ("seconds", "compile_seconds", "peak_mib")) > 0
    assert set(found["flops"]) == {"prefix", "rollout", "reward", "reference", "update"}
