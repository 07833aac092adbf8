# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The figures of a report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cropvlm_jax.evals.conditions import (
    CENTRE,
    NO_CROP,
    ORACLE,
    RANDOM,
    UPSCALED,
    expanded,
)

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter
except ImportError as error:
    raise ImportError("a report needs matplotlib: pip install matplotlib") from error

Results = Mapping[str, Any]  # of `run.evaluate`

# Okabe and Ito's colours, which people who are colour-blind tell apart.
LAST, TRUE, OTHERS = "#d55e00", "#009e73", ("#0072b2", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, LINES, CONTROL = "#1d2733", "#5d6b7a", "#e3e8ee", "#8a97a5"
NAMES = {
    NO_CROP: "no crop",
    CENTRE: "centre crop",
    RANDOM: "random crop",
    UPSCALED: "picture again, enlarged",
    ORACLE: "true box",
}
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.parse_math": False,  # names may hold "$"
    "text.color": INK,
    "axes.edgecolor": "#b9c3cd",
    "axes.labelcolor": MUTED,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINES,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "svg.fonttype": "none",
    "svg.hashsalt": "cropvlm_jax",  # the same page every time
}


def style() -> Any:
    """The context in which figures are drawn and saved."""
    return matplotlib.rc_context(STYLE)  # type: ignore[arg-type]


def headline(results: Results, target: str) -> dict[str, Any]:
    """Rows by condition of the metric that is reported first."""
    return results["targets"][target]["scores"][next(iter(results["protocol"]["metrics"]))]


def last_of(results: Results) -> str:
    """The cropper that is reported."""
    return list(results["protocol"]["croppers"])[-1]


def color_of(results: Results, name: str) -> str:
    """The colour of a condition."""
    croppers = list(results["protocol"]["croppers"])
    if name == croppers[-1]:
        return LAST
    if name in croppers:
        return OTHERS[croppers.index(name) % len(OTHERS)]
    return TRUE if name == ORACLE else INK if name == NO_CROP else CONTROL


def label_of(results: Results, name: str) -> str:
    """The name of a condition as people read it."""
    best = results["best_scale"]
    if name == best.get("condition"):
        return f"{best['cropper']} at its best scale"
    return NAMES.get(name, name)


def percent(value: float | None) -> str:
    """A share as a percentage; None is one of nothing."""
    return "not scored" if value is None else f"{100 * value:.1f}%"


def points(value: float | None) -> str:
    """A difference of shares in points, with its sign; None is one of nothing."""
    return "n/a" if value is None else f"{100 * value:+.1f}".replace("-", "\u2212")


