# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How much memory the halves of a step around a host call take, from the compiler, before a run."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cropvlm_jax import parallel
from cropvlm_jax.grpo.black_box import BlackBoxStep
from cropvlm_jax.training.compilation import peak_memory


@dataclasses.dataclass(frozen=True)
class Halves:
    """The halves of a step, to be compiled for shapes that say which devices hold them.

    Attributes:
        step: the step.
        mesh: its devices.
    """

    step: BlackBoxStep
    mesh: Mesh

    def peak_memory(self, state: Any, batch: Any, key: Any) -> int:
        """Bytes that a step takes on a device at most.

        With several microbatches a second one has been rolled out meanwhile, and the gradients of
        those before are kept. Where `num_iterations` is above 1 the iterations after the first one
        are not compiled: they take about what the second half takes.

        Args:
            state: the train state.
            batch: a batch, without what the host alone uses.
            key: of the step.
        """
        count = self.step.step.config.gradient_accumulation_steps
        part = self.seen(state, jax.tree.map(functools.partial(_every, count), batch))
        rolling = jax.jit(parallel.on_mesh(self.mesh, self.step.roll_out))
        first = rolling.lower(state, part, key).compile()
        rolled = placed_outputs(first, jax.eval_shape(rolling, state, part, key))
        prompts, rollouts = rolled
        part = part._replace(canvas=None)  # which nothing more is cut from
        of_replies = jax.ShapeDtypeStruct(rollouts.count.shape, jnp.float32)
        scores = self.step.no_scores(part, of_replies)
        learning = jax.jit(parallel.on_mesh(self.mesh, self.step.learn))
        total, _ = jax.eval_shape(learning, state, part, prompts, rollouts, scores, None)
        total = total._replace(weights=jax.tree.map(_placed_as, total.weights, state.params))
        before = total if count > 1 else None
        second = learning.lower(state, part, prompts, rollouts, scores, before).compile()
        waiting = bytes_on_a_device(rolled) if count > 1 else 0
        kept = bytes_on_a_device(before)
        return max(peak_memory(first) + waiting + kept, peak_memory(second) + waiting)

    def seen(self, state: Any, batch: Any) -> Any:
        """The shapes of a microbatch whose tiles the devices have cut."""
        see = jax.jit(parallel.on_mesh(self.mesh, self.step.see))
        compiled = see.lower(state, batch).compile()
        return placed_outputs(compiled, jax.eval_shape(see, state, batch))


def placed_outputs(compiled: jax.stages.Compiled, shapes: Any) -> Any:
    """The shapes of what a compiled program returns, with the devices that hold it."""
    leaves, structure = jax.tree.flatten(shapes)
    shardings = jax.tree.leaves(compiled.output_shardings)
    placed = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        for x, sharding in zip(leaves, shardings, strict=True)
    ]
    return jax.tree.unflatten(structure, placed)


def bytes_on_a_device(tree: Any) -> int:
    """What shapes take on one device; those without a sharding count as whole."""
    return sum(math.prod(_shape_on_a_device(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _shape_on_a_device(x: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """The shape of the part of an array that one device holds."""
    return x.shape if x.sharding is None else tuple(x.sharding.shard_shape(x.shape))


def _placed_as(shape: Any, other: Any) -> jax.ShapeDtypeStruct:
    """A shape on the devices that hold another array."""
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=other.sharding)


def _every(count: int, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The shape of a microbatch of `count`."""
    shape = (x.shape[0] // count, *x.shape[1:])
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=x.sharding)
