# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every setting of a run: frozen dataclasses, checked where they are made.

A run's module in `experiments/` starts from `default_config()`, which shows these settings as an
`ml_collections.ConfigDict`, so that flags such as `--config.grpo.beta=0.01` change them with the
right type. `load_config` turns that back into a checked `TrainConfig`. `docs/config.md` lists all
settings; `experiments/make_config_docs.py` writes it from this file.
"""

import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import ml_collections
from ml_collections.config_dict import placeholder

from cropvlm_jax import settings
from cropvlm_jax.data import sources
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.models.lora import LoRAConfig
from cropvlm_jax.pixels.canvas import FITTED, Canvas
from cropvlm_jax.settings import Range, Settings

Steps = Annotated[int, Range(0, 10_000_000)]
Count = Annotated[int, Range(1, 10_000_000)]
Rows = Annotated[int, Range(1, 65_536)]
Pixels = Annotated[int, Range(1, 16_384)]
Share = Annotated[float, Range(0, 1)]
Expansion = Annotated[float, Range(1, 10_000)]
Price = Annotated[float, Range(0, 1000)]


@dataclasses.dataclass(frozen=True)
class TargetProcessorConfig(Settings):
    """Settings of the target's image processor that replace its own; None keeps its own.

    Attributes:
        do_pad: LLaVA only: whether pictures are padded to squares; otherwise their centre is taken.
        max_pixels: Qwen2.5-VL and Qwen3-VL only: the most pixels of a picture that the model sees.
    """

    do_pad: bool | None = None
    max_pixels: Annotated[int, Range(1, 1_000_000_000)] | None = None


@dataclasses.dataclass(frozen=True)
class SourceConfig(Settings):
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
    weight: Annotated[float, Range(0, 1_000_000)] = 0.0
    part: tuple[Share, Share] = (0.0, 1.0)
    boxes: str = ""
    kind: str = ""
    prepared: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part[0] >= self.part[1]:
            raise ValueError(f"part={self.part} holds nothing: the first number is the smaller one")

    def check(self, name: str) -> None:
        """Refuses what a source with this name cannot be, and settings that it would ignore."""
        kind = self.kind or name
        if kind not in (*sources.NAMES, *sources.DRAWN):
            there = ", ".join((*sources.NAMES, *sources.DRAWN))
            raise ValueError(
                f"{name}.kind={self.kind!r}: {kind!r} is no data set; there are: {there}"
            )
        if kind not in sources.DRAWN:
            if not self.folder:
                raise ValueError(f"{name}.folder={self.folder!r}: say where the data set is")
            return
        if self.split not in sources.DRAWN[kind]:
            there = ", ".join(sources.DRAWN[kind])
            raise ValueError(f"{name}.split={self.split!r} is not one of {there}")
        for field in ("folder", "part", "boxes", "prepared"):
            value = getattr(self, field)
            if value != getattr(SourceConfig(), field):
                raise ValueError(
                    f"{name}.{field}={value!r} would be ignored: pictures of {kind} are drawn, not "
                    "read from a folder"
                )


def _check_sources(found: Mapping[str, SourceConfig]) -> None:
    """Checks the sources of a run, by name."""
    for name, one in found.items():
        try:
            one.check(name)
        except ValueError as error:
            close = difflib.get_close_matches(name, found.keys() - {name}, n=1)
            guess = f". Did you mean sources.{close[0]}?" if close else ""
            raise ValueError(f"sources.{error}{guess}") from error
    without = [name for name, one in found.items() if not one.weight]
    if without and len(without) < len(found):
        raise ValueError(
            f"sources.{without[0]}.weight=0.0: either all sources have a weight, or none has"
        )


@dataclasses.dataclass(frozen=True)
class ReaderConfig(Settings):
    """The crops that a reader in training is shown beside the pictures; stage "reader" only.

    Attributes:
        expansion: the least and the most area of a crop, in areas of the example's box. Drawn
            log-uniformly, once for each example.
        jitter: how far the box may be from the middle of the crop: 0 is in the middle, 1 may be at
            an edge.
        whole: share of the crops that are the whole picture, as all are of examples without a box.
    """

    expansion: tuple[Expansion, Expansion] = (1.0, 16.0)
    jitter: Share = 0.5
    whole: Share = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expansion[0] > self.expansion[1]:
            raise ValueError(f"expansion={self.expansion}: the first number is the smaller one")


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings):
    """The examples, and how they are shown to cropper and target.

    Attributes:
        sources: the data sets by name, each a `SourceConfig`.
        longest_edge: pixels of the longest edge of the cropper's input; where it is more than one
            tile of the model, the picture is split into tiles.
        canvas: height and width of the original pixels that crops are cut from; larger pictures are
            shrunk to fit. None takes for each batch the smallest canvas that holds its pictures, of
            1024 x 1024, 2368 x 1728, 4096 x 3072 and these two on their sides: only what fits none
            of them is shrunk. The step is compiled once for each that is used.
        tiles: where pictures are cut into tiles, "host" or "device"; "auto": host if that is a CPU.
        question_tokens: examples whose question has more tokens are skipped.
        answer_tokens: examples whose right answer has more tokens are skipped.
        official_text: whether texts get the official code's capitalisation and final period.
        workers: processes that prepare batches; 0 prepares them in threads of this one.
        budgets: what the cropper is told that it may spend on crops, and the price that this means,
            as of `grpo.token_price`: `{"low": 8.0, "high": 1.0}`. Each time that an example is
            shown one is drawn, " Budget: low." follows the question to the cropper, and the reward
            has its price. One cropper then serves all of them.
    """

    sources: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)
    longest_edge: Pixels = 512
    canvas: tuple[Pixels, Pixels] | None = None
    tiles: Literal["auto", "host", "device"] = "auto"
    question_tokens: Annotated[int, Range(1, 8192)] = 64
    answer_tokens: Annotated[int, Range(1, 1024)] = 32
    official_text: bool = False
    workers: Annotated[int, Range(0, 256)] = 0
    budgets: Mapping[str, Price] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_sources(self.sources)
        for name in self.budgets:
            if not re.fullmatch(r"\w+(?: \w+)*", name):
                raise ValueError(
                    f"budgets={dict(self.budgets)}: {name!r} is not made of words, and the cropper "
                    'is told "Budget: NAME."'
                )

    @property
    def canvases(self) -> tuple[Canvas, ...]:
        """What there is for the original pixels of a batch."""
        return FITTED if self.canvas is None else (Canvas(self.canvas[0], self.canvas[1]),)


@dataclasses.dataclass(frozen=True)
class EvalConfig(Settings):
    """The evaluation on held-out examples while a run trains.

    Attributes:
        every: steps between evaluations, and one after the last step; 0 never evaluates.
        examples: how many examples to evaluate on, the first ones of `sources`.
        sources: the data sets by name, each a `SourceConfig`.
    """

    every: Steps = 0
    examples: Count = 256
    sources: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_sources(self.sources)
        if self.every and not self.sources:
            raise ValueError(f"every={self.every} needs eval.sources, and there are none")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Settings):
    """When a run is saved, and what is kept.

    Attributes:
        every: steps between checkpoints; the last step is saved in any case.
        keep: how many of the latest checkpoints are kept.
        best: a metric such as "eval/reward"; the checkpoint where it is highest is kept as well.
    """

    every: Steps = 100
    keep: Count = 2
    best: str = ""


@dataclasses.dataclass(frozen=True)
class MeshConfig(Settings):
    """How devices share the work.

    Attributes:
        data: replicas of the weights; -1 takes the devices that the other axes leave.
        fsdp: devices that share one copy of the weights and of the optimizer's state.
        tensor: devices that share each matrix multiplication.
    """

    data: Annotated[int, Range(1, 65_536, also=-1)] = -1
    fsdp: Rows = 1
    tensor: Rows = 1


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings):
    """All settings of a run.

    Attributes:
        stage: "sft" teaches the cropper the boxes of the sources, "grpo" rewards the cropper by the
            target, which stays as it is, "reader" teaches the target to answer.
        cropper: the model to train: a folder, a Hugging Face id, or "zoom_digits/cropper", which
            comes with the package; of a PEFT adapter, its base model with the adapter merged in.
        target: the frozen reader that a GRPO run is rewarded by, or the model that stage "reader"
            trains: a folder, a Hugging Face id, or "zoom_digits/target", which comes with the
            package; for GRPO also a reader outside of the graph, such as "rapidocr:v4@256" or
            "openai:gpt-4.1-nano". `docs/readers.md` lists them.
        target_processor: settings of the target's image processor.
        dtype: type of the computation and of frozen weights; trained weights are always float32.
        remat: whether layers are computed again in the backward pass, which is slower and takes
            much less memory.
        attention: "auto" computes the attention of vision towers by the device's kernel, where it
            has one that works, "xla" always by plain XLA, which is slower. The start of a run says
            in the log if the kernel fails.
        seed: what the order of the data, rollouts, adapters and dropout are drawn from.
        steps: how many batches to train on; 0 takes as many as `epochs` says.
        epochs: passes over the data.
        batch_size: prompts of a step, over all devices.
        gradient_accumulation_steps: how many microbatches a batch is computed in, one after the
            other. More take less memory; the gradient is the same.
        learning_rate: rate of AdamW after the warm-up.
        lr_scheduler_type: after the warm-up "cosine" lets the learning rate fall to 0, which it
            reaches with the last step; "constant" keeps it, so that a run can be made longer.
        warmup: share of all steps, the first ones, in which the learning rate rises.
        clip_norm: norm that gradients are clipped to.
        adam_b2: decay of the optimizer's second moment.
        weight_decay: weight decay of AdamW.
        lora: the adapters to train; None (`lora.rank=0` as a flag) trains all weights.
        reader: what the stage "reader" shows.
        grpo: settings of the GRPO step.
        data: the examples.
        eval: the evaluation while the run trains.
        checkpoint: when the run is saved.
        export_every: steps between exports as Hugging Face folders; 0 exports only after the last
            step.
        mesh: how devices share the work.
    """

    stage: Literal["sft", "grpo", "reader"] = "grpo"
    cropper: str = ""
    target: str = ""
    target_processor: TargetProcessorConfig = TargetProcessorConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    attention: Literal["auto", "xla"] = "auto"
    seed: Annotated[int, Range(0, 2_147_483_647)] = 0
    steps: Steps = 0
    epochs: Annotated[float, Range(0, 10_000)] = 1.0
    batch_size: Rows = 16
    gradient_accumulation_steps: Rows = 1
    learning_rate: Annotated[float, Range(0, 1, above=True)] = 1e-5
    lr_scheduler_type: Literal["cosine", "constant"] = "cosine"
    warmup: Share = 0.03
    clip_norm: Annotated[float, Range(0, 1_000_000, above=True)] = 1.0
    adam_b2: Annotated[float, Range(0, 1, below=True)] = 0.999
    weight_decay: Annotated[float, Range(0, 10)] = 0.0
    lora: LoRAConfig | None = None
    reader: ReaderConfig = ReaderConfig()
    grpo: GRPOConfig = GRPOConfig()
    data: DataConfig = DataConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    export_every: Steps = 0
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.steps or self.epochs):
            raise ValueError("steps and epochs are both 0: set one of them")
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} does not divide "
                f"batch_size={self.batch_size}"
            )
        if self.data.budgets:
            _check_budgets(self)
        if self.checkpoint.best and not self.eval.every:
            raise ValueError(
                f"checkpoint.best={self.checkpoint.best!r} needs an evaluation: set eval.every"
            )


def _check_budgets(config: TrainConfig) -> None:
    """Refuses budgets beside settings that they do not go with."""
    grpo, given = config.grpo, f"data.budgets={dict(config.data.budgets)}"
    if config.stage == "reader":
        raise ValueError(f"{given}: stage='reader' trains no cropper that could be told them")
    if grpo.token_price:
        raise ValueError(
            f"{given} sets the price of each example, so that grpo.token_price="
            f"{grpo.token_price} would be ignored: leave one of them out"
        )
    if not grpo.varies:
        raise ValueError(
            f"{given}: with grpo.max_boxes=1 and grpo.abstain=False every reply has one crop, "
            "whatever it costs: set one of them"
        )
    try:  # prices go with what a price for all goes with
        dataclasses.replace(grpo, token_price=1.0)
    except ValueError as error:
        raise ValueError(f"{given}: as with a grpo.token_price, {error}") from error


# Settings that stand once at the top level and are handed to the part named.
SHARED = {"grpo": ("gradient_accumulation_steps",)}


def default_config() -> ml_collections.ConfigDict:
    """All settings with their defaults, for a run's module to change.

    Naming a setting that does not exist is an error; `data.sources` and `eval.sources` are open,
    and take what `source` makes, and `data.budgets`, which takes prices.
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
    view.data.budgets.unlock()
    return view


