# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which settings fit: the search asks the compiler, which takes minutes each time, seldom."""

import dataclasses

import pytest

from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.training.config import TrainConfig
from cropvlm_jax.training.fitting import fastest, largest

CONFIG = TrainConfig(
    cropper="c", target="t", steps=1, batch_size=32, grpo=GRPOConfig(num_generations=8)
)


def search(config, limit, split=4):
    """The settings found where so many prompts times rollouts fit a chip, and how many were tried.

    A chip has 32 / 4 prompts, each with 2 units of its own and one a rollout that is read at once.
    """
    tried = []

    def fits(config):
        prompts = config.batch_size // split // config.gradient_accumulation_steps
        tried.append(config)
        return prompts * (2 + config.grpo.reward_chunk) <= limit

    found = fastest(config, split, fits)
    if found is None:
        return None, len(tried)
    assert found in tried
    assert found.grpo.gradient_accumulation_steps == found.gradient_accumulation_steps
    return (found.gradient_accumulation_steps, found.grpo.reward_chunk), len(tried)


@pytest.mark.parametrize(
    ("limit", "found", "tried"),
    [
        (80, (1, 8), 1),
        (79, (1, 4), 3),
        (47, (1, 2), 4),
        (24, (1, 1), 4),
        (23, (2, 2), 6),
        (10, (4, 2), 8),
        (2, None, 8),
    ],
)
def test_the_fewest_microbatches_then_the_most_rollouts_at_once(limit, found, tried):
    settings, count = search(CONFIG, limit)
    assert settings == found and count <= tried


def test_what_the_objective_does_not_allow_is_not_tried():
    grpo = dataclasses.replace(CONFIG.grpo, scale_rewards="batch")
    assert search(dataclasses.replace(CONFIG, grpo=grpo), 23) == (None, 2)
    with pytest.raises(ValueError, match="batch_size=32 is not a multiple of the 5 chips"):
        search(CONFIG, 80, split=5)


def test_the_largest_batch():
    for limit in range(13):
        tried = []

        def fits(size, limit=limit, tried=tried):
            tried.append(size)
            return size <= 4 * limit

        assert largest(fits, multiple=4, too_large=48) == 4 * min(limit, 11)
        assert len(tried) <= 4 and all(size % 4 == 0 for size in tried)
