# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The loss of rollouts that have been rewarded, put together from the parts in `objective`.

Shape letters: B prompts, G rollouts a prompt, T reply tokens, A actions.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cropvlm_jax.grpo import objective
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.experience import Experience
from cropvlm_jax.grpo.rollout import ReplyLogProbs
from cropvlm_jax.microbatching import Sums


def loss_of(
    config: GRPOConfig,
    max_choices: int,
    replies: ReplyLogProbs,
    experience: Experience,
    entropy_coef: jax.Array | None,
) -> tuple[jax.Array, tuple[Sums, jax.Array]]:
    """The summed loss of a microbatch, its metrics, and the choices' log-probabilities.

    Groups of too little spread are part of the metrics, but neither of the loss nor of the
    number of replies or choices that divides it.

    Args:
        config: settings of the step.
        max_choices: most choices of a rollout.
        replies: the rollouts as the policy sees them now.
        experience: what they are worth.
        entropy_coef: weight of the entropy; None where it is not rewarded.
    """
    reply, chosen = replies.reply, replies.chosen
    scored = jnp.isfinite(experience.rewards.total)
    mask = reply.allowed.any(-1) & scored[..., None]
    old = experience.old_log_probs
    surrogate = objective.clipped_surrogate(
        chosen,
        jax.lax.stop_gradient(chosen) if old is None else old,
        experience.advantages,
        config.epsilon,
        config.epsilon_high,
    )
    loss, tokens = -surrogate.value, mask.sum()
    entropy = -(jnp.exp(replies.actions) * replies.actions * reply.allowed).sum(-1)
    sums = {"entropy": (jnp.where(mask, entropy, 0).sum(), tokens)}
    if config.num_iterations > 1:
        sums["clip_low_fraction"] = (surrogate.clipped_low & mask).sum(), tokens
        sums["clip_high_fraction"] = (surrogate.clipped_high & mask).sum(), tokens
    if experience.reference_log_probs is not None:
        kl = _kl(config, replies, experience.reference_log_probs)
        loss += config.beta * kl
        name = "kl" if config.kl_loss_type == "exact" else f"kl_{config.kl_loss_type}"
        sums[name] = jnp.where(mask, kl, 0).sum(), tokens
    if entropy_coef is not None:
        loss -= entropy_coef * entropy
        sums["entropy_coef"] = entropy_coef, jnp.float32(1)
    if config.format_weight:
        malformed = jnp.where(reply.valid, -replies.well_formed, 0).sum(-1)
        malformed /= reply.valid.sum(-1)
        loss += config.format_weight * malformed[..., None]
        sums["malformed"] = jnp.where(scored, malformed, 0).sum(), scored.sum()
    counted = mask
    if config.min_reward_std:
        enough = objective.spread_enough(experience.rewards.total, config.min_reward_std)
        counted = mask & enough[:, None, None]
    normaliser = config.normaliser or max_choices
    sums["loss"] = objective.aggregate(loss, counted, config.loss_type, normaliser)
    return sums["loss"][0], (sums, jnp.where(mask, chosen, 0))


def _kl(
    config: GRPOConfig, replies: ReplyLogProbs, reference: Float[Array, "B G T A"]
) -> Float[Array, "B G T"]:
    """The KL to the reference at each choice, as `config.kl_loss_type` says."""
    if config.kl_loss_type == "exact":
        return objective.exact_kl(replies.actions, reference, replies.reply.allowed)
    chosen = jnp.take_along_axis(reference, replies.reply.action[..., None], -1)[..., 0]
    return objective.k3_kl(replies.chosen, chosen)
