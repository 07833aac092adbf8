# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The supervised stage: completion-only cross-entropy on one conversation.

The cropper learns the format of boxes from it; the same loss teaches a tiny target to read.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cropvlm_jax.models.smolvlm import SmolVLM
from cropvlm_jax.training.state import TrainState


class SupervisedBatch(NamedTuple):
    """B conversations.

    Attributes:
        images: uint8 `[B, N, S, S, 3]`, in the order of the prompt.
        prompt: token ids `[B, P]`, padded on the left so that the completion follows at once.
        prompt_valid: bool `[B, P]`.
        completion: token ids `[B, C]`, padded on the right.
        completion_valid: bool `[B, C]`.
    """

    images: Any
    prompt: Any
    prompt_valid: Any
    completion: Any
    completion_valid: Any


def completion_logits(model: SmolVLM, batch: SupervisedBatch) -> jax.Array:
    """Logits that predict each completion token from what stands before it, fp32 `[B, C, V]`."""
    features = model.encode_images(batch.images)
    features = features.reshape(features.shape[0], -1, features.shape[-1])
    # The last completion token is only ever predicted.
    ids = jnp.concatenate([batch.prompt, batch.completion[:, :-1]], 1)
    valid = jnp.concatenate([batch.prompt_valid, batch.completion_valid[:, :-1]], 1)
    hidden, _ = model.text(model.embed(ids, features)[:, None], valid[:, None])
    return model.text.logits(hidden[:, 0, batch.prompt.shape[1] - 1 :])


def make_sft_step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation):
    """Builds the jitted supervised step.

    Args:
        graphdef: of the SmolVLM whose weights are `state.params`.
        optimizer: applied to the mean loss a completion token.

    Returns:
        `(state, batch) -> (state, metrics)`; the state is donated.
    """

    def loss_fn(params: Any, batch: SupervisedBatch):
        logits = completion_logits(nnx.merge(graphdef, params), batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.completion)
        tokens = batch.completion_valid.sum()
        return jnp.where(batch.completion_valid, losses, 0).sum() / tokens, {"tokens": tokens}

    def step(state: TrainState, batch: SupervisedBatch):
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch)
        metrics |= {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return state.apply_gradients(grads, optimizer), metrics

    return jax.jit(step, donate_argnums=0)
