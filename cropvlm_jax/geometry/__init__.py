# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Boxes, coordinate frames and the grammar of box replies. Never imports jax.

from cropvlm_jax import geometry

geometry.to_text((12, 5, 40, 33))  # "[12, 5, 40, 33]."
geometry.reply_text([])  # "Not needed."
geometry.to_pixels(box, size)  # percent to pixels, rounded as PIL rounds
"""

from cropvlm_jax.geometry.automaton import DONE, LAST, MORE, OPENING, STOP, GrammarState
from cropvlm_jax.geometry.boxes import (
    FULL,
    MAX_BOXES,
    NOT_NEEDED,
    PAPER_BOUNDS,
    QUINTILE_FACTORS,
    Box,
    FineBox,
    area,
    check_finite,
    coverage,
    expand,
    expand_by_quintile,
    expand_reply,
    in_order,
    intersection,
    iou,
    is_valid,
    parse,
    parse_all,
    reply_text,
    successor,
    to_text,
)
from cropvlm_jax.geometry.frames import (
    FRAMES,
    MAX_ASPECT,
    MAX_PIXELS,
    PixelLimits,
    frame_size,
    from_pixels,
    inside,
    rescale,
    smart_resize,
    to_percent,
    to_pixels,
)
from cropvlm_jax.geometry.grammar import BoxTokens, Grammar
from cropvlm_jax.geometry.spelling import END_OF_UTTERANCE

__all__ = [
    "DONE",
    "END_OF_UTTERANCE",
    "FRAMES",
    "FULL",
    "LAST",
    "MAX_ASPECT",
    "MAX_BOXES",
    "MAX_PIXELS",
    "MORE",
    "NOT_NEEDED",
    "OPENING",
    "PAPER_BOUNDS",
    "QUINTILE_FACTORS",
    "STOP",
    "Box",
    "BoxTokens",
    "FineBox",
    "Grammar",
    "GrammarState",
    "PixelLimits",
    "area",
    "check_finite",
    "coverage",
    "expand",
    "expand_by_quintile",
    "expand_reply",
    "frame_size",
    "from_pixels",
    "in_order",
    "inside",
    "intersection",
    "iou",
    "is_valid",
    "parse",
    "parse_all",
    "reply_text",
    "rescale",
    "smart_resize",
    "successor",
    "to_percent",
    "to_pixels",
    "to_text",
]
