# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import io
import json
import math
import sys

import jax
import numpy as np
import pytest
from absl import logging

from cropvlm_jax.progress import Progress, clock
from cropvlm_jax.training.metrics import MetricWriter, Throughput


def test_metrics_go_on_in_jsonl_and_tensorboard_after_the_steps_that_were_saved(tmp_path):
    for start, steps in ((0, (1, 2, 3)), (1, (2,))):
        writer = MetricWriter(tmp_path / "run", start)
        for step in steps:
            writer.write(step, {"loss": 0.5 / step, "reward": -1.0})
        writer.close()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert rows == [
        {"step": 1, "loss": 0.5, "reward": -1.0},
        {"step": 2, "loss": 0.25, "reward": -1.0},
    ]
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) >= 1


@pytest.mark.parametrize(
    "damaged", [b"\x00\x00\n", b"{\n", b"[1]\n", b'{"loss": 1}\n', b"\xff\n", b'{"step": null}\n']
)
def test_damaged_lines_are_dropped_and_told(tmp_path, damaged, caplog):
    file = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "loss": 0.5}\n'
    file.write_bytes(damaged + good)
    MetricWriter(tmp_path, 2).close()
    assert file.read_bytes() == good
    assert f"dropped a damaged line of {file}" in caplog.text


def no_constant(name: str):
    raise ValueError(f"{name} is no JSON")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), np.inf])
def test_what_is_not_finite_is_null_and_said(tmp_path, value):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"loss": 0.5, "grad_norm": value})
    writer.write(2, {"loss": np.float32(0.25), "grad_norm": 1})
    writer.close()
    MetricWriter(tmp_path, 2).close()  # reads what it wrote
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=no_constant) for line in lines]
    said = {"grad_norm": str(float(value))}
    assert rows == [
        {"step": 1, "loss": 0.5, "grad_norm": None, "not_finite": said},
        {"step": 2, "loss": 0.25, "grad_norm": 1.0},
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_living_line_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(3)
    progress.update(1, "reward 1")
    progress.update(3, "reward 3")
    text = terminal.getvalue()
    assert text.count("\r") == 2 and text.endswith("\n") and "step 3/3" in text and "left" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (61.9, "1:01"), (3600, "1:00:00"), (90061, "25:01:01"), (math.inf, "?")],
)
def test_times_left_have_hours_where_there_are_any(seconds, text):
    assert clock(seconds) == text


def test_progress_is_plain_lines_elsewhere(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "info", lambda form, *values: lines.append(form % values))
    progress = Progress(100, every_seconds=1e9)
    for done in range(1, 101):
        progress.update(done)
    assert [line.split()[1] for line in lines] == ["1/100", "100/100"]


def test_throughput_counts_steps_and_nothing_else():
    now = 100.0
    throughput = Throughput(chips=2, peak_flops=1e12, clock=lambda: now)
    work = {"flops": 3e12, "prompts": 8}
    now += 1  # the first step waits for its data, and compiles
    with throughput.waiting():
        now += 5
    now += 60
    throughput.restart()
    now += 1
    with throughput.waiting():
        now += 3
    assert throughput.steps([work]) == {
        "perf/step_seconds": 4.0,
        "perf/data_wait_share": 0.75,
        "perf/prompts_per_second_per_chip": 1.0,
        "perf/tflops_per_second_per_chip": 0.375,
        "perf/mfu": 0.375,
    }
    now += 4  # two steps that are read together, then an evaluation
    both = throughput.steps([work, work | {"prompts": 4}])
    assert (both["perf/step_seconds"], both["perf/data_wait_share"]) == (2.0, 0.0)
    assert (both["perf/prompts_per_second_per_chip"], both["perf/mfu"]) == (1.5, 0.75)
    now += 1000
    throughput.restart()
    now += 2
    assert throughput.steps([work])["perf/step_seconds"] == 2.0


def test_throughput_tells_utilization_and_memory_where_they_are_known(monkeypatch):
    class Chip:
        def memory_stats(self):
            return {"peak_bytes_in_use": 3 * 2**29, "bytes_in_use": 0}

    monkeypatch.setattr(jax, "local_devices", lambda: [Chip()])
    clock = iter((0.0, 1.0, 1.0)).__next__
    speed = Throughput(chips=1, clock=clock).steps([{"flops": 1e12}])
    assert speed["perf/peak_hbm_gib"] == 1.5 and "perf/mfu" not in speed
