# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Floating point operations of a step, counted in its own program, and what chips do at their best.

These are *model FLOPs*, what MFU is defined by: the matmuls that a step's program contains, two
operations a multiply-add, and nothing elementwise. No model is known here; the count reads the
program (its jaxpr) and corrects what a program contains beyond its model:

- The body of a loop counts as often as the loop runs. A `while` counts up to the constant that its
  condition compares a counter with: greedy decoding counts at its full length.
- What a backward pass computes again (`jax.checkpoint`) does not count.
- Where a program multiplies by numbers that a mask throws away, or takes an exact product digit by
  digit, the model says in a scope which share counts: inside of
  `jax.named_scope("useful_17_of_32")` 17 of 32 operations do.
- Of a choice between platforms the default counts, of another choice the branch that takes most;
  inside of `jax.named_scope("last_branch_4_of_32")` the last branch runs 4 times of 32.

Tokens count as the arrays hold them, padding included.

    phases = count_flops(jax.make_jaxpr(step)(state, batch, key), PHASES, backward="update")
    mfu = sum(phases.values()) / (seconds * devices * CHIPS[device.device_kind].flops)
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Literal, jaxprs_in_params
from jax.interpreters import partial_eval

from cropvlm_jax.models.config import LlamaConfig

Operations = dict[str, float]  # by the scope that matmuls stand in


class Chip(NamedTuple):
    """The best that one chip does.

    Attributes:
        name: of a TPU as in the names of Cloud TPU slices.
        flops: bf16 operations a second of its matrix units.
        hbm_gib: memory.
        hbm: bytes a second from and to that memory.
        ici: bytes a second that it sends to its neighbours, over all links.
    """

    name: str
    flops: float
    hbm_gib: float
    hbm: float
    ici: float


# By `jax.Device.device_kind`. Source: cloud.google.com/tpu/docs/{v5e,v5p,v6e}; the links' 1600,
# 4800 and 3200 Gbit/s are what a chip sends, and it receives as much at the same time. NVIDIA's
# data sheets of the H100 SXM and the H200: without sparsity, and half of NVLink's 900 GB/s.
CHIPS = {
    "TPU v5 lite": Chip("v5e", 197e12, 16, 819e9, 200e9),
    "TPU v5": Chip("v5p", 459e12, 95, 2765e9, 600e9),
    "TPU v6 lite": Chip("v6e", 918e12, 32, 1640e9, 400e9),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 80, 3350e9, 450e9),
    "NVIDIA H200": Chip("H200", 989e12, 141, 4800e9, 450e9),
}

UTILISATION = 0.25  # of the peak rate, in times that are computed: one H100 reached 0.26


def count_flops(program: ClosedJaxpr, phases: Sequence[str], backward: str) -> dict[str, float]:
    """Operations of a program's matmuls by phase.

    Args:
        program: what `jax.make_jaxpr` makes of a step, or `jax.jit(step).trace(...).jaxpr`.
        phases: names of the scopes that its phases stand in; of scopes inside of each other the
            outermost counts.
        backward: the phase that all backward passes belong to.

    Returns:
        Operations of each of `phases`, over all devices. Matmuls outside of all phases are left
        out.
    """
    # What no output depends on is never computed.
    jaxpr, _ = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
    found = dict.fromkeys(phases, 0.0)
    pattern = re.compile(rf"(?<!\w)({'|'.join(phases)})(?!\w)")
    for scope, flops in _matmuls(jaxpr, "").items():
        if phase := pattern.search(scope):
            found[backward if "transpose(" in scope else phase[1]] += flops
    return found


def count_scope(program: ClosedJaxpr, scope: str) -> float:
    """Operations of all matmuls in a scope, each digit of an exact product among them."""
    jaxpr, _ = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
    found = _matmuls(jaxpr, "")
    return sum(
        flops / _useful(where)
        for where, flops in found.items()
        if re.search(rf"(?<!\w){scope}(?!\w)", where)
    )


def _matmuls(jaxpr: Any, scope: str) -> Operations:
    """Operations of the matmuls of a program by the whole scope that they stand in."""
    found: Operations = {}
    for equation in jaxpr.eqns:
        where = f"{scope}/{equation.source_info.name_stack}"
        if "rematted_computation" in where:
            continue
        if equation.primitive.name == "dot_general":
            _add(found, {where: _dot_flops(equation)}, _useful(where))
        elif equation.primitive.name == "cond":
            _add(found, _of_branches(equation, where))
        else:
            inner: Operations = {}
            for body in jaxprs_in_params(equation.params):
                _add(inner, _matmuls(body, where))
            if inner:
                _add(found, inner, _iterations(equation))
    return found


def _add(total: Operations, part: Operations, times: float = 1.0) -> None:
    """Adds operations that are done `times` times to others."""
    for scope, flops in part.items():
        total[scope] = total.get(scope, 0.0) + times * flops


def _dot_flops(equation: Any) -> float:
    """Operations of one matmul."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    return 2.0 * out.size * math.prod(left.shape[axis] for axis in contracted)


def _useful(scope: str) -> float:
    """The share of operations that counts in a scope: what the innermost mark says."""
    marks = re.findall(r"useful_(\d+)_of_(\d+)", scope)
    return int(marks[-1][0]) / int(marks[-1][1]) if marks else 1.0


def _iterations(equation: Any) -> int:
    """How often the body of a loop runs, or on how many parts of arrays that devices share; else 1.

    Where devices do the same besides, as those along an axis that splits no array, it counts once.
    """
    if equation.primitive.name == "shard_map":
        specs = equation.params["in_specs"] + equation.params["out_specs"]
        names = {name for spec in specs for part in spec for name in jax.tree.leaves(part)}
        return math.prod(equation.params["mesh"].shape[name] for name in names)
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name != "while":
        return 1
    limits = [
        operand.val
        for comparison in equation.params["cond_jaxpr"].jaxpr.eqns
        if comparison.primitive.name == "lt"
        for operand in comparison.invars[1:]
        if isinstance(operand, Literal)
    ]
    if len(limits) != 1:
        raise ValueError("a `while` loop has matmuls and no constant that bounds its iterations")
    return int(limits[0])


def _of_branches(equation: Any, scope: str) -> Operations:
    """Operations of a choice between branches; where the platform chooses, of the default."""
    branches = equation.params["branches"]
    platforms = equation.params.get("branches_platforms")
    if platforms is not None:
        default = platforms.index(None) if None in platforms else -1
        return _matmuls(branches[default].jaxpr, scope)
    found = [_matmuls(branch.jaxpr, scope) for branch in branches]
    if marks := re.findall(r"last_branch_(\d+)_of_(\d+)", scope):
        share = int(marks[-1][0]) / int(marks[-1][1])
        first, last = found
        mean: Operations = {}
        _add(mean, first, 1 - share)
        _add(mean, last, share)
        return mean
    return max(found, key=lambda branch: sum(branch.values()))


def decoding_bytes(
    decoder: LlamaConfig, weights: int, columns: int, passes: int, slots: int, itemsize: int
) -> float:
    """What decoding token by token reads from a chip's memory, at least.

    A pass over the decoder reads its weights once, and the keys and values of all slots. Passes
    over whole prompts use a weight for so many tokens that arithmetic bounds them.

    Args:
        decoder: its shape.
        weights: numbers in the weights of its layers.
        columns: of the output head that are read: the vocabulary, or the actions of a grammar.
        passes: how often the weights are read.
        slots: of the caches, summed over all sequences and passes.
        itemsize: bytes of a number.
    """
    widths = 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim
    return float(itemsize * (passes * (weights + decoder.hidden_size * columns) + widths * slots))
