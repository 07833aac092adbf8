# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""An evaluation as one HTML page that needs nothing else, and its figures as PNGs.

The page and its style are in `templates/`.
"""

import html
import io
import json
import os
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cropvlm_jax import texts
from cropvlm_jax.evals import cost_figures, cost_sections, examples, figures, markup
from cropvlm_jax.evals.conditions import NO_CROP
from cropvlm_jax.evals.examples import Kind
from cropvlm_jax.evals.figures import (
    Figure,
    Results,
    color_of,
    headline,
    label_of,
    last_of,
    percent,
    points,
)
from cropvlm_jax.pixels import host, sheet

_METADATA = ("Creator", "Date", "Format", "Type")  # of an SVG; it is left out


def write(
    out: str | os.PathLike,
    results: Results,
    records: Sequence[Mapping[str, Any]],
    source: Any,
    curves: Mapping[str, Sequence[Mapping[str, float]]],
) -> None:
    """Writes `report.html`, `scores.png`, `expansion.png`, `transfer.png`, `examples.png`; of
    croppers that are in a run's folder `training.png`; and where the results tell what looking
    costs `cost.png` and `risk.png`.

    Args:
        out: folder, which exists.
        results: of `run.evaluate`, with `trained_with`, by cropper the target that rewarded it
            where that is known.
        records: of the same evaluation.
        source: of its pictures.
        curves: by cropper the rows of its run's `metrics.jsonl`.
    """
    out = Path(out)
    drawn = {}
    with figures.style():
        for name, figure in _draw(results, curves):
            figure.savefig(out / f"{name}.png", dpi=160, facecolor="white")
            drawn[name] = _svg(figure)
    kinds = examples.choose(results, records)
    chosen = [record for kind in kinds for record in kind.records]
    pictures = {r["index"]: host.to_rgb(source[r["index"]]["image"]) for r in chosen}
    panels = [examples.panel(results, record, pictures[record["index"]]) for record in chosen]
    sheet.grid(panels, columns=2).save(out / "examples.png")
    page = _page(results, drawn, kinds, pictures)
    (out / "report.html").write_text(texts.mend(page), encoding="utf-8")


def _draw(
    results: Results, curves: Mapping[str, Sequence[Mapping[str, float]]]
) -> Iterator[tuple[str, Figure]]:
    """The figures by name."""
    yield "scores", figures.scores_figure(results)
    if results["protocol"]["expansions"]:
        yield "expansion", figures.expansion_figure(results)
    if "tradeoffs" in results:
        yield "cost", cost_figures.cost_figure(results)
        yield "risk", cost_figures.risk_figure(results)
    yield "transfer", figures.transfer_figure(results)
    if curves:
        yield "training", figures.training_figure(results, curves)


def _svg(figure: Figure) -> str:
    """A figure as an SVG element."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    svg = file.getvalue()
    return svg[svg.index("<svg") :]  # without its reference to a DTD


# The page -----------------------------------------------------------------------------------------


def _page(
    results: Results,
    drawn: Mapping[str, str],
    kinds: Sequence[Kind],
    pictures: Mapping[int, np.ndarray],
) -> str:
    """The page.

    Args:
        results: of the evaluation, as `write` takes them.
        drawn: SVGs of the figures by name.
        kinds: the examples to show.
        pictures: of the examples, by index.
    """
    protocol = results["protocol"]
    sections = [
        *_score_sections(results, drawn),
        *cost_sections.sections(results, drawn),
        _examples_section(results, kinds, pictures),
        markup.section(
            "Transfer",
            "Points won over no crop: each cropper, unchanged, in front of each target.",
            drawn["transfer"],
        ),
    ]
    if "training" in drawn:
        text = "Each step's value, and a running mean; dots are held-out examples."
        sections.append(markup.section("The runs", text, drawn["training"]))
    sections.append(markup.section("What it costs", "Medians and means an item.", _costs(results)))
    sections.append(_protocol_section(results))
    return string.Template(markup.template("report.html")).substitute(
        benchmark=html.escape(protocol["benchmark"]),
        css=markup.template("report.css"),
        target=html.escape(next(iter(results["targets"]))),
        items=f"{results['n']:,}",
        metric=html.escape(next(iter(protocol["metrics"]))),
        keys=_keys(results),
        sections="".join(sections),
    )


