# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Text that can be written as UTF-8.

A `str` may hold half of a surrogate pair: JSON spells one as "\\ud800", and so do file names and
command lines that are not UTF-8. No tokenizer, file or terminal takes it.
"""

import re

_HALF = re.compile("[\ud800-\udfff]")


def check(text: str, what: str) -> str:
    """Returns `text` where UTF-8 can hold it.

    Args:
        text: The text.
        what: What messages call it, such as "question".

    Raises:
        ValueError: It holds half of a surrogate pair.
    """
    half = _HALF.search(text)
    if half:
        raise ValueError(
            f"the {what} cannot be written as UTF-8: its character {half.start() + 1} is "
            f"{half.group()!r}, half of a surrogate pair; replace it"
        )
    return text


def mend(text: str) -> str:
    """The text with halves of surrogate pairs replaced by U+FFFD; two that belong are joined."""
    if not _HALF.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
