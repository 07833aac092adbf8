# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Jits a stage for the devices of a mesh."""

import functools
from typing import Any

import jax
from jax.sharding import Mesh

from cropvlm_jax import parallel
from cropvlm_jax.training.stages.base import Stage
from cropvlm_jax.training.stages.program import EVALUATION, Program, Step


def state_shardings(stage: Stage, mesh: Mesh, steps: int) -> Any:
    """How the train state of a run of `steps` batches is spread over a mesh."""
    init = functools.partial(stage.init, steps=steps)
    shapes = jax.eval_shape(init, stage.weights)
    shardings = stage.trained.pretrained.state_shardings(mesh, shapes)
    if stage.target is None:
        return shardings
    return shardings._replace(target=stage.target.state_shardings(mesh, shapes.target))


def jit_program(stage: Stage, step: Step, mesh: Mesh, steps: int) -> Program:
    """Jits a stage whose step is one function of the graph.

    Args:
        stage: the stage.
        step: its step.
        mesh: the devices.
        steps: batches of the run.
    """
    shardings = state_shardings(stage, mesh, steps)
    batched, replicated = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    init = functools.partial(stage.init, steps=steps)
    return Program(
        mesh=mesh,
        shardings=shardings,
        create=jax.jit(init, out_shardings=shardings),
        step=jax.jit(
            parallel.on_mesh(mesh, step),
            in_shardings=(shardings, batched, replicated),
            out_shardings=(shardings, replicated),
            donate_argnums=0,
        ),
        evaluate=jax.jit(
            parallel.on_mesh(mesh, jax.named_scope(EVALUATION)(stage.evaluate)),
            in_shardings=(shardings, batched),
            out_shardings=replicated,
        ),
        look=jax.jit(
            parallel.on_mesh(mesh, stage.look),
            in_shardings=(shardings, batched),
            out_shardings=replicated,
        ),
    )
