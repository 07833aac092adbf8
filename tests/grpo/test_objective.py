# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cropvlm_jax.grpo import objective
from cropvlm_jax.grpo.rollout import masked_log_softmax

RNG = np.random.default_rng(0)
REWARDS = RNG.normal(-20, 3, (5, 8)).astype(np.float32)
SCALES, AGGREGATIONS = ("group", "batch", "none"), ("grpo", "dr_grpo", "dapo")


def plain_advantages(rewards: np.ndarray, scale: str) -> np.ndarray:
    """By loops in double precision, over the finite rewards alone."""
    every = [float(r) for row in rewards for r in row if np.isfinite(r)]
    want = np.zeros(rewards.shape)
    for b, row in enumerate(rewards.astype(np.float64)):
        group = [r for r in row if np.isfinite(r)]
        among = {"group": group, "batch": every, "none": []}[scale]
        divisor = np.std(among, ddof=1) + 1e-4 if len(among) > 1 else 1
        for g, r in enumerate(row):
            if np.isfinite(r):
                want[b, g] = (r - np.mean(group)) / divisor
    return want


@pytest.mark.parametrize("scale", SCALES)
def test_advantages_are_relative_to_the_group(scale):
    got = objective.advantages(jnp.array(REWARDS), scale)
    np.testing.assert_allclose(got, plain_advantages(REWARDS, scale), atol=1e-5)
    np.testing.assert_allclose(np.mean(got, -1), 0, atol=1e-5)
    if scale == "group":
        np.testing.assert_allclose(np.std(got, -1, ddof=1), 1, atol=1e-3)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_unscored_rollouts_are_no_part_of_their_group(scale, bad):
    spoilt = REWARDS.copy()
    spoilt[0, 2] = spoilt[0, 5] = bad  # some of a group
    spoilt[1] = bad  # all of it
    spoilt[2, 1:] = bad  # all but one
    got = np.asarray(objective.advantages(jnp.array(spoilt), scale))
    np.testing.assert_allclose(got, plain_advantages(spoilt, scale), atol=1e-5)
    assert not got[~np.isfinite(spoilt)].any() and not got[2].any()
    zero = objective.zero_variance(jnp.array(spoilt))
    np.testing.assert_array_equal(zero, [False, True, True, False, False])
    if scale != "batch":
        np.testing.assert_array_equal(got[3:], objective.advantages(jnp.array(REWARDS), scale)[3:])
    assert not objective.advantages(jnp.full((2, 3), bad), scale).any()


@pytest.mark.parametrize("scale", SCALES)
def test_ties_teach_nothing(scale):
    for value in (0.0, -17.3, 1e4):
        rewards = jnp.full((2, 6), value).at[1, 0].add(1)
        got = objective.advantages(rewards, scale)
        assert not got[0].any() and got[1, 0] > 0
        rounded = rewards.at[0, 3].mul(1 + 1e-7)
        assert not objective.advantages(rounded, scale)[0].any()
        np.testing.assert_array_equal(objective.zero_variance(rounded), [True, False])
    got = objective.advantages(jnp.array([[1.0, 1.0, 1.0, 0.0]]), scale)[0]
    assert got[0] == got[1] == got[2] > 0 > got[3]


def test_near_ties_are_blown_up_by_their_own_deviation_alone():
    rewards = jnp.array([[0.0, 1e-3, -1e-3, 0.0], [3.0, 0.0, 1.0, 2.0]])
    assert np.abs(objective.advantages(rewards, "group")[0]).max() > 1
    for scale in ("batch", "none"):
        assert np.abs(objective.advantages(rewards, scale)[0]).max() <= 1.1e-3


def test_each_part_is_normalised_in_its_group_before_the_weighted_sum():
    parts = {
        "likelihood": REWARDS.copy(),
        "accuracy": RNG.integers(0, 2, REWARDS.shape).astype(np.float32),
        "area": RNG.random(REWARDS.shape).astype(np.float32),
    }
    parts["accuracy"][1] = 1  # all equal: says nothing
    parts["area"][2] = 0.3
    parts["likelihood"][3, 2] = parts["accuracy"][4, 5] = np.nan
    weights = {"likelihood": 1.0, "accuracy": 0.5, "area": -0.2}
    scored = np.isfinite(sum(parts.values()))
    want = np.where(scored, 0, np.nan)
    for name, part in parts.items():
        for b, row in enumerate(part.astype(np.float64)):
            known = row[scored[b]]
            want[b, scored[b]] += (
                weights[name] * (known - known.mean()) / (known.std(ddof=1) + 1e-4)
            )
    got = objective.normalize_then_sum({k: jnp.array(v) for k, v in parts.items()}, weights)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    # The unit of a part does not matter, its weight does.
    tenfold = {k: jnp.array(v) * (10 if k == "area" else 1) for k, v in parts.items()}
    again = objective.normalize_then_sum(tenfold, weights)
    np.testing.assert_allclose(again, got, rtol=2e-2, atol=1e-3)
    # GDPO divides by the deviation in the batch afterwards, whose mean is 0 already.
    known = want[scored]
    np.testing.assert_allclose(
        objective.advantages(got, "batch")[scored], known / (known.std(ddof=1) + 1e-4), atol=1e-3
    )


