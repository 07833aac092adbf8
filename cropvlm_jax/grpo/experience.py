# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the phases of a GRPO step hand to each other.

Shape letters: B prompts, G rollouts a prompt, K boxes of a reply, N tiles, I tokens of a picture, D
width, T reply tokens, A actions.
"""

from typing import Any, NamedTuple

import jax

from cropvlm_jax.grpo.rewards import Rewards
from cropvlm_jax.grpo.rollout import Turns
from cropvlm_jax.microbatching import Sums
from cropvlm_jax.models.llama import KVCache


class ReadPrompts(NamedTuple):
    """The prompts of a look as the policy has read them.

    Attributes:
        prefix: their keys and values, which all rollouts share; in a second look each rollout has
            its own.
        pull_back: from gradients of these keys and values to those of the weights: `jax.vjp`'s
            pullback, a tree of arrays like any other.
        image_tokens: `[B, N, I, D]` of the tiles, where the policy's tower is not trained and so
            the reference sees the same; else None.
    """

    prefix: KVCache
    pull_back: Any
    image_tokens: jax.Array | None


class Experience(NamedTuple):
    """What the policy learns from: found once a step, used `num_iterations` times.

    Attributes:
        boxes: `[B, G, K, 4]`, the rollouts.
        count: int32 `[B, G]`, how many of its K boxes each has.
        rewards: what they are worth.
        advantages: fp32 `[B, G]`.
        reference_log_probs: fp32 `[B, G, T, A]`, of every action; None where beta is 0.
        old_log_probs: fp32 `[B, G, T]`, of the choices under the policy that sampled; None during
            the first iteration, whose policy that is.
        turns: both replies of each rollout where the cropper looks twice; else None.
    """

    boxes: jax.Array
    count: jax.Array  # type: ignore[assignment]  # a tuple has a method of this name
    rewards: Rewards
    advantages: jax.Array
    reference_log_probs: jax.Array | None
    old_log_probs: jax.Array | None = None
    turns: Turns | None = None


class Gradients(NamedTuple):
    """What microbatches add up to.

    Attributes:
        weights: gradients of the trained weights, not yet divided by the loss's denominator.
        sums: of the metrics; "loss" among them.
    """

    weights: Any
    sums: Sums
