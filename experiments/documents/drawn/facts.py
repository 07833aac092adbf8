# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a receipt says, and in which manner, chosen before it is printed."""

import dataclasses

import numpy as np

from . import phrases, words
from .chance import between, often, pick, weighted


@dataclasses.dataclass(frozen=True)
class Facts:
    """The content of a receipt, and the manners that it keeps throughout.

    Attributes:
        company, date: The answers.
        bought: The goods and sums.
        titled: Whether words begin with capitals only.
        date_at: "top", "goods" (just above the goods) or "end".
        colon: What follows a label.
        currency: What precedes a sum that matters.
        currency_apart: Whether the currency is a column of its own.
        label_at: Where labels of sums begin or end, as a part of the printed width.
        label_align: 0 where they begin there, 1 where they end there.
        sum_at: Where sums end.
        suffix: The code of the tax behind a price.
        underlined: Whether there is a line below each sum.
    """

    company: str
    date: str
    bought: words.Purchase
    titled: bool
    date_at: str
    colon: str
    currency: str
    currency_apart: bool
    label_at: float
    label_align: float
    sum_at: float
    suffix: str
    underlined: bool

    def cased(self, text: str) -> str:
        """A text in this receipt's manner."""
        return text.title() if self.titled else text


def choose(rng: np.random.Generator) -> Facts:
    """Chooses what stands on a receipt."""
    titled = often(rng, 0.2)
    company = words.company(rng)
    aligned = often(rng, 0.35)
    label_at = between(rng, 0.55, 0.78) if aligned else weighted(rng, {0.0: 5, 0.3: 1, 0.42: 1})
    return Facts(
        company=company.title() if titled else company,
        date=words.date(rng),
        bought=words.purchase(rng),
        titled=titled,
        date_at=weighted(rng, {"top": 6, "goods": 2, "end": 1.7}),
        colon=pick(rng, (":", " :", "", ": ")),
        currency=weighted(rng, {"": 6, "RM ": 2, "RM": 1, "$": 0.4, "MYR ": 0.1}),
        currency_apart=often(rng, 0.12),
        label_at=label_at,
        label_align=float(aligned),
        sum_at=between(rng, 0.78, 0.95) if often(rng, 0.6) else 1.0,
        suffix=weighted(rng, {"": 4, " SR": 1, " S": 1, " T": 0.6, " Z": 0.4, " ZRL": 0.3}),
        underlined=often(rng, 0.08),
    )


def dated(rng: np.random.Generator, facts: Facts, label: bool) -> str:
    """The date as it stands on a receipt, perhaps with a label and the time."""
    text = facts.date
    if often(rng, 0.5):
        text += pick(rng, (" ", " ", "  ", " - ")) + words.clock(rng)
    return f"{facts.cased(pick(rng, phrases.DATES))}{facts.colon or ' '} {text}" if label else text


def code(rng: np.random.Generator) -> str:
    """A number or a name as receipts have them."""
    if often(rng, 0.3):
        return words.invented(rng)
    return pick(rng, ("", "CS", "V001-", "R", "#", "")) + words.number(rng, 1, 9)
