# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The figures of what looking costs: scores against image tokens, and risk against coverage."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cropvlm_jax.evals.conditions import NO_CROP
from cropvlm_jax.evals.figures import (
    CONTROL,
    MUTED,
    TRUE,
    Axes,
    Figure,
    PercentFormatter,
    Results,
    axes_for,
    color_of,
    label_of,
)
from cropvlm_jax.evals.tradeoffs import (
    CONFIDENCE_GATE,
    COVERAGES,
    ORACLE_GATE,
    SURER,
    gate_of,
    shown,
)

# Colours and markers of gates.
MARKS = {ORACLE_GATE: (TRUE, "D"), CONFIDENCE_GATE: (CONTROL, "s"), SURER: (MUTED, "^")}
BESIDE: dict[str, Any] = {
    "frameon": False,
    "fontsize": 8,
    "loc": "upper left",
    "bbox_to_anchor": (1, 1),
}
AXES = {
    "crop_tokens": "image tokens of crops, an item",
    "crops": "crops, an item",  # where the target tells no tokens
}


def cost_figure(results: Results) -> Figure:
    """Scores against what crops cost: no crop, croppers, gates, and budgets on one line."""
    targets = list(results["targets"])
    figure, axes = axes_for(len(targets), 8.6, 4.0, 1, sharey=True)
    for axis, target in zip(axes, targets, strict=True):
        rows = shown(results, target)
        known = all(row["crop_tokens"] is not None for row in rows.values())
        unit = "crop_tokens" if known else "crops"
        _draw_levels(axis, results, target, unit)
        for names in _budgets(results):
            told = sorted((rows[name][unit], rows[name]["score"]) for name in names if name in rows)
            places, scores = np.array(told).reshape(-1, 2).T
            axis.plot(places, scores, color=color_of(results, names[-1]), lw=2)
        for name, row in rows.items():
            color, marker = _mark(results, name)
            axis.plot([row[unit]] * 2, row["score_interval"], color=color, lw=5, alpha=0.25)
            label = name_of(results, name)
            axis.plot(row[unit], row["score"], marker, color=color, ms=8, mec="white", label=label)
        axis.set_title(target)
        axis.set_xlabel(AXES[unit])
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.legend(**BESIDE)
        axis.set_ylabel(next(iter(results["protocol"]["metrics"])))
    return figure


def risk_figure(results: Results) -> Figure:
    """Risk of the surest answers against their share."""
    targets = list(results["targets"])
    figure, axes = axes_for(len(targets), 8.6, 4.0, 1, sharey=True)
    for axis, target in zip(axes, targets, strict=True):
        for name, row in shown(results, target).items():
            if row["aurc"] is None:
                continue
            color, marker = _mark(results, name)
            label = f"{name_of(results, name)}: {row['aurc']:.3f}"
            style = "-" if marker == "o" else "--"
            axis.plot(COVERAGES, row["risks"], style, color=color, lw=2, label=label)
        axis.set_title(target)
        axis.set_xlabel("share of the items that are answered")
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_formatter(PercentFormatter(1.0))
        axis.set_xlim(0, 1)
        if axis.lines:
            axis.legend(title="area under the curve", **BESIDE)
        axis.set_ylabel("risk of the answers")
    return figure


def name_of(results: Results, name: str) -> str:
    """A condition as figures and tables name it."""
    return "no crop, ever" if name == NO_CROP else label_of(results, name)


def _mark(results: Results, name: str) -> tuple[str, str]:
    """The colour and the marker of a condition."""
    croppers = list(results["protocol"]["croppers"])
    gates = {gate_of(croppers[0], gate): mark for gate, mark in MARKS.items()}
    return gates.get(name, (color_of(results, name), "o"))


def _budgets(results: Results) -> Iterator[Sequence[str]]:
    """The names of croppers that are one cropper told several budgets."""
    families: dict[str, list[str]] = {}
    for name, described in results["protocol"]["croppers"].items():
        if "budget" in described:
            families.setdefault(described.get("weights", ""), []).append(name)
    yield from families.values()


def _draw_levels(axis: Axes, results: Results, target: str, unit: str) -> None:
    """The confidence gate before the first cropper, from no crop to crops for every item."""
    levels = results["tradeoffs"][target]["levels"].get(next(iter(results["protocol"]["croppers"])))
    if levels is None:
        return
    points = zip(levels[unit], levels["score"], strict=True)
    known = [point for point in points if None not in point]
    places, scores = np.array(known, float).reshape(-1, 2).T
    axis.plot(places, scores, color=CONTROL, lw=1.2, ls=(0, (2, 3)))
