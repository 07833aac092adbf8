# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings of the same training that need less memory, and which of them fit a device.

Neither changes what is learned: how many microbatches a batch is computed in, and how many rollouts
of a prompt the target reads at once.
"""

import bisect
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from cropvlm_jax.training.config import TrainConfig


def largest(fits: Callable[[int], bool], multiple: int, too_large: int) -> int:
    """The largest multiple below `too_large` that fits, found by bisection; 0 if none does."""
    return _last_that(fits, range(multiple, too_large, multiple)) or 0


def fastest(
    config: TrainConfig, split: int, fits: Callable[[TrainConfig], bool]
) -> TrainConfig | None:
    """The fastest settings for a batch that fit.

    Every microbatch reads the weights and exchanges gradients, and every part of a group reads the
    weights. So the fewest microbatches are the fastest, and of these the largest part of a group.

    Args:
        config: of a run.
        split: chips among which a batch is split.
        fits: whether the step of a config fits a chip. It is asked as seldom as possible.

    Returns:
        The config with these settings; None where even the least memory is too much.

    Raises:
        ValueError: the batch cannot be split so.
    """
    for microbatches in _counts(config, split):
        choices = [_with(config, microbatches, chunk) for chunk in _chunks(config)]
        if fits(choices[-1]):
            return choices[-1]
        # The smallest part next: where it is not the target that takes the memory, none helps.
        if len(choices) > 1 and fits(choices[0]):
            return _last_that(fits, choices[1:-1]) or choices[0]
    return None


def _last_that(fits: Callable[[Any], bool], choices: Sequence[Any]) -> Any:
    """The last of choices that fits, which need more and more memory; None if none does."""
    count = bisect.bisect_left(choices, True, key=lambda choice: not fits(choice))
    return choices[count - 1] if count else None


def _counts(config: TrainConfig, split: int) -> list[int]:
    """Numbers of microbatches that a batch may be computed in, the smallest first."""
    if config.stage == "grpo" and config.grpo.scale_rewards == "batch":
        return [1]  # of microbatches each would have a deviation of its own
    if config.batch_size % split:
        raise ValueError(
            f"batch_size={config.batch_size} is not a multiple of the {split} chips that split a "
            "batch: change batch_size or mesh"
        )
    return _divisors(config.batch_size // split)


def _chunks(config: TrainConfig) -> list[int]:
    """How many rollouts of a prompt the target may read at once, the fewest first."""
    group = config.grpo.num_generations
    return _divisors(group) if config.stage == "grpo" else [group]


def _divisors(number: int) -> list[int]:
    return [i for i in range(1, number + 1) if number % i == 0]


def _with(config: TrainConfig, microbatches: int, chunk: int) -> TrainConfig:
    """A config with these settings."""
    grpo = dataclasses.replace(
        config.grpo, gradient_accumulation_steps=microbatches, reward_chunk=chunk
    )
    return dataclasses.replace(config, gradient_accumulation_steps=microbatches, grpo=grpo)
