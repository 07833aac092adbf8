# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Intervals where all pictures agree, which a bootstrap alone would give no width."""

import numpy as np
import pytest
import scipy.stats

from cropvlm_jax.evals.conditions import NO_CROP
from cropvlm_jax.evals.intervals import Groups, bootstrap, estimate, newcombe, wilson
from cropvlm_jax.evals.statistics import score_table


def alone(count: int) -> Groups:
    """Every item has a picture of its own."""
    return Groups(np.arange(count), np.zeros(count, int))


@pytest.mark.parametrize(
    ("right", "count"),
    [
        (0, 1),
        (1, 1),
        (0, 2),
        (8, 8),
        (0, 8),
        (3, 8),
        (7, 8),
        (30, 30),
        (0, 100),
        (1000, 1000),
        (1, 3),
    ],
)
def test_wilson_is_scipy_s(right, count):
    want = scipy.stats.binomtest(right, count).proportion_ci(method="wilson")
    got = wilson(np.array([right / count]), np.array([count]))[:, 0]
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, 0.5, 2 / 3])
@pytest.mark.parametrize("count", [1, 2, 8, 32, 1000])
def test_a_score_that_all_pictures_agree_on_has_wilson_s_interval(value, count):
    mean, ends = estimate(np.full((count, 1), value), alone(count))
    low, high = ends[:, 0]
    assert mean[0] == pytest.approx(value) and 0 <= low <= value <= high <= 1
    np.testing.assert_allclose(ends[:, 0], wilson(mean, np.array([count]))[:, 0])
    assert high - low > 0.5 / count**0.5 or count == 1000
    assert (low == 0) == (value == 0) and (high == 1) == (value == 1)


def test_8_of_8_is_no_certainty():
    for value, (low, high) in {1.0: (0.676, 1), 0.0: (0, 0.324)}.items():
        _, ends = estimate(np.full((8, 1), value), alone(8))
        np.testing.assert_allclose(ends[:, 0], [low, high], atol=5e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.5, -0.25])
@pytest.mark.parametrize("count", [1, 3, 8, 100])
def test_a_difference_that_all_pictures_agree_on_has_a_width(value, count):
    mean, ends = estimate(np.full((count, 1), value), alone(count), differences=True)
    low, high = ends[:, 0]
    assert mean[0] == value and -1 <= low <= value <= high <= 1 and high - low > 0.3 / count
    np.testing.assert_allclose(newcombe(-mean, np.array([count]))[::-1, 0], -ends[:, 0])


def test_newcombe_by_hand():
    """No item of 8 was won or lost: each may be up to 32.4% of all."""
    np.testing.assert_allclose(
        newcombe(np.zeros(1), np.array([8])), [[-0.3244], [0.3244]], atol=1e-4
    )
    low, high = newcombe(np.ones(1), np.array([8]))[:, 0]
    assert high == 1 and low == pytest.approx(1 - 0.3244 * 2**0.5, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_all_other_intervals_are_the_bootstrap_s_as_they_were(seed):
    rng = np.random.default_rng(seed)
    values = (rng.random((20, 6)) < [[0.25, 0.5, 0.75, 0.5, 0.5, 0.5]]).astype(float)
    values[:, 3], values[0, 4] = 1.0, np.nan
    groups = Groups(np.repeat(np.arange(10), 2), np.tile([0, 1], 10))
    means, ends = estimate(values, groups)
    want_means, want_ends = bootstrap(values, groups.cluster, groups.cycle)
    np.testing.assert_array_equal(means, want_means)
    kept = [0, 1, 2, 4, 5]
    np.testing.assert_array_equal(ends[:, kept], want_ends[:, kept])
    np.testing.assert_allclose(ends[:, 3], wilson(np.ones(1), np.array([10]))[:, 0])  # pictures


def test_items_of_one_picture_are_one_witness():
    groups = Groups(np.zeros(8, int), np.zeros(8, int))
    _, ends = estimate(np.array([[1.0], [0.0]] * 4), groups)
    np.testing.assert_allclose(ends, wilson(np.array([0.5]), np.array([1])))
    known = np.array([[1.0]] * 4 + [[np.nan]] * 4)  # of pictures without a value nothing is known
    _, ends = estimate(known, alone(8))
    np.testing.assert_allclose(ends, wilson(np.array([1.0]), np.array([4])))


def test_a_condition_is_exactly_as_good_as_itself():
    table = score_table(np.ones((8, 2)), [NO_CROP, "sft"], "sft", alone(8))
    assert table[NO_CROP]["gain_interval"] == table["sft"]["lead_interval"] == [0, 0]
    assert table["sft"]["gain_interval"] == table[NO_CROP]["lead_interval"]
    assert table["sft"]["gain_interval"] == pytest.approx([-0.3244, 0.3244], abs=1e-4)
    assert table["sft"]["score_interval"] == pytest.approx([0.6756, 1], abs=1e-4)


@pytest.mark.parametrize("missing", [[0], [1], [0, 1], [2], [0, 1, 2]])
def test_what_has_no_value_is_none_and_says_why(missing):
    values = np.array([[0, 1, 1.0], [1, 1, 0]] * 4)
    values[:, missing] = np.nan
    names = [NO_CROP, "sft", "grpo"]
    table = score_table(values, names, "grpo", alone(8))
    for i, name in enumerate(names):
        row = table[name]
        gone = {
            "score": i in missing,
            "gain": i in missing or 0 in missing,
            "lead": i in missing or 2 in missing,
        }
        assert row["n"] == (0 if i in missing else 8)
        for key, is_gone in gone.items():
            assert (row[key] is None) == (row[f"{key}_interval"] is None) == is_gone
            assert (key in row.get("missing", {})) == is_gone
