# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The linear layers of all models, and how they multiply."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def precision(dtype: Any) -> jax.lax.Precision | None:
    """Matmul precision that makes fp32 mean fp32: a TPU multiplies in bf16 unless told so."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def layer(dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> Callable[..., nnx.Linear]:
    """`nnx.Linear` of a model that computes in `dtype`, left to be given its widths."""
    return functools.partial(
        nnx.Linear,
        dtype=dtype,
        param_dtype=param_dtype,
        precision=precision(dtype),
        dot_general=_dot_general,
        rngs=rngs,
    )


def _dot_general(
    x: jax.Array,
    kernel: jax.Array,
    dimensions: Any,
    precision: jax.lax.PrecisionLike = None,
    out_sharding: Any = None,
) -> jax.Array:
    """What `nnx.Linear` multiplies with; the dimensions are always those of `project`."""
    del dimensions, out_sharding
    return project(x, kernel, precision)


def multiply(
    x: jax.Array,
    y: jax.Array,
    contract: tuple[tuple[int, ...], tuple[int, ...]],
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Matmul over axes `contract[0]` of `x` and `contract[1]` of `y`, in the dtype of both.

    On a CPU, XLA multiplies bf16 in hardware only into fp32, so the result is rounded afterwards.
    """
    dimensions = contract, ((), ())
    plain = functools.partial(
        jax.lax.dot_general, dimension_numbers=dimensions, precision=precision
    )
    if x.dtype != jnp.bfloat16:
        return plain(x, y)
    rounded = functools.partial(_rounded, dimensions=dimensions)
    return jax.lax.platform_dependent(x, y, cpu=rounded, default=plain)


def _rounded(x: jax.Array, y: jax.Array, dimensions: Any) -> jax.Array:
    """A product of bf16 arrays that is fp32 until it is whole."""
    full = jax.lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32)
    return full.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(
    x: Float[Array, "*N I"], kernel: Float[Array, "I O"], precision: jax.lax.PrecisionLike
) -> Float[Array, "*N O"]:
    """`[..., I]` times `[I, O]`; the backward pass multiplies as the forward pass does."""
    return multiply(x, kernel, ((x.ndim - 1,), (0,)), precision)


def _project_forward(
    x: jax.Array, kernel: jax.Array, precision: jax.lax.PrecisionLike
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return project(x, kernel, precision), (x, kernel)


def _project_backward(
    precision: jax.lax.PrecisionLike, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    leading = tuple(range(x.ndim - 1))
    of_x = multiply(grad, kernel, ((grad.ndim - 1,), (1,)), precision)
    return of_x, multiply(x, grad, (leading, leading), precision)


project.defvjp(_project_forward, _project_backward)
