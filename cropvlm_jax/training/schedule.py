# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The learning rate of a run, and the optimizer that takes it from the train state.

The numbers of the schedule are arguments of the compiled step, not constants in it. So runs of
other lengths or learning rates share one compiled program.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cropvlm_jax.training.config import TrainConfig


class Schedule(NamedTuple):
    """Learning rates by update: a linear warm-up, then a cosine to 0, or the same rate for ever.

    To the last bit those of `optax.warmup_cosine_decay_schedule` under jit, where XLA multiplies by
    the reciprocals of constants.

    Attributes:
        peak: fp32 `[]`, the rate after the warm-up.
        warmup: int32 `[]`, updates of the warm-up.
        rise: fp32 `[]`, the part of `peak` that an update of the warm-up adds.
        turn: fp32 `[]`, by how many radians an update after it moves on along the cosine.
    """

    peak: Any
    warmup: Any
    rise: Any
    turn: Any

    @classmethod
    def of(cls, config: TrainConfig, updates: int) -> "Schedule":
        """The schedule of a run of `updates` updates."""
        warmup = round(config.warmup * updates)
        one, falling = np.float32(1), np.float32(max(updates - warmup, 1))
        turn = np.float32(np.pi) * (one / falling) if config.lr_scheduler_type == "cosine" else 0
        return cls(
            peak=np.float32(config.learning_rate),
            warmup=np.int32(warmup),
            rise=one / np.float32(max(warmup, 1)),
            turn=np.float32(turn),
        )

    def __call__(self, count: jax.Array) -> jax.Array:
        """The learning rate of the update after `count` ones; fp32, of `count`'s shape."""
        rising = -self.peak * (1 - jnp.minimum(count, self.warmup) * self.rise) + self.peak
        falling = self.peak * (0.5 * (1 + jnp.cos((count - self.warmup) * self.turn)))
        return jnp.where(count < self.warmup, rising, falling)

    def as_numbers(self) -> dict[str, float]:
        """Its numbers by name, for JSON."""
        return {name: np.asarray(value).item() for name, value in self._asdict().items()}

    def agrees(self, numbers: dict[str, float], updates: int) -> bool:
        """Whether the first `updates` rates are those of a schedule given by `as_numbers`."""
        given = Schedule(**numbers)
        other = jax.tree.map(lambda own, x: np.asarray(x, own.dtype), self, given)
        counts = jnp.arange(updates)
        return bool((self(counts) == other(counts)).all())


def make_optimizer(config: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """AdamW with clipped gradients, whose `update` takes the learning rate from a `schedule`."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b2=config.adam_b2),
        optax.add_decayed_weights(config.weight_decay),
        _scale_by_schedule(),
    )


def _scale_by_schedule() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by minus the learning rate of `schedule`."""

    def init(_: optax.Params) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates,
        state: optax.ScaleByScheduleState,
        params: optax.Params | None = None,
        *,
        schedule: Schedule,
        **_: Any,
    ) -> tuple[optax.Updates, optax.ScaleByScheduleState]:
        rate = -schedule(state.count)
        scaled = jax.tree.map(lambda update: jnp.array(rate, update.dtype) * update, updates)
        count = optax.safe_increment(state.count)
        return scaled, optax.ScaleByScheduleState(count=count)

    return optax.GradientTransformationExtraArgs(init, update)
