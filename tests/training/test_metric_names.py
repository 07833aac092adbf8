# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The names in docs/metrics.md are those that runs write, no more and no fewer, stage by stage."""

import json
import pathlib
import re
import types

import jax
import numpy as np
import pytest
from tiny_runs import OUTSIDE, small

from cropvlm_jax import geometry, parallel
from cropvlm_jax.data import batching
from cropvlm_jax.training import costs, loop, metrics
from cropvlm_jax.training.config import load_config
from cropvlm_jax.training.reporting import progress_note
from cropvlm_jax.training.stages import open_stage

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "metrics.md"
SECTIONS = {"grpo": "GRPO", "sft": "SFT and readers", "reader": "SFT and readers"}
PARTS = {
    "grpo.verification_weight": 1.0,
    "grpo.accuracy_weight": 1.0,
    "grpo.area_weight": 0.1,
    "grpo.format_weight": 0.1,
    "grpo.min_reward_std": 0.1,
    "grpo.entropy_target": 0.5,
}
SEVERAL = {"grpo.max_boxes": 2, "grpo.abstain": True, "grpo.token_price": 1.0}
TWICE = {"grpo.num_iterations": 2, "grpo.kl_loss_type": "k3"}


def glossary(section: str) -> set[str]:
    """The names in the first column of a section's table."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    names = re.findall(r"^\| `([^`]+)` \|", text, re.M)
    assert len(names) == len(set(names))
    return set(names)


def traced_names(config) -> set[str]:
    """The metrics of a step and an evaluation, from their shapes: nothing is compiled."""
    stage = open_stage(load_config(config))
    program = stage.compile(parallel.make_mesh(1, 1, 1), 1)
    state = jax.eval_shape(program.create, stage.weights)
    example = {"image": np.zeros((64, 64, 3), np.uint8), "question": "?", "answers": ["0"]}
    example["box"] = geometry.FULL
    batch = batching.stack([stage.prepare(example, 0)] * 2)
    _, step = jax.eval_shape(stage.step(), state, batch, jax.random.key(0))
    held_out = jax.eval_shape(stage.evaluate, state, batch)
    return {*step, *(f"eval/{name}" for name in held_out)}


class Chip:
    """A device that tells how much memory is used."""

    def memory_stats(self):
        return {metrics.PEAK: 2**30}


@pytest.mark.parametrize("stage", ["grpo", "sft", "reader"])
def test_every_name_that_a_run_writes_is_in_the_glossary_and_no_other(stage, tmp_path, monkeypatch):
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(costs.CHIPS, kind, costs.Chip("here", 1e12, 1, 1e9, 1e9))
    monkeypatch.setattr(metrics, "jax", types.SimpleNamespace(local_devices=lambda: [Chip()]))
    runs = [small(stage), small(stage, gradient_accumulation_steps=2, **OUTSIDE)]
    written: set[str] = set()
    for number, config in enumerate(runs if stage == "grpo" else runs[:1]):
        folder = tmp_path / str(number)
        assert loop.run(config, folder)
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            written |= json.loads(line).keys() - {"step"}
    if stage == "grpo":
        written |= traced_names(small(stage, **PARTS, **TWICE))
        written |= traced_names(small(stage, **SEVERAL))
        written |= traced_names(small(stage, **{"grpo.looks": 2}))
    assert written == glossary("Every stage") | glossary(SECTIONS[stage])


def test_the_progress_line_shows_what_means_something():
    grpo = {"loss": 0.0, "reward": 0.5, "area": 0.25, "kl": 0.001, "unscored": 0.0}
    assert progress_note(grpo, {}) == "reward 0.500  area 0.250  kl 0.001"
    held_out = {"eval/reward": 0.75, "eval/area": 0.3}
    without_kl = {"loss": 0.0, "reward": 0.5, "area": 0.25, "unscored": 0.125}
    line = "reward 0.500  area 0.250  unscored 0.125  eval/reward 0.750"
    assert progress_note(without_kl, held_out) == line
    sft = {"loss": 1.5, "tokens": 30.0}
    assert progress_note(sft, {"eval/loss": 2.0, "eval/exact": 0.25}) == (
        "loss 1.500  eval/loss 2.000  eval/exact 0.250"
    )
