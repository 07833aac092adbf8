# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The supervised stage: completion-only cross-entropy on one conversation.

The cropper learns the format of boxes from it; the same loss teaches a tiny target to read.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cropvlm_jax.data.batching import SupervisedBatch
from cropvlm_jax.models import lora
from cropvlm_jax.models.vlm import VLM, one_row
from cropvlm_jax.train_state import TrainState


def completion_logits(model: VLM, batch: SupervisedBatch) -> jax.Array:
    """Logits that predict each completion token from what stands before it, fp32 `[B, C, V]`."""
    pictures = one_row(model.encode_images(batch.images))
    # The last completion token is only ever predicted.
    ids = jnp.concatenate([batch.prompt, batch.completion[:, :-1]], 1)
    valid = jnp.concatenate([batch.prompt_valid, batch.completion_valid[:, :-1]], 1)
    hidden, _ = model.read(ids[:, None], valid[:, None], pictures)
    return model.text.logits(hidden[:, 0, batch.prompt.shape[1] - 1 :])


def completion_loss(model: VLM, batch: SupervisedBatch) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy in nats, summed over all completion tokens, and how many these are."""
    losses = optax.softmax_cross_entropy_with_integer_labels(
        completion_logits(model, batch), batch.completion
    )
    tokens = batch.completion_valid.sum()
    return jnp.where(batch.completion_valid, losses, 0).sum(), tokens


def make_sft_step(
    policy: nnx.GraphDef, optimizer: optax.GradientTransformation, accumulate: int = 1
):
    """Builds the supervised step; the caller jits it and donates the state.

    Args:
        policy: of the SmolVLM whose weights are `state.params` and, under adapters, those in
            `state.frozen`.
        optimizer: applied to the mean loss a completion token.
        accumulate: microbatches a step, a divisor of the batch.

    Returns:
        `(state, batch, key) -> (state, metrics)`; the key is that of the adapters' dropout.
    """

    def step(state: TrainState, batch: SupervisedBatch, key: jax.Array):
        def add(total: Any, microbatch: tuple[SupervisedBatch, jax.Array]):
            part, key = microbatch

            def loss_fn(params: Any):
                model = lora.with_dropout(nnx.merge(policy, params, *state.frozen), key)
                return completion_loss(model, part)

            sums, grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
            return jax.tree.map(jnp.add, total, (grads, *sums)), None

        n, rows = accumulate, batch.prompt.shape[0]
        if rows % n:
            raise ValueError(f"accumulate={n} does not divide {rows} conversations")
        # Microbatch i takes every n-th conversation, so that each device keeps its own.
        parts = jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1), batch)
        zeros = jax.tree.map(jnp.zeros_like, state.params), jnp.float32(0), jnp.int32(0)
        with jax.named_scope("loss"):
            (grads, loss, tokens), _ = jax.lax.scan(add, zeros, (parts, jax.random.split(key, n)))
        with jax.named_scope("update"):
            grads = jax.tree.map(lambda g: g / tokens, grads)
            norm = optax.tree.norm(grads)
            metrics = {"loss": loss / tokens, "tokens": tokens, "grad_norm": norm}
            return state.apply_gradients(grads, optimizer), metrics

    return step


def make_sft_evaluation(policy: nnx.GraphDef):
    """Builds `(state, batch) -> {"loss": (sum, count)}`, the loss as in `make_sft_step`."""

    def evaluate(state: TrainState, batch: SupervisedBatch):
        return {"loss": completion_loss(nnx.merge(policy, state.params, *state.frozen), batch)}

    return evaluate
