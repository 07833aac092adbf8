# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How a tokenizer writes replies: the tokens that `grammar.Grammar` is made of."""

import os.path
from collections.abc import Callable
from typing import NamedTuple

import tokenizers

from cropvlm_jax.geometry.boxes import MAX_BOXES, NOT_NEEDED, reply_text

END_OF_UTTERANCE = "<end_of_utterance>"
Encode = Callable[[str], tuple[int, ...]]


class Spelling(NamedTuple):
    """The tokens of replies; see the attributes of `grammar.Grammar`."""

    actions: tuple[int, ...]
    opening: tuple[int, ...]
    separator: tuple[int, ...]
    closing: tuple[int, ...]
    between: tuple[int, ...]
    refusal: tuple[int, ...]


def encoder(tokenizer: tokenizers.Tokenizer) -> Encode:
    """What writes texts as tokens, without special ones at their ends."""
    # A copy: tokenizer files may carry truncation or padding.
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: tuple(tokenizer.encode(text, add_special_tokens=False).ids)


def spell(tokenizer: tokenizers.Tokenizer, max_boxes: int, abstain: bool) -> Spelling:
    """Reads off sample replies how a tokenizer writes them.

    Args:
        tokenizer: of the cropper.
        max_boxes: the most boxes of a reply.
        abstain: whether a reply may name no box.

    Raises:
        ValueError: it does not write digits or what stands between them as replies need it, or
            `max_boxes` is out of range.
    """
    if not 1 <= max_boxes <= MAX_BOXES:
        raise ValueError(f"max_boxes={max_boxes}: a reply has 1 to {MAX_BOXES} boxes at most")
    encode = encoder(tokenizer)
    digits = [encode(str(d)) for d in range(10)]
    boxes = [(0, 0, 0, 0)] * min(max_boxes, 2)
    sample = encode(f" {reply_text(boxes)}{END_OF_UTTERANCE}")
    zeros = [i for i, token in enumerate(sample) if (token,) == digits[0]]
    if any(len(d) != 1 for d in digits) or len(zeros) != 4 * len(boxes):
        raise ValueError("the tokenizer does not write each digit of a box as one token")
    opening, separator = sample[: zeros[0]], sample[zeros[0] + 1 : zeros[1]]
    closing = sample[zeros[-1] + 1 :]
    if not separator or (tokenizer.token_to_id(END_OF_UTTERANCE),) != closing[-1:]:
        raise ValueError(f"the tokenizer has no {END_OF_UTTERANCE} token or no separator")
    between = sample[zeros[3] + 1 : zeros[4]] if max_boxes > 1 else ()
    if between[:1] == closing[:1]:
        raise ValueError(
            f"max_boxes={max_boxes}: the tokenizer begins '],' and '].' with the same token, so "
            "that a box does not tell whether another one follows: set max_boxes=1 for this cropper"
        )
    refusal = encode(f" {NOT_NEEDED}{END_OF_UTTERANCE}") if abstain else ()
    actions = [*(d[0] for d in digits), separator[0], closing[0], *between[:1]]
    if abstain:
        alike = len(os.path.commonprefix([opening, refusal]))
        actions += [opening[alike], refusal[alike]]
    return Spelling(tuple(actions), opening, separator, closing, between, refusal)
