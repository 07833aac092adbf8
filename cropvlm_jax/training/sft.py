# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The supervised stage: completion-only cross-entropy on one conversation.

The cropper learns the format of boxes from it; the same loss teaches a tiny target to read.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float

from cropvlm_jax import microbatching
from cropvlm_jax.data.batching import SupervisedBatch
from cropvlm_jax.microbatching import Sums
from cropvlm_jax.models import lora
from cropvlm_jax.models.decode import completion_logits
from cropvlm_jax.models.vlm import VLM, ImageTokens, cut_planned
from cropvlm_jax.train_state import TrainState


def reply_logits(
    model: VLM, batch: SupervisedBatch, image_tokens: ImageTokens | None = None
) -> Float[Array, "B C V"]:
    """Logits of the completion's tokens.

    Args:
        model: the model.
        batch: B conversations.
        image_tokens: of its pictures, `[B, N, I, ...]`, where they are there already.
    """
    if image_tokens is None:
        image_tokens = model.encode_images(batch.images)
    return completion_logits(
        model,
        image_tokens,
        batch.prompt,
        batch.prompt_valid,
        batch.completion,
        batch.completion_valid,
    )


def completion_loss(
    logits: Float[Array, "B C V"], batch: SupervisedBatch
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy in nats, summed over all completion tokens, and how many these are."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.completion)
    tokens = batch.completion_valid.sum()
    return jnp.where(batch.completion_valid, losses, 0).sum(), tokens


def written_exactly(logits: Float[Array, "B C V"], batch: SupervisedBatch) -> Bool[Array, " B"]:
    """Whether greedy decoding writes a completion: each of its tokens is the likeliest one."""
    return ((logits.argmax(-1) == batch.completion) | ~batch.completion_valid).all(-1)


@dataclasses.dataclass(frozen=True)
class SFTStep:
    """One supervised update; the caller jits it and donates the state.

    Attributes:
        policy: of the model whose weights are `state.params` and, under adapters, those in
            `state.frozen`.
        optimizer: applied to the mean loss a completion token.
        gradient_accumulation_steps: microbatches a step, a divisor of the batch.
        longest_edge: pixels of the longest edge of the pictures that the step cuts tiles of; not
            read where the host has cut them.
    """

    policy: nnx.GraphDef
    optimizer: optax.GradientTransformation
    gradient_accumulation_steps: int = 1
    longest_edge: int = 0

    def __call__(
        self, state: TrainState, batch: SupervisedBatch, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Learns from one batch.

        Args:
            state: of the run.
            batch: conversations.
            key: of the adapters' dropout.

        Returns:
            The next state, and metrics, scalars.
        """
        count = self.gradient_accumulation_steps
        batch, keys = microbatching.split(batch, count), jax.random.split(key, count)
        keys = keys if count > 1 else keys[0]
        with jax.named_scope("loss"):
            compute = functools.partial(self.gradient, state)
            (grads, loss, tokens), _ = microbatching.accumulate(compute, count, batch, keys)
        with jax.named_scope("update"):
            grads = jax.tree.map(lambda g: g / tokens, grads)
            norm = optax.tree.norm(grads)
            metrics = {"loss": loss / tokens, "tokens": tokens, "grad_norm": norm}
            return state.apply_gradients(grads, self.optimizer), metrics

    def gradient(
        self, state: TrainState, batch: SupervisedBatch, key: jax.Array
    ) -> tuple[tuple[Any, jax.Array, jax.Array], None]:
        """The gradient of a microbatch's summed loss, that loss and its number of tokens."""
        batch = self.see(state, batch)

        def loss_fn(params: Any) -> tuple[jax.Array, jax.Array]:
            model = lora.with_dropout(nnx.merge(self.policy, params, *state.frozen), key)
            return completion_loss(reply_logits(model, batch), batch)

        (loss, tokens), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return (grads, loss, tokens), None

    def model(self, state: TrainState) -> VLM:
        """The model as it is trained, without dropout."""
        return nnx.merge(self.policy, state.params, *state.frozen)

    def see(self, state: TrainState, batch: SupervisedBatch) -> SupervisedBatch:
        """The batch with what the model sees, cut from canvases unless the host has done so."""
        images = cut_planned(self.model(state), batch.images, batch, self.longest_edge)
        return batch._replace(images=images)

    def evaluate(self, state: TrainState, batch: SupervisedBatch) -> Sums:
        """Sums and counts of the loss of a batch, and of the completions written exactly.

        There is no dropout.
        """
        logits = reply_logits(self.model(state), self.see(state, batch))
        exact = written_exactly(logits, batch).astype(jnp.float32)
        return {
            "loss": completion_loss(logits, batch),
            "exact": (exact.sum(), jnp.asarray(exact.size)),
        }
