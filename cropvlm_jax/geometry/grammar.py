# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The grammar of box replies, as a token automaton built from a tokenizer.

A reply is sampled as *actions*: one of ten digits, STOP (the coordinate ends) or LAST (the fourth
coordinate ends, and with it the reply). In each state the automaton allows the actions that can
still lead to a valid box. Where it allows one only, nothing is sampled and its tokens are written
at once. The reply " [12, 5, 40, 100].", token by token:

    token   allowed actions      why
    ` [`    none                 every reply begins so (`opening`)
    `1`     0 to 9               x1 is 0 to 99, so any digit may begin it
    `2`     0 to 9, STOP         x1 may be 1, or have a second digit
    `,`     STOP                 12 has two digits, and x1 has at most two: not sampled
    ` `     none                 the rest of `separator`
    `5`     0 to 9               y1 is 0 to 99
    `,`     0 to 9, STOP         STOP is sampled: y1 is 5
    ` `     none
    `4`     1 to 9               x2 is 13 to 100: none of these begins with 0
    `0`     0 to 9               4 is less than 13, so x2 cannot end here
    `,`     STOP                 not sampled
    ` `     none
    `1`     1 to 9               y2 is 6 to 100
    `0`     0 to 9               1 is less than 6
    `0`     0, LAST              y2 may be 10, or 100
    `].`    LAST                 after 100 nothing else can follow: not sampled
    end     none                 the rest of `closing`, the end of the utterance

So nine actions were sampled of a reply of 17 tokens. `Grammar.encode` writes known boxes in this
way, `Grammar.advance` takes one action of a reply being sampled.

Functions take NumPy and JAX arrays alike; JAX is not imported here.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from cropvlm_jax.geometry.boxes import Array, to_text

END_OF_UTTERANCE = "<end_of_utterance>"
STOP, LAST = 10, 11  # actions 0..9 are the digits; STOP ends a coordinate, LAST the fourth one


def _successors() -> np.ndarray:
    """What may follow a partly written coordinate.

    Returns:
        Whether an action may come next, bool `[101, 102, 11]`. The axes are the least value that
        the coordinate may have (0 marks the first corner, which is at most 99; other coordinates
        are at most 100); what is written of it (0 nothing, 1 + v the number v); and the action, a
        digit or STOP.
    """
    allowed = np.zeros((101, 102, 11), bool)
    for low in range(101):
        for value in range(low, 101 if low else 100):
            digits = str(value)
            for i, digit in enumerate(digits):
                allowed[low, 1 + int(digits[:i]) if i else 0, int(digit)] = True
            allowed[low, 1 + value, STOP] = True
    return allowed


SUCCESSORS = _successors()


class GrammarState(NamedTuple):
    """Where a reply being written stands.

    After " [12, 4" that is `coordinate` 1, `written` 1 + 4 and `box` 12, 0, 0, 0.

    Attributes:
        coordinate: Number of the coordinate being written, 4 when the reply is complete; int
            `[...]`.
        written: 0 when none of its digits is written, else 1 + their value; int `[...]`.
        box: The coordinates completed so far, int `[..., 4]`.
    """

    coordinate: Array
    written: Array
    box: Array


class _Slot(NamedTuple):
    """One of the tokens that a reply may have, of a batch of boxes `[...]`.

    Attributes:
        token: int `[...]`.
        used: bool `[...]`, whether the reply has this token.
        action: int `[...]`, the action that the token is; 0 where it is none.
        allowed: bool `[..., 12]`, the actions that were possible.
    """

    token: Array
    used: Array
    action: Array
    allowed: Array


class BoxTokens(NamedTuple):
    """A box as the tokens of its reply; T is `Grammar.max_length`, A the 12 actions.

    Attributes:
        tokens: Token ids from the opening bracket to the end of utterance, then 0; int `[..., T]`.
        valid: Which tokens the reply has: True up to its end, bool `[..., T]`.
        action: The action that a token is; 0 where a token is not an action; int `[..., T]`.
        allowed: The actions that were possible, bool `[..., T, A]`; all False where there was no
            choice.
    """

    tokens: Array
    valid: Array
    action: Array
    allowed: Array


