# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What every kind of run offers to the trainer, and the parts that they share."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from absl import logging
from flax import nnx
from jax.extend.core import ClosedJaxpr
from jax.sharding import Mesh

from cropvlm_jax.data.batching import CropperInput
from cropvlm_jax.data.budgets import Budgets
from cropvlm_jax.data.order import Prepare
from cropvlm_jax.geometry import Grammar
from cropvlm_jax.hub.model_card import Role
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.hub.replies import Replies
from cropvlm_jax.microbatching import Sums
from cropvlm_jax.models import lora
from cropvlm_jax.pixels.plans import PlannedTiles
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training.config import TrainConfig
from cropvlm_jax.training.stages.look import Look
from cropvlm_jax.training.stages.program import Program


class Stage(Protocol):
    """A kind of run."""

    @property
    def config(self) -> TrainConfig:
        """Settings of the run."""
        ...

    @property
    def trained(self) -> "TrainedModel":
        """The model being trained."""
        ...

    @property
    def target(self) -> Pretrained | None:
        """The frozen model that gives the reward inside of the graph, or None."""
        ...

    @property
    def prepare(self) -> Prepare:
        """Turns an example and its index into a row of a batch, of NumPy arrays.

        It is sent to data workers, which do not import jax.
        """
        ...

    @property
    def weights(self) -> dict[str, Any]:
        """The weights of the train state by attribute; shapes where the stage is abstract."""
        ...

    def init(self, weights: dict[str, Any], steps: int) -> TrainState:
        """A fresh train state of a run of `steps` batches; to be jitted."""
        ...

    def compile(self, mesh: Mesh, steps: int) -> Program:
        """Step and evaluation of a run of `steps` batches, jitted for a mesh."""
        ...

    def evaluate(self, state: TrainState, batch: Any) -> Sums:
        """Sums and counts of held-out metrics of a batch, by name."""
        ...

    def look(self, state: TrainState, batch: Any) -> Look:
        """What the model makes of a held-out batch."""
        ...

    def words(self, replies: Any) -> list[str]:
        """The texts of `Look.replies`."""
        ...

    def cost(self, program: ClosedJaxpr) -> dict[str, float]:
        """Operations of a step by phase; `program` is what `Program.trace` returned."""
        ...

    def decoding(self, batch: Any) -> dict[str, float]:
        """Bytes that decoding reads from a chip's memory, by phase, for that chip's `batch`."""
        ...

    def work(self, batch: Any) -> dict[str, int]:
        """How many prompts, rollouts and images a step on `batch` has."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """The model being trained, without its weights, which only the train state is to hold.

    Attributes:
        role: "cropper" or "reader": the folder of the workdir that it is written to.
        setting: "cropper" or "target": the setting of the run that names it.
        pretrained: its folder.
        policy: its graph, with adapters where they are trained.
        base: the graph without adapters; None where all weights are trained.
        shapes: of its weights, "params" and "frozen", as `TrainState` holds them.
        longest_edge: pixels that pictures are resized to, where they may be split into tiles.
        input: what a cropper sees of an example, by which batches of equal shapes are planned; None
            where all examples have the same shapes.
    """

    role: Role
    setting: str
    pretrained: Pretrained
    policy: nnx.GraphDef
    base: nnx.GraphDef | None
    shapes: dict[str, Any]
    longest_edge: int
    input: CropperInput | None = None

    def plain(self, weights: dict[str, Any]) -> nnx.State:
        """The part of `weights`, or of their shapes, that is the model without adapters."""
        return weights["frozen"][0] if self.base else weights["params"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropperModel(TrainedModel):
    """A cropper being trained.

    Attributes:
        grammar: of the boxes that it writes.
        second_grammar: of what it replies when it is shown its crop; None where it looks once.
        input: what it sees of an example.
    """

    grammar: Grammar
    second_grammar: Grammar | None
    input: CropperInput

    @classmethod
    def open(
        cls, config: TrainConfig, abstract: bool, in_step: bool
    ) -> tuple["CropperModel", dict[str, Any]]:
        """Opens the model and adds the adapters.

        Args:
            config: settings of the run.
            abstract: read no weights.
            in_step: whether the step cuts what the model sees, see `DataConfig.tiles`.

        Returns:
            The model, and its weights by attribute of the train state; shapes where `abstract`.

        Raises:
            FileNotFoundError: the model is not there.
            ValueError: the model cannot crop.
        """
        pretrained = Pretrained.open(config.cropper, weights=not abstract)
        architecture, longest_edge = pretrained.architecture, config.data.longest_edge
        if not architecture.can_crop:
            raise ValueError(
                f"cropper={config.cropper!r}: a {pretrained.config.model_type} may not be a cropper"
            )
        pretrained = _replying(pretrained, config)
        pretrained.log_cost(longest_edge)
        limit = config.data.question_tokens
        given = config.data.budgets
        budgets = Budgets(given, config.seed) if given else None
        room = 0 if budgets is None else budgets.room(pretrained.tokenizer)
        conversations = pretrained.conversations(
            official=config.data.official_text, max_question_tokens=limit + room
        )
        cropper_input = CropperInput(
            conversations=conversations,
            see=functools.partial(architecture.see, pretrained.config, longest_edge=longest_edge),
            grid=functools.partial(architecture.grid, pretrained.config, longest_edge=longest_edge),
            splits=architecture.splits(pretrained.config, longest_edge),
            question_tokens=limit,
            plan=_plan(pretrained, longest_edge) if in_step else None,
            budgets=budgets,
            budget_tokens=room,
            looks=config.grpo.looks,
        )
        policy, base, weights = load_trained(pretrained, config, abstract)
        cropper = cls(
            role="cropper",
            setting="cropper",
            pretrained=pretrained,
            policy=policy,
            base=base,
            shapes=shapes_of(weights),
            longest_edge=longest_edge,
            grammar=pretrained.grammar(),
            second_grammar=pretrained.second_grammar(),
            input=cropper_input,
        )
        return cropper, weights


def _replying(pretrained: Pretrained, config: TrainConfig) -> Pretrained:
    """The cropper with the replies that a run trains; warns where it wrote others before."""
    grpo = config.grpo
    budgets = tuple(config.data.budgets)
    replies = Replies(grpo.max_boxes, grpo.abstain, grpo.looks, budgets)
    if replies != dataclasses.replace(pretrained.replies, budgets=budgets):
        logging.warning(
            "cropper=%r writes %s; this run trains it to write %s, as grpo.max_boxes=%d, "
            "grpo.abstain=%s and grpo.looks=%d say",
            config.cropper,
            pretrained.replies,
            replies,
            replies.max_boxes,
            replies.abstain,
            replies.looks,
        )
    return dataclasses.replace(pretrained, replies=replies)


def _plan(pretrained: Pretrained, longest_edge: int) -> Callable[[int, int], PlannedTiles]:
    """What a step is to cut of a picture of a height and a width, to be sent to data workers."""
    plan = pretrained.architecture.plan
    if plan is None:
        kind = pretrained.config.model_type
        raise ValueError(f"data.tiles: a step cannot cut what a {kind} sees: set data.tiles='host'")
    return functools.partial(plan, pretrained.config, longest_edge=longest_edge)


def load_trained(
    pretrained: Pretrained, config: TrainConfig, abstract: bool
) -> tuple[nnx.GraphDef, nnx.GraphDef | None, dict[str, Any]]:
    """Loads a model that is to be trained, and adds the adapters.

    Args:
        pretrained: its folder.
        config: settings of the run.
        abstract: read no weights.

    Returns:
        `policy` and `base` of `TrainedModel`, and the weights by attribute of the train state;
        shapes where `abstract`.
    """
    dtype = jnp.dtype(config.dtype)
    load = pretrained.abstract if abstract else pretrained.load
    param_dtype = dtype if config.lora else jnp.float32
    plain = load(dtype=dtype, param_dtype=param_dtype, remat=config.remat)
    if config.lora is None:
        policy, params = nnx.split(plain)
        return policy, None, {"params": params, "frozen": ()}
    adapted = add_adapters(plain, config, abstract)
    policy, params, *frozen = nnx.split(adapted, lora.LoRAParam, ...)
    return policy, nnx.graphdef(plain), {"params": params, "frozen": tuple(frozen)}


def add_adapters(model: Any, config: TrainConfig, abstract: bool) -> Any:
    """The model with the adapters of a run beside its weights."""
    assert config.lora is not None
    adapters = config.lora

    def add() -> Any:
        return lora.add(model, adapters, nnx.Rngs(config.seed))

    return nnx.eval_shape(add) if abstract else add()


def shapes_of(tree: Any) -> Any:
    """A tree with the shapes of its arrays, which stays when the arrays are given away."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
