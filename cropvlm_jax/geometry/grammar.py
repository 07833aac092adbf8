# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The grammar of box replies, as a token automaton built from a tokenizer.

Functions take NumPy and JAX arrays alike; JAX is not imported here.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from cropvlm_jax.geometry.boxes import Array, to_text

END_OF_UTTERANCE = "<end_of_utterance>"
STOP, LAST = 10, 11  # actions 0..9 are the digits; STOP ends a coordinate, LAST the fourth one


def _successors() -> np.ndarray:
    """What may follow a partly written coordinate.

    Returns:
        bool `[101, 102, 11]`: lower bound of the coordinate (0 marks the first corner, whose upper
        bound is 99, else it is 100); what is written (0 nothing, 1 + v the number v); next digit,
        or 10 for the end of the coordinate.
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

    Attributes:
        coordinate: int `[...]`, the coordinate being written, 4 when the reply is complete.
        written: int `[...]`, 0 when none of its digits is written, else 1 + their value.
        box: int `[..., 4]`, the coordinates completed so far.
    """

    coordinate: Array
    written: Array
    box: Array


class BoxTokens(NamedTuple):
    """A box as the tokens of its reply, T of them at most, A actions.

    Attributes:
        tokens: int `[..., T]`, from the opening bracket to the end of utterance.
        valid: bool `[..., T]`, True for a first run of tokens.
        action: int `[..., T]`, the action that a token is; 0 where a token is not an action.
        allowed: bool `[..., T, A]`, the actions that were possible; none where there was no choice.
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
        """T: tokens of the longest reply, which has three-digit second corners."""
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
        """The number of the choice that `state` waits for, int `[...]` in 0..11: three a
        coordinate, by how many of its digits are written."""
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
        columns: list[tuple[Array, Array, Array, Array]] = []  # token, valid, action, allowed
        always = boxes[..., 0] >= 0
        nothing = xp.zeros((*always.shape, len(self.actions)), dtype=bool)

        def forced(token: int):
            columns.append((always * token, always, always * 0, nothing))

        def choice(action: Array, valid: Array, coordinate: int, written: Array):
            low = boxes[..., coordinate - 2] + 1 if coordinate >= 2 else always * 0
            allowed = self._allowed(xp, always * coordinate, low, written)
            columns.append((xp.asarray(self.actions)[action], valid, action, allowed))

        for token in self.opening:
            forced(token)
        for coordinate in range(4):
            value = boxes[..., coordinate]
            length = 1 + (value >= 10) + (value >= 100)
            for i in range(2 if coordinate < 2 else 3):
                rest = 10 ** xp.maximum(length - i, 0)  # divides off the digits not yet written
                written = xp.where(i > 0, 1 + value // rest, 0)
                digit = value // xp.maximum(rest // 10, 1) % 10
                choice(digit, i < length, coordinate, xp.clip(written, 0, 101))
            stop = LAST if coordinate == 3 else STOP
            choice(always * stop, always, coordinate, 1 + xp.clip(value, 0, 100))
            for token in (self.closing if coordinate == 3 else self.separator)[1:]:
                forced(token)
        tokens, valid, action = (xp.stack([c[i] for c in columns], axis=-1) for i in range(3))
        allowed = xp.stack([c[3] for c in columns], axis=-2)
        order = xp.argsort(~valid, axis=-1, stable=True)[..., : self.max_length]
        tokens, valid, action = (
            xp.take_along_axis(a, order, axis=-1) for a in (tokens, valid, action)
        )
        allowed = xp.take_along_axis(allowed, order[..., None], axis=-2) & valid[..., None]
        allowed = allowed & (allowed.sum(axis=-1, keepdims=True) > 1)
        return BoxTokens(tokens * valid, valid, action * valid, allowed)

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
