# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is said of a run before it starts, without weights, network or the devices."""

import json
import math

import jax
import pytest
from tiny_runs import OUTSIDE, small

from cropvlm_jax.data import sources
from cropvlm_jax.hub import pretrained
from cropvlm_jax.readers.vlm import VLMReader
from cropvlm_jax.training import costs, dry_run, loop, planned_step
from cropvlm_jax.training.config import load_config, source
from cropvlm_jax.training.dry_run import Prices
from cropvlm_jax.training.presets import paper_grpo, paper_sft
from cropvlm_jax.training.workload import Workload


def said(config, **prices) -> dict[str, str]:
    """The report by label; of several texts with a label, all of them in one."""
    lines: dict[str, str] = {}
    for label, text in dry_run.report(load_config(config), jax.devices()[:1], Prices(**prices)):
        lines[label] = f"{lines[label]}\n{text}" if label in lines else text
    return lines


def outside(**changes):
    """GRPO with a chat endpoint, which is never asked."""
    settings = OUTSIDE | {"target": "openai:gpt-4.1-nano@512", "gradient_accumulation_steps": 2}
    return small("grpo", **settings | changes)


@pytest.mark.parametrize("part", ["sft", "grpo"])
def test_steps_of_the_papers_runs_are_known_before_their_data_are_here(part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = paper_sft(512) if part == "sft" else paper_grpo(1024, "likelihood")
    workload = Workload.of(load_config(config))
    # Half of 124,319 questions, in batches of 16.
    assert abs(workload.examples.count - 124_319 / 2) <= 2
    assert workload.steps == workload.examples.count // 16 == (3885 if part == "sft" else 3884)
    assert len(workload.examples.missing) == 4
    assert "data.sources.textvqa: " in workload.examples.missing[-1]
    assert "17,301 examples are counted, as published" in "".join(workload.examples.missing)
    assert workload.requests == workload.evaluations == 0


def test_what_is_not_known_is_said_with_what_would_tell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = outside(**{"steps": 0, "cropper": "runs/mine/sft/cropper"})
    del config.data.sources["zoom_digits"]
    config.data.sources.jsonl = source("data/mine")
    lines = said(config, hour=2.0, requests=0.5)
    assert lines["steps"].startswith("not known (--config.steps sets them)")
    assert "not known" in lines["hours"] and "not known in all" in lines["requests"]
    assert lines["dollars"] == "hours not known, requests not known"
    assert "data.sources.jsonl" in lines["missing here"] and "data/mine" in lines["missing here"]
    assert "cropper: there is no folder 'runs/mine/sft/cropper'" in lines["missing here"]
    assert "--config.cropper=FOLDER" in lines[""]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "steps", "evaluations", "evaluated", "requests"),
    [
        ({}, 1, 1, 2, 2 * 2 + 2 + 4),
        ({"steps": 10, "eval.every": 3, "eval.examples": 7}, 10, 4, 6, 10 * 4 + 4 * (6 + 4)),
        ({"steps": 9, "batch_size": 4, "eval.examples": 4}, 9, 9, 4, 9 * 8 + 9 * (4 + 8)),
        ({"steps": 5, "eval.every": 0, "grpo.num_generations": 6}, 5, 0, 0, 5 * 12),
        ({"grpo.verification_weight": 1.0}, 1, 1, 2, 2 * (2 * 2 + 1) + 4 * (2 + 1) + 2),
    ],
)
def test_requests_are_counted(changes, steps, evaluations, evaluated, requests):
    workload = Workload.of(load_config(outside(**changes)))
    found = workload.steps, workload.evaluations, workload.evaluated, workload.requests
    assert found == (steps, evaluations, evaluated, requests)


def test_a_run_asks_no_more_than_was_said(tmp_path, monkeypatch):
    asked = []
    answer = VLMReader.answer

    def counted(self, images, questions, **options):
        asked.append(len(questions))
        return answer(self, images, questions, **options)

    monkeypatch.setattr(VLMReader, "answer", counted)
    config = small("grpo", gradient_accumulation_steps=2, **OUTSIDE)
    assert loop.run(config, tmp_path)
    assert 0 < sum(asked) <= Workload.of(load_config(config)).requests


def test_no_weights_are_read_and_hours_and_dollars_follow_from_the_peak_rate(monkeypatch):
    def no_weights(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(pretrained, "load_weights", no_weights)
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(costs.CHIPS, kind, costs.Chip("here", 1e9, 1e-3, 1e12, 1e9))
    config = small("grpo", **{"steps": 1000, "eval.every": 100})
    lines = said(config, hour=3.0)
    assert "of 0.0 GiB" in lines["memory"] and "does NOT fit" in lines["memory"]
    seconds = float(lines["seconds a step"].partition(",")[0])
    work = planned_step.PlannedStep(load_config(config), jax.devices()[:1]).work()
    assert math.isclose(seconds, sum(work.flops.values()) / 1e9 / 0.25, rel_tol=0.01)
    hours = 1010 * seconds / 3600
    assert math.isclose(float(lines["hours"].partition(";")[0]), hours, rel_tol=0.01)
    assert lines["dollars"].startswith(f"${3 * hours:.2f} (")
    assert lines["requests"].startswith("none")


def test_batches_that_wait_beside_a_step_take_memory_too():
    planned = planned_step.PlannedStep(load_config(small("grpo")), jax.devices()[:1])
    rows = planned.config.batch_size
    waiting = planned.next_batches(rows)
    canvas = planned.batch(rows).canvas
    assert 2 * canvas.size < waiting < 3 * canvas.size
    planned.chip = costs.Chip("here", 1e9, (waiting + 100) / planned_step.GIB, 1e12, 1e9)
    assert planned.has_room(100, rows) and not planned.has_room(101, rows)
    outside_of_it = planned_step.PlannedStep(load_config(outside()), jax.devices()[:1])
    assert outside_of_it.next_batches(outside_of_it.config.batch_size) == 0


def test_the_halves_around_a_reader_have_a_memory_and_no_reader_is_opened(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    adaptive = {"grpo.entropy_target": 2.0, "grpo.min_reward_std": 0.1}
    lines = said(outside(steps=7, **adaptive), requests=100.0)
    assert "GiB a device" in lines["memory"] and lines["memory"].endswith("fits")
    assert "has no peak rate" in lines["seconds a step"] and "not known" in lines["hours"]
    total = 7 * 4 + 7 * 6
    assert f"at most: 4 a step, 6 an evaluation, {total} in all" in lines["requests"]
    assert "2 a request" in lines["pictures"] and "at most 512 px" in lines["pictures"]
    assert lines["dollars"] == f"${total / 10:.2f} (requests ${total / 10:.2f})"


@pytest.mark.parametrize("stage", ["sft", "reader"])
def test_supervised_runs_are_planned_too(stage):
    lines = said(small(stage))
    assert "GiB a device" in lines["memory"]
    assert lines["requests"].startswith("none") and "rollouts" not in lines["steps"]


def test_wrong_data_are_an_error_before_the_run(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"image": "a.png"}) + "\n")
    config = small("grpo")
    del config.data.sources["zoom_digits"]
    config.data.sources.jsonl = source(str(tmp_path))
    with pytest.raises(ValueError, match="no usable example"):
        said(config)
    with pytest.raises(ValueError, match="2 held-out examples fill no batch of batch_size=4"):
        said(small("grpo", batch_size=4))
    config.data.sources = {}
    with pytest.raises(ValueError, match="data.sources is empty"):
        said(config)


def test_published_sizes_are_of_sources_that_there_are():
    assert {name for name, _ in sources.PUBLISHED} <= set(sources.NAMES)
