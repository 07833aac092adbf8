# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Drawn receipts and pages, unlimited, with the boxes of all that stands on them."""

from .document import Document, Field, Line
from .receipts import draw_receipt

__all__ = ["Document", "Field", "Line", "draw_receipt"]