def test_groups_of_too_little_spread_are_told_by_their_deviation():
    rewards = np.array(
        [[1.0, 1.3, 0.7, 1.0], [0, 0, 0, 0], [5, np.nan, np.inf, np.nan], [0, np.nan, 1, 1]],
        np.float32,
    )
    deviations = [
        np.std(row[np.isfinite(row)].astype(np.float64), ddof=1)
        if np.isfinite(row).sum() > 1
        else 0
        for row in rewards
    ]
    np.testing.assert_allclose(objective.group_std(jnp.array(rewards)), deviations, rtol=1e-6)
    for least in (0.0, 0.1, 0.24, 0.25, 0.5, 0.6):
        got = objective.spread_enough(jnp.array(rewards), least)
        np.testing.assert_array_equal(got, np.array(deviations) >= least, str(least))


def test_the_weight_of_the_entropy_follows_its_target():
    coef, want = jnp.zeros(()), 0.0
    for entropy in (0.5, 0.2, 0.1, 0.2, 0.21, *[0.0] * 300, *[1.0] * 50):
        coef = objective.adapt_entropy_coef(coef, jnp.float32(entropy), 0.2)
        want = min(want + 0.005, 1.0) if np.float32(entropy) <= 0.2 else max(want - 0.005, 0.0)
        np.testing.assert_allclose(coef, want, atol=1e-5)
    assert 0.7 < coef < 0.8


