# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""One GRPO step of the bundled tiny models in fp32: its boxes, its loss and its gradients.

The models are trained, so that their boxes are no coin tosses, and small enough for any device. The
step is that of a run but for the optimizer, in whose place the gradients are kept.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from cropvlm_jax import parallel
from cropvlm_jax.data import batching
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.grpo.step import GRPOStep
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training.config import load_config
from cropvlm_jax.training.stages import open_stage
from cropvlm_jax.training.stages.grpo import GRPOStage

PROMPTS = 4
SETTINGS = {
    "cropper": "zoom_digits/cropper",
    "target": "zoom_digits/target",
    "batch_size": PROMPTS,
    "grpo": {"num_generations": 4, "beta": 0.0, "format_weight": 0.1},
    "data": {
        "longest_edge": 64,
        "canvas": (512, 512),
        "question_tokens": 16,
        "answer_tokens": 2,
        "tiles": "device",  # on all devices alike
    },
}


class StepResults(NamedTuple):
    """What a step gives.

    Attributes:
        boxes: int32 `[B, G, 4]`, the rollouts.
        rewards: fp32 `[B, G]`.
        loss: fp32 `[]`.
        gradients: fp32 `[n]`, of all trained weights.
    """

    boxes: np.ndarray
    rewards: np.ndarray
    loss: np.ndarray
    gradients: np.ndarray


def take(devices: Sequence[Any]) -> StepResults:
    """Takes the step.

    Args:
        devices: that share the prompts.
    """
    mesh = parallel.make_mesh(devices=devices)
    stage = open_stage(load_config(SETTINGS), mesh=mesh)
    assert isinstance(stage, GRPOStage)
    step = with_gradients_kept(stage.step())
    state = TrainState.create(optimizer=step.optimizer, **stage.weights)
    scenes = ZoomDigits("train", PROMPTS)
    batch = batching.stack([stage.prepare(scenes[i], i) for i in range(PROMPTS)])
    whole, batched = parallel.replicated(mesh), parallel.batch_sharding(mesh)

    def run(state: TrainState, batch: Any, key: jax.Array) -> tuple[Any, ...]:
        state, metrics, experience = step.run(state, batch, key)
        return (
            experience.boxes[:, :, 0],
            experience.rewards.total,
            metrics["loss"],
            state.opt_state.trace,
        )

    jitted = jax.jit(
        parallel.on_mesh(mesh, run), in_shardings=(whole, batched, whole), out_shardings=whole
    )
    state, batch, key = jax.device_put((state, batch, jax.random.key(0)), (whole, batched, whole))
    boxes, rewards, loss, gradients = jax.device_get(jitted(state, batch, key))
    flat = np.concatenate([x.ravel() for x in jax.tree.leaves(gradients)])
    return StepResults(boxes, rewards, loss, flat)


def with_gradients_kept(step: GRPOStep) -> GRPOStep:
    """A step whose optimizer's state is the gradient."""
    return dataclasses.replace(step, optimizer=optax.trace(decay=0.0))


def save(path: str | os.PathLike) -> None:
    """Takes the step on the first device of this process and writes its results, an .npz file."""
    np.savez(path, **take(jax.local_devices()[:1])._asdict())


def load(path: str | os.PathLike) -> StepResults:
    """The results that `save` wrote."""
    with np.load(path) as found:
        return StepResults(**found)
