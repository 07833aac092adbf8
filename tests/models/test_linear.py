# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How linear layers multiply."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cropvlm_jax.models import linear


def value_and_gradients(x, kernel, seed):
    y, pull_back = jax.vjp(lambda x, kernel: linear.project(x, kernel, None), x, kernel)
    return y, *pull_back(jnp.broadcast_to(seed, y.shape).astype(y.dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_and_gradients_are_rounded_once_from_fp32(dtype):
    rng = np.random.default_rng(0)
    # Small integers: sums are exact in fp32, many are not in bf16.
    x, kernel = (
        jnp.array(rng.integers(-8, 9, shape), dtype) for shape in ((2, 3, 40, 256), (256, 48))
    )
    seed = jnp.array(rng.integers(-8, 9, 48), dtype)
    y, of_x, of_kernel = jax.jit(value_and_gradients)(x, kernel, seed)

    x, kernel, seed = (np.asarray(a, np.float64) for a in (x, kernel, seed))
    grad = np.broadcast_to(seed, (2, 3, 40, 48))
    np.testing.assert_array_equal(y, jnp.array(x @ kernel, dtype))
    np.testing.assert_array_equal(of_x, jnp.array(grad @ kernel.T, dtype))
    expected = np.einsum("abci,abco->io", x, grad)
    np.testing.assert_array_equal(of_kernel, jnp.array(expected, dtype))


def test_a_cpu_multiplies_bf16_into_fp32_and_a_tpu_into_bf16():
    layer = linear.layer("bfloat16", "float32", nnx.Rngs(0))(16, 8)
    traced = jax.jit(lambda x: layer(x)).trace(jnp.ones((4, 16), jnp.bfloat16))

    def matmuls(platform):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return [line.rsplit("->")[-1].strip() for line in text.splitlines() if "dot_gen" in line]

    assert matmuls("cpu") == ["tensor<4x8xf32>"]
    assert matmuls("tpu") == ["tensor<4x8xbf16>"]
