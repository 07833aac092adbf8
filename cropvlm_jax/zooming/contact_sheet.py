# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""All results on one HTML page that needs no other file and no network.

The page holds the results as data and draws a few dozen of them at a time, so that thousands of
pictures do not make it slow.
"""

import base64
import html
import importlib.resources
import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cropvlm_jax import texts
from cropvlm_jax.zooming.results import FAILURE, THUMBNAILS, Record, file_stem

PAGE = "contact_sheet.html"
MOST_PICTURES = 5000  # that a page holds, some 5 KB each; of the results after them the text alone
SHOWN = ("id", "question", "box", "boxes", "answer", "answer_without_crop", "kept", FAILURE)


def write(out: Path, records: Sequence[Record], settings: Mapping[str, Any], total: int) -> None:
    """Writes the page, wholly or not at all.

    Args:
        out: the folder of the results, with their thumbnails.
        records: the results, in the order in which they are shown.
        settings: that they depend on, which the page tells.
        total: how many questions there are.
    """
    cards = [_card(out, record, i < MOST_PICTURES) for i, record in enumerate(records)]
    failures = sum(FAILURE in record for record in records)
    told = f"{len(records):,} of {total:,} questions, {failures:,} failed"
    if len(records) > MOST_PICTURES:
        told += f"; pictures of the first {MOST_PICTURES:,}"
    template = importlib.resources.files("cropvlm_jax.zooming") / "templates" / PAGE
    page = string.Template(template.read_text(encoding="utf-8")).substitute(
        told=told,
        settings=html.escape(json.dumps(settings, indent=2, ensure_ascii=False, allow_nan=False)),
        cards=_as_script(cards),
    )
    temporary = out / f"{PAGE}.new"
    temporary.write_text(texts.mend(page), encoding="utf-8")
    temporary.replace(out / PAGE)


def _card(out: Path, record: Record, with_picture: bool) -> dict[str, Any]:
    """What the page shows of a result."""
    card = {key: record[key] for key in SHOWN if key in record}
    thumbnail = out / THUMBNAILS / f"{file_stem(record['id'])}.webp"
    if with_picture and ("box" in record or "boxes" in record) and thumbnail.is_file():
        card["picture"] = base64.b64encode(thumbnail.read_bytes()).decode()
    return card


def _as_script(cards: Sequence[Mapping[str, Any]]) -> str:
    """The cards as JSON that may stand in an element `script`, whatever their texts hold."""
    text = json.dumps(cards, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
