# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The supervised stage: the cropper imitates the boxes of the sources."""

import dataclasses
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr
from jax.sharding import Mesh

from cropvlm_jax.data.batching import BoxPreparer, SupervisedBatch
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.microbatching import Sums
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training import costs
from cropvlm_jax.training.config import TrainConfig
from cropvlm_jax.training.schedule import Schedule, make_optimizer
from cropvlm_jax.training.sft import SFTStep
from cropvlm_jax.training.stages.base import CropperModel
from cropvlm_jax.training.stages.jitting import jit_program
from cropvlm_jax.training.stages.program import Program


@dataclasses.dataclass(frozen=True)
class SFTStage:
    """Imitates boxes; see `Stage` for the attributes."""

    config: TrainConfig
    cropper: CropperModel
    prepare: BoxPreparer
    weights: dict[str, Any]
    target: Pretrained | None = None

    @classmethod
    def open(cls, config: TrainConfig, abstract: bool) -> "SFTStage":
        """Opens the cropper, without its weights if `abstract`."""
        cropper, weights = CropperModel.open(config, abstract)
        prepare = BoxPreparer(cropper_input=cropper.input, reply_tokens=cropper.grammar.max_length)
        return cls(config, cropper, prepare, weights)

    def step(self) -> SFTStep:
        """The update of the run."""
        optimizer = make_optimizer(self.config)
        return SFTStep(
            policy=self.cropper.policy,
            optimizer=optimizer,
            gradient_accumulation_steps=self.config.gradient_accumulation_steps,
        )

    def init(self, weights: dict[str, Any], steps: int) -> TrainState:
        """A fresh train state."""
        optimizer, schedule = make_optimizer(self.config), Schedule.of(self.config, steps)
        return TrainState.create(optimizer=optimizer, schedule=schedule, **weights)

    def compile(self, mesh: Mesh, steps: int) -> Program:
        """Step and evaluation for a mesh."""
        return jit_program(self, self.step(), mesh, steps)

    def evaluate(self, state: TrainState, batch: SupervisedBatch) -> Sums:
        """The held-out loss as `{"loss": (sum, count)}`."""
        return self.step().evaluate(state, batch)

    def cost(self, program: ClosedJaxpr) -> dict[str, float]:
        """Operations of a step, all of them of its "loss"."""
        return costs.count_flops(program, ("loss",), backward="loss")

    def decoding(self, batch: SupervisedBatch) -> dict[str, float]:
        """Nothing: no token is decoded."""
        return {}

    def work(self, batch: SupervisedBatch) -> dict[str, int]:
        """Prompts and the cropper's tiles."""
        rows, tiles = jax.tree.leaves(batch.images)[0].shape[:2]
        return {"prompts": rows, "images": rows * tiles}
