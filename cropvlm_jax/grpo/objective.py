# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The GRPO objective as pure functions over arrays.

Shape letters: B prompts, G rollouts a prompt, T reply tokens.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LossType = Literal["grpo", "dr_grpo", "dapo"]
ScaleRewards = Literal["group", "batch", "none"]
KLLossType = Literal["exact", "k3"]
Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]

ENTROPY_COEF_DELTA = 0.005  # a step


class Surrogate(NamedTuple):
    """What `clipped_surrogate` finds.

    Attributes:
        value: fp32 `[B, G, T]`, to be maximised.
        clipped_low: bool `[B, G, T]`, where the lower bound stops the gradient.
        clipped_high: bool `[B, G, T]`, where the upper bound stops it.
    """

    value: jax.Array
    clipped_low: jax.Array
    clipped_high: jax.Array


def zero_variance(rewards: Float[Array, "B G"]) -> Bool[Array, " B"]:
    """Groups whose finite rewards are equal up to fp32 rounding.

    Their advantages are 0, so their rewards teach nothing; the terms of the loss that do not depend
    on rewards, of the KL to the reference and of the format, still act on them.

    Args:
        rewards: fp32 `[B, G]`.

    Returns:
        bool `[B]`; also True where fewer than two rewards are finite.
    """
    scored = jnp.isfinite(rewards)
    high = jnp.max(rewards, -1, where=scored, initial=-jnp.inf)
    low = jnp.min(rewards, -1, where=scored, initial=jnp.inf)
    return ~(high - low > 1e-6 * jnp.maximum(1, jnp.maximum(jnp.abs(high), jnp.abs(low))))


def advantages(
    rewards: Float[Array, "B G"], scale_rewards: ScaleRewards, stabiliser: float = 1e-4
) -> Float[Array, "B G"]:
    """Rewards relative to their group: (r - mean) / (std + stabiliser).

    The std, with n - 1 as in the official code, is the group's in GRPO (arXiv 2402.03300); that of
    all rewards of the batch in Lite PPO (arXiv 2508.08221), which keeps near-ties small; "none" as
    in Dr. GRPO (arXiv 2503.20783) divides by nothing. Rollouts whose reward is not finite are no
    part of their group or batch and get 0, as do groups of equal rewards.

    Args:
        rewards: fp32 `[B, G]`.
        scale_rewards: whose standard deviation to divide by.
        stabiliser: keeps the division finite.

    Returns:
        fp32 `[B, G]`.
    """
    scored = jnp.isfinite(rewards)
    rewards = jnp.where(scored, rewards, 0.0)

    def centre(x: jax.Array, axis: int | None) -> jax.Array:
        count = jnp.maximum(scored.sum(axis, keepdims=True), 1)
        return jnp.where(scored, x - x.sum(axis, keepdims=True) / count, 0.0)

    # Twice, because a mean far from 0 is rounded, and ties would get what is left over.
    centred = centre(centre(rewards, -1), -1)
    tied = zero_variance(jnp.where(scored, rewards, jnp.nan))
    centred = jnp.where(tied[:, None], 0.0, centred)
    if scale_rewards == "none":
        return centred
    axis = -1 if scale_rewards == "group" else None
    deviations = centred if scale_rewards == "group" else centre(centre(rewards, None), None)
    degrees = jnp.maximum(scored.sum(axis, keepdims=True) - 1, 1)
    return centred / (jnp.sqrt((deviations**2).sum(axis, keepdims=True) / degrees) + stabiliser)


def normalize_then_sum(
    parts: Mapping[str, Float[Array, "B G"]], weights: Mapping[str, float]
) -> Float[Array, "B G"]:
    """Parts of a reward, each normalised in its group before the weighted sum.

    Formula: the sum over parts k of w_k (r_k - mean r_k) / (std r_k + 1e-4), as in GDPO (arXiv
    2601.05242), which divides the sum by its standard deviation in the batch afterwards. A part
    that is equal all over its group adds nothing. A rollout is left out, NaN, where a part of it is
    not finite.

    Args:
        parts: fp32 `[B, G]` by name.
        weights: of the parts, by name.
    """
    scored = jnp.stack([jnp.isfinite(part) for part in parts.values()]).all(0)
    normalised = [
        weights[name] * advantages(jnp.where(scored, part, jnp.nan), "group")
        for name, part in parts.items()
    ]
    return jnp.where(scored, jnp.stack(normalised).sum(0), jnp.nan)


def group_std(rewards: Float[Array, "B G"]) -> Float[Array, " B"]:
    """The standard deviation of the finite rewards of each group; of fewer than two, 0.

    With n - 1, as `advantages` divides by: a group is a sample of the boxes of a prompt.

    Args:
        rewards: fp32 `[B, G]`.
    """
    scored = jnp.isfinite(rewards)
    count = jnp.maximum(scored.sum(-1, keepdims=True), 1)
    mean = jnp.where(scored, rewards, 0).sum(-1, keepdims=True) / count
    squares = jnp.where(scored, (rewards - mean) ** 2, 0).sum(-1)
    return jnp.sqrt(squares / jnp.maximum(count[:, 0] - 1, 1))


