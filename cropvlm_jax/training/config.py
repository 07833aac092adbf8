# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every setting of a run: frozen dataclasses, checked where they are made.

A run's module in `experiments/` starts from `default_config()`, which shows these settings as an
`ml_collections.ConfigDict`, so that flags such as `--config.grpo.beta=0.01` change them with the
right type. `load_config` turns that back into a checked `TrainConfig`. `docs/config.md` lists all
settings; `experiments/make_config_docs.py` writes it from this file.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import ml_collections
from ml_collections.config_dict import placeholder

from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.models.lora import LoRAConfig


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


@dataclasses.dataclass(frozen=True)
class TargetProcessorConfig:
    """Settings of the target's image processor that replace its own; None keeps its own.

    Attributes:
        do_pad: LLaVA only: whether pictures are padded to squares; otherwise their centre is taken.
        max_pixels: Qwen2.5-VL only: the most pixels of a picture that the model sees.
    """

    do_pad: bool | None = None
    max_pixels: int | None = None


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One data set of a run.

    Attributes:
        folder: where the data set is.
        split: the split of the data set to use.
        weight: share of the examples that are drawn from this source; where all sources have 0,
            every example is drawn equally often.
        part: the stretch of the split to use, in its order, from 0 to 1.
        boxes: file of seed boxes that `cropvlm label` wrote; without it, the source's own boxes.
        kind: the name of the data set, such as "textvqa"; without it, the source's own name NAME
            is that of the data set.
        prepared: whether `folder` is what `cropvlm prepare` wrote, which shuffled training reads
            much faster than parquet.
    """

    folder: str = ""
    split: str = "train"
    weight: float = 0.0
    part: tuple[float, float] = (0.0, 1.0)
    boxes: str = ""
    kind: str = ""
    prepared: bool = False

    def __post_init__(self) -> None:
        _check(self.weight >= 0, f"weight={self.weight} must not be negative")
        first, last = self.part
        _check(0 <= first < last <= 1, f"part={self.part} is no stretch from 0 to 1")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The examples, and how they are shown to cropper and target.

    Attributes:
        sources: the data sets by name, each a `SourceConfig`.
        longest_edge: pixels of the longest edge of the cropper's input; where it is more than one
            tile of the model, the picture is split into tiles.
        canvas: height and width of the original pixels that crops are cut from; larger pictures are
            shrunk to fit.
        question_tokens: examples whose question has more tokens are skipped.
        answer_tokens: examples whose right answer has more tokens are skipped.
        official_text: whether texts get the official code's capitalisation and final period.
        workers: processes that prepare batches; 0 prepares them in threads of this one.
    """

    sources: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)
    longest_edge: int = 512
    canvas: tuple[int, int] = (2048, 2048)
    question_tokens: int = 64
    answer_tokens: int = 32
    official_text: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("longest_edge", "question_tokens", "answer_tokens"):
            _check(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        _check(min(self.canvas) >= 1, f"canvas={self.canvas} must be positive")
        _check(self.workers >= 0, f"workers={self.workers} must not be negative")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The evaluation on held-out examples while a run trains.

    Attributes:
        every: steps between evaluations, and one after the last step; 0 never evaluates.
        examples: how many examples to evaluate on, the first ones of `sources`.
        sources: the data sets by name, each a `SourceConfig`.
    """

    every: int = 0
    examples: int = 256
    sources: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.every >= 0, f"every={self.every} must not be negative")
        _check(self.examples >= 1, f"examples={self.examples} must be at least 1")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved, and what is kept.

    Attributes:
        every: steps between checkpoints; the last step is saved in any case.
        keep: how many of the latest checkpoints are kept.
        best: a metric such as "eval/reward"; the checkpoint where it is highest is kept as well.
    """

    every: int = 100
    keep: int = 2
    best: str = ""

    def __post_init__(self) -> None:
        _check(self.every >= 0, f"every={self.every} must not be negative")
        _check(self.keep >= 1, f"keep={self.keep} must be at least 1")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices share the work.

    Attributes:
        data: replicas of the weights; -1 takes the devices that the other axes leave.
        fsdp: devices that share one copy of the weights and of the optimizer's state.
        tensor: devices that share each matrix multiplication.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All settings of a run.

    Attributes:
        stage: "sft" imitates the boxes of the sources, "grpo" is rewarded by the target.
        cropper: the model to train: a folder, a Hugging Face id, or "zoom_digits/cropper", which
            comes with the package.
        target: the frozen reader that a GRPO run is rewarded by: a folder, a Hugging Face id, or
            "zoom_digits/target", which comes with the package; or a reader outside of the graph,
            such as "rapidocr:v4@256" or "openai:gpt-4.1-nano". `docs/readers.md` lists them.
        target_processor: settings of the target's image processor.
        dtype: type of the computation and of frozen weights; trained weights are always float32.
        remat: whether layers are computed again in the backward pass, which is slower and takes
            much less memory.
        seed: what the order of the data, rollouts, adapters and dropout are drawn from.
        steps: how many batches to train on; 0 takes as many as `epochs` says.
        epochs: passes over the data.
        batch_size: prompts of a step, over all devices.
        gradient_accumulation_steps: how many microbatches a batch is computed in, one after the
            other. More take less memory; the gradient is the same.
        learning_rate: rate of AdamW after the warm-up; it falls to 0 along a cosine.
        warmup: share of all steps, the first ones, in which the learning rate rises.
        clip_norm: norm that gradients are clipped to.
        adam_b2: decay of the optimizer's second moment.
        weight_decay: weight decay of AdamW.
        lora: the adapters to train; None (`lora.rank=0` as a flag) trains all weights.
        grpo: settings of the GRPO step.
        data: the examples.
        eval: the evaluation while the run trains.
        checkpoint: when the run is saved.
        export_every: steps between exports as Hugging Face folders; 0 exports only after the last
            step.
        mesh: how devices share the work.
    """

    stage: Literal["sft", "grpo"] = "grpo"
    cropper: str = ""
    target: str = ""
    target_processor: TargetProcessorConfig = TargetProcessorConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    seed: int = 0
    steps: int = 0
    epochs: float = 1.0
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-5
    warmup: float = 0.03
    clip_norm: float = 1.0
    adam_b2: float = 0.999
    weight_decay: float = 0.0
    lora: LoRAConfig | None = None
    grpo: GRPOConfig = GRPOConfig()
    data: DataConfig = DataConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    export_every: int = 0
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "weight_decay", "export_every"):
            _check(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        for name in ("batch_size", "gradient_accumulation_steps"):
            _check(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        _check(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be positive")
        _check(0 <= self.warmup <= 1, f"warmup={self.warmup} is a share, from 0 to 1")
        _check(
            self.batch_size % self.gradient_accumulation_steps == 0,
            f"gradient_accumulation_steps={self.gradient_accumulation_steps} does not divide "
            f"batch_size={self.batch_size}",
        )


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
    "data.workers": "`dataloader_num_workers`",
    "eval.every": "`eval_steps`",
    "checkpoint.every": "`save_steps`",
    "checkpoint.keep": "`save_total_limit`",
    "checkpoint.best": "`metric_for_best_model`",
}

# Settings that stand once at the top level and are handed to the part named.
SHARED = {"grpo": ("gradient_accumulation_steps",)}


def default_config() -> ml_collections.ConfigDict:
    """All settings with their defaults, for a run's module to change.

    Naming a setting that does not exist is an error; `data.sources` and `eval.sources` are open,
    and take what `source` makes.
    """
    return as_config_dict(TrainConfig())


def source(
    folder: str = "",
    split: str = "train",
    weight: float = 0.0,
    part: tuple[float, float] = (0.0, 1.0),
    boxes: str = "",
    kind: str = "",
    prepared: bool = False,
) -> ml_collections.ConfigDict:
    """Settings of one of the sources of a run; the arguments are those of `SourceConfig`."""
    return _section(
        SourceConfig(
            folder=folder,
            split=split,
            weight=weight,
            part=part,
            boxes=boxes,
            kind=kind,
            prepared=prepared,
        )
    )


def as_config_dict(config: TrainConfig) -> ml_collections.ConfigDict:
    """Settings as flags override them; `load_config` is the way back."""
    lora = config.lora or LoRAConfig()
    view = _section(dataclasses.replace(config, lora=lora))
    if config.lora is None:
        view.lora.rank = 0
    for section, names in SHARED.items():
        for name in names:
            del view[section][name]
    view.lock()
    view.data.sources.unlock()
    view.eval.sources.unlock()
    return view


def load_config(settings: Mapping[str, Any] | ml_collections.ConfigDict) -> TrainConfig:
    """The checked settings of a run.

    Args:
        settings: nested settings by name, as `default_config` makes them; what is not named has its
            default.

    Raises:
        ValueError: a setting is not known, has the wrong type, or cannot work; the message names it
            and what there is instead.
    """
    values = _plain(settings)
    if not values.get("lora", {}).get("rank"):
        values["lora"] = None
    for section, names in SHARED.items():
        given = {name: values[name] for name in names if name in values}
        values[section] = {**values.get(section, {}), **given}
    return _read(TrainConfig, values, "")


def _section(config: Any) -> ml_collections.ConfigDict:
    """A dataclass as a ConfigDict; settings that may be None keep the type of what they may be."""
    section = ml_collections.ConfigDict()
    for name, kind in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            value = _section(value)
        elif isinstance(value, Mapping):
            value = ml_collections.ConfigDict({key: _section(x) for key, x in value.items()})
        elif (inner := _optional(kind)) is not None:
            section[name] = placeholder(inner)
            if value is None:
                continue
        section[name] = value
    return section


def _optional(kind: Any) -> Any:
    """The type X of a setting of type `X | None`; None for other types."""
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return None
    inner = [x for x in typing.get_args(kind) if x is not type(None)]
    return inner[0] if len(inner) == 1 else None


def _plain(settings: Any) -> dict[str, Any]:
    """Nested mappings as plain dictionaries."""
    if isinstance(settings, ml_collections.ConfigDict):
        return settings.to_dict()
    return {k: _plain(v) if isinstance(v, Mapping) else v for k, v in settings.items()}


def _read(cls: Any, values: Mapping[str, Any], path: str) -> Any:
    """Makes a dataclass of nested values; `path` is where they stand, for messages."""
    kinds = typing.get_type_hints(cls)
    if unknown := sorted(values.keys() - kinds.keys()):
        raise ValueError(
            f"there is no setting {path}{unknown[0]}; there are: {', '.join(sorted(kinds))}"
        )
    found = {name: _convert(kinds[name], x, f"{path}{name}") for name, x in values.items()}
    try:
        return cls(**found)
    except ValueError as error:
        raise ValueError(f"{path}{error}") from error


def _convert(kind: Any, value: Any, name: str) -> Any:
    """Checks that a value has the type of its setting; whole numbers may stand for floats."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if (inner := _optional(kind)) is not None:
        return None if value is None else _convert(inner, value, name)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return _read(kind, value, f"{name}.")
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(arguments):
        return tuple(_convert(k, x, name) for k, x in zip(arguments, value, strict=True))
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _convert(arguments[1], x, f"{name}.{key}") for key, x in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isnan(value):
            return float(value)
    elif kind is not None and type(value) is kind:
        return value
    raise ValueError(f"{name}={value!r} is no {getattr(kind, '__name__', kind)}")
