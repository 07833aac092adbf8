# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings: from defaults and flags to checked dataclasses, and to docs/config.md."""

import dataclasses
import math
import pathlib
import runpy
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from absl import flags
from ml_collections import config_flags

from cropvlm_jax.data import sources
from cropvlm_jax.data.sources import zoom_digits
from cropvlm_jax.models.lora import LoRAConfig
from cropvlm_jax.settings import PLAIN, Range, fields, optional
from cropvlm_jax.training.config import (
    SourceConfig,
    TrainConfig,
    as_config_dict,
    default_config,
    load_config,
    source,
)
from cropvlm_jax.training.presets import OFFICIAL, official, paper_grpo, paper_sft

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
PRICED = {"data": {"budgets": {"low": 2}}}


def test_the_defaults_are_those_of_the_dataclasses():
    assert load_config(default_config()) == TrainConfig() == load_config({})


def test_there_and_back():
    config = default_config()
    config.lora.rank, config.grpo.reward_chunk, config.gradient_accumulation_steps = 4, 2, 8
    config.data.sources.textvqa = source("data/textvqa", part=(0.0, 0.5), weight=1)
    config.grpo.abstain, config.data.budgets.low = True, 2
    loaded = load_config(config)
    assert loaded.lora == LoRAConfig(rank=4)
    assert loaded.grpo.gradient_accumulation_steps == 8 and loaded.grpo.reward_chunk == 2
    assert loaded.data.sources == {
        "textvqa": SourceConfig("data/textvqa", weight=1.0, part=(0.0, 0.5))
    }
    assert loaded.data.budgets == {"low": 2.0} and loaded.grpo.gain is None
    assert load_config(as_config_dict(loaded)) == loaded
    assert as_config_dict(loaded).to_dict() == config.to_dict()