def span(row: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    """A value of a row and the ends of its interval; NaN, which is not drawn, where it has none."""
    if row[key] is None:
        return math.nan, math.nan, math.nan
    low, high = row[f"{key}_interval"]
    return row[key], low, high


def axes_for(
    count: int, width: float, height: float, columns: int, **options: Any
) -> tuple[Figure, Sequence[Axes]]:
    """A figure with `count` axes, `columns` a row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(width * columns, 8.6), height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def scores_figure(results: Results) -> Figure:
    """Each condition's score with its interval."""
    names, targets = list(results["accuracy"]), list(results["targets"])
    figure, axes = axes_for(len(targets), 3.5, 0.38 * len(names) + 1.0, 3, sharey=True, sharex=True)
    for axis, target in zip(axes, targets, strict=True):
        rows = headline(results, target)
        for i, name in enumerate(names):
            color, (score, low, high) = color_of(results, name), span(rows[name], "score")
            axis.plot([low, high], [i, i], color=color, lw=7, alpha=0.25, solid_capstyle="round")
            axis.plot(score, i, "o", color=color, ms=8, mec="white", mew=1.2)
            label, place = percent(rows[name]["score"]), np.nan_to_num(max(high, score))
            shade = MUTED if color == CONTROL else color
            axis.text(place + 0.035, i, label, va="center", color=shade)
        axis.axvline(span(rows[NO_CROP], "score")[0], color=INK, lw=1, ls=(0, (2, 3)), zorder=0)
        axis.set_title(target)
        axis.set_xlim(-0.02, 1.2)
        axis.set_xticks(np.arange(0, 1.01, 0.25))
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axis.grid(axis="y", visible=False)
        axis.tick_params(length=0, labelbottom=True)
        axis.spines["left"].set_visible(False)
    axes[0].set_yticks(range(len(names)), [label_of(results, name) for name in names])
    for axis in axes[::3]:  # the first of each row
        for tick, name in zip(axis.get_yticklabels(), names, strict=True):
            color = color_of(results, name)
            tick.set_color(MUTED if color == CONTROL else color)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    return figure


def expansion_figure(results: Results) -> Figure:
    """Scores as the boxes grow, CropVLM's figure 3."""
    protocol, targets = results["protocol"], list(results["targets"])
    factors = sorted({1.0, *protocol["expansions"]})
    figure, axes = axes_for(len(targets), 5.0, 3.6, 2, sharey=True)
    for axis, target in zip(axes, targets, strict=True):
        rows = headline(results, target)
        ends = []
        for name in (*protocol["croppers"], ORACLE):
            if name not in rows:
                continue
            here = [span(rows[expanded(name, factor)], "score") for factor in factors]
            color, (scores, low, high) = color_of(results, name), np.array(here).T
            axis.fill_between(factors, low, high, color=color, alpha=0.14, lw=0)
            axis.plot(factors, scores, "o-", color=color, lw=2, ms=5, mec="white", mew=0.8)
            ends.append((scores[-1], NAMES.get(name, name), color))
        alone = span(rows[NO_CROP], "score")[0]
        ends.append((alone, "no crop", INK))
        axis.axhline(alone, color=INK, lw=1.2, ls=(0, (2, 3)))
        axis.axvline(1, color="#b9c3cd", lw=1)
        place = -1.0
        drawn = sorted(end for end in ends if not math.isnan(end[0]))
        for score, name, color in drawn:  # labels beside the lines' ends, none on another
            place = max(score, place + 0.06)
            axis.annotate(
                text=name,
                xy=(factors[-1], place),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                color=color,
                fontweight="bold",
                annotation_clip=False,
            )
        axis.set_xscale("log", base=2)
        axis.set_xlim(factors[0] / 1.2, factors[-1] * 1.08)
        axis.set_xticks(factors, [_factor(factor) for factor in factors])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_ylim(0, max(1.0, place + 0.04))
        axis.set_title(target)
        axis.set_xlabel("area of the box, times the proposed one's")
    axes[0].set_ylabel(next(iter(protocol["metrics"])))
    return figure


def _factor(value: float) -> str:
    """An expansion as axes name it."""
    parts = {0.125: "1/8", 0.25: "1/4", 0.5: "1/2"}
    return parts.get(value, f"{value:g}")


def transfer_figure(results: Results) -> Figure:
    """Gain over no crop of each cropper with each target."""
    croppers, targets = list(results["protocol"]["croppers"]), list(results["targets"])
    cells = [[headline(results, target)[name] for target in targets] for name in croppers]
    gains = np.array([[span(cell, "gain")[0] for cell in row] for row in cells])
    figure = Figure(
        figsize=(2.8 + 2.2 * len(targets), 0.8 + 0.66 * len(croppers)), layout="constrained"
    )
    axis = figure.subplots()
    most = max(float(np.nan_to_num(np.abs(gains)).max()), 0.05)
    axis.imshow(gains, cmap="PuOr_r", vmin=-2.4 * most, vmax=2.4 * most, aspect="auto")
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            axis.text(j, i - 0.1, points(cell["gain"]), ha="center", va="center", weight="bold")
            if cell["gain"] is None:
                continue
            low, high = cell["gain_interval"]
            interval = f"[{points(low)}, {points(high)}]"
            axis.text(j, i + 0.24, interval, ha="center", va="center", size=8, color=MUTED)
    trained = results.get("trained_with", {})
    labels = [
        f"{name}\n" + (f"trained with {trained[name]}" if trained.get(name) else "given as it is")
        for name in croppers
    ]
    axis.set_yticks(range(len(croppers)), labels)
    axis.set_xticks(range(len(targets)), [f"read by\n{target}" for target in targets])
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    for edge in range(1, len(targets)):
        axis.axvline(edge - 0.5, color="white", lw=3)
    for edge in range(1, len(croppers)):
        axis.axhline(edge - 0.5, color="white", lw=3)
    return figure


def training_figure(
    results: Results, curves: Mapping[str, Sequence[Mapping[str, float]]]
) -> Figure:
    """The runs' metrics by step; dots are those of held-out examples."""
    titles = {
        "reward": "reward",
        "reward/likelihood": "answer's log-likelihood",
        "reward/accuracy": "accuracy",
        "area": "area of the boxes",
        "entropy": "entropy, nats",
    }
    names = {name for rows in curves.values() for row in rows for name in row}
    shown = [name for name in titles if name in names]
    if not shown:  # a supervised run
        shown = [name for name in ("loss", "eval/loss") if name in names] or sorted(names)[:1]
    figure, axes = axes_for(len(shown), 2.6, 2.4, 4)
    for axis, name in zip(axes, shown, strict=True):
        for cropper, rows in curves.items():
            color = color_of(results, cropper)
            steps, values = _column(rows, name)
            if not len(steps):
                continue
            axis.plot(steps, values, color=color, lw=0.8, alpha=0.3)
            axis.plot(steps, _smooth(values), color=color, lw=2, label=cropper)
            axis.plot(*_column(rows, f"eval/{name}"), "o", color=color, ms=5, mec="white")
        axis.set_title(titles.get(name, name))
        axis.set_xlabel("step")
        if name == "area" or name.endswith("accuracy"):
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        else:
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if len(curves) > 1:
        axes[0].legend(frameon=False, loc="best")
    return figure


def _column(rows: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric, at the steps where it was recorded."""
    given = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    told = [(step, value) for step, value in given if math.isfinite(value)]
    steps, values = np.array(told, float).reshape(-1, 2).T
    return steps, values


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running means over a fifteenth of the run to either side."""
    reach = max(len(values) // 30, 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    low, high = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
