# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Boxes for the tests of geometry, drawn at random or by hypothesis, and NumPy against JAX."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st

OFFICIAL_FACTORS = (1, 2, 4, 10, 45)
SPANS = np.array([(low, high) for low in range(100) for high in range(low + 1, 101)], np.int32)
_QUICK_COMPILE = {"xla_disable_hlo_passes": "fusion", "xla_backend_optimization_level": 0}

spans = st.sampled_from(SPANS.tolist())
valid_boxes = st.tuples(spans, spans).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1]))


def random_boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    """Valid boxes, int32 `[n, 4]`."""
    x, y = SPANS[rng.integers(len(SPANS), size=n)], SPANS[rng.integers(len(SPANS), size=n)]
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], -1)


def check_numpy_and_jax_agree(function: Callable, arguments: tuple[Any, ...]) -> None:
    """Asserts that a function gives the same of NumPy arrays as under jit."""
    arguments = jax.tree.map(
        lambda x: x.astype(np.int32) if getattr(x, "dtype", None) == np.int64 else x, arguments
    )
    host = function(*arguments)
    device = jax.jit(function, compiler_options=_QUICK_COMPILE)(*arguments)
    assert jax.tree.structure(host) == jax.tree.structure(device)
    for a, b in zip(jax.tree.leaves(host), jax.tree.leaves(device), strict=True):
        assert isinstance(a, np.ndarray) and isinstance(b, jax.Array)
        if b.dtype == np.float32:
            np.testing.assert_allclose(a, b, rtol=1e-6)
        else:
            assert a.dtype.kind == b.dtype.kind
            np.testing.assert_array_equal(a, b)
