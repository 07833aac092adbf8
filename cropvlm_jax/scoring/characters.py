# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What Python knows of characters, as tables in which codepoints can be looked up in the graph."""

import functools
import sys
from collections.abc import Callable

import numpy as np


@functools.cache
def table(of: Callable[[str], int]) -> tuple[np.ndarray, np.ndarray]:
    """A property of all characters, by codepoint.

    Args:
        of: the property of a character; 0 of those that are not assigned.

    Returns:
        The page of every 256 codepoints, and the pages that differ `[pages, 256]`.
    """
    codes = np.r_[:0x20000, 0xE0000:0xE1000]  # all others are ideographs, private or unassigned
    found = np.array([of(chr(code)) for code in codes.tolist()])
    values = np.zeros(sys.maxunicode + 1, found.dtype)
    values[codes] = found
    pages, page = np.unique(values.reshape(-1, 256), axis=0, return_inverse=True)
    return page.ravel(), pages


def shift(character: str) -> int:
    """How far its first small letter is from it."""
    return ord(character.lower()[0]) - ord(character)


def cased(character: str) -> bool:
    """Whether a `Σ` after it is final, and one before it is not."""
    return (character + "Σ").lower()[-1] == "ς"


def ignorable(character: str) -> bool:
    """Whether `Σ` looks past it for a cased letter."""
    return ("a" + character + "Σ").lower()[-1] == "ς" and not cased(character)


def extra_capitals(character: str) -> int:
    """How many capital letters it has beyond one."""
    return len(character.upper()) - 1
