# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Conversations of any sizes become few shapes."""

import numpy as np

from cropvlm_jax.readers import batches
from cropvlm_jax.readers.batches import Row, make_batches


def test_batches_of_large_pictures_are_small(monkeypatch):
    monkeypatch.setattr(batches, "TILE_BYTES", 3 * 2 * 2)

    def row(patches):  # as Qwen's pictures: many tiles under a leading axis of pictures
        return Row(np.zeros((1, patches, 2, 2, 3), np.uint8), np.arange(7), np.arange(3))

    made = make_batches([row(16)] * 8 + [row(200)] * 2)
    assert [len(indices) for indices, _ in made] == [4, 4, 1, 1]


def test_batches_are_few_and_full():
    def row(tiles, prompt):
        return Row(np.zeros((tiles, 2, 2, 3), np.uint8), np.arange(prompt), np.arange(3))

    rows = [row(5, 7), *[row(1, 30)] * 70, *[row(5, 33)] * 13]
    made = [(indices, batch.images.shape, batch) for indices, batch in make_batches(rows)]
    assert sorted(sum((indices for indices, *_ in made), [])) == list(range(len(rows)))
    assert [(len(indices), shape[:2]) for indices, shape, _ in made] == [
        (64, (64, 1)),
        (8, (8, 5)),
        (6, (8, 1)),
        (6, (8, 5)),
    ]
    mixed = made[1][2]
    assert made[1][0][0] == 0 and mixed.prompt.shape == (8, 64)
    assert mixed.completion.shape == (8, 8)
    np.testing.assert_array_equal(mixed.prompt[0, -7:], np.arange(7))
    assert mixed.prompt_valid.sum(-1).tolist() == [7] + [33] * 7
