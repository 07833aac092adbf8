# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Questions about receipts, with the boxes of the answers themselves.

The source `sroie` gives the boxes of whole lines, as SROIE tells them. A line such as "DATE :
25/12/2018 8:13:39 PM CASHIER: 2" is twice as long as its answer, and a reader of 192 px sees its
letters half as wide.
"""

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from cropvlm_jax import geometry
from cropvlm_jax.data.sources import sroie

_MARGIN = 0.8  # letters beside an answer, as those of a line are not all of one width


def questions(origin: pathlib.Path, split: str) -> Iterator[dict[str, Any]]:
    """The questions of the source `sroie`; origin is its folder."""
    with (origin / "receipts.jsonl").open(encoding="utf-8") as file:
        receipts = {receipt["image"]: receipt for receipt in map(json.loads, file)}
    for row in sroie.open(origin, split).rows:
        yield narrowed(without_currency(row), receipts[row["image"]])


def without_currency(example: dict[str, Any]) -> dict[str, Any]:
    """The example; where a total stands after a currency's mark, the amount alone comes first.

    One total of SROIE's in eight has the mark, which is no part of the amount.
    """
    answer = example["answers"][0]
    amount = re.sub(r"^(RM|\$)\s*", "", answer)
    if example["category"] != "total" or amount == answer:
        return example
    return {**example, "answers": [amount, answer]}


def narrowed(example: dict[str, Any], receipt: dict[str, Any]) -> dict[str, Any]:
    """The example, with the box of a total or date in place of that of the line that holds it.

    Where its letters are is told by their share of the line. A box stays as it is where it is of
    several lines, or where the line does not hold the answer as it is written.

    Args:
        example: of the source `sroie`.
        receipt: with `width`, `height` and `lines`, as in `receipts.jsonl`.
    """
    if "box" not in example or example["category"] == "company":
        return example
    size, answer = np.array([receipt["height"], receipt["width"]]), example["answers"][0].lower()
    for line in receipt["lines"]:
        text = line["text"].lower()
        is_its_line = (
            list(example["box"]) == geometry.from_pixels(np.array(line["box"]), size).tolist()
        )
        found = re.search(rf"(?<!\d){re.escape(answer)}(?!\d)", text)
        if is_its_line and found:
            x1, y1, x2, y2 = line["box"]
            letter = (x2 - x1) / len(text)
            left = max(x1, x1 + (found.start() - _MARGIN) * letter)
            right = min(x2, x1 + (found.end() + _MARGIN) * letter)
            box = geometry.from_pixels(np.array([left, y1, right, y2]), size)
            return {**example, "box": box.tolist()}
    return example
