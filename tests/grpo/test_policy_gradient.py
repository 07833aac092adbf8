# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a step's gradient is on average: the mean over all groups of two out of 36 boxes, in NumPy,
against sampled steps and against the gradient of the expected reward.
"""

import pathlib
import re
from typing import Any

import numpy as np
import pytest
from oracles import small_boxes
from oracles.small_boxes import BOXES, ENTROPY_COEF, PARTS, TEMPERATURE

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


def rewards(config: GRPOConfig) -> dict[str, np.ndarray]:
    """Parts of the reward of each box."""
    parts = PARTS | {"area": geometry.area(BOXES)}
    return {name: parts[name] for name in config.weights}


def in_groups(x: np.ndarray) -> np.ndarray:
    """Of the two boxes of every group: `[36, 36, 2]`."""
    return np.stack(np.broadcast_arrays(x[:, None], x[None]), -1)


def of_boxes(x: np.ndarray) -> np.ndarray:
    """Sums `[36]` over the groups that a box is in of what it has there, `[36, 36, 2]`."""
    return x[..., 0].sum(1) + x[..., 1].sum(0)


def centred(x: np.ndarray, scaled: bool) -> np.ndarray:
    difference = x - x.mean(-1, keepdims=True)
    return difference / (x.std(-1, ddof=1, keepdims=True) + 1e-4) if scaled else difference


def expected_gradient(config: GRPOConfig) -> np.ndarray:
    """The mean of a step's gradient over all groups, as the docstrings have the formulas."""
    replies, parts = small_boxes.read_all(), rewards(config)
    p = np.exp(replies.values["sampled"])
    total = in_groups(sum(config.weights[name] * part for name, part in parts.items()))
    compared = total
    if config.multi_objective_aggregation == "normalize_then_sum":
        compared = sum(
            config.weights[name] * centred(in_groups(part), True) for name, part in parts.items()
        )
    advantages = centred(compared, config.scale_rewards != "none")
    lengths = in_groups(replies.choices)
    share = {
        "grpo": 0.5 / lengths,
        "dr_grpo": 0.5 / (config.normaliser or 10) * np.ones_like(lengths),
        "dapo": np.ones_like(lengths) / lengths.sum(-1, keepdims=True),
    }[config.loss_type]
    share = share * (total.std(-1, ddof=1, keepdims=True) >= config.min_reward_std)
    share = share * (p[:, None] * p)[..., None]
    others = config.beta * replies.slopes[config.kl_loss_type]
    others = others - (ENTROPY_COEF if config.entropy_target else 0) * replies.slopes["entropy"]
    others = others + config.format_weight * replies.slopes["malformed"]
    log_probs = replies.slopes["sampled" if config.temperature_in_log_probs else "plain"]
    return of_boxes(share * -advantages) @ log_probs + of_boxes(share) @ others


def true_gradient(config: GRPOConfig) -> np.ndarray:
    """Of minus the expected reward."""
    replies, parts = small_boxes.read_all(), rewards(config)
    total = sum(config.weights[name] * part for name, part in parts.items())
    return -(np.exp(replies.values["sampled"]) * total) @ replies.slopes["sampled"]


CASES = {
    "sums": settings(**PARTED, beta=0.1, entropy_target=2.4, format_weight=0.3),
    "defaults": settings(loss_type="grpo", scale_rewards="group", beta=0.01),
    "normalised, spread": settings(
        **NORMALISED, loss_type="dapo", scale_rewards="batch", min_reward_std=0.8
    ),
    "official": settings(**OFFICIAL, beta=0.1, kl_loss_type="k3"),
}


@pytest.mark.parametrize("name", CASES)
def test_sampled_steps_agree_with_the_mean_over_all_groups(name):
    config = CASES[name]
    want, truth = expected_gradient(config), true_gradient(config)
    gradients = small_boxes.sampled_gradients(config, STEPS)
    random = np.random.default_rng(0).normal(size=(6, want.size))
    for direction in (want, truth, *random):
        along = gradients @ direction
        error = along.std(ddof=1) / STEPS**0.5
        assert abs(along.mean() - want @ direction) < 3 * error, (along.mean(), want @ direction)
    assert want @ want > (3 * (gradients @ want).std() / STEPS**0.5)  # it says something


@pytest.mark.parametrize("parts", [{}, PARTED])
def test_sums_of_rewards_that_are_not_scaled_give_the_gradient_of_the_expected_reward(parts):
    """But for the constant that divides them, and (G - 1) / G: a box is in its own baseline."""
    config = settings(**parts)
    got = expected_gradient(config)
    np.testing.assert_allclose(got * 10 * 2, true_gradient(config), rtol=1e-4, atol=1e-6)


BIASED = {
    '`loss_type="grpo"`': settings(loss_type="grpo"),
    '`loss_type="dapo"`': settings(loss_type="dapo"),
    '`scale_rewards="group"`': settings(scale_rewards="group"),
    '`multi_objective_aggregation="normalize_then_sum"`': settings(**NORMALISED),
    "`min_reward_std=0.3`": settings(min_reward_std=0.3),
    "`temperature_in_log_probs=False`": settings(temperature_in_log_probs=False),
}


def test_the_biases_are_those_that_the_page_tells():
    text = PAGE.read_text()
    for name, config in BIASED.items():
        got, truth = expected_gradient(config), true_gradient(config)
        cosine = got @ truth / np.linalg.norm(got) / np.linalg.norm(truth)
        print(name, round(cosine, 3))
        assert cosine < 0.9999, name
        (told,) = re.findall(rf"^\| {re.escape(name)} \|.*\| ([\d.]+) \|$", text, re.M)
        assert f"{cosine:.3f}" == told, name
