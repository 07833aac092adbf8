# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""An evaluation as one HTML page that needs nothing else, and its figures as PNGs."""

import base64
import html
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cropvlm_jax.evals import benchmarks, sheet
from cropvlm_jax.evals.benchmarks import CENTRE, NO_CROP, ORACLE, RANDOM, UPSCALED, score_of
from cropvlm_jax.pixels import host

try:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter
except ImportError as error:
    raise ImportError("a report needs matplotlib: pip install 'cropvlm-jax[report]'") from error

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
_METADATA = ("Creator", "Date", "Format", "Type")  # of an SVG; it is left out
EXAMPLES = 6  # of each kind
SIDE = 360  # px of an example's longest side on the page


def write(
    out: str | os.PathLike,
    results: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    source: Any,
    curves: Mapping[str, Sequence[Mapping[str, float]]],
) -> None:
    """Writes `report.html`, `scores.png`, `expansion.png`, `transfer.png`, `examples.png` and, of
    croppers from a run of ours, `training.png`.

    Args:
        out: folder, which exists.
        results: of `benchmarks.evaluate`, with `trained_with`, by cropper the target that rewarded
            it where that is known.
        records: of the same evaluation.
        source: of its pictures.
        curves: by cropper the rows of its run's `metrics.jsonl`.
    """
    out = Path(out)
    figures: dict[str, str] = {}

    def keep(name: str, figure: Figure) -> None:
        figure.savefig(out / f"{name}.png", dpi=160, facecolor="white")
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
        svg = text.getvalue()
        figures[name] = svg[svg.index("<svg") :]  # without its reference to a DTD

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        keep("scores", _scores_figure(results))
        if results["protocol"]["expansions"]:
            keep("expansion", _expansion_figure(results))
        keep("transfer", _transfer_figure(results))
        if curves:
            keep("training", _training_figure(results, curves))
    kinds = _examples(results, records)
    pictures = {
        record["index"]: host.to_rgb(source[record["index"]]["image"])
        for _, _, chosen in kinds
        for record in chosen
    }
    panels = [
        _panel(results, record, pictures[record["index"]]) for kind in kinds for record in kind[2]
    ]
    sheet.grid(panels, columns=2).save(out / "examples.png")
    page = _page(results, figures, kinds, pictures)
    (out / "report.html").write_text(page, encoding="utf-8")


# What the figures share ---------------------------------------------------------------------------


