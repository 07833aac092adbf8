# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Intervals, differences and counts."""

import numpy as np
import pytest

from cropvlm_jax.evals.conditions import NO_CROP, ORACLE
from cropvlm_jax.evals.intervals import Groups, bootstrap
from cropvlm_jax.evals.statistics import score_table


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    values = rng.random((100, 200)) < 0.3  # 200 evaluations of 100 items
    mean, (low, high) = bootstrap(values.astype(float), np.arange(100), np.zeros(100, int))
    np.testing.assert_allclose(mean, values.mean(0))
    assert 0.88 <= ((low <= 0.3) & (0.3 <= high)).mean() <= 0.99
    normal = 2 * 1.96 * np.sqrt(0.3 * 0.7 / 100)
    np.testing.assert_allclose(np.mean(high - low), normal, rtol=0.05)


def test_items_of_one_picture_count_as_one():
    one_each = np.random.default_rng(1).random((60, 1))
    width = np.diff(bootstrap(one_each, np.arange(60), np.zeros(60, int))[1], axis=0)
    copies, pictures = np.repeat(one_each, 4, 0), np.repeat(np.arange(60), 4)
    together = np.diff(bootstrap(copies, pictures, np.zeros(240, int))[1], axis=0)
    np.testing.assert_allclose(together, width)
    apart = np.diff(bootstrap(copies, np.arange(240), np.zeros(240, int))[1], axis=0)
    np.testing.assert_allclose(apart, width / 2, rtol=0.15)


def test_scores_gains_and_counts_by_hand():
    values = np.array([[0, 1, 1], [1, 1, 0], [0, 0.5, np.nan], [0, 0, 1]])
    groups = Groups(np.arange(4), np.zeros(4, int))
    table = score_table(values, [NO_CROP, "sft", ORACLE], "sft", groups)
    assert [table[name]["score"] for name in table] == pytest.approx([1 / 4, 2.5 / 4, 2 / 3])
    assert table["sft"]["gain"] == pytest.approx(1.5 / 4)
    assert table[ORACLE]["gain"] == pytest.approx(1 / 3)  # of the items that have a box
    assert table[NO_CROP]["lead"] == table["sft"]["gain"] and table["sft"]["lead"] == 0
    counts = {
        name: [row[key] for key in ("n", "rescued", "harmed", "neutral")]
        for name, row in table.items()
    }
    assert counts == {NO_CROP: [4, 0, 0, 4], "sft": [4, 2, 0, 2], ORACLE: [3, 2, 1, 0]}
    low, high = table["sft"]["gain_interval"]
    assert 0 <= low < 1.5 / 4 < high <= 1


def test_cyclic_orders_are_averaged_as_lmms_eval_does():
    values = np.array([[1], [0], [1], [1]])
    cycle = np.array([0, 0, 0, 1])  # orders that are not complete still count the same
    mean, _ = bootstrap(values, np.arange(4), cycle)
    np.testing.assert_allclose(mean, (2 / 3 + 1) / 2)
