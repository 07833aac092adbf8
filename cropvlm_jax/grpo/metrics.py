# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a step and an evaluation tell about rollouts: sums and counts, which microbatches add up.

Shape letters: B prompts, G rollouts a prompt, T reply tokens.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cropvlm_jax import geometry
from cropvlm_jax.grpo import objective
from cropvlm_jax.grpo.rewards import Rewards
from cropvlm_jax.grpo.rollout import Rollouts
from cropvlm_jax.microbatching import Sums


def rollout_metrics(
    rollouts: Rollouts, rewards: Rewards, log_probs: Float[Array, "B G T"], min_reward_std: float
) -> Sums:
    """Metrics of the rollouts.

    Args:
        rollouts: what was sampled.
        rewards: what it is worth.
        log_probs: of the choices, as the objective sees them.
        min_reward_std: groups of less spread are left out of the objective.
    """
    scored = jnp.isfinite(rewards.total)

    def over_scored(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.where(scored, values, 0.0).sum(), scored.sum()

    deviation = objective.group_std(rewards.total)
    tied = objective.zero_variance(rewards.total)
    area = geometry.area(rollouts.boxes[:, :, 0])
    sums = {
        "reward": over_scored(rewards.total),
        **{f"reward/{name}": over_scored(part) for name, part in rewards.parts.items()},
        "reward_std": (deviation.sum(), jnp.asarray(deviation.size)),
        "zero_variance_groups": (tied.sum(), jnp.asarray(tied.size)),
        "unscored": ((~scored).sum(), jnp.asarray(scored.size)),
        "area": (area.sum(), jnp.asarray(area.size)),
        "sampler_gap": over_scored(jnp.abs(log_probs.sum(-1) - rollouts.log_probs)),
    }
    if min_reward_std:
        left_out = ~objective.spread_enough(rewards.total, min_reward_std)
        sums["groups_left_out"] = left_out.sum(), jnp.asarray(left_out.size)
    return as_fp32(sums)


def evaluation_sums(boxes: Int[Array, "B 1 4"], rewards: Rewards) -> Sums:
    """Sums and counts of the reward, its parts and the boxes' area, where they are finite."""
    parts = {f"reward/{name}": part for name, part in rewards.parts.items()}
    values = {"reward": rewards.total, **parts, "area": geometry.area(boxes)}
    return {
        name: (jnp.where(jnp.isfinite(x), x, 0).sum(), jnp.isfinite(x).sum())
        for name, x in values.items()
    }


def as_fp32(sums: Sums) -> Sums:
    """Sums and counts as fp32 arrays, which microbatches can add up."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), sums)
