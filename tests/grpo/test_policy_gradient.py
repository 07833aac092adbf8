# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a step's gradient is on average: the mean over all groups of two out of 36 boxes, in NumPy,
against sampled steps and against the gradient of the expected reward. P are the prompts of a batch.
"""

import pathlib
import re
from typing import Any

import numpy as np
import pytest
from oracles import small_boxes
from oracles.small_boxes import (
    BOXES,
    ENTROPY_COEF,
    EPSILON,
    EPSILON_HIGH,
    PARTS,
    TEMPERATURE,
)

from cropvlm_jax import geometry
from cropvlm_jax.grpo.config import GRPOConfig

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "concepts.md"
STEPS = 600


def settings(**changes: Any) -> GRPOConfig:
    """Two rollouts, no KL; summed over choices and not scaled unless said otherwise."""
    plain = {"beta": 0.0, "loss_type": "dr_grpo", "scale_rewards": "none"}
    sampling = {"num_generations": 2, "temperature": TEMPERATURE}
    return GRPOConfig(**(sampling | plain | changes))


PARTED = {"verification_weight": 0.5, "accuracy_weight": 2.0, "area_weight": 0.7}
NORMALISED = PARTED | {"multi_objective_aggregation": "normalize_then_sum"}
OFFICIAL = {"temperature_in_log_probs": False, "normaliser": 32}


def rewards(config: GRPOConfig, prompts: int) -> dict[str, np.ndarray]:
    """Parts of the reward of each box `[P, 36]`."""
    parts = PARTS | {"area": np.stack([geometry.area(BOXES)] * len(PARTS["accuracy"]))}
    return {name: parts[name][:prompts] for name in config.weights}


def in_groups(x: np.ndarray) -> np.ndarray:
    """Of the boxes of every batch of groups of two: `[P, 36]` to `[36, .., 36, P, 2]`."""
    axes = 2 * len(x)  # two boxes a prompt
    columns = [x[k // 2].reshape([-1 if i == k else 1 for i in range(axes)]) for k in range(axes)]
    stacked = np.stack(np.broadcast_arrays(*columns), -1)
    return stacked.reshape(*stacked.shape[:-1], len(x), 2)


def of_boxes(x: np.ndarray) -> np.ndarray:
    """Sums `[P, 36]` over the groups that a box is in of what it has there."""
    axes = range(x.ndim - 2)
    sums = [x[..., k // 2, k % 2].sum(tuple(i for i in axes if i != k)) for k in axes]
    return np.stack(sums).reshape(-1, 2, len(BOXES)).sum(1)


def centred(x: np.ndarray, scale: str) -> np.ndarray:
    """Less the group's mean, over the deviation of the group or of the batch."""
    difference = x - x.mean(-1, keepdims=True)
    if scale == "none":
        return difference
    axes = -1 if scale == "group" else (-2, -1)
    return difference / (x.std(axes, ddof=1, keepdims=True) + 1e-4)


def shares(config: GRPOConfig, lengths: np.ndarray, total: np.ndarray) -> np.ndarray:
    """What a reply's choices count in the loss; `[36, .., 36, P, 2]` as both arguments."""
    deviation = total.std(-1, ddof=1, keepdims=True)
    counted = np.broadcast_to(deviation >= config.min_reward_std, total.shape).astype(float)
    if config.loss_type == "dapo":
        return counted / np.maximum((counted * lengths).sum((-2, -1), keepdims=True), 1)
    share = counted / np.maximum(counted.sum((-2, -1), keepdims=True), 1)
    return share / (lengths if config.loss_type == "grpo" else config.normaliser or 10)


