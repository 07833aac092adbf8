# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A stage's step and evaluation, jitted for the devices of a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.extend.core import ClosedJaxpr
from jax.sharding import Mesh

from cropvlm_jax import microbatching, parallel
from cropvlm_jax.data.batching import Batch
from cropvlm_jax.grpo.black_box import without_host_parts
from cropvlm_jax.microbatching import Sums
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training import compilation
from cropvlm_jax.training.stages.halves import Halves
from cropvlm_jax.training.stages.look import Look

EVALUATION = "evaluation"  # the scope of what `Program.evaluate` computes
Step = Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Program:
    """What the trainer runs: the reward is part of the program.

    Attributes:
        mesh: the devices.
        shardings: how the train state is spread over them.
        create: makes the train state of the stage's weights, jitted.
        step: `(state, batch, key) -> (state, metrics)`, jitted; it donates the state.
        evaluate: `(state, batch) -> {name: (sum, count)}`, jitted.
        look: `(state, batch) -> Look`, jitted.
    """

    mesh: Mesh
    shardings: Any
    create: Any
    step: Any
    evaluate: Callable[[TrainState, Any], Sums]
    look: Callable[[TrainState, Any], Look]

    def put(self, batch: Any, batch_size: int) -> Any:
        """A batch as step and evaluation take it: this host's rows of it on the devices."""
        return parallel.to_devices(batch, parallel.batch_sharding(self.mesh), batch_size)

    def trace(self, state: Any, batch: Any, key: Any) -> ClosedJaxpr:
        """The step's jaxpr for these arrays or shapes; `compile` does not trace it again."""
        return self.step.trace(state, batch, key).jaxpr

    def compile(self, state: TrainState, batch: Any, key: jax.Array) -> Step:
        """The step compiled for the shapes of a batch."""
        return compilation.compile_step(self.step, state, batch, key)

    def peak_memory(self, state: Any, batch: Any, key: Any, platform: str) -> int:
        """Bytes that a step takes on a device at most, as the compiler says.

        Args:
            state: shapes, with the devices that hold them; so are `batch` and `key`.
            batch: of a step.
            key: of a step.
            platform: of the devices.
        """
        lowered = self.step.lower(state, batch, key)
        return compilation.peak_memory(lowered.compile(compilation.compiler_options(platform)))


@dataclasses.dataclass(frozen=True)
class BlackBoxProgram(Program):
    """What the trainer runs where a reader on the host gives the reward.

    `step` is a `grpo.black_box.BlackBoxStep`, which compiles its halves as it goes.
    """

    def put(self, batch: Any, batch_size: int) -> Any:
        """A batch as step and evaluation take it: on the host."""
        return batch

    def trace(self, state: Any, batch: Any, key: Any) -> ClosedJaxpr:
        """The parts of a step that are in the graph, one after the other."""
        return jax.make_jaxpr(self._without_reader)(state, without_host_parts(batch), key)

    def _without_reader(self, state: TrainState, batch: Batch, key: jax.Array) -> Any:
        """A step whose rewards are all 0."""
        halves, count = self.step, self.step.step.config.gradient_accumulation_steps

        def learn(batch: Batch, key: jax.Array) -> Any:
            batch = halves.see(state, batch)
            prompts, rollouts = halves.roll_out(state, batch, key)
            scores = halves.no_scores(batch, jnp.zeros(rollouts.count.shape))
            return halves.learn(state, batch, prompts, rollouts, scores, None)

        batch, keys = microbatching.split(batch, count), jax.random.split(key, count)
        keys = keys if count > 1 else keys[0]
        gradients, experience = microbatching.accumulate(learn, count, batch, keys)
        return halves.step.update(state, gradients, batch, experience)

    def compile(self, state: TrainState, batch: Any, key: jax.Array) -> Step:
        """The step, whose halves compile when they first run."""
        logging.info("the first step of these shapes compiles its halves on its way")
        return self.step

    def peak_memory(self, state: Any, batch: Any, key: Any, platform: str) -> int:
        """Bytes that the halves of a step take on a device at most, as the compiler says."""
        return Halves(self.step, self.mesh).peak_memory(state, without_host_parts(batch), key)
