# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The grammar of replies: the automaton of a tokenizer, and replies as its tokens.

`Grammar.encode` writes known boxes as tokens with the choices that lead there, `Grammar.decode`
reads them, and `Grammar.advance` (see `automaton`) takes one action of a reply being sampled.

Functions take NumPy and JAX arrays alike; JAX is not imported here.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tokenizers

from cropvlm_jax.geometry.automaton import DONE, LAST, MORE, OPENING, STOP, Automaton, GrammarState
from cropvlm_jax.geometry.boxes import FULL, Array, reply_text
from cropvlm_jax.geometry.spelling import END_OF_UTTERANCE, encoder, spell


class _Slot(NamedTuple):
    """One of the tokens that a reply may have, of a batch of replies `[...]`.

    Attributes:
        used: bool `[...]`, whether the reply has this token.
        token: int `[...]`.
        action: int `[...]`, the action that the token is; 0 where it is none.
        is_action: whether it is one.
        number: of the box that is being written.
        coordinate: `GrammarState.coordinate` before the token.
        written: `GrammarState.written` before it, int `[...]`.
    """

    used: Array
    token: Array
    action: Array
    is_action: bool
    number: int
    coordinate: int
    written: Array


class BoxTokens(NamedTuple):
    """Boxes as the tokens of their reply; T is `Grammar.max_length`, A the number of actions.

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


class Grammar(Automaton):
    """The replies that a tokenizer can write: all parse, are ordered and lie inside."""

    @classmethod
    def from_tokenizer(
        cls, tokenizer: tokenizers.Tokenizer, max_boxes: int = 1, abstain: bool = False
    ) -> "Grammar":
        """Learns from `tokenizer` how it writes replies.

        Args:
            tokenizer: of the cropper.
            max_boxes: K, the most boxes of a reply, 1 to `boxes.MAX_BOXES`.
            abstain: whether a reply may name no box.

        Raises:
            ValueError: where it does not write each digit as one token, the same in every box, or
                cannot tell whether a box is the last one; or `max_boxes` is out of range.
        """
        spelling = spell(tokenizer, max_boxes, abstain)
        encode, grammar = encoder(tokenizer), cls(**spelling._asdict(), max_boxes=max_boxes)
        boxes = ((0, 0, 1, 1), (9, 10, 99, 100), (12, 34, 56, 78), (99, 99, 100, 100))
        replies = [*zip(boxes, strict=True), *[boxes[-max_boxes:]], *[()] * abstain]
        for reply in replies:
            padded = np.array([*reply, *[FULL] * (max_boxes - len(reply))])
            found, text = grammar.encode(padded, np.array(len(reply))), reply_text(reply)
            if tuple(found.tokens[found.valid]) != encode(f" {text}{END_OF_UTTERANCE}"):
                raise ValueError(f"the tokenizer writes {text} in an irregular way")
        return grammar

    def encode(self, boxes: Array, count: Array) -> BoxTokens:
        """Writes replies as their tokens.

        Args:
            boxes: valid boxes in increasing order, int `[..., K, 4]`; those beyond `count` are not
                looked at.
            count: how many boxes the reply names, int `[...]`.
        """
        xp = boxes.__array_namespace__()
        slots = list(self._slots(boxes, count))
        used = xp.stack([slot.used for slot in slots], axis=-1)
        written = xp.stack([slot.written for slot in slots], axis=-1)
        state = GrammarState(
            coordinate=written * 0 + xp.asarray([slot.coordinate for slot in slots]),
            written=written,
            boxes=boxes[..., None, :, :],
            count=written * 0 + xp.asarray([slot.number for slot in slots]),
        )
        is_action = xp.asarray([slot.is_action for slot in slots])
        allowed = self.allowed(state) & is_action[:, None]
        # Those used come first, in their order: no reply has all the digits that there is room for.
        order = xp.argsort(~used, axis=-1, stable=True)[..., : self.max_length]
        tokens = xp.take_along_axis(xp.stack([slot.token for slot in slots], -1), order, axis=-1)
        action = xp.take_along_axis(xp.stack([slot.action for slot in slots], -1), order, axis=-1)
        allowed = xp.take_along_axis(allowed, order[..., None], axis=-2)
        valid = xp.take_along_axis(used, order, axis=-1)
        allowed = allowed & valid[..., None]
        allowed = allowed & (allowed.sum(axis=-1, keepdims=True) > 1)
        return BoxTokens(tokens * valid, valid, action * valid, allowed)

    def _slots(self, boxes: Array, count: Array) -> Iterator[_Slot]:
        """All the tokens that a reply may have, in order; short numbers leave some unused."""
        xp = boxes.__array_namespace__()
        zero = boxes[..., 0, 0] * 0
        first = OPENING if self.abstain else 0
        for tokens, action, used in (
            (self.refusal, self.none, count == 0),
            (self.opening, self.open, count > 0),
        ):
            for place, token in enumerate(tokens):
                if self.abstain and place == self.shared:
                    yield self._chosen(used, zero + action, 0, first, zero)
                else:
                    yield self._forced(used, token, zero)
        for number in range(self.max_boxes):
            there, more = count > number, count > number + 1
            for coordinate in range(4):
                value = boxes[..., number, coordinate]
                for place in range(2 if coordinate < 2 else 3):
                    yield self._digit(there, value, place, number, coordinate)
                end, endings = zero + STOP, [(self.separator, there)]
                if coordinate == 3:
                    end = zero + xp.where(more, MORE, LAST)
                    endings = [(self.between, more), (self.closing, there & ~more)]
                yield self._chosen(there, end, number, coordinate, 1 + value.clip(0, 100))
                for tokens, used in endings:
                    for token in tokens[1:]:
                        yield self._forced(used, token, zero)

    def _forced(self, used: Array, token: int, zero: Array) -> _Slot:
        """A token that is no action."""
        return _Slot(used, zero + token, zero, False, 0, 0, zero)

    def _digit(self, there: Array, value: Array, place: int, number: int, coordinate: int) -> _Slot:
        """A digit of a coordinate, of which `place` digits stand before."""
        xp = value.__array_namespace__()
        length = 1 + (value >= 10) + (value >= 100)
        rest = 10 ** xp.maximum(length - place, 0)  # divides off the digits not yet written
        written = xp.clip(xp.where(place > 0, 1 + value // rest, 0), 0, 101)
        digit = value // xp.maximum(rest // 10, 1) % 10
        return self._chosen(there & (place < length), digit, number, coordinate, written)

    def _chosen(
        self, used: Array, action: Array, number: int, coordinate: int, written: Array
    ) -> _Slot:
        """The token of an action."""
        token = action.__array_namespace__().asarray(self.actions)[action]
        return _Slot(used, token, action, True, number, coordinate, written)

    def decode(self, tokens: Array) -> tuple[Array, Array]:
        """What replies `[..., T]` name; inverse of `encode`.

        Returns:
            The boxes, int `[..., K, 4]`, the whole picture's beyond the count; and the count, int
            `[...]`.
        """
        xp = tokens.__array_namespace__()
        shape = (*tokens.shape[:-1], self.max_boxes, 4)
        state = self.start(xp.zeros(shape, dtype=xp.int32))
        for i in range(tokens.shape[-1]):
            # A digit that leaves no choice has already ended its coordinate, whose end is then no
            # action that is allowed.
            is_action = tokens[..., i, None] == xp.asarray(self.actions)
            is_action = is_action & self.allowed(state)
            taken = is_action.any(-1) & (state.coordinate < DONE)
            after, _, _ = self.advance(state, xp.argmax(is_action, axis=-1))
            state = GrammarState(
                xp.where(taken, after.coordinate, state.coordinate),
                xp.where(taken, after.written, state.written),
                xp.where(taken[..., None, None], after.boxes, state.boxes),
                xp.where(taken, after.count, state.count),
            )
        return state.boxes, state.count