@dataclasses.dataclass(frozen=True)
class Grammar:
    """The token automaton of box replies: what it accepts parses, is ordered and lies inside.

    The policy only ever chooses among 12 actions: a digit, the end of a coordinate, the end of the
    last one. All other tokens are forced and follow without being sampled.

    Attributes:
        actions: token ids of the 12 actions: digits 0..9, `separator[0]`, `closing[0]`.
        opening: tokens before the first coordinate.
        separator: tokens between coordinates.
        closing: tokens after the last coordinate, the end of utterance included.
    """

    actions: tuple[int, ...]
    opening: tuple[int, ...]
    separator: tuple[int, ...]
    closing: tuple[int, ...]

    @classmethod
    def from_tokenizer(cls, tokenizer: tokenizers.Tokenizer) -> "Grammar":
        """Learns from `tokenizer` how it writes boxes.

        Raises:
            ValueError: where it does not write each digit as one token, the same in every box.
        """
        # A copy: tokenizer files may carry truncation or padding.
        tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()

        def encode(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

        digits = [encode(str(d)) for d in range(10)]
        sample = encode(" [0, 0, 0, 0]." + END_OF_UTTERANCE)
        zeros = [i for i, token in enumerate(sample) if (token,) == digits[0]]
        if any(len(d) != 1 for d in digits) or len(zeros) != 4:
            raise ValueError("the tokenizer does not write each digit of a box as one token")
        opening, separator = sample[: zeros[0]], sample[zeros[0] + 1 : zeros[1]]
        closing = sample[zeros[3] + 1 :]
        if not separator or (tokenizer.token_to_id(END_OF_UTTERANCE),) != closing[-1:]:
            raise ValueError(f"the tokenizer has no {END_OF_UTTERANCE} token or no separator")
        actions = (*(d[0] for d in digits), separator[0], closing[0])
        grammar = cls(actions, opening, separator, closing)
        for box in ((0, 0, 1, 1), (9, 10, 99, 100), (12, 34, 56, 78), (99, 99, 100, 100)):
            reply = grammar.encode(np.array(box))
            if tuple(reply.tokens[reply.valid]) != encode(f" {to_text(box)}{END_OF_UTTERANCE}"):
                raise ValueError(f"the tokenizer writes {to_text(box)} in an irregular way")
        return grammar

    @property
    def max_length(self) -> int:
        """T, the tokens of the longest reply: one whose second corner is 100, 100."""
        return len(self.opening) + 10 + 3 * len(self.separator) + len(self.closing)

    @property
    def max_choices(self) -> int:
        """Most choices of a reply: two a first-corner coordinate, three a second."""
        return 10

    @property
    def iterations(self) -> int:
        """Decode iterations of a reply: two a coordinate, because `may_be_ten` saves the third."""
        return 8

    def choice(self, state: GrammarState) -> Array:
        """The number of the choice that `state` waits for, int `[...]` in 0..11.

        There are three a coordinate: before its first digit, after one and after two.
        """
        return 3 * state.coordinate + (state.written > 0) + (state.written > 10)

    def may_be_ten(self, state: GrammarState) -> Array:
        """Whether a 0 would make the coordinate 10, and then 10 or 100 is one more choice.

        A decoder that reads that 0 along with what is written makes both choices in one pass.
        """
        return (state.written == 2) & (state.coordinate >= 2) & (state.coordinate < 4)

    @property
    def chunk(self) -> int:
        """Most tokens that one decode iteration appends: a digit and a separator."""
        return 1 + max(len(self.opening), len(self.separator))

    def start(self, boxes: Array) -> GrammarState:
        """The state before the first digit, for a batch shaped like `boxes` `[..., 4]`."""
        zero = boxes[..., 0] * 0
        return GrammarState(zero, zero, boxes * 0)

    def allowed(self, state: GrammarState) -> Array:
        """Actions possible in `state`: bool `[..., 12]`; LAST alone once the reply is complete."""
        xp = state.box.__array_namespace__()
        corner = xp.where(state.coordinate % 2 == 0, state.box[..., 0], state.box[..., 1])
        low = xp.where(state.coordinate < 2, 0, corner + 1)
        return self._allowed(xp, state.coordinate, low, state.written)

    def _allowed(self, xp: Any, coordinate: Array, low: Array, written: Array) -> Array:
        successors = xp.asarray(SUCCESSORS)[xp.clip(low, 0, 100), xp.clip(written, 0, 101)]
        digits, stop = successors[..., :STOP], successors[..., STOP]
        done = coordinate >= 4
        return xp.concatenate(
            [
                digits & ~done[..., None],
                (stop & (coordinate < 3))[..., None],
                (stop & (coordinate == 3) | done)[..., None],
            ],
            axis=-1,
        )

    def advance(self, state: GrammarState, action: Array) -> tuple[GrammarState, Array, Array]:
        """Takes an allowed action, and with it the coordinate's end if nothing else may follow.

        Args:
            state: the current state.
            action: int `[...]` in 0..11.

        Returns:
            The next state, the tokens appended int `[..., chunk]`, and which of them count, bool
            `[..., chunk]` (not necessarily a first run). A complete reply appends none: neither the
            digit that completes it nor the closing tokens, since nothing is sampled after them.
        """
        xp = state.box.__array_namespace__()
        is_digit = action < STOP
        value = 10 * xp.maximum(state.written - 1, 0) + action
        written = xp.where(is_digit, 1 + value, state.written)
        typed = state._replace(written=written)
        ends = ~is_digit | ~self.allowed(typed)[..., :STOP].any(-1)
        position = xp.arange(4) == state.coordinate[..., None]
        after = GrammarState(
            coordinate=xp.minimum(state.coordinate + ends, 4),
            written=xp.where(ends, 0, written),
            box=xp.where(ends[..., None] & position, written[..., None] - 1, state.box),
        )
        live = after.coordinate < 4
        digit_token = xp.asarray(self.actions)[action][..., None]
        separator = xp.broadcast_to(
            xp.asarray(self.separator, dtype=digit_token.dtype),
            (*action.shape, len(self.separator)),
        )
        tokens = xp.concatenate([digit_token, separator], axis=-1)
        valid = xp.concatenate(
            [
                (is_digit & live)[..., None],
                xp.broadcast_to((ends & live)[..., None], separator.shape),
            ],
            axis=-1,
        )
        missing = self.chunk - tokens.shape[-1]
        pad = [(0, 0)] * action.ndim + [(0, missing)]
        return after, xp.pad(tokens, pad), xp.pad(valid, pad)

    def encode(self, boxes: Array) -> BoxTokens:
        """Writes valid boxes int `[..., 4]` as the tokens of their replies."""
        xp = boxes.__array_namespace__()
        slots = list(self._slots(boxes))
        used = xp.stack([slot.used for slot in slots], axis=-1)
        # Those used come first, in their order: no reply has all the digits that there is room for.
        order = xp.argsort(~used, axis=-1, stable=True)[..., : self.max_length]
        tokens = xp.take_along_axis(xp.stack([slot.token for slot in slots], -1), order, axis=-1)
        action = xp.take_along_axis(xp.stack([slot.action for slot in slots], -1), order, axis=-1)
        allowed = xp.stack([slot.allowed for slot in slots], axis=-2)
        allowed = xp.take_along_axis(allowed, order[..., None], axis=-2)
        valid = xp.take_along_axis(used, order, axis=-1)
        allowed = allowed & valid[..., None]
        allowed = allowed & (allowed.sum(axis=-1, keepdims=True) > 1)
        return BoxTokens(tokens * valid, valid, action * valid, allowed)

    def _slots(self, boxes: Array) -> Iterator[_Slot]:
        """All the tokens that a reply may have, in order; short numbers leave some unused."""
        always = boxes[..., 0] >= 0
        for token in self.opening:
            yield self._forced(boxes, token)
        for coordinate in range(4):
            value = boxes[..., coordinate]
            for place in range(2 if coordinate < 2 else 3):
                yield self._digit(boxes, coordinate, place)
            written = 1 + value.clip(0, 100)
            stop = always * (LAST if coordinate == 3 else STOP)
            yield self._chosen(boxes, coordinate, written, stop, always)
            for token in (self.closing if coordinate == 3 else self.separator)[1:]:
                yield self._forced(boxes, token)

    def _forced(self, boxes: Array, token: int) -> _Slot:
        """A token that every reply has here, and that is no action."""
        always = boxes[..., 0] >= 0
        xp = boxes.__array_namespace__()
        nothing = xp.zeros((*always.shape, len(self.actions)), dtype=bool)
        return _Slot(always * token, always, always * 0, nothing)

    def _digit(self, boxes: Array, coordinate: int, place: int) -> _Slot:
        """A digit of a coordinate, of which `place` digits stand before."""
        xp = boxes.__array_namespace__()
        value = boxes[..., coordinate]
        length = 1 + (value >= 10) + (value >= 100)
        rest = 10 ** xp.maximum(length - place, 0)  # divides off the digits not yet written
        written = xp.where(place > 0, 1 + value // rest, 0)
        digit = value // xp.maximum(rest // 10, 1) % 10
        return self._chosen(boxes, coordinate, xp.clip(written, 0, 101), digit, place < length)

    def _chosen(
        self, boxes: Array, coordinate: int, written: Array, action: Array, used: Array
    ) -> _Slot:
        """The token of an action, taken where a coordinate is partly written."""
        xp = boxes.__array_namespace__()
        always = boxes[..., 0] >= 0
        low = boxes[..., coordinate - 2] + 1 if coordinate >= 2 else always * 0
        allowed = self._allowed(xp, always * coordinate, low, written)
        return _Slot(xp.asarray(self.actions)[action], used, action, allowed)

    def decode(self, tokens: Array) -> Array:
        """The boxes that replies `[..., T]` name: int `[..., 4]`; inverse of `encode`."""
        xp = tokens.__array_namespace__()
        state = self.start(xp.zeros((*tokens.shape[:-1], 4), dtype=xp.int32))
        for i in range(tokens.shape[-1]):
            is_action = tokens[..., i, None] == xp.asarray(self.actions)
            last = xp.where(state.coordinate[..., None] == 3, STOP, LAST)
            is_action = is_action & (xp.arange(len(self.actions)) != last)
            taken = is_action.any(-1) & (state.coordinate < 4)
            # A digit that leaves no choice has already ended its coordinate.
            taken = taken & ((state.written > 0) | is_action[..., :STOP].any(-1))
            after, _, _ = self.advance(state, xp.argmax(is_action, axis=-1))
            state = GrammarState(
                xp.where(taken, after.coordinate, state.coordinate),
                xp.where(taken, after.written, state.written),
                xp.where(taken[..., None], after.box, state.box),
            )
        return state.box