def spread_enough(rewards: Float[Array, "B G"], min_std: float) -> Bool[Array, " B"]:
    """Groups that count: those whose rewards have at least this `group_std`.

    Rewards that hardly differ are mostly noise, which dividing by their std would blow up. DAPO
    (arXiv 2503.14476) leaves out groups of equal rewards; a threshold is the same for rewards that
    are not 0 or 1. The groups left out are missing in the loss's denominator too, so that the
    others' losses are averaged over these others alone.

    Args:
        rewards: fp32 `[B, G]`.
        min_std: 0 keeps all groups.
    """
    return group_std(rewards) >= min_std


def adapt_entropy_coef(
    coef: Float[Array, ""], entropy: Float[Array, ""], target: float
) -> Float[Array, ""]:
    """The weight of the policy's entropy in the next step.

    Formula: min(c + 0.005, 1) where the entropy is at most the target, else max(c - 0.005, 0): the
    adaptive entropy control of Skywork-OR1 (arXiv 2505.22312), with the bounds that TRL has.
    Skywork-OR1 uses the weight only in steps that are below the target themselves; here the mean
    entropy of a batch is known only after its last microbatch, so the weight is used until it is 0.

    Args:
        coef: c, the weight in this step.
        entropy: nats, mean over the choices of this step.
        target: nats.
    """
    change = jnp.where(entropy <= target, ENTROPY_COEF_DELTA, -ENTROPY_COEF_DELTA)
    return jnp.clip(coef + change, 0.0, 1.0)


def exact_kl(
    log_probs: Float[Array, "*shape A"],
    reference: Float[Array, "*shape A"],
    allowed: Bool[Array, "*shape A"],
) -> Float[Array, "*shape"]:
    """KL(policy || reference) of each choice, summed over the actions: never negative.

    Formula: the sum of p log(p / q), with p the policy's probabilities and q the reference's. Its
    value and its gradient are exact at each choice. That an earlier choice changes which choices
    come later has no part in the gradient.

    Args:
        log_probs: of the policy, of each action.
        reference: log-probabilities of the reference.
        allowed: the actions that can be chosen; where there is none, the result is 0.
    """
    terms = jnp.exp(log_probs) * (log_probs - reference)
    return jnp.where(allowed, terms, 0.0).sum(-1)


def k3_kl(
    log_probs: Float[Array, "*shape"], reference: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """The k3 estimate of KL(policy || reference) from the chosen actions alone: never negative.

    Formula: exp(d) - d - 1 with d = reference - policy (http://joschu.net/blog/kl-approx.html), as
    in GRPO (arXiv 2402.03300). Over actions that the policy samples, its mean is the KL, but the
    mean of its gradient is that of KL(reference || policy), the other direction: the gradient of
    the sampling probabilities is left out.

    Args:
        log_probs: of the policy, of the chosen actions.
        reference: of the reference, of the same actions.
    """
    difference = reference - log_probs
    return jnp.exp(difference) - difference - 1


def clipped_surrogate(
    log_probs: Float[Array, "B G T"],
    old_log_probs: Float[Array, "B G T"],
    advantages: Float[Array, "B G"],
    epsilon: float,
    epsilon_high: float,
) -> Surrogate:
    """PPO's pessimistic surrogate (arXiv 1707.06347), with DAPO's two bounds (arXiv 2503.14476).

    Formula: min(ratio * advantage, clip(ratio, 1 - epsilon, 1 + epsilon_high) * advantage).

    Args:
        log_probs: of the policy being updated.
        old_log_probs: of the policy that sampled.
        advantages: of the rollouts.
        epsilon: the ratio counts down to 1 - epsilon.
        epsilon_high: the ratio counts up to 1 + epsilon_high.
    """
    ratio = jnp.exp(log_probs - old_log_probs)
    advantages = advantages[..., None]
    clipped = jnp.clip(ratio, 1 - epsilon, 1 + epsilon_high)
    return Surrogate(
        value=jnp.minimum(ratio * advantages, clipped * advantages),
        clipped_low=(ratio < 1 - epsilon) & (advantages < 0),
        clipped_high=(ratio > 1 + epsilon_high) & (advantages > 0),
    )


def aggregate(
    values: Float[Array, "B G T"],
    mask: Bool[Array, "B G T"],
    loss_type: LossType,
    normaliser: int,
) -> tuple[jax.Array, jax.Array]:
    """Sums token values to a loss that is not divided yet, so that microbatches add up exactly.

    "grpo" gives every reply the same weight (its tokens' mean, then the replies' mean); "dr_grpo"
    (arXiv 2503.20783) sums a reply's tokens over a constant instead of their number; "dapo"
    (DAPO, arXiv 2503.14476) is the mean of all tokens of the batch.

    Args:
        values: `[B, G, T]`.
        mask: bool `[B, G, T]`, tokens that count.
        loss_type: which of the three.
        normaliser: what "dr_grpo" divides a reply's sum by.

    Returns:
        The sum and what to divide it by in the end.
    """
    per_reply, lengths = jnp.where(mask, values, 0.0).sum(-1), mask.sum(-1)
    if loss_type == "dapo":
        return per_reply.sum(), lengths.sum()
    divisor = jnp.maximum(lengths, 1) if loss_type == "grpo" else normaliser
    return (per_reply / divisor).sum(), (lengths > 0).sum()
