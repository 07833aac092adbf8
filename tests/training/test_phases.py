# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from cropvlm_jax.training import phases


def test_pieces_of_a_step_compute_what_it_computes():
    def step(weight, x):
        x = x + 1
        with jax.named_scope("prefix"):
            y, pull_back = jax.vjp(lambda w: jnp.tanh(w @ x), weight)
        with jax.named_scope("rollout"):
            z = jax.lax.fori_loop(0, 3, lambda i, z: z * y + i, y)
        with jax.named_scope("update"):
            gradient = pull_back(z)[0]
        return weight - gradient, {"norm": jnp.abs(gradient).sum(), "x": x}

    inputs = jnp.arange(6.0).reshape(2, 3) / 9, jnp.array([0.5, -1.0, 0.1])
    whole = jax.make_jaxpr(step)(*inputs)
    values = dict(zip(whole.jaxpr.invars, inputs, strict=True))
    pieces = phases.cut(whole.jaxpr)
    assert list(pieces) == ["prefix", "rollout", "update"]
    for piece in pieces.values():
        run = core.jaxpr_as_fun(core.ClosedJaxpr(piece, ()))
        values |= zip(piece.outvars, run(*(values[x] for x in piece.invars)), strict=True)
    results = [values[x] for x in whole.jaxpr.outvars]
    for result, expected in zip(results, jax.tree.leaves(step(*inputs)), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert all(
        seconds > 0 for seconds in phases.time_apart(lambda both: step(*both), inputs, 0).values()
    )
