# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Drawn receipts and pages, unlimited, with the boxes of all that stands on them.

    receipt = draw_receipt(np.random.default_rng(0))
    answer, box = receipt.fields["total"]

They look as receipts of SROIE and pages of manuals do (`compare_drawn.py` measures how much).
Names, dates and sums are made up. `fonts.py` says which fonts to install: what is drawn depends on
them.
"""

from .document import Document, Field, Line
from .pages import draw_page
from .receipts import draw_receipt

__all__ = ["Document", "Field", "Line", "draw_page", "draw_receipt"]