def expected_gradient(config: GRPOConfig, prompts: int = 1) -> np.ndarray:
    """The mean of a step's gradient over all groups, as the docstrings have the formulas.

    With several updates it is that of an update at the weights `small_boxes.MOVED`.
    """
    replies, moved = small_boxes.read_all()
    slopes = {name: x[:prompts] for name, x in replies.slopes.items()}
    parts = rewards(config, prompts)
    total = in_groups(sum(config.weights[name] * part for name, part in parts.items()))
    compared = total
    if config.multi_objective_aggregation == "normalize_then_sum":
        compared = sum(
            config.weights[name] * centred(in_groups(part), "group") for name, part in parts.items()
        )
    advantages = centred(compared, config.scale_rewards)
    share = shares(config, in_groups(replies.choices[:prompts]), total)
    p = in_groups(np.exp(replies.values["sampled"][:prompts]))
    share = share * p.prod((-2, -1), keepdims=True)

    def weighed(weights: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        return np.einsum("pb,pbw->w", of_boxes(share * weights), slopes)

    if config.num_iterations > 1:
        raised, lowered = moved.slopes["raised"][:prompts], moved.slopes["lowered"][:prompts]
        return -weighed(np.maximum(advantages, 0), raised) - weighed(
            np.minimum(advantages, 0), lowered
        )
    others = config.beta * slopes[config.kl_loss_type]
    others = others - (ENTROPY_COEF if config.entropy_target else 0) * slopes["entropy"]
    others = others + config.format_weight * slopes["malformed"]
    log_probs = slopes["sampled" if config.temperature_in_log_probs else "plain"]
    return weighed(np.ones(()), others) - weighed(advantages, log_probs)


def true_gradient(config: GRPOConfig, prompts: int = 1) -> np.ndarray:
    """Of minus the expected reward, mean over the prompts."""
    replies, _ = small_boxes.read_all()
    total = sum(config.weights[name] * part for name, part in rewards(config, prompts).items())
    chances = np.exp(replies.values["sampled"][:prompts]) * total
    return -np.einsum("pb,pbw->w", chances, replies.slopes["sampled"][:prompts]) / prompts


# Settings, and prompts of a batch.
CASES = {
    "sums": (settings(**PARTED, beta=0.1, entropy_target=2.4, format_weight=0.3), 1),
    "defaults": (settings(loss_type="grpo", scale_rewards="group", beta=0.01), 1),
    "normalised, spread": (
        settings(**NORMALISED, loss_type="dapo", scale_rewards="batch", min_reward_std=0.8),
        2,
    ),
    "official": (settings(**OFFICIAL, beta=0.1, kl_loss_type="k3"), 1),
    "clipped": (
        settings(num_iterations=2, epsilon=EPSILON, epsilon_high=EPSILON_HIGH, loss_type="grpo"),
        2,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_sampled_steps_agree_with_the_mean_over_all_groups(name):
    config, prompts = CASES[name]
    want, truth = expected_gradient(config, prompts), true_gradient(config, prompts)
    gradients = small_boxes.sampled_gradients(config, STEPS, prompts)
    random = np.random.default_rng(0).normal(size=(6, want.size))
    for direction in (want, truth, *random):
        along = gradients @ direction
        error = along.std(ddof=1) / STEPS**0.5
        assert abs(along.mean() - want @ direction) < 3 * error, (along.mean(), want @ direction)
    assert want @ want > (3 * (gradients @ want).std() / STEPS**0.5)  # it says something


def test_clipping_stops_some_choices_and_not_others():
    _, moved = small_boxes.read_all()
    whole, raised, lowered = (moved.slopes[name] for name in ("sampled", "raised", "lowered"))
    assert (raised != lowered).any(-1).all() and (raised != whole).any() and lowered.any(-1).all()


@pytest.mark.parametrize("parts, prompts", [({}, 1), (PARTED, 1), (PARTED, 2)])
def test_sums_of_rewards_that_are_not_scaled_give_the_gradient_of_the_expected_reward(
    parts, prompts
):
    """But for the constant that divides them, and (G - 1) / G: a box is in its own baseline."""
    config = settings(**parts)
    got, want = expected_gradient(config, prompts), true_gradient(config, prompts)
    np.testing.assert_allclose(got * 10 * 2, want, rtol=1e-4, atol=1e-6)


BIASED = {
    '`loss_type="grpo"`': settings(loss_type="grpo"),
    '`loss_type="dapo"`': settings(loss_type="dapo"),
    '`scale_rewards="group"`': settings(scale_rewards="group"),
    '`scale_rewards="batch"`, two prompts': settings(scale_rewards="batch"),
    '`multi_objective_aggregation="normalize_then_sum"`': settings(**NORMALISED),
    "`min_reward_std=0.3`": settings(min_reward_std=0.3),
    "`temperature_in_log_probs=False`": settings(temperature_in_log_probs=False),
}


def test_the_biases_are_those_that_the_page_tells():
    text = PAGE.read_text()
    for name, config in BIASED.items():
        prompts = 2 if "two prompts" in name else 1
        got, truth = expected_gradient(config, prompts), true_gradient(config, prompts)
        cosine = got @ truth / np.linalg.norm(got) / np.linalg.norm(truth)
        print(name, round(cosine, 3))
        assert cosine < 0.9999, name
        (told,) = re.findall(rf"^\| {re.escape(name)} \|.*\| ([\d.]+) \|$", text, re.M)
        assert f"{cosine:.3f}" == told, name
