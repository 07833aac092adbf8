# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Layers stacked on a leading axis and scanned, so that compile time does not grow with depth."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from cropvlm_jax import parallel


def kept(x: jax.Array, under_remat: bool = False) -> jax.Array:
    """Marks a result of a layer that its backward pass reads; under `remat` only if it says so.

    What is not marked is computed again from what is: mark what takes matmuls.
    """
    return checkpoint_name(x, "kept under remat" if under_remat else "kept")


def stack(build: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """Builds `depth` layers as one module whose weights have a leading layer axis."""
    return nnx.vmap(build, in_axes=0, out_axes=0)(rngs.split(depth))


def scan(
    call: Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]],
    layers: nnx.Module,
    x: jax.Array,
    xs: Any,
    *,
    remat: bool,
    depth: int | None = None,
) -> tuple[jax.Array, Any]:
    """Applies stacked `layers` one after the other.

    Args:
        call: `(layer, x, x_of_layer) -> (x, y_of_layer)`.
        layers: what `stack` returned.
        x: activations `[B, ...]`, passed from layer to layer.
        xs: pytree of per-layer inputs, leading axis the layer (or None).
        remat: keep of a layer, beside its input, only what is `kept` under remat too.
        depth: apply only so many layers, without a copy of their weights; None applies all.

    Returns:
        The last activations and the layers' `y` stacked on a leading axis.
    """
    graphdef, weights = nnx.split(layers)

    def body(x: jax.Array, weights_and_xs: tuple[Any, Any]) -> tuple[jax.Array, Any]:
        weights, per_layer = weights_and_xs
        # Or the partitioner splits activations as the weights are, and gathers the batch instead.
        x = parallel.constrain(x, "batch")
        return call(nnx.merge(graphdef, weights), x, per_layer)

    names = ("kept under remat",) if remat else ("kept", "kept under remat")
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    if depth is None:
        return jax.lax.scan(body, x, (weights, xs))

    def numbered(x: jax.Array, index: jax.Array) -> tuple[jax.Array, Any]:
        def one(stacked: jax.Array) -> jax.Array:
            return jax.lax.dynamic_index_in_dim(stacked, index, keepdims=False)

        return body(x, jax.tree.map(one, (weights, xs)))

    return jax.lax.scan(numbered, x, jnp.arange(depth))
