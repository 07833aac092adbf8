# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a step and an evaluation tell about rollouts: sums and counts, which microbatches add up.

Shape letters: B prompts, G rollouts a prompt, T reply tokens.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cropvlm_jax.grpo import objective
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.rewards import Rewards, shown_area
from cropvlm_jax.grpo.rollout import Rollouts
from cropvlm_jax.microbatching import Sums


def rollout_metrics(
    config: GRPOConfig, rollouts: Rollouts, rewards: Rewards, log_probs: Float[Array, "B G T"]
) -> Sums:
    """Metrics of the rollouts.

    Args:
        config: settings of the step.
        rollouts: what was sampled.
        rewards: what it is worth.
        log_probs: of the choices, as the objective sees them.
    """
    scored = jnp.isfinite(rewards.total)

    def over_scored(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.where(scored, values, 0.0).sum(), scored.sum()

    deviation = objective.group_std(rewards.total)
    tied = objective.zero_variance(rewards.total)
    sums = {
        "reward": over_scored(rewards.total),
        **{f"reward/{name}": over_scored(part) for name, part in rewards.parts.items()},
        "reward_std": (deviation.sum(), jnp.asarray(deviation.size)),
        "zero_variance_groups": (tied.sum(), jnp.asarray(tied.size)),
        "unscored": ((~scored).sum(), jnp.asarray(scored.size)),
        **{name: (x.sum(), jnp.asarray(x.size)) for name, x in shown(config, rollouts, rewards)},
        "sampler_gap": over_scored(jnp.abs(log_probs.sum(-1) - rollouts.log_probs)),
    }
    if config.min_reward_std:
        left_out = ~objective.spread_enough(rewards.total, config.min_reward_std)
        sums["groups_left_out"] = left_out.sum(), jnp.asarray(left_out.size)
    return as_fp32(sums)


def shown(
    config: GRPOConfig, rollouts: Rollouts, rewards: Rewards
) -> list[tuple[str, Float[Array, "B G"]]]:
    """What replies show the target, by name of the metric: area, and where it varies how much.

    Of croppers that look twice also whether the second look went closer.
    """
    found = [("area", shown_area(rollouts.boxes, rollouts.count))]
    if config.varies:
        found.append(("boxes", rollouts.count.astype(jnp.float32)))
    if config.abstain:
        found.append(("no_crop", (rollouts.count == 0).astype(jnp.float32)))
    if rollouts.turns is not None:
        found.append(("second_look", rollouts.turns.second_count.astype(jnp.float32)))
    if rewards.crop_tokens is not None:
        found.append(("crop_tokens", rewards.crop_tokens))
    return found


def evaluation_sums(config: GRPOConfig, replies: Rollouts, rewards: Rewards) -> Sums:
    """Sums and counts of the reward, its parts and what is shown, where they are finite.

    Args:
        config: settings of the step.
        replies: the likeliest ones, G = 1.
        rewards: what they are worth.
    """
    parts = {f"reward/{name}": part for name, part in rewards.parts.items()}
    values = {"reward": rewards.total, **parts, **dict(shown(config, replies, rewards))}
    return {
        name: (jnp.where(jnp.isfinite(x), x, 0).sum(), jnp.isfinite(x).sum())
        for name, x in values.items()
    }


def as_fp32(sums: Sums) -> Sums:
    """Sums and counts as fp32 arrays, which microbatches can add up."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), sums)