# A group of policies and references over 12 actions, some of them not allowed.
ALLOWED = RNG.random((200, 12)) < 0.6
ALLOWED[:, 0] = True
LOGITS = RNG.normal(0, 3, (2, 200, 12)).astype(np.float32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In double precision, among the allowed actions alone."""
    masked = np.where(ALLOWED, logits.astype(np.float64), -1e30)
    return masked - np.log(np.exp(masked).sum(-1, keepdims=True))


def divergence_gradient(logits: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of KL(p || q) in the logits of p, by its formula p (log p / q - KL)."""
    log_p, log_q = log_softmax(logits), log_softmax(other)
    p = np.exp(log_p)
    ratio = np.where(ALLOWED, log_p - log_q, 0.0)
    return p * (ratio - (p * ratio).sum(-1, keepdims=True))


def policy(logits: Any) -> jax.Array:
    return masked_log_softmax(jnp.asarray(logits), jnp.asarray(ALLOWED), 1.0)


def test_exact_kl_and_its_gradient_are_those_of_kl_from_the_policy_to_the_reference():
    reference = policy(LOGITS[1])
    got = objective.exact_kl(policy(LOGITS[0]), reference, jnp.asarray(ALLOWED))
    log_p, log_q = log_softmax(LOGITS[0]), log_softmax(LOGITS[1])
    want = np.where(ALLOWED, np.exp(log_p) * (log_p - log_q), 0).sum(-1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(
        lambda x: objective.exact_kl(policy(x), reference, jnp.asarray(ALLOWED)).sum()
    )
    want = divergence_gradient(*LOGITS)
    np.testing.assert_allclose(gradient(LOGITS[0]), want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient(LOGITS[1]), 0, atol=1e-6)


def test_exact_kl_of_no_choice_of_a_sure_one_and_of_an_impossible_one():
    nothing = masked_log_softmax(jnp.zeros((1, 12)), jnp.zeros((1, 12), bool), 1.0)
    assert objective.exact_kl(nothing, nothing, jnp.zeros((1, 12), bool)) == 0
    sure, even = jnp.array([[0.0, -1e4, -1e4]]), jnp.zeros((1, 3))
    every = jnp.ones((1, 3), bool)

    def kl(logits: jax.Array, other: jax.Array) -> jax.Array:
        p, q = (masked_log_softmax(x, every, 1.0) for x in (logits, other))
        return objective.exact_kl(p, q, every).sum()

    value, gradient = jax.value_and_grad(kl)(sure, even)
    np.testing.assert_allclose(value, np.log(3), rtol=1e-6)
    assert np.isfinite(gradient).all()
    value, gradient = jax.value_and_grad(kl)(even, sure)
    assert value > 1000 and np.isfinite(gradient).all()


def test_mean_of_k3_is_the_kl_and_its_gradient_that_of_the_other_direction():
    """The mean over actions of the policy, whose probabilities have no part in the gradient."""
    reference = policy(LOGITS[1])

    def mean(logits: jax.Array) -> jax.Array:
        log_probs = policy(logits)
        weights = jax.lax.stop_gradient(jnp.exp(log_probs))
        return jnp.where(ALLOWED, weights * objective.k3_kl(log_probs, reference), 0).sum(-1)

    want = objective.exact_kl(policy(LOGITS[0]), reference, jnp.asarray(ALLOWED))
    np.testing.assert_allclose(mean(LOGITS[0]), want, rtol=1e-4, atol=1e-5)
    other_direction = np.exp(log_softmax(LOGITS[0])) - np.exp(log_softmax(LOGITS[1]))
    gradient = jax.grad(lambda x: mean(x).sum())(LOGITS[0])
    np.testing.assert_allclose(gradient, other_direction, rtol=1e-3, atol=1e-5)


def test_k3_is_never_negative_and_flat_at_equality():
    chosen, reference = jnp.array(RNG.normal(-3, 2, (2, 1000)), jnp.float32)
    kl = objective.k3_kl(chosen, reference)
    assert (kl >= 0).all()
    difference = np.asarray(reference, np.float64) - np.asarray(chosen, np.float64)
    np.testing.assert_allclose(kl, np.exp(difference) - difference - 1, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: objective.k3_kl(x, reference).sum())
    np.testing.assert_array_equal(objective.k3_kl(reference, reference), 0)
    np.testing.assert_array_equal(gradient(reference), 0)


def test_clipping():
    low, high = 0.2, 0.3
    ratios = np.array([0.1, 0.79, 0.81, 1.0, 1.29, 1.31, 5.0])
    signs = np.array([1.5, -1.5, 0.0])

    def surrogate(log_probs):
        advantages = jnp.array(signs)[None]
        return objective.clipped_surrogate(
            log_probs, jnp.zeros_like(log_probs), advantages, low, high
        )[0]

    log_probs = jnp.broadcast_to(jnp.log(ratios), (1, 3, len(ratios)))
    got = np.asarray(surrogate(log_probs))[0]
    _, stopped_low, stopped_high = objective.clipped_surrogate(
        log_probs, jnp.zeros_like(log_probs), jnp.array(signs)[None], low, high
    )
    np.testing.assert_array_equal(stopped_low[0], (ratios < 1 - low) & (signs < 0)[:, None])
    np.testing.assert_array_equal(stopped_high[0], (ratios > 1 + high) & (signs > 0)[:, None])
    slope = np.asarray(jax.grad(lambda x: surrogate(x).sum())(log_probs))[0]
    for i, advantage in enumerate(signs):
        for j, ratio in enumerate(ratios):
            clipped = min(max(ratio, 1 - low), 1 + high)
            np.testing.assert_allclose(
                got[i, j], min(ratio * advantage, clipped * advantage), rtol=1e-5
            )
            # No further once the ratio has gone the way that the advantage points.
            stopped = ratio > 1 + high if advantage > 0 else ratio < 1 - low
            want = 0 if stopped else ratio * advantage
            np.testing.assert_allclose(slope[i, j], want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_aggregation(kind):
    values = RNG.normal(size=(6, 4, 9)).astype(np.float32)
    mask = RNG.random((6, 4, 9)) < 0.6
    mask[1] = mask[2, 3] = False  # nothing chosen, or not scored
    total, count = objective.aggregate(jnp.array(values), jnp.array(mask), kind, 10)
    replies = [values[b, g, mask[b, g]] for b, g in np.ndindex(6, 4) if mask[b, g].any()]
    want = {
        "grpo": np.mean([reply.mean() for reply in replies]),
        "dr_grpo": np.mean([reply.sum() / 10 for reply in replies]),
        "dapo": np.concatenate(replies).mean(),
    }
    np.testing.assert_allclose(total / count, want[kind], rtol=1e-5)
    assert count == (mask.sum() if kind == "dapo" else 6 * 4 - 5)

    # Microbatches of any size, one of them with nothing in it, add up to the whole.
    parts = [
        objective.aggregate(jnp.array(values[s]), jnp.array(mask[s]), kind, 10)
        for s in (slice(0, 1), slice(1, 2), slice(2, 6))
    ]
    np.testing.assert_allclose(sum(part[0] for part in parts), total, rtol=1e-5)
    assert sum(part[1] for part in parts) == count


@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_masked_values_may_be_anything(kind):
    values, mask = jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4), bool).at[0].set(False)

    def total(values):
        return objective.aggregate(values, mask, kind, 10)[0]

    spoilt = values.at[0].set(jnp.nan)
    assert total(spoilt) == total(values)
    gradient = jax.grad(total)(spoilt)
    assert jnp.isfinite(gradient).all() and not gradient[0].any()
