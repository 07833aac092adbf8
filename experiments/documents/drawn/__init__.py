# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Drawn receipts and pages, unlimited, with the boxes of all that stands on them."""

from .document import Document, Field, Line
from .pages import draw_page
from .receipts import draw_receipt

__all__ = ["Document", "Field", "Line", "draw_page", "draw_receipt"]
