# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/config.md, the list of all settings, from `training/config.py` and its docstrings.

python experiments/make_config_docs.py
"""

import dataclasses
import inspect
import json
import pathlib
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import ml_collections

from cropvlm_jax import apps, settings
from cropvlm_jax.training import presets
from cropvlm_jax.training.config import (
    SHARED,
    SourceConfig,
    TrainConfig,
    default_config,
)

FILE = pathlib.Path(__file__).parents[1] / "docs" / "config.md"

HEAD = """# Settings

Written by `python experiments/make_config_docs.py` from the docstrings of
`cropvlm_jax/training/config.py` and `cropvlm_jax/grpo/config.py`: change those, not this file.

A run is described by a Python file whose `get_config()` starts from
`cropvlm_jax.training.config.default_config()` and changes what it needs, such as
`experiments/zoom_digits.py`. On the command line `--config.NAME=VALUE` changes any setting again:

    cropvlm train --config=experiments/zoom_digits.py --workdir=runs/try \\
        --config.learning_rate=1e-4 --config.grpo.num_generations=16

All settings are checked before anything is loaded: one that does not exist is refused, and so is a
number out of its range. The message says what there is instead. The last column has the name in
TRL's `GRPOConfig` (or PEFT's `LoraConfig`), `=` where it is the same. Of tunix' `GRPOConfig`,
`num_generations`, `num_iterations`, `beta` and `epsilon` are the same as here.
"""


# The names of our settings in TRL's `GRPOConfig` and, of adapters, in PEFT's `LoraConfig`; "=" is
# the same name. Of tunix' `GRPOConfig`, `num_generations`, `num_iterations`, `beta` and `epsilon`
# are the same as here.
OTHER_NAMES = {
    "dtype": "`bf16`",
    "remat": "`gradient_checkpointing`",
    "seed": "=",
    "steps": "`max_steps`",
    "epochs": "`num_train_epochs`",
    "batch_size": "`generation_batch_size` / `num_generations`",
    "gradient_accumulation_steps": "=",
    "learning_rate": "=",
    "lr_scheduler_type": "`cosine`, `constant_with_warmup`",
    "warmup": "`warmup_ratio`",
    "clip_norm": "`max_grad_norm`",
    "adam_b2": "`adam_beta2`",
    "weight_decay": "=",
    "lora.rank": "`r`",
    "lora.alpha": "`lora_alpha`",
    "lora.dropout": "`lora_dropout`",
    "lora.targets": "`target_modules`",
    "grpo.num_generations": "=",
    "grpo.temperature": "=",
    "grpo.num_iterations": "=",
    "grpo.epsilon": "=",
    "grpo.epsilon_high": "=",
    "grpo.beta": "=",
    "grpo.loss_type": "=",
    "grpo.normaliser": "`max_completion_length`, with `dr_grpo`",
    "grpo.scale_rewards": "=",
    "grpo.multi_objective_aggregation": "=",
    "grpo.entropy_target": "=, with `use_adaptive_entropy`",
    "data.workers": "`dataloader_num_workers`",
    "eval.every": "`eval_steps`",
    "checkpoint.every": "`save_steps`",
    "checkpoint.keep": "`save_total_limit`",
    "checkpoint.best": "`metric_for_best_model`",
}


def type_name(kind: Any) -> str:
    """A type as a user reads it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return f"{type_name(arguments[0])} {arguments[1]}"
    if origin is Literal:
        return ", ".join(f'`"{x}"`' for x in arguments)
    if origin in (types.UnionType, typing.Union):
        return ", or ".join("None" if x is type(None) else type_name(x) for x in arguments)
    if origin is tuple:
        return f"{len(arguments)}, each {type_name(arguments[0])}"
    if origin is not None and issubclass(origin, Mapping):
        named = arguments[1]
        return "named sources" if isinstance(named, type) else f"named, each {type_name(named)}"
    return {"str": "text", "bool": "True or False"}.get(kind.__name__, kind.__name__)


def meanings(cls: type) -> dict[str, str]:
    """What the docstring of a class says of its attributes."""
    text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if start := re.match(r"    (\w+): (.*)", line):
            name = start[1]
            found[name] = start[2]
        elif line.startswith("        "):
            found[name] += " " + line.strip()
    return found


def cell(text: str) -> str:
    """A text for a cell of a table."""
    return text.replace("|", "\\|")


def default_text(value: Any) -> str:
    """A default as a user writes it."""
    if isinstance(value, Mapping | ml_collections.ConfigDict):
        return "none"
    return f"`{json.dumps(value, allow_nan=False) if isinstance(value, str) else value}`"


def rows(cls: type, default: Any, prefix: str) -> list[str]:
    """The lines of the table of one section."""
    told, kinds = meanings(cls), settings.fields(cls)
    lines = ["| setting | type | default | meaning | TRL |", "|---|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        if section_of(kinds[field.name]) or field.name in SHARED.get(prefix.rstrip("."), ()):
            continue
        value = getattr(default, field.name)
        name = prefix + field.name
        other = OTHER_NAMES.get(name, "")
        cells = [f"`{name}`", type_name(kinds[field.name]), default_text(value)]
        cells += [sentence(told[field.name]), other]
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    return lines


def sentence(text: str) -> str:
    """A text with a capital letter in front."""
    return text[:1].upper() + text[1:]


def section_of(kind: Any) -> type | None:
    """The class of the settings inside of a setting; None where it has none, or has named ones."""
    candidates = (kind,) if isinstance(kind, type) else typing.get_args(kind)[:1]
    return next((x for x in candidates if dataclasses.is_dataclass(x)), None)


def summary(cls: type) -> str:
    """The first paragraph of a class's docstring."""
    return inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def document() -> str:
    """The whole page."""
    config, kinds = default_config(), typing.get_type_hints(TrainConfig)
    lines = [HEAD, "## The run", "", *rows(TrainConfig, config, "")]
    for name, kind in kinds.items():
        cls = section_of(kind)
        if cls is None:
            continue
        lines += ["", f"## `{name}`", "", summary(cls), ""]
        lines += rows(cls, config[name], f"{name}.")
    lines += ["", "## A source: `data.sources.NAME` and `eval.sources.NAME`", "", SOURCES, ""]
    lines += rows(SourceConfig, SourceConfig(), "")
    lines += ["", "## The released code of the paper", "", OFFICIAL_HEAD]
    lines += ["| setting | value | what the released code does | a defect |", "|---|---|---|---|"]
    for setting, value, meaning, defect in presets.OFFICIAL:
        lines.append(f"| `{setting}` | `{value!r}` | {meaning} | {'yes' if defect else ''} |")
    return "\n".join(lines) + "\n"


SOURCES = """A run's file adds one with `config.data.sources.NAME = source(...)`, where NAME is a
data set of [data.md](data.md) and `source` is in `cropvlm_jax.training.config`."""
OFFICIAL_HEAD = """`training.presets.official(config)` sets all of these; `paper_grpo` takes those
that are no defects.
"""


def main(argv: list[str]) -> None:
    del argv
    FILE.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    apps.run_script(main)
