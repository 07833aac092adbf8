# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run says of itself in the model cards of its exports."""

import json

from cropvlm_jax.training import card
from cropvlm_jax.training.config import default_config, load_config, source


def described(tmp_path, **changes):
    config = default_config()
    config.cropper, config.target = "/home/me/runs/mine/sft/cropper", "openai:gpt-4.1-nano"
    config.data.sources.textvqa = source("/data/textvqa", part=(0.5, 1.0), weight=2.0)
    config.data.sources.mine = source("data/mine", kind="jsonl", boxes="/a/b/boxes.jsonl", weight=1)
    config.update_from_flattened_dict(changes)
    return card.describe(load_config(config), 1234, tmp_path)


def test_a_run_with_a_black_box(tmp_path):
    rows = [
        {"step": 10, "eval/reward": 0.25, "loss": 1.0},
        {"step": 20, "eval/reward": 0.5, "eval/area": None},
        {"step": 30, "loss": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = described(tmp_path, **{"learning_rate": 5e-6, "grpo.beta": 0.05, "lora.rank": 8})
    assert run.title == "GRPO, 1,234 steps"
    assert run.facts == {
        "started from": "`sft/cropper`",
        "rewarded by the answers of": "`openai:gpt-4.1-nano`",
        "data `textvqa`": "split train, from 0.5 to 1 of it, weight 2",
        "data `mine`": "jsonl, split train, weight 1, seed boxes of `b/boxes.jsonl`",
        "prompts a step": "16",
        "learning rate": "5e-06 (cosine)",
        "trained weights": "LoRA of rank 8",
    }
    assert "--config.grpo.beta=0.05" in run.settings and "--config.lora.rank=8" in run.settings
    assert not any("/home" in setting or "sources" in setting for setting in run.settings)
    assert (run.metrics, run.measured_after) == ({"eval/reward": 0.5}, 20)


def test_a_run_that_never_evaluated(tmp_path):
    run = described(tmp_path, **{"stage": "sft", "cropper": "some/base"})
    assert run.title == "SFT, 1,234 steps"
    assert run.facts["started from"] == "`some/base`" and run.facts["trained weights"] == "all"
    assert not any(name.startswith("rewarded") for name in run.facts)
    assert run.metrics == {} and run.settings == []
    assert "evaluated no held-out examples" in run.as_markdown()
