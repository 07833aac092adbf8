# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The sections of the report's page about what looking costs and when it pays."""

import html
from collections.abc import Mapping
from typing import Any

from cropvlm_jax.evals import cost_figures, markup
from cropvlm_jax.evals.figures import Results, last_of, percent
from cropvlm_jax.evals.tradeoffs import shown

TOKENS = ("crop_tokens", "image_tokens")


def sections(results: Results, drawn: Mapping[str, str]) -> list[str]:
    """What looking costs and when it pays, and how risk falls with coverage."""
    if "tradeoffs" not in results:
        return []
    first = html.escape(next(iter(results["protocol"]["croppers"])))
    gate = results["gates"]
    chosen = (
        f"its threshold has the best score on {gate['n']:,} items of the split "
        f"{html.escape(gate['split'])}; the dotted line has all thresholds"
        if "n" in gate
        else f"it is left out: {html.escape(gate['left_out'])}"
    )
    text = (
        f"Gates show {first}'s crops for a part of the items: the oracle gate where they score "
        "better than none; the confidence gate where the target was unsure of its answer without "
        f"a crop ({chosen}). Where the surer answer is kept, the target gives both. Budgets of one "
        "cropper are on one line."
    )
    tables = "".join(_cost_table(results, target) for target in results["targets"])
    orders = {found["ordered_by"] for found in results["tradeoffs"].values()}
    whose = {
        "target": "the probability of the target's own answer",
        "cropper": "the probability of the cropper's reply",
    }
    order = html.escape(" or ".join(whose[by] for by in sorted(orders)))
    risk = (
        "Where only the surest items are answered, how many of the answers are wrong? Items are "
        f"in the order of {order}; the smaller the area, the better."
    )
    return [
        markup.section("When does looking pay?", text, drawn["cost"] + tables),
        markup.section("Risk and coverage", risk, drawn["risk"]),
    ]


def _cost_table(results: Results, target: str) -> str:
    """What each condition costs and wins with a target."""
    heads = ["", "score", "no crop", "harmed", "rescued", "tokens of crops", "image tokens"]
    heads += ["milliseconds", "area under risk"]
    rows = []
    for name, row in shown(results, target).items():
        seconds, area = row["seconds"], row["aurc"]
        cells = [
            html.escape(cost_figures.name_of(results, name)),
            f"<b>{percent(row['score'])}</b> {markup.interval(row['score_interval'], percent)}",
            *(_rate(row, key) for key in ("no_crop_rate", "harm_rate", "rescue_rate")),
            *("" if row[key] is None else f"{row[key]:,.1f}" for key in TOKENS),
            "" if seconds is None else f"{1000 * seconds:,.1f}",
            "" if area is None else _area(area, row["aurc_interval"]),
        ]
        kind = ' class="last"' if name == last_of(results) else ""
        rows.append(f"<tr{kind}>{markup.cells('td', cells)}</tr>")
    return f"<h3>{html.escape(target)}</h3>{markup.table_of(markup.cells('th', heads), rows)}"


def _rate(row: Mapping[str, Any], key: str) -> str:
    """A share of the items; empty where it is not known."""
    return "" if row[key] is None else percent(row[key])


def _area(area: float, interval: tuple[float, float]) -> str:
    """An area under a risk-coverage curve with its interval."""
    return f"{area:.3f} {markup.interval(interval, '{:.3f}'.format)}"
