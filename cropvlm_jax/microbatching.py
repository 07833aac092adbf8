# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A batch in several microbatches: less memory, the same gradient.

What a step computes of a microbatch are sums that are not divided yet (of losses, gradients and
metrics) and the numbers to divide them by. They add up exactly, however unequal the microbatches
are, and are divided once, in the end. Shape letters: B rows of a batch, N microbatches.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Sums = dict[str, tuple[jax.Array, jax.Array]]  # by metric: a sum, and what to divide it by


def check_divides(count: int, rows: int) -> None:
    """Refuses a number of microbatches that a batch cannot be split into.

    Args:
        count: number of microbatches.
        rows: of the batch.

    Raises:
        ValueError: `count` does not divide `rows`.
    """
    if rows % count:
        raise ValueError(
            f"gradient_accumulation_steps={count} does not divide the {rows} rows of a batch"
        )


def split(batch: Any, count: int) -> Any:
    """Splits a batch into microbatches.

    Microbatch i takes every N-th row from row i on, not a stretch of rows, so that each device of a
    mesh keeps the rows that it has.

    Args:
        batch: tree of arrays `[B, ...]`.
        count: N.

    Returns:
        The tree with arrays `[N, B / N, ...]`; `batch` itself where there is but one microbatch.

    Raises:
        ValueError: N does not divide B.
    """
    check_divides(count, jax.tree.leaves(batch)[0].shape[0])
    if count == 1:
        return batch
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)


def accumulate(compute: Callable[..., tuple[Any, Any]], count: int, *inputs: Any) -> Any:
    """Computes microbatch after microbatch and adds up what is to be added.

    Args:
        compute: a function of one microbatch of `inputs`. It returns a tree of sums, and a tree of
            what is to be kept of each microbatch.
        count: N.
        *inputs: trees of arrays `[N, ...]`, as `split` made them; without the leading axis where
            there is but one microbatch.

    Returns:
        The sums over all microbatches, and what was kept, stacked to arrays `[N, ...]`; not stacked
        where there is but one microbatch.
    """
    if count == 1:
        return compute(*inputs)

    def add(total: Any, microbatch: Any) -> tuple[Any, Any]:
        part, kept = compute(*microbatch)
        return jax.tree.map(jnp.add, total, part), kept

    shapes, _ = jax.eval_shape(compute, *jax.tree.map(lambda x: x[0], inputs))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, inputs)
