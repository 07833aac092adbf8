# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The supervised stages: a cropper imitates boxes, a reader learns to answer."""

import dataclasses
import functools
from typing import Any

from jax.extend.core import ClosedJaxpr
from jax.sharding import Mesh

from cropvlm_jax.data.batching import BoxPreparer, SupervisedBatch
from cropvlm_jax.data.order import Prepare
from cropvlm_jax.data.reading import ReadingPreparer
from cropvlm_jax.grpo.rollout import likeliest
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.microbatching import Sums
from cropvlm_jax.models.decode import greedy_decode, read_prompt
from cropvlm_jax.pixels.plans import count_images
from cropvlm_jax.readers.registry import is_black_box
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training import costs
from cropvlm_jax.training.config import TrainConfig
from cropvlm_jax.training.schedule import Schedule, make_optimizer
from cropvlm_jax.training.sft import SFTStep
from cropvlm_jax.training.stages.base import (
    CropperModel,
    TrainedModel,
    load_trained,
    shapes_of,
)
from cropvlm_jax.training.stages.jitting import jit_program
from cropvlm_jax.training.stages.look import Look, words_of
from cropvlm_jax.training.stages.program import Program


@dataclasses.dataclass(frozen=True)
class SupervisedStage:
    """Imitates the replies of conversations; see `Stage` for the attributes."""

    config: TrainConfig
    trained: TrainedModel
    prepare: Prepare
    weights: dict[str, Any]
    target: Pretrained | None = None

    def step(self) -> SFTStep:
        """The update of the run."""
        optimizer = make_optimizer(self.config)
        return SFTStep(
            policy=self.trained.policy,
            optimizer=optimizer,
            gradient_accumulation_steps=self.config.gradient_accumulation_steps,
            longest_edge=self.trained.longest_edge,
        )

    def init(self, weights: dict[str, Any], steps: int) -> TrainState:
        """A fresh train state."""
        optimizer, schedule = make_optimizer(self.config), Schedule.of(self.config, steps)
        return TrainState.create(optimizer=optimizer, schedule=schedule, **weights)

    def compile(self, mesh: Mesh, steps: int) -> Program:
        """Step and evaluation for a mesh."""
        return jit_program(self, self.step(), mesh, steps)

    def evaluate(self, state: TrainState, batch: SupervisedBatch) -> Sums:
        """The held-out loss, and how many replies are written exactly; see `SFTStep.evaluate`."""
        return self.step().evaluate(state, batch)

    def look(self, state: TrainState, batch: SupervisedBatch) -> Look:
        """What the model makes of a held-out batch; each stage says it."""
        raise NotImplementedError

    def words(self, replies: Any) -> list[str]:
        """The texts of its replies."""
        return words_of(self.trained.pretrained, replies)

    def cost(self, program: ClosedJaxpr) -> dict[str, float]:
        """Operations of a step, all of them of its "loss"."""
        return costs.count_flops(program, ("loss",), backward="loss")

    def decoding(self, batch: SupervisedBatch) -> dict[str, float]:
        """Nothing: no token is decoded."""
        return {}

    def work(self, batch: SupervisedBatch) -> dict[str, int]:
        """Prompts and the model's tiles."""
        rows = batch.prompt.shape[0]
        return {"prompts": rows, "images": rows * count_images(batch.images)}


class SFTStage(SupervisedStage):
    """A cropper imitates the boxes of the sources."""

    @classmethod
    def open(cls, config: TrainConfig, abstract: bool, in_step: bool) -> "SFTStage":
        """Opens the cropper.

        Args:
            config: settings of the run.
            abstract: read no weights.
            in_step: whether the step cuts the cropper's tiles.

        Raises:
            ValueError: a setting is wrong.
        """
        if config.grpo.looks > 1:
            raise ValueError(
                f"grpo.looks={config.grpo.looks}: stage='sft' teaches single replies, and the "
                "second look is a conversation like the first one: leave it at 1 here, and set it "
                "in the GRPO run"
            )
        cropper, weights = CropperModel.open(config, abstract, in_step)
        prepare = BoxPreparer(
            cropper_input=cropper.input,
            reply_tokens=cropper.grammar.max_length,
            max_boxes=cropper.grammar.max_boxes,
            abstain=cropper.grammar.abstain,
            canvases=config.data.canvases if in_step else (),
        )
        return cls(config, cropper, prepare, weights)

    def look(self, state: TrainState, batch: SupervisedBatch) -> Look:
        """The likeliest boxes."""
        assert isinstance(self.trained, CropperModel)
        model, batch = self.step().model(state), self.step().see(state, batch)
        tokens = model.encode_images(batch.images)
        grammar = self.trained.grammar
        found = likeliest(model, grammar, tokens, batch.prompt, batch.prompt_valid)
        return Look(found.boxes[:, 0], found.count[:, 0])


class ReaderStage(SupervisedStage):
    """A reader learns to answer from a picture and a crop of it."""

    def look(self, state: TrainState, batch: SupervisedBatch) -> Look:
        """What the reader answers."""
        model, last = self.step().model(state), batch.prompt[:, -1:]
        tokens = model.encode_images(self.step().see(state, batch).images)
        replies = greedy_decode(
            model,
            read_prompt(model, tokens, batch.prompt, batch.prompt_valid),
            last,
            end_token=self.trained.pretrained.end_token_id,
            max_tokens=batch.completion.shape[1],
        )
        return Look(replies=replies.tokens[:, 0])

    @classmethod
    def open(cls, config: TrainConfig, abstract: bool, in_step: bool) -> "ReaderStage":
        """Opens the model that `config.target` names.

        Args:
            config: settings of the run.
            abstract: read no weights.
            in_step: whether the step cuts what the model sees.

        Raises:
            FileNotFoundError: the model is not there.
            ValueError: it cannot be trained here.
        """
        if is_black_box(config.target):
            raise ValueError(
                f"target={config.target!r} is outside of the graph; stage='reader' trains a model "
                "of this package"
            )
        changes = dataclasses.asdict(config.target_processor)
        pretrained = Pretrained.open(config.target, not abstract, changes)
        architecture, model = pretrained.architecture, pretrained.config
        if not architecture.reads_pixel_values:
            raise ValueError(
                f"target={config.target!r}: a {model.model_type} sees each picture at its own "
                "size, and stage='reader' makes batches of one shape"
            )
        side, limit = pretrained.tile_size, config.data.question_tokens
        prepare = ReadingPreparer(
            conversations=pretrained.conversations(
                official=config.data.official_text, max_question_tokens=limit
            ),
            see=functools.partial(architecture.see, model, longest_edge=side),
            expansion=config.reader.expansion,
            jitter=config.reader.jitter,
            whole=config.reader.whole,
            seed=config.seed,
            question_tokens=limit,
            answer_tokens=config.data.answer_tokens,
            canvases=config.data.canvases if in_step else (),
        )
        policy, base, weights = load_trained(pretrained, config, abstract)
        reader = TrainedModel(
            role="reader",
            setting="target",
            pretrained=pretrained,
            policy=policy,
            base=base,
            shapes=shapes_of(weights),
            longest_edge=side,
        )
        return cls(config, reader, prepare, weights)
