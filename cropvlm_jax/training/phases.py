# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Seconds of the phases of a step: it is cut where its named scopes begin, and each piece is timed.

Each piece is compiled and run by itself, so that the phases do not quite add up to the step, and
take more memory.
"""

import collections
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.extend import core


def cut(step: core.Jaxpr) -> dict[str, core.Jaxpr]:
    """A step's equations in pieces, one for each of its outermost named scopes, in their order.

    A piece begins with the first equation of its scope. Its inputs come from the step's and from
    pieces before it; its outputs are what later pieces and the step's results need.
    """
    equations: dict[str, list[core.JaxprEqn]] = {"": []}
    name = ""
    for equation in step.eqns:
        scope = str(equation.source_info.name_stack).split("/")[0]
        if scope and scope not in equations:
            name = scope
            equations[name] = equations.pop("", [])  # what comes before the first scope
        equations[name].append(equation)

    def variables(atoms: Iterable[Any]) -> dict[core.Var, None]:
        return {x: None for x in atoms if isinstance(x, core.Var)}

    pieces, needed = {}, variables(step.outvars)
    for name, own in reversed(equations.items()):
        made = variables(x for equation in own for x in equation.outvars)
        used = variables(x for equation in own for x in equation.invars)
        inputs, outputs = [x for x in used if x not in made], [x for x in made if x in needed]
        needed |= dict.fromkeys(inputs)
        pieces[name] = step.replace(constvars=[], invars=inputs, outvars=outputs, eqns=own)
    return dict(reversed(pieces.items()))


def enough(seconds: list[float], at_least: float) -> bool:
    """Whether steps but the first, which may compile, took so many seconds together."""
    return len(seconds) > 1 and sum(seconds[1:]) >= at_least


def time_apart(step: Callable[[Any], Any], inputs: Any, at_least: float) -> dict[str, float]:
    """Times the pieces of a step.

    Args:
        step: of one argument, not jitted; its phases stand in `jax.named_scope`s.
        inputs: a tree of arrays, its argument; they are not given away.
        at_least: seconds that all rounds but the first take together.

    Returns:
        Seconds by phase, medians over the rounds but the first.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    whole = jax.make_jaxpr(step)(shapes)
    pieces = cut(whole.jaxpr)
    runs = {p: jax.jit(core.jaxpr_as_fun(core.ClosedJaxpr(pieces[p], ()))) for p in pieces}
    seconds: dict[str, list[float]] = collections.defaultdict(list)
    rounds: list[float] = []
    while not enough(rounds, at_least):
        values = dict(zip(whole.jaxpr.constvars, whole.consts, strict=True))
        values |= zip(whole.jaxpr.invars, jax.tree.leaves(inputs), strict=True)
        left = list(pieces.values())
        for name, piece in pieces.items():
            given = [values[x] for x in piece.invars]
            began = time.perf_counter()
            results = jax.block_until_ready(runs[name](*given))
            seconds[name].append(time.perf_counter() - began)
            left.remove(piece)
            values |= zip(piece.outvars, results, strict=True)
            values = {x: values[x] for other in left for x in other.invars if x in values}
        rounds.append(sum(taken[-1] for taken in seconds.values()))
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
