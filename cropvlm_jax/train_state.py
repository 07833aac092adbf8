# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The state of a training run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class TrainState(NamedTuple):
    """What a step takes and returns.

    Attributes:
        step: int32 `[]`, updates done.
        params: weights being trained, fp32: all of the model's, or its adapters'.
        opt_state: optimizer state.
        frozen: weights of the trained model that stay as they are, under its adapters; empty where
            all are trained.
        reference: frozen weights of the KL reference, or None where there is none.
        target: frozen weights of the model that gives the reward, or None; without its vision tower
            and connector where they are those of the KL reference.
        schedule: learning rates by update, for an optimizer that takes them from there; or None.
        entropy_coef: fp32 `[]`, weight of the policy's entropy in the objective, which each step
            adapts; None where it is not rewarded.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    frozen: Any = ()
    reference: Any = None
    target: Any = None
    schedule: Any = None
    entropy_coef: Any = None

    @classmethod
    def create(
        cls, params: Any, optimizer: optax.GradientTransformation, **others: Any
    ) -> "TrainState":
        """A fresh state; `others` are the attributes that training does not change."""
        return cls(jnp.zeros((), jnp.int32), params, optimizer.init(params), **others)

    def apply_gradients(self, grads: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """One optimizer update."""
        update = optax.with_extra_args_support(optimizer).update
        updates, opt_state = update(grads, self.opt_state, self.params, schedule=self.schedule)
        params = optax.apply_updates(self.params, updates)
        return self._replace(step=self.step + 1, params=params, opt_state=opt_state)