def load_config(given: Mapping[str, Any] | ml_collections.ConfigDict) -> TrainConfig:
    """The checked settings of a run.

    Args:
        given: nested settings by name, as `default_config` makes them; what is not named has its
            default.

    Raises:
        ValueError: a setting is not known, has the wrong type, or cannot work; the message names it
            and what there is instead.
    """
    values = _plain(given)
    lora = values.get("lora")
    if isinstance(lora, Mapping) and type(rank := lora.get("rank", 0)) is int and rank == 0:
        # All weights are trained; the other settings are checked all the same.
        settings.read(LoRAConfig, {**lora, "rank": 1}, "lora.")
        values["lora"] = None
    for section, names in SHARED.items():
        shared = {name: values[name] for name in names if name in values}
        if shared and isinstance(values.setdefault(section, {}), Mapping):
            values[section] = {**values[section], **shared}
    return settings.read(TrainConfig, values)


def _section(config: Any) -> ml_collections.ConfigDict:
    """A dataclass as a ConfigDict; settings that may be None keep the type of what they may be."""
    section = ml_collections.ConfigDict()
    for name, kind in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            value = _section(value)
        elif isinstance(value, Mapping):
            value = ml_collections.ConfigDict(
                {key: _section(x) if dataclasses.is_dataclass(x) else x for key, x in value.items()}
            )
        elif (inner := settings.optional(kind)) is not None:
            section[name] = placeholder(typing.get_origin(inner) or inner)
            if value is None:
                continue
        section[name] = value
    return section


def _plain(given: Any) -> dict[str, Any]:
    """Nested mappings as plain dictionaries."""
    if isinstance(given, ml_collections.ConfigDict):
        return given.to_dict()
    return {k: _plain(v) if isinstance(v, Mapping) else v for k, v in given.items()}