def test_flags_have_the_types_of_the_settings(monkeypatch):
    command = [
        "train",
        f"--config={EXPERIMENTS / 'zoom_digits.py'}",
        "--config.learning_rate=1",
        "--config.grpo.normaliser=32",
        "--config.grpo.loss_type=dr_grpo",
        "--config.target_processor.do_pad=true",
        "--config.data.canvas=(128,256)",
        "--config.data.sources.zoom_digits.split=validation",
        "--config.remat",
    ]
    monkeypatch.setattr(sys, "argv", command)  # where config_flags looks for overrides
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(command)
    loaded = load_config(values.config)
    assert loaded.learning_rate == 1.0 and loaded.remat and loaded.target_processor.do_pad
    assert loaded.grpo.normaliser == 32 and loaded.data.canvas == (128, 256)
    assert loaded.data.sources["zoom_digits"].split == "validation"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stpes": 1}, "no setting stpes; there are: adam_b2, attention, batch_size"),
        ({"grpo": {"group": 8}}, "no setting grpo.group; there are: .* num_generations"),
        ({"data": {"sources": {"a": {"fold": "x"}}}}, "no setting data.sources.a.fold"),
        ({"stage": "rl"}, "stage='rl' is not one of 'sft', 'grpo'"),
        ({"grpo": {"num_generations": 1}}, "grpo.num_generations=1"),
        ({"grpo": {"loss_type": "token"}}, "grpo.loss_type='token' is not one of"),
        ({"seed": 1.5}, "seed=1.5 is not a whole number between 0 and"),
        ({"remat": 1}, "remat=1 is not True or False"),
        ({"data": {"canvas": [512]}}, "data.canvas"),
        ({"data": {"sources": {"a": {"part": (0.5, 0.5)}}}}, "data.sources.a.part"),
        ({"batch_size": 6, "gradient_accumulation_steps": 4}, "does not divide batch_size=6"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"checkpoint": {"keep": 0}}, "checkpoint.keep=0"),
        ({"lora": {"rank": 2, "dropout": 1.0}}, "lora.dropout=1.0"),
        ({"lora": {"alpha": math.nan}}, "lora.alpha=nan"),  # also where no adapter is trained
        ({"lora": {"rank": False}}, "lora.rank=False"),
        ({"lora": {"rank": 2, "targets": "("}}, "lora.targets='.' is not a regular expression"),
        ({"lora": 3}, "lora=3 is not a section"),
        ({"grpo": 3}, "grpo=3 is not a section"),
        ({"gradient_accumulation_steps": 0}, "^gradient_accumulation_steps=0 is not"),
        ({"steps": 0, "epochs": 0.0}, "steps and epochs are both 0"),
        ({"checkpoint": {"best": "eval/reward"}}, "checkpoint.best='eval/reward' needs an eval"),
        ({"eval": {"every": 5}}, "eval.every=5 needs eval.sources"),
        ({"data": {"sources": {"textvqb": {"folder": "x"}}}}, "'textvqb' is no data set; there "),
        ({"data": {"sources": {"a": {"folder": "x", "kind": "jsonb"}}}}, "a.kind='jsonb'"),
        ({"data": {"sources": {"textvqa": {}}}}, "data.sources.textvqa.folder=''"),
        ({"grpo": {"max_boxes": 0}}, "grpo.max_boxes=0 is not a whole number between 1 and 4"),
        ({"grpo": {"max_boxes": 5}}, "grpo.max_boxes=5 is not a whole number between 1 and 4"),
        ({"grpo": {"answer_tokens": 0}}, "grpo.answer_tokens=0 is not .* between 1 and 1024"),
        ({"grpo": {"abstain": True, "gain": False}}, "grpo.gain=False with abstain=True"),
        ({"grpo": {"token_price": 1, "gain": False}}, "grpo.gain=False .* token_price=1.0"),
        (
            {"grpo": {"token_price": 1, "multi_objective_aggregation": "normalize_then_sum"}},
            "grpo.token_price=1.0 is in units of the reward",
        ),
        (PRICED | {"grpo": {}}, "data.budgets={'low': 2.0}: with grpo.max_boxes=1"),
        (PRICED | {"grpo": {"token_price": 1.0}}, "grpo.token_price=1.0 would be ignored"),
        (PRICED | {"grpo": {"max_boxes": 2, "gain": False}}, "data.budgets=.*gain=False with"),
        (PRICED | {"stage": "reader"}, "data.budgets.*: stage='reader' trains no cropper"),
        ({"data": {"budgets": {"": 1.0}}}, "data.budgets={'': 1.0}: '' is not made of words"),
        ({"data": {"budgets": {"low": "x"}}}, "data.budgets.low='x' is not a number between 0"),
        (
            {
                "eval": {
                    "sources": {"jsonl": {"folder": "x", "weight": 1}, "pdfs": {"folder": "y"}},
                }
            },
            "eval.sources.pdfs.weight=0.0: either all",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        load_config(settings)


@pytest.mark.parametrize("split", ["val", "nothing", ""])
def test_a_split_that_drawn_pictures_do_not_have_is_refused(split):
    assert sources.DRAWN["zoom_digits"] == zoom_digits.SPLITS
    with pytest.raises(ValueError, match=rf"eval\.sources\.digits\.split='{split}' .*validation"):
        settings = {"kind": "zoom_digits", "split": split}
        load_config({"eval": {"sources": {"digits": settings}}})


@pytest.mark.parametrize(
    ("field", "value"),
    [("folder", "data/x"), ("part", (0.0, 0.5)), ("boxes", "x.jsonl"), ("prepared", True)],
)
@pytest.mark.parametrize("section", ["data", "eval"])
@pytest.mark.parametrize("name", ["zoom_digits", "scenes"])
def test_settings_that_a_source_would_ignore_are_refused(section, name, field, value):
    settings = {field: value, "kind": "zoom_digits", "split": "validation", "weight": 2.0}
    with pytest.raises(ValueError) as refused:
        load_config({section: {"sources": {name: settings}}})
    assert f"{section}.sources.{name}.{field}={value!r} would be ignored" in str(refused.value)
    del settings[field]
    load_config({section: {"sources": {name: settings}}})


def numbers(cls: type, path: str = "") -> Iterator[tuple[str, type, Range, bool]]:
    """All numbers of a run: name, type, range, and whether the setting is a pair of them."""
    for name, kind in fields(cls).items():
        kind = optional(kind) or kind
        pair = typing.get_origin(kind) is tuple
        kind = typing.get_args(kind)[0] if pair else kind
        if typing.get_origin(kind) is typing.Annotated:
            yield f"{path}{name}", *typing.get_args(kind), pair
        elif kind in (int, float):
            yield f"{path}{name}", kind, None, pair
        elif dataclasses.is_dataclass(kind):
            yield from numbers(kind, f"{path}{name}.")
        elif typing.get_origin(kind) is Mapping:
            named = typing.get_args(kind)[1]
            if typing.get_origin(named) is typing.Annotated:
                yield f"{path}{name}.jsonl", *typing.get_args(named), False
            else:
                yield from numbers(named, f"{path}{name}.jsonl.")


NUMBERS = {name: rest for name, *rest in numbers(TrainConfig)}


def test_every_number_has_a_range():
    assert len(NUMBERS) >= 42 and all(limits for _, limits, _ in NUMBERS.values())


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_out_of_its_range_is_refused_by_name(name):
    kind, limits, pair = NUMBERS[name]
    lowest = limits.lowest if limits.above else limits.lowest - 1
    highest = limits.highest if limits.below else limits.highest + 1
    wrong = [kind(min(lowest, (limits.also or 0) - 1)), kind(highest), 10**30, -(10**30)]
    wrong += [math.nan, math.inf, -math.inf, "1", True, [1.0], {"a": 1}]
    wrong += [2.5] if kind is int else []
    for value in wrong:
        settings: dict[str, Any] = {"data": {}, "eval": {}}
        for section in ("data", "eval"):
            settings[section]["sources"] = {"jsonl": {"folder": "x"}}
        *path, last = name.split(".")
        section = settings
        for part in path:
            section = section.setdefault(part, {})
        section[last] = (value, value) if pair else value
        with pytest.raises(ValueError) as refused:
            load_config(settings)
        shown = f"{name}[0]" if pair else name
        assert str(refused.value) == f"{shown}={value!r} is not {PLAIN[kind]} {limits}"


def test_a_setting_that_does_not_exist_cannot_be_set():
    config = default_config()
    for section, name in ((config, "stpes"), (config.grpo, "group"), (config.data, "edge")):
        with pytest.raises(AttributeError, match="does not exist"):
            setattr(section, name, 1)


def test_another_rank_alone_does_not_change_the_scale_of_adapters():
    config = paper_sft(512)
    config.lora.rank = 16
    assert load_config(config).lora.scale == 2.0
    config.lora.alpha = 8.0
    assert load_config(config).lora.scale == 0.5


def test_the_papers_runs_have_the_released_settings():
    sft = load_config(paper_sft(1024))
    assert (sft.learning_rate, sft.clip_norm, sft.batch_size, sft.seed) == (5e-5, 1.0, 16, 42)
    assert sft.lora == LoRAConfig(rank=128, dropout=0.05)
    assert sft.lora.scale == 256 / 128
    grpo = load_config(paper_grpo(2048, "accuracy"))
    assert (grpo.grpo.num_generations, grpo.grpo.temperature, grpo.grpo.beta) == (6, 0.8, 0.01)
    assert (grpo.grpo.loss_type, grpo.grpo.normaliser) == ("dr_grpo", 32)
    assert (grpo.grpo.scale_rewards, grpo.grpo.temperature_in_log_probs) == ("none", False)
    assert (grpo.learning_rate, grpo.clip_norm, grpo.data.longest_edge) == (5e-6, 0.1, 2048)
    parts = [config.data.sources["docvqa"].part for config in (sft, grpo)]
    assert parts == [(0.0, 0.5), (0.5, 1.0)]  # half of the data each
    with pytest.raises(ValueError, match="neither"):
        paper_grpo(512, "bleu")


def test_the_official_preset_sets_every_difference():
    defects = {difference.setting for difference in OFFICIAL if difference.defect}
    assert defects == {"grpo.official_span", "data.official_text"}
    corrected, reproduced = paper_grpo(512, "likelihood"), official(paper_grpo(512, "likelihood"))
    for setting, value, _, defect in OFFICIAL:
        section, name = setting.split(".")
        assert reproduced[section][name] == value
        assert (corrected[section][name] == value) != defect


@pytest.mark.parametrize(
    "file",
    [
        "zoom_digits.py",
        "receipts.py",
        "pdf_pages.py",
        "own_data.py",
        *(f"paper/{path.name}" for path in sorted((EXPERIMENTS / "paper").glob("*.py"))),
    ],
)
def test_the_settings_of_experiments_are_sound(file):
    config = load_config(runpy.run_path(str(EXPERIMENTS / file))["get_config"]())
    assert config.data.sources and config.cropper


def test_the_variants_of_looks_are_sound():
    module = runpy.run_path(str(EXPERIMENTS / "look" / "look.py"))
    configs = {name: load_config(module["get_config"](name)) for name in module["VARIANTS"]}
    assert configs["pairs_k2"].grpo.max_boxes == 2
    assert {name for name, config in configs.items() if config.grpo.abstain} == {
        "price_low",
        "price_high",
        "mixed_gate",
        "budget",
    }
    assert [name for name, config in configs.items() if config.grpo.looks > 1] == ["deep_looks2"]
    assert list(configs["deep_looks1"].data.sources) == ["zoom_digits_deep"]
    with pytest.raises(ValueError, match="no variant 'pairs': use one of pairs_k1, pairs_k2"):
        module["get_config"]("pairs")


def test_the_page_of_settings_is_current():
    make = runpy.run_path(str(EXPERIMENTS / "make_config_docs.py"))
    assert (ROOT / "docs/config.md").read_text() == make["document"](), (
        "python experiments/make_config_docs.py"
    )
    assert all(f"`{name}`" in make["document"]() for name in make["OTHER_NAMES"])
