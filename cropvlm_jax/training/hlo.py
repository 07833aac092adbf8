# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads compiled programs: what the chips of a slice exchange in a step."""

import collections
import math
import re

COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
BACKWARD = "transpose("  # in the scope of what a backward pass computes
CALLED = r"(?:body|condition|calls|_computation|_computations)=\{?(%[\w.-]+(?:, %[\w.-]+)*)"

# By kind of exchange, and "count", "bytes" or "gradient_bytes".
Traffic = collections.Counter[tuple[str, str]]


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """What a chip exchanges with others in a step.

    Args:
        hlo: text of the optimised module. The body of a loop counts as often as its condition, a
            counter below a constant, lets it run, and once where that says nothing.

    Returns:
        By kind, `count` of the operations, `bytes` of their results, and `gradient_bytes` of those
        that backward passes exchange.
    """
    computations, entry = read_computations(hlo)
    table: dict[str, dict[str, int]] = {}
    for (kind, what), value in sorted(traffic(computations, entry).items()):
        table.setdefault(kind, {})[what] = value
    return table


def read_computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation of a module by its name, and the name of the first to run."""
    computations: dict[str, list[str]] = {}
    entry = ""
    for line in hlo.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            entry = head[2] if head[1] else entry
            body = computations[head[2]] = []
        elif line.startswith("  ") and computations:
            body.append(line)
    return computations, entry


def traffic(computations: dict[str, list[str]], name: str) -> Traffic:
    """What a computation exchanges, together with those that it calls."""
    found: Traffic = collections.Counter()
    for line in computations[name]:
        # Of a start and its done, the done alone: its type is that of the result.
        if operation := re.search(rf" = (.*?) ({COLLECTIVES})(-done)?\(", line):
            size = result_bytes(operation[1])
            found[operation[2], "bytes"] += size
            found[operation[2], "count"] += 1
            found[operation[2], "gradient_bytes"] += size * (BACKWARD in line)
        times = 1
        if condition := re.search(r"condition=%([\w.-]+)", line):
            times = iterations(computations[condition[1]])
        for called in re.findall(CALLED, line):
            for inner in called.split(", "):
                for key, value in traffic(computations, inner[1:]).items():
                    found[key] += times * value
    return found


def result_bytes(types: str) -> int:
    """Bytes of results, from their types as a module writes them: `(f32[4,8]{1,0}, bf16[8])`."""
    total = 0
    for dtype, shape in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", types):
        bits = int((re.findall(r"\d+", dtype) or [8])[0])
        total += (math.prod(map(int, shape.split(","))) if shape else 1) * bits // 8
    return total


def iterations(condition: list[str]) -> int:
    """How often a loop runs whose condition is a counter below a constant; 1 if it is not."""
    lines = "\n".join(condition)
    constants = re.findall(r"= s32\[\]\S* constant\((\d+)\)", lines)
    counted = len(constants) == 1 and re.search(r"ROOT .* compare\(.*direction=LT", lines)
    return int(constants[0]) if counted else 1
