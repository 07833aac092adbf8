# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The GRPO objective as pure functions over arrays.

Shape letters: B prompts, G rollouts a prompt, T reply tokens.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Advantage = Literal["std", "dr_grpo"]


def advantages(rewards: jax.Array, kind: Advantage, epsilon: float = 1e-4) -> jax.Array:
    """Rewards relative to their group.

    "std" is GRPO (arXiv 2402.03300): (r - mean) / (std + epsilon), std with G - 1 as in the
    official code; "dr_grpo" (arXiv 2503.20783) leaves out the division, which inflates noise where
    rollouts nearly tie. Rollouts whose reward is not finite are no part of their group and get 0.

    Args:
        rewards: fp32 `[B, G]`.
        kind: which of the two.
        epsilon: keeps the division finite.

    Returns:
        fp32 `[B, G]`.
    """
    scored = jnp.isfinite(rewards)
    count = scored.sum(-1, keepdims=True)

    def centre(x: jax.Array) -> jax.Array:
        return jnp.where(scored, x - x.sum(-1, keepdims=True) / jnp.maximum(count, 1), 0.0)

    # Twice, because a mean far from 0 is rounded, and ties would get what is left over.
    centred = centre(centre(jnp.where(scored, rewards, 0.0)))
    if kind == "dr_grpo":
        return centred
    variance = (centred**2).sum(-1, keepdims=True) / jnp.maximum(count - 1, 1)
    return centred / (jnp.sqrt(variance) + epsilon)


def kl_to_reference(log_probs: jax.Array, reference: jax.Array) -> jax.Array:
    """The k3 estimate of KL(policy || reference) at the sampled actions: never negative.

    Formula: exp(d) - d - 1 with d = reference - policy (http://joschu.net/blog/kl-approx.html).
    """
    difference = reference - log_probs
    return jnp.exp(difference) - difference - 1


def clipped_surrogate(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    clip_low: float,
    clip_high: float,
) -> jax.Array:
    """PPO's pessimistic surrogate (arXiv 1707.06347), to be maximised.

    Args:
        log_probs: `[B, G, T]` of the policy being updated.
        old_log_probs: `[B, G, T]` of the policy that sampled.
        advantages: `[B, G]`.
        clip_low: the ratio counts down to 1 - clip_low.
        clip_high: the ratio counts up to 1 + clip_high.

    Returns:
        `[B, G, T]`.
    """
    ratio = jnp.exp(log_probs - old_log_probs)
    advantages = advantages[..., None]
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    return jnp.minimum(ratio * advantages, clipped * advantages)


def aggregate(
    values: jax.Array, mask: jax.Array, kind: Advantage, max_tokens: int
) -> tuple[jax.Array, jax.Array]:
    """Sums token values to a loss that is not divided yet, so that microbatches add up exactly.

    "std" gives every reply the same weight (its tokens' mean); "dr_grpo" every token (a constant
    normaliser instead of the reply's length).

    Args:
        values: `[B, G, T]`.
        mask: bool `[B, G, T]`, tokens that count.
        kind: as in `advantages`.
        max_tokens: tokens of the longest reply.

    Returns:
        The sum and what to divide it by in the end.
    """
    per_reply = jnp.where(mask, values, 0.0).sum(-1)
    length = jnp.maximum(mask.sum(-1), 1) if kind == "std" else max_tokens
    replies = mask.any(-1)
    return jnp.where(replies, per_reply / length, 0.0).sum(), replies.sum()