def _keys(results: Results) -> str:
    """The figures at the head of the page."""
    rows = headline(results, next(iter(results["targets"])))
    last, best = last_of(results), results["best_scale"]
    row = rows[last]
    keys = [
        ("", percent(rows[NO_CROP]["score"]), "the target alone, without a crop"),
        ("last", percent(row["score"]), f"with the crop of {html.escape(last)}"),
        (
            "",
            points(row["gain"]),
            f"points won, 95% interval {markup.ends(row['gain_interval'], points)}",
        ),
    ]
    if "lead" in best:
        text = (
            f"points ahead of {html.escape(best['cropper'])}'s boxes at their best scale, "
            f"{markup.ends(best['lead_interval'], points)}"
        )
        keys.append(("", points(best["lead"]), text))
    changed = f"{row['rescued']:,} : {row['harmed']:,}"
    keys += [
        ("", changed, f"items rescued and harmed, of {row['n']:,}"),
        ("", percent(results["area"]), "of the picture is in a box, on average"),
    ]
    return "".join(f'<div class="{c}"><b>{b}</b><span>{s}</span></div>' for c, b, s in keys)


def _score_sections(results: Results, drawn: Mapping[str, str]) -> list[str]:
    """Scores, the choice of the best scale, and how scores depend on the size of boxes."""
    description = next(iter(results["protocol"]["metrics"].values()))
    tables = "".join(_table(results, name) for name in results["targets"])
    sections = [
        markup.section(
            "Scores and controls",
            f"{html.escape(description[:1].upper() + description[1:])}. The dotted line is the "
            "target without a crop. Control crops have the width and height of "
            f"{html.escape(last_of(results))}'s box on the same item. Bars are intervals: "
            f"{html.escape(results['intervals'])}.",
            drawn["scores"] + tables,
        )
    ]
    if "condition" in results["best_scale"]:
        sections.append(_best_scale_section(results["best_scale"]))
    if "expansion" in drawn:
        text = (
            "The same boxes, with their areas scaled about their centres before the crop is cut. "
            "Bands are 95% intervals."
        )
        sections.append(markup.section("How tight should the box be?", text, drawn["expansion"]))
    return sections


def _best_scale_section(best: Mapping[str, Any]) -> str:
    """How the scale of the first cropper's boxes was chosen."""
    validation, cropper = best["validation"], html.escape(best["cropper"])
    chosen = f"{best['chosen_scale']:g}"
    text = (
        f"Is it enough to scale {cropper}'s boxes? Their areas times each factor, on "
        f"{validation['n']:,} items of the split {html.escape(best['split'])}, read by "
        f"{html.escape(validation['target'])}; the best, {chosen}, is the control above. No item "
        "that is reported has a part in the choice."
    )
    scores = validation["scores"]
    head = markup.cells("th", ["area times", *scores])
    marked = [
        f"<b>{percent(score)}</b>" if factor == chosen else percent(score)
        for factor, score in scores.items()
    ]
    body = markup.cells("td", [html.escape(validation["metric"]), *marked])
    return markup.section(
        "The control's scale, chosen on validation", text, markup.table_of(head, [body])
    )


def _examples_section(
    results: Results, kinds: Sequence[Kind], pictures: Mapping[int, np.ndarray]
) -> str:
    """Examples of each kind, a card each."""
    template = string.Template(markup.template("card.html"))
    content = ""
    for kind in kinds:
        cards = "".join(
            template.substitute(examples.card(results, record, pictures[record["index"]]))
            for record in kind.records
        )
        heading = f"<h3>{kind.title} <small>{kind.description}</small></h3>"
        content += f"{heading}<div class='cards'>{cards}</div>"
    text = (
        f"{html.escape(last_of(results))}'s box in red, its crop of the original pixels, and what "
        f"{html.escape(next(iter(results['targets'])))} says. The first items of each kind, not "
        "picked."
    )
    return markup.section("What it looks at", text, content)


def _protocol_section(results: Results) -> str:
    """All that the results depend on, and the pictures that could not be read."""
    protocol = results["protocol"]
    text = (
        f"{html.escape(protocol['benchmark'])}, split {html.escape(protocol['split'])}, "
        f"{results['n']:,} items; metric {html.escape(next(iter(protocol['metrics'])))}; seed "
        f"{protocol['seed']}. Every reply is in {html.escape(results['records'])}."
    )
    if "left_out" in results["best_scale"]:
        reason = html.escape(results["best_scale"]["left_out"])
        text += f" The control that scales the first cropper's boxes is left out: {reason}."
    settings = html.escape(json.dumps(protocol, indent=2, allow_nan=False))
    content = (
        f"<details><summary>All settings and versions</summary><pre>{settings}</pre></details>"
    )
    if results["unreadable"]:
        unread = "".join(
            f"<li>{html.escape(name)}: {html.escape(reason)}</li>"
            for name, reason in results["unreadable"].items()
        )
        content += f"<p>Pictures that could not be read, in no score:</p><ul>{unread}</ul>"
    return markup.section("Protocol", text, content)


# Tables -------------------------------------------------------------------------------------------


def _table(results: Results, target: str) -> str:
    """A target's conditions in all metrics, with what each did to the items."""
    found = results["targets"][target]
    first, *others = results["protocol"]["metrics"]
    lead = f"lead of {html.escape(last_of(results))}"
    heads = ["", html.escape(first), "gain over no crop", lead, "rescued : harmed"]
    heads += [html.escape(other) for other in others] + ["coverage", "area"]
    rows = [_condition_row(results, target, name) for name in results["accuracy"]]
    failures = ", ".join(
        f"{count} {html.escape(kind)}" for kind, count in found["failures"].items()
    )
    text = "Refusals and empty replies count as wrong, other failures are in no score"
    note = f"<p><small>Failures: {failures}. {text}.</small></p>" if failures else ""
    table = markup.table_of(markup.cells("th", heads), rows)
    return f"<h3>{html.escape(target)}</h3>{table}{note}{_by_category(results, target)}"


def _condition_row(results: Results, target: str, name: str) -> str:
    """The row of a condition in a target's table."""
    scores, last = results["targets"][target]["scores"], last_of(results)
    first, *others = results["protocol"]["metrics"]
    row, box = scores[first][name], results["boxes"].get(name, {})
    dot = f'<span class="dot" style="background:{color_of(results, name)}"></span>'
    cells = [
        dot + html.escape(label_of(results, name)),
        _score(row, results["n"]),
        "" if name == NO_CROP else _difference(row, "gain"),
        "" if name == last else _difference(row, "lead"),
        "" if name == NO_CROP else f"{row['rescued']} : {row['harmed']}{_shares(row)}",
        *(percent(scores[other][name]["score"]) for other in others),
        *("" if box.get(key) is None else percent(box[key]) for key in ("coverage", "area")),
    ]
    kind = ' class="last"' if name == last else ""
    return f"<tr{kind}>{markup.cells('td', cells)}</tr>"


def _difference(row: Mapping[str, Any], key: str) -> str:
    """A gain or a lead with its interval; where there is none, why."""
    if row[key] is None:
        return f"n/a <small>{html.escape(row['missing'][key])}</small>"
    return f"{points(row[key])} {markup.interval(row[f'{key}_interval'], points)}"


def _score(row: Mapping[str, Any], items: int) -> str:
    """A score with its interval, of how many items if not of all; where there is none, why."""
    if row["score"] is None:
        return f"not scored <small>{html.escape(row['missing']['score'])}</small>"
    part = "" if row["n"] == items else f"<small>, of {row['n']:,} items alone</small>"
    return f"<b>{percent(row['score'])}</b> {markup.interval(row['score_interval'], percent)}{part}"


def _shares(row: Mapping[str, Any]) -> str:
    """A bar of the shares of items that were rescued and harmed."""
    widths = (100 * row[key] / max(row["n"], 1) for key in ("rescued", "harmed"))
    bars = "".join(f'<i style="width:{width:.1f}%"></i>' for width in widths)
    return f'<span class="split">{bars}</span>'


def _by_category(results: Results, target: str) -> str:
    """A target's scores by the data set's categories, where it has any."""
    categories = results["targets"][target]["categories"]
    if not categories:
        return ""
    names = list(results["accuracy"])
    rows = []
    for category, row in categories.items():
        first = f"{html.escape(category)} <small>{row['n']}</small>"
        scores = (percent(row[name]) if name in row else "" for name in names)
        rows.append(markup.cells("td", [first, *scores]))
    head = ["category", *(html.escape(label_of(results, name)) for name in names)]
    return markup.table_of(markup.cells("th", head), rows)


def _costs(results: Results) -> str:
    """Milliseconds and image tokens of each stage, for one item."""
    tokens = results["image_tokens"]
    shown = {"picture alone": NO_CROP, "with a crop": last_of(results)}
    rows = []
    for stage, seconds in results["seconds"].items():
        counts = [f"{tokens[stage]:,.0f}"] if stage in tokens else []
        counts += [
            f"{tokens[key]:,.0f} {what}"
            for what, condition in shown.items()
            if (key := f"{stage}/{condition}") in tokens
        ]
        words = html.escape(_stage_words(results, stage))
        rows.append(markup.cells("td", [words, f"{1000 * seconds:,.1f}", ", ".join(counts)]))
    return markup.table_of(markup.cells("th", ["stage", "milliseconds", "image tokens"]), rows)


def _stage_words(results: Results, stage: str) -> str:
    """A stage of the evaluation in words; of what looking costs, some are asked apart."""
    kind, _, name = stage.partition("/")
    if kind == "read":
        return "read the picture"
    if kind == "propose":
        return f"propose a box: {name}"
    if name in results["targets"]:
        which = "all other conditions" if "tradeoffs" in results else "all conditions"
        return f"answer under {which}: {name}"
    target = next(target for target in results["targets"] if name.startswith(f"{target}/"))
    return f"answer, {label_of(results, name.removeprefix(f'{target}/'))}: {target}"
