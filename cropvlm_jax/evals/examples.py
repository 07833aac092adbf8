# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Examples of a report: which items are shown, and what is said of each."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cropvlm_jax.evals.conditions import NO_CROP, boxes_of
from cropvlm_jax.evals.figures import last_of
from cropvlm_jax.evals.statistics import score_of
from cropvlm_jax.pixels import host, sheet

EXAMPLES = 6  # of each kind
SIDE = 360  # px of an example's longest side on the page
RIGHT, WRONG = "\u2713", "\u2717"  # marks of replies


class Kind(NamedTuple):
    """Examples of what the last cropper's crop did to the first target."""

    title: str
    description: str
    records: list[Mapping[str, Any]]


def choose(results: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[Kind]:
    """The first items of each kind that there is."""
    kinds: tuple[tuple[str, str, Callable[[float, float], bool]], ...] = (
        ("Rescued", "wrong on the picture alone, better with the crop", lambda a, b: b > a),
        ("Harmed", "better on the picture alone than with the crop", lambda a, b: b < a),
        ("Still wrong", "no score with the crop, nor without", lambda a, b: a == b == 0),
    )
    usable = [record for record in records if "unreadable" not in record]
    found = []
    for title, description, is_kind in kinds:
        shown = [record for record in usable if is_kind(*_change(results, record))][:EXAMPLES]
        if shown:
            found.append(Kind(title, description, shown))
    if found:
        return found
    changes = [_change(results, record) for record in usable]
    same = [record for record, (a, b) in zip(usable, changes, strict=True) if a == b]
    if same:
        text = "as good on the picture alone as with the crop"
        return [Kind("Unchanged", text, same[:EXAMPLES])]
    return [Kind("Not scored", "without an answer, alone or with the crop", usable[:EXAMPLES])]


def panel(results: Mapping[str, Any], record: Mapping[str, Any], image: np.ndarray) -> Image.Image:
    """An example for `examples.png`.

    Args:
        results: of the evaluation.
        record: of the item.
        image: uint8 `[H, W, 3]`.
    """
    lines = [" ".join(record["question"].split())[:80]]
    for title, condition in _conditions(results):
        text, mark = _marked_reply(results, record, condition)
        word = {RIGHT: "right", WRONG: "wrong"}.get(mark, mark)
        lines.append(f"{title}: {text[:50]!r}, {word}")
    lines.append(f"truth: {record['answers'][0][:60]}")
    boxes = boxes_of(record["boxes"][last_of(results)])
    first = boxes[0] if boxes else None
    return sheet.panel(Image.fromarray(image), first, lines, others=boxes[1:])


def card(
    results: Mapping[str, Any], record: Mapping[str, Any], image: np.ndarray
) -> dict[str, str]:
    """The fields of `templates/card.html`, as HTML.

    Args:
        results: of the evaluation.
        record: of the item.
        image: uint8 `[H, W, 3]`.
    """
    boxes = boxes_of(record["boxes"][last_of(results)])
    answers = ""
    for title, condition in _conditions(results):
        text, mark = _marked_reply(results, record, condition)
        kind = {RIGHT: "right", WRONG: "wrong"}.get(mark, "partly")
        said = html.escape(text) or "<em>nothing</em>"
        answers += f'<dt>{title}</dt><dd class="{kind}"><b>{said}</b> <span>{mark}</span></dd>'
    return {
        "whole": _data_uri(image),
        "crops": "".join(_crop(image, box) for box in boxes) or "<p>no crop</p>",
        "frames": "".join(_frame(box) for box in boxes),
        "question": html.escape(record["question"]),
        "answers": answers,
        "truth": html.escape(record["answers"][0]),
    }


def _crop(image: np.ndarray, box: Sequence[float]) -> str:
    """The crop of a box, as HTML."""
    return f'<img alt="" src="{_data_uri(host.cut(image, box))}">'


def _frame(box: Sequence[float]) -> str:
    """A frame around a box of a card's whole picture, as HTML."""
    x1, y1, x2, y2 = box
    place = f"left:{x1}%;top:{y1}%;width:{x2 - x1}%;height:{y2 - y1}%"
    return f'<i style="{place}"></i>'


def _conditions(results: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What an example compares: titles and conditions."""
    return ("picture alone", NO_CROP), ("with the crop", last_of(results))


def _change(results: Mapping[str, Any], record: Mapping[str, Any]) -> tuple[float, float]:
    """The scores of the first target without a crop and with the last cropper's."""
    replies = record["replies"][next(iter(results["targets"]))]
    metric = next(iter(results["protocol"]["metrics"]))
    return score_of(replies, NO_CROP, metric), score_of(replies, last_of(results), metric)


def _marked_reply(
    results: Mapping[str, Any], record: Mapping[str, Any], condition: str
) -> tuple[str, str]:
    """What the first target said, and a mark of how good it was."""
    reply = record["replies"][next(iter(results["targets"]))][condition]
    score = reply["scores"][next(iter(results["protocol"]["metrics"]))]
    text = " ".join((reply.get("failure") or reply["text"]).split())[:160]
    if score is None:
        return text, "not answered"
    return text, RIGHT if score == 1 else WRONG if score == 0 else f"{100 * score:.0f}%"


def _data_uri(image: np.ndarray) -> str:
    """A picture `[H, W, 3]` as JPEG, its longest side `SIDE` px."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    buffer = io.BytesIO()
    Image.fromarray(image).resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
