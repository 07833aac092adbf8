# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run knows of itself, for the model cards of its exports."""

import json
from pathlib import Path
from typing import Any

from cropvlm_jax.hub.model_card import Run, without_home
from cropvlm_jax.training.config import SourceConfig, TrainConfig, as_config_dict
from cropvlm_jax.training.workdir import FREE

TITLES = {"sft": "SFT", "grpo": "GRPO", "reader": "Training as a reader"}
HELD_OUT = "eval/"  # begins the names of metrics of held-out examples
# Settings that the card says in words, or that say nothing of the weights.
ELSEWHERE = (*FREE, "stage.", "cropper.", "target.", "steps.", "epochs.", "data.sources.", "eval.")


def describe(config: TrainConfig, step: int, workdir: Path) -> Run:
    """What a card says of a run.

    Args:
        config: settings of the run.
        step: how many steps are done.
        workdir: has metrics.jsonl.
    """
    trained = config.target if config.stage == "reader" else config.cropper
    facts = {"started from": f"`{without_home(trained)}`"}
    if config.stage == "grpo":
        facts["rewarded by the answers of"] = f"`{without_home(config.target)}`"
    facts |= {f"data `{name}`": _in_words(one) for name, one in config.data.sources.items()}
    facts["prompts a step"] = str(config.batch_size)
    facts["learning rate"] = f"{config.learning_rate:g} ({config.lr_scheduler_type})"
    facts["trained weights"] = f"LoRA of rank {config.lora.rank}" if config.lora else "all"
    measured_after, metrics = _last_evaluation(workdir / "metrics.jsonl")
    return Run(
        title=f"{TITLES[config.stage]}, {step:,} steps",
        facts=facts,
        settings=_changed(config),
        metrics=metrics,
        measured_after=measured_after,
    )


def _in_words(source: SourceConfig) -> str:
    """A source of examples, as a card names it; the folders of this machine are no part of it."""
    said = [f"split {source.split}"]
    if source.kind:
        said.insert(0, source.kind)
    if source.part != (0.0, 1.0):
        said.append(f"from {source.part[0]:g} to {source.part[1]:g} of it")
    if source.weight:
        said.append(f"weight {source.weight:g}")
    if source.boxes:
        said.append(f"seed boxes of `{without_home(source.boxes)}`")
    return ", ".join(said)


def _changed(config: TrainConfig) -> list[str]:
    """The settings that are not the default, as flags set them."""
    values, defaults = _flat(as_config_dict(config)), _flat(as_config_dict(TrainConfig()))
    return [
        f"--config.{name}={value}"
        for name, value in values.items()
        if value != defaults.get(name) and not f"{name}.".startswith(ELSEWHERE)
    ]


def _flat(section: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by their whole names."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        is_section = hasattr(value, "items")
        found |= _flat(value, f"{prefix}{name}.") if is_section else {f"{prefix}{name}": value}
    return found


def _last_evaluation(file: Path) -> tuple[int, dict[str, float]]:
    """The last step of a metrics file with metrics of held-out examples, and these."""
    last, metrics = 0, {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        row = json.loads(line)
        found = {name: x for name, x in row.items() if name.startswith(HELD_OUT) and x is not None}
        if found:
            last, metrics = row["step"], found
    return last, metrics