def _headline(results: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Rows by condition of the metric that is reported first."""
    return results["targets"][target]["scores"][next(iter(results["protocol"]["metrics"]))]


def _last(results: Mapping[str, Any]) -> str:
    return list(results["protocol"]["croppers"])[-1]


def _color(results: Mapping[str, Any], name: str) -> str:
    croppers = list(results["protocol"]["croppers"])
    if name == croppers[-1]:
        return LAST
    if name in croppers:
        return OTHERS[croppers.index(name) % len(OTHERS)]
    return TRUE if name == ORACLE else INK if name == NO_CROP else CONTROL


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\u2212")


# Figures ------------------------------------------------------------------------------------------


def _axes(count: int, width: float, height: float, columns: int, **options: Any):
    """A figure with `count` axes, `columns` a row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(width * columns, 8.6), height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def _scores_figure(results: Mapping[str, Any]) -> Figure:
    """Each condition's score with its interval."""
    names, targets = list(results["accuracy"]), list(results["targets"])
    figure, axes = _axes(len(targets), 3.5, 0.38 * len(names) + 1.0, 3, sharey=True, sharex=True)
    for axis, target in zip(axes, targets, strict=True):
        rows = _headline(results, target)
        for i, name in enumerate(names):
            color, (low, high) = _color(results, name), rows[name]["score_interval"]
            axis.plot([low, high], [i, i], color=color, lw=7, alpha=0.25, solid_capstyle="round")
            axis.plot(rows[name]["score"], i, "o", color=color, ms=8, mec="white", mew=1.2)
            label = _percent(rows[name]["score"])
            shade = MUTED if color == CONTROL else color
            axis.text(max(high, rows[name]["score"]) + 0.035, i, label, va="center", color=shade)
        axis.axvline(rows[NO_CROP]["score"], color=INK, lw=1, ls=(0, (2, 3)), zorder=0)
        axis.set_title(target)
        axis.set_xlim(-0.02, 1.2)
        axis.set_xticks(np.arange(0, 1.01, 0.25))
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axis.grid(axis="y", visible=False)
        axis.tick_params(length=0, labelbottom=True)
        axis.spines["left"].set_visible(False)
    axes[0].set_yticks(range(len(names)), [NAMES.get(name, name) for name in names])
    for axis in axes[::3]:  # the first of each row
        for label, name in zip(axis.get_yticklabels(), names, strict=True):
            color = _color(results, name)
            label.set_color(MUTED if color == CONTROL else color)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    return figure


def _expansion_figure(results: Mapping[str, Any]) -> Figure:
    """Scores as the boxes grow, CropVLM's figure 3."""
    protocol, targets = results["protocol"], list(results["targets"])
    factors = sorted({1.0, *protocol["expansions"]})
    figure, axes = _axes(len(targets), 5.0, 3.6, 2, sharey=True)
    for axis, target in zip(axes, targets, strict=True):
        rows = _headline(results, target)
        ends = []
        for name in (*protocol["croppers"], ORACLE):
            if name not in rows:
                continue
            here = [rows[benchmarks.expanded(name, factor)] for factor in factors]
            color, scores = _color(results, name), [row["score"] for row in here]
            low, high = np.array([row["score_interval"] for row in here]).T
            axis.fill_between(factors, low, high, color=color, alpha=0.14, lw=0)
            axis.plot(factors, scores, "o-", color=color, lw=2, ms=5, mec="white", mew=0.8)
            ends.append((scores[-1], NAMES.get(name, name), color))
        ends.append((rows[NO_CROP]["score"], "no crop", INK))
        axis.axhline(rows[NO_CROP]["score"], color=INK, lw=1.2, ls=(0, (2, 3)))
        axis.axvline(1, color="#b9c3cd", lw=1)
        place = -1.0
        for score, name, color in sorted(ends):  # labels beside the lines' ends, none on another
            place = max(score, place + 0.06)
            axis.annotate(
                *(name, (factors[-1], place)),
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
    parts = {0.125: "1/8", 0.25: "1/4", 0.5: "1/2"}
    return parts.get(value, f"{value:g}")


def _transfer_figure(results: Mapping[str, Any]) -> Figure:
    """Gain over no crop of each cropper with each target."""
    croppers, targets = list(results["protocol"]["croppers"]), list(results["targets"])
    cells = [[_headline(results, target)[name] for target in targets] for name in croppers]
    gains = np.array([[cell["gain"] for cell in row] for row in cells])
    figure = Figure(
        figsize=(2.8 + 2.2 * len(targets), 0.8 + 0.66 * len(croppers)), layout="constrained"
    )
    axis = figure.subplots()
    most = max(float(np.abs(gains).max()), 0.05)
    axis.imshow(gains, cmap="PuOr_r", vmin=-2.4 * most, vmax=2.4 * most, aspect="auto")
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            low, high = cell["gain_interval"]
            axis.text(j, i - 0.1, _points(cell["gain"]), ha="center", va="center", weight="bold")
            interval = f"[{_points(low)}, {_points(high)}]"
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


def _training_figure(
    results: Mapping[str, Any], curves: Mapping[str, Sequence[Mapping[str, float]]]
) -> Figure:
    """What the runs' metrics tell; dots are of held-out examples."""
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
    figure, axes = _axes(len(shown), 2.6, 2.4, 4)
    for axis, name in zip(axes, shown, strict=True):
        for cropper, rows in curves.items():
            color = _color(results, cropper)
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
    """Steps and values of a metric where it was told."""
    told = [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
    steps, values = np.array(told, float).reshape(-1, 2).T
    return steps, values


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running means over a fifteenth of the run to either side."""
    reach = max(len(values) // 30, 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    low, high = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


# Examples -----------------------------------------------------------------------------------------

Kind = tuple[str, str, list[Mapping[str, Any]]]


def _examples(results: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[Kind]:
    """The first items of each kind, by what the last cropper's crop did to the first target."""

    def change(record: Mapping[str, Any]) -> tuple[float, float]:
        told = record["replies"][next(iter(results["targets"]))]
        metric = next(iter(results["protocol"]["metrics"]))
        return score_of(told, NO_CROP, metric), score_of(told, _last(results), metric)

    kinds: tuple[tuple[str, str, Callable[[float, float], bool]], ...] = (
        ("Rescued", "wrong on the picture alone, better with the crop", lambda a, b: b > a),
        ("Harmed", "better on the picture alone than with the crop", lambda a, b: b < a),
        ("Still wrong", "no score with the crop, nor without", lambda a, b: a == b == 0),
    )
    usable = [record for record in records if "unreadable" not in record]
    chosen = [
        (title, text, [record for record in usable if which(*change(record))][:EXAMPLES])
        for title, text, which in kinds
    ]
    if not any(found for _, _, found in chosen):
        return [("Unchanged", "as good on the picture alone as with the crop", usable[:EXAMPLES])]
    return [kind for kind in chosen if kind[2]]


def _told(results: Mapping[str, Any], record: Mapping[str, Any], condition: str) -> tuple[str, str]:
    """What the first target said, and a mark of how good it was."""
    told = record["replies"][next(iter(results["targets"]))][condition]
    score = told["scores"][next(iter(results["protocol"]["metrics"]))]
    text = told.get("failure") or told["text"]
    mark = "\u2713" if score == 1 else "\u2717" if score == 0 else f"{100 * score:.0f}%"
    return " ".join(text.split())[:160], mark


def _panel(results: Mapping[str, Any], record: Mapping[str, Any], image: np.ndarray) -> Image.Image:
    """An example for `examples.png`."""
    lines = [" ".join(record["question"].split())[:80]]
    for title, condition in (("picture alone", NO_CROP), ("with the crop", _last(results))):
        text, mark = _told(results, record, condition)
        word = {"\u2713": "right", "\u2717": "wrong"}.get(mark, mark)
        lines.append(f"{title}: {text[:50]!r}, {word}")
    lines.append(f"truth: {record['answers'][0][:60]}")
    return sheet.panel(Image.fromarray(image), record["boxes"][_last(results)], lines)


def _data_uri(image: np.ndarray) -> str:
    """A picture `[H, W, 3]`, at most `SIDE` px long, or so large if it is smaller, as JPEG."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    buffer = io.BytesIO()
    Image.fromarray(image).resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _card(results: Mapping[str, Any], record: Mapping[str, Any], image: np.ndarray) -> str:
    box = record["boxes"][_last(results)]
    x1, y1, x2, y2 = box
    place = f"left:{x1}%;top:{y1}%;width:{x2 - x1}%;height:{y2 - y1}%"
    answers = []
    for title, condition in (("picture alone", NO_CROP), ("with the crop", _last(results))):
        text, mark = _told(results, record, condition)
        kind = {"\u2713": "right", "\u2717": "wrong"}.get(mark, "partly")
        said = html.escape(text) or "<em>nothing</em>"
        answers.append(f'<dt>{title}</dt><dd class="{kind}"><b>{said}</b> <span>{mark}</span></dd>')
    truth = html.escape(record["answers"][0])
    return f"""<figure class="card"><div class="pair">
<div class="whole"><img alt="" src="{_data_uri(image)}"><i style="{place}"></i></div>
<div class="crop"><img alt="" src="{_data_uri(host.cut(image, box))}"></div></div>
<figcaption><p>{html.escape(record["question"])}</p><dl>{"".join(answers)}
<dt>truth</dt><dd>{truth}</dd></dl></figcaption></figure>"""


# The page -----------------------------------------------------------------------------------------

_CSS = """
:root { --ink: #1d2733; --muted: #5d6b7a; --line: #e3e8ee; --last: #d55e00; --true: #009e73;
  --bad: #9c3f73; --paper: #fff; --ground: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui,
  -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 48px 24px 80px; }
header p, section > p { color: var(--muted); max-width: 74ch; margin: 4px 0 16px; }
h1 { font-size: 34px; line-height: 1.15; letter-spacing: -.02em; margin: 0 0 8px; }
h2 { font-size: 21px; letter-spacing: -.01em; margin: 0 0 4px; }
h3 { font-size: 15px; margin: 24px 0 10px; } h3 small { color: var(--muted); font-weight: 400; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 14px;
  padding: 28px 30px 30px; margin-top: 24px; }
section svg { display: block; max-width: 100%; height: auto; margin: 14px auto 0; }
.key { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px;
  margin-top: 28px; }
.key div { background: var(--paper); border: 1px solid var(--line); border-radius: 14px;
  padding: 18px 20px; }
.key b { display: block; font-size: 31px; line-height: 1.2; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.key span { color: var(--muted); font-size: 13.5px; line-height: 1.4; display: block; }
.key .last b { color: var(--last); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; margin-top: 8px;
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; color: var(--muted); text-align: right; padding: 7px 9px;
  border-bottom: 1.5px solid #b9c3cd; white-space: nowrap; vertical-align: bottom; }
td { text-align: right; padding: 6px 9px; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td small { color: var(--muted); font-size: 11.5px; display: block; line-height: 1.3; }
tr.last td { background: #fdf3ec; } tr.last td:first-child { box-shadow: -8px 0 0 #fdf3ec; }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 8px; }
.split { display: inline-flex; width: 96px; height: 9px; border-radius: 5px; overflow: hidden;
  background: var(--line); vertical-align: middle; margin-left: 10px; }
.split i:first-child { background: #0072b2; } .split i + i { background: #e69f00; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 16px; }
.card { margin: 0; border: 1px solid var(--line); border-radius: 12px; overflow: hidden; }
.pair { display: flex; gap: 2px; background: var(--ground); height: 176px; }
.pair > div { flex: 1; display: flex; align-items: center; justify-content: center;
  min-width: 0; position: relative; }
.pair img { max-width: 100%; max-height: 176px; display: block; }
.pair .whole { flex: none; max-width: 62%; } .pair .whole img { max-width: 100%; }
.whole i { position: absolute; border: 2.5px solid #e00018; border-radius: 2px;
  box-shadow: 0 0 0 1px #fff; }
figcaption { padding: 12px 14px 14px; } figcaption p { margin: 0 0 8px; font-weight: 600;
  line-height: 1.35; font-size: 14.5px; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 12px; margin: 0;
  font-size: 13.5px; } dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; } dd b { font-weight: 600; }
.right { color: #00765a; } .wrong { color: var(--bad); } .partly { color: #8a5a00; }
details { margin-top: 14px; font-size: 13.5px; } summary { cursor: pointer; color: var(--muted); }
pre { overflow-x: auto; background: var(--ground); border-radius: 10px; padding: 14px;
  font-size: 12px; line-height: 1.45; }
@media print { body { background: #fff; } section, .card { break-inside: avoid; } }
"""


def _page(
    results: Mapping[str, Any],
    figures: Mapping[str, str],
    kinds: Sequence[Kind],
    pictures: Mapping[int, np.ndarray],
) -> str:
    protocol = results["protocol"]
    metric, description = next(iter(protocol["metrics"].items()))
    target, last = next(iter(results["targets"])), _last(results)
    rows = _headline(results, target)
    benchmark = html.escape(protocol["benchmark"])
    sections = [
        _section(
            "Scores and controls",
            f"{html.escape(description[:1].upper() + description[1:])}. Bars are 95% bootstrap "
            "intervals over pictures; the dotted line is the target without a crop. Control crops "
            f"have the width and height of {html.escape(last)}'s box on the same item.",
            figures["scores"] + "".join(_table(results, name) for name in results["targets"]),
        )
    ]
    if "expansion" in figures:
        sections.append(
            _section(
                "How tight should the box be?",
                "The same boxes, with their areas scaled about their centres before the crop is "
                "cut. Bands are 95% intervals.",
                figures["expansion"],
            )
        )
    examples = "".join(
        f"<h3>{title} <small>{text}</small></h3><div class='cards'>"
        + "".join(_card(results, record, pictures[record["index"]]) for record in chosen)
        + "</div>"
        for title, text, chosen in kinds
    )
    sections.append(
        _section(
            "What it looks at",
            f"{html.escape(last)}'s box in red, its crop of the original pixels, and what "
            f"{html.escape(target)} says. The first items of each kind, not picked.",
            examples,
        )
    )
    sections.append(
        _section(
            "Transfer",
            "Points won over no crop: each cropper, unchanged, in front of each target.",
            figures["transfer"],
        )
    )
    if "training" in figures:
        text = "Each step's value, and a running mean; dots are held-out examples."
        sections.append(_section("The runs", text, figures["training"]))
    sections.append(_section("What it costs", "Medians and means an item.", _costs(results)))
    told = html.escape(json.dumps(protocol, indent=2))
    unread = "".join(
        f"<li>{html.escape(name)}: {html.escape(reason)}</li>"
        for name, reason in results["unreadable"].items()
    )
    sections.append(
        _section(
            "Protocol",
            f"{benchmark}, split {html.escape(protocol['split'])}, {results['n']:,} items; metric "
            f"{html.escape(metric)}; seed {protocol['seed']}. Every reply is in "
            f"{html.escape(results['records'])}.",
            f"<details><summary>All settings and versions</summary><pre>{told}</pre></details>"
            + (
                f"<p>Pictures that could not be read, in no score:</p><ul>{unread}</ul>"
                * bool(unread)
            ),
        )
    )
    gain, (low, high) = rows[last]["gain"], rows[last]["gain_interval"]
    keys = [
        ("", _percent(rows[NO_CROP]["score"]), "the target alone, without a crop"),
        ("last", _percent(rows[last]["score"]), f"with the crop of {html.escape(last)}"),
        (
            "",
            f"{_points(gain)}",
            f"points won, 95% interval {_points(low)} to {_points(high)}",
        ),
        (
            "",
            f"{rows[last]['rescued']:,} : {rows[last]['harmed']:,}",
            f"items rescued and harmed, of {rows[last]['n']:,}",
        ),
        ("", _percent(results["area"]), "of the picture is in a box, on average"),
    ]
    boxes = "".join(f'<div class="{c}"><b>{b}</b><span>{s}</span></div>' for c, b, s in keys)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{benchmark}: what zooming wins</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_CSS}</style></head>
<body><main><header><h1>What zooming wins on {benchmark}</h1>
<p>A cropper proposes a box; the frozen target {html.escape(target)} answers from the picture and
the crop. {results["n"]:,} items, {html.escape(metric)}.</p><div class="key">{boxes}</div></header>
{"".join(sections)}</main></body></html>
"""


def _section(title: str, text: str, content: str) -> str:
    return f"<section><h2>{title}</h2><p>{text}</p>{content}</section>\n"


def _table(results: Mapping[str, Any], target: str) -> str:
    """A target's conditions in all metrics, with what each did to the items."""
    found, last = results["targets"][target], _last(results)
    first, *others = results["protocol"]["metrics"]
    heads = ["", first, "gain over no crop", f"lead of {last}", "rescued : harmed", *others]
    heads += ["coverage", "area"]
    lines = []
    for name in results["accuracy"]:
        row, box = found["scores"][first][name], results["boxes"].get(name, {})
        shares = "".join(
            f'<i style="width:{100 * row[key] / max(row["n"], 1):.1f}%"></i>'
            for key in ("rescued", "harmed")
        )
        dot = f'<span class="dot" style="background:{_color(results, name)}"></span>'
        cells = [
            dot + html.escape(NAMES.get(name, name)),
            f"<b>{_percent(row['score'])}</b> {_interval(row['score_interval'], _percent)}",
            ""
            if name == NO_CROP
            else f"{_points(row['gain'])} {_interval(row['gain_interval'], _points)}",
            ""
            if name == last
            else f"{_points(row['lead'])} {_interval(row['lead_interval'], _points)}",
            ""
            if name == NO_CROP
            else f'{row["rescued"]} : {row["harmed"]}<span class="split">{shares}</span>',
            *(_percent(found["scores"][other][name]["score"]) for other in others),
            *(
                _percent(box[key]) if box.get(key) is not None else ""
                for key in ("coverage", "area")
            ),
        ]
        kind = ' class="last"' if name == last else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    failures = ", ".join(
        f"{count} {html.escape(kind)}" for kind, count in found["failures"].items()
    )
    note = f"<p><small>Failures, which count as wrong: {failures}.</small></p>" if failures else ""
    head = "".join(f"<th>{html.escape(title)}</th>" for title in heads)
    return (
        f"<h3>{html.escape(target)}</h3><div class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>{note}{_by_category(results, target)}"
    )


def _by_category(results: Mapping[str, Any], target: str) -> str:
    categories = results["targets"][target]["categories"]
    if not categories:
        return ""
    names = list(results["accuracy"])
    head = "".join(f"<th>{html.escape(NAMES.get(name, name))}</th>" for name in names)
    lines = "".join(
        f"<tr><td>{html.escape(category)} <small>{row['n']}</small></td>"
        + "".join(f"<td>{_percent(row[name]) if name in row else ''}</td>" for name in names)
        + "</tr>"
        for category, row in categories.items()
    )
    return (
        f"<div class='scroll'><table><thead><tr><th>category</th>{head}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def _interval(ends: Sequence[float], text: Callable[[float], str]) -> str:
    return f"<small>{text(ends[0])} to {text(ends[1])}</small>"


def _costs(results: Mapping[str, Any]) -> str:
    lines = []
    for stage, seconds in results["seconds"].items():
        kind, _, rest = stage.partition("/")
        condition = rest.rpartition("/")[2]
        if kind == "answer" and condition not in (NO_CROP, _last(results), UPSCALED):
            continue  # crops cost the same
        words = {
            "read": "read the picture",
            "propose": f"propose a box: {rest}",
            "answer": f"answer, {NAMES.get(condition, 'with a crop')}: {rest.rpartition('/')[0]}",
        }[kind]
        tokens = results["image_tokens"].get(stage)
        lines.append(
            f"<tr><td>{html.escape(words)}</td><td>{1000 * seconds:,.1f}</td>"
            f"<td>{'' if tokens is None else f'{tokens:,.0f}'}</td></tr>"
        )
    return (
        "<table><thead><tr><th>stage</th><th>milliseconds</th><th>image tokens</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )
