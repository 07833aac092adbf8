# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import io
import json
import sys

from absl import logging

from cropvlm_jax.training.metrics import MetricWriter, Progress


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


def test_progress_is_plain_lines_elsewhere(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "info", lambda form, *values: lines.append(form % values))
    progress = Progress(100, every_seconds=1e9)
    for done in range(1, 101):
        progress.update(done)
    assert [line.split()[1] for line in lines] == ["1/100", "100/100"]
