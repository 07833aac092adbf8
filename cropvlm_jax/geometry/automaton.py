# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The token automaton of replies: what may follow what is written.

A reply is sampled as *actions*: one of ten digits, STOP (the coordinate ends) or LAST (the fourth
coordinate ends, and with it the reply). In each state the automaton allows the actions that can
still lead to a valid reply. Where it allows one only, nothing is sampled and its tokens are written
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

So nine actions were sampled of a reply of 17 tokens.

Where a reply may have several boxes, MORE (the fourth coordinate ends, and another box follows) is
possible beside LAST. The boxes of a reply increase, by x1, then y1, then x2, then y2: so they are
different, and a set of boxes has one reply. As long as the coordinates of a box are those of the
least one that may follow the box before, its next coordinate is no less than that one's. MORE is
impossible after the last box that there is, and after `max_boxes`.

Where a reply may name no box, " Not needed.", it begins with one more choice, OPEN or NONE: the
first tokens in which " [" and " Not needed." differ.

Functions take NumPy and JAX arrays alike; JAX is not imported here.
"""

import dataclasses
import os.path
from typing import Any, NamedTuple

import numpy as np

from cropvlm_jax.geometry.boxes import FULL, Array, successor

# Actions 0..9 are the digits; STOP ends a coordinate, LAST the reply, MORE a box that another one
# follows. OPEN and NONE, of grammars that have them, come last.
STOP, LAST, MORE = 10, 11, 12
OPENING, DONE = -1, 4  # of `GrammarState.coordinate`


def _successors() -> np.ndarray:
    """What may follow a partly written coordinate.

    Returns:
        Whether an action may come next, bool `[200, 102, 11]`. The axes are the least value that
        the coordinate may have, at most 100 (0 marks a first corner, which is at most 99; what is
        above 100 is a first corner too, of 1 to 99 at least); what is written of it (0 nothing,
        1 + v the number v); and the action, a digit or STOP.
    """
    first = [(low, 99) for low in range(100)]
    spans = [first[0], *((low, 100) for low in range(1, 101)), *first[1:]]
    allowed = np.zeros((len(spans), 102, 11), bool)
    for row, (low, high) in enumerate(spans):
        for value in range(low, high + 1):
            digits = str(value)
            for i, digit in enumerate(digits):
                allowed[row, 1 + int(digits[:i]) if i else 0, int(digit)] = True
            allowed[row, 1 + value, STOP] = True
    return allowed


SUCCESSORS = _successors()


class GrammarState(NamedTuple):
    """Where a reply being written stands.

    After " [12, 4" that is `coordinate` 1, `written` 1 + 4, `count` 0, and 12 is the first
    coordinate of `boxes`.

    Attributes:
        coordinate: Number of the coordinate being written: `OPENING` where it is not decided yet
            whether there is a box, `DONE` when the reply is complete; int `[...]`.
        written: 0 when none of its digits is written, else 1 + their value; int `[...]`.
        boxes: The coordinates completed so far, of the whole picture's box where they are not, int
            `[..., K, 4]`.
        count: How many boxes are complete; int `[...]`.
    """

    coordinate: Array
    written: Array
    boxes: Array
    count: Array


@dataclasses.dataclass(frozen=True)
class Automaton:
    """The token automaton of replies: what it accepts parses, is ordered and lies inside.

    The policy only ever chooses among A actions: a digit, the end of a coordinate, the end of the
    last one and, where they are possible at all, MORE, OPEN and NONE. All other tokens are forced
    and follow without being sampled.

    Attributes:
        actions: token ids of the A actions: digits 0..9, `separator[0]`, `closing[0]`; then
            `between[0]` where `max_boxes` is above 1; then those of OPEN and NONE where there is a
            `refusal`.
        opening: tokens before the first coordinate.
        separator: tokens between coordinates.
        closing: tokens after the last coordinate, the end of utterance included.
        between: tokens from a box to the next one.
        refusal: tokens of the reply without a box; empty where there is always one.
        max_boxes: K, the most boxes of a reply.
    """

    actions: tuple[int, ...]
    opening: tuple[int, ...]
    separator: tuple[int, ...]
    closing: tuple[int, ...]
    between: tuple[int, ...] = ()
    refusal: tuple[int, ...] = ()
    max_boxes: int = 1

    @property
    def abstain(self) -> bool:
        """Whether a reply may name no box."""
        return bool(self.refusal)

    @property
    def shared(self) -> int:
        """How many tokens `opening` and `refusal` begin with alike."""
        return len(os.path.commonprefix([self.opening, self.refusal]))

    @property
    def open(self) -> int:
        """The action OPEN, of a grammar with a `refusal`."""
        return len(self.actions) - 2

    @property
    def none(self) -> int:
        """The action NONE, of a grammar with a `refusal`."""
        return len(self.actions) - 1

    @property
    def max_length(self) -> int:
        """T, the tokens of the longest reply: all coordinates but first corners' are 100 or 10."""
        box = 10 + 3 * len(self.separator)
        more = (self.max_boxes - 1) * (box + len(self.between))
        return max(len(self.opening) + box + more + len(self.closing), len(self.refusal))

    @property
    def max_choices(self) -> int:
        """Most choices of a reply: two a first-corner coordinate, three a second.

        One more where another box may follow the coordinate, and one where there may be no box.
        """
        return 11 * self.max_boxes - 1 + self.abstain

    @property
    def iterations(self) -> int:
        """Decode iterations of a reply: two a coordinate, because `may_be_ten` saves the third.

        One more for each box but the last: what ends it is chosen when all its digits are read.
        """
        return 9 * self.max_boxes - 1

    @property
    def choices(self) -> int:
        """How many numbers of choices `choice` gives."""
        return 13 * self.max_boxes - 1 + self.abstain

    def choice(self, state: GrammarState) -> Array:
        """The number of the choice that `state` waits for, int `[...]` below `choices`.

        There are three a coordinate: before its first digit, after one and after two; and one after
        the third digit of a box which another may follow. What a reply begins with is the last.
        """
        number = 3 * state.coordinate + (state.written > 0) + (state.written > 10)
        if self.max_boxes > 1:
            number = 13 * state.count + number + (state.written > 100)
        if self.abstain:
            xp = state.boxes.__array_namespace__()
            number = xp.where(state.coordinate == OPENING, self.choices - 1, number)
        return number

    def may_be_ten(self, state: GrammarState) -> Array:
        """Whether a 0 would make the coordinate 10, and then 10 or 100 is one more choice.

        A decoder that reads that 0 along with what is written makes both choices in one pass.
        """
        return (state.written == 2) & (state.coordinate >= 2) & (state.coordinate < DONE)

    @property
    def chunk(self) -> int:
        """Most tokens that one decode iteration appends: a digit and what follows it."""
        return 1 + max(len(self.opening), len(self.separator), len(self.between))

    def start(self, boxes: Array) -> GrammarState:
        """The state before the first token, for a batch shaped like `boxes` `[..., K, 4]`."""
        xp = boxes.__array_namespace__()
        zero = boxes[..., 0, 0] * 0
        whole = boxes * 0 + xp.asarray(FULL, dtype=boxes.dtype)
        return GrammarState(zero + OPENING if self.abstain else zero, zero, whole, zero)

    def allowed(self, state: GrammarState) -> Array:
        """Actions possible in `state`: bool `[..., A]`; LAST alone once the reply is complete."""
        xp = state.boxes.__array_namespace__()
        box, low = self._box(state.boxes, state.count), self._least(state)
        found = self._allowed(xp, state.coordinate, low, state.written)
        if self.max_boxes > 1:
            box = xp.concatenate([box[..., :3], state.written[..., None] - 1], axis=-1)
            more = found[..., LAST] & (state.coordinate == 3) & (successor(box)[..., 0] < 100)
            more = more & (state.count < self.max_boxes - 1)
            found = xp.concatenate([found, more[..., None]], axis=-1)
        if self.abstain:
            begins = (state.coordinate == OPENING)[..., None]
            found = xp.concatenate([found & ~begins, begins, begins], axis=-1)
        return found

    def _box(self, boxes: Array, number: Array) -> Array:
        """Box `number` `[...]`, or the first or last one, of `[..., K, 4]`."""
        if self.max_boxes == 1:
            return boxes[..., 0, :]
        xp = boxes.__array_namespace__()
        number = xp.clip(number, 0, self.max_boxes - 1)[..., None, None]
        return xp.take_along_axis(boxes, number, axis=-2)[..., 0, :]

    def _least(self, state: GrammarState) -> Array:
        """The least value that the coordinate being written may have, int `[...]`."""
        xp = state.boxes.__array_namespace__()
        box = self._box(state.boxes, state.count)
        corner = xp.where(state.coordinate % 2 == 0, box[..., 0], box[..., 1])
        low = xp.where(state.coordinate < 2, 0, corner + 1)
        if self.max_boxes == 1:
            return low
        least = successor(self._box(state.boxes, state.count - 1))
        tied = ((box == least) | (xp.arange(4) >= state.coordinate[..., None])).all(-1)
        here = xp.clip(state.coordinate, 0, 3)[..., None]
        least = xp.take_along_axis(least, here, axis=-1)[..., 0]
        return xp.maximum(low, xp.where(tied & (state.count > 0), least, 0))

    def _allowed(self, xp: Any, coordinate: Array, low: Array, written: Array) -> Array:
        """The digits, STOP and LAST that may follow: bool `[..., 12]`."""
        if self.max_boxes > 1:
            low = low + 100 * ((coordinate < 2) & (low > 0))
        row = xp.clip(low, 0, len(SUCCESSORS) - 1)
        successors = xp.asarray(SUCCESSORS)[row, xp.clip(written, 0, 101)]
        digits, stop = successors[..., :STOP], successors[..., STOP]
        done = coordinate >= DONE
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
            action: int `[...]` in 0..A - 1.

        Returns:
            The next state, the tokens appended int `[..., chunk]`, and which of them count, bool
            `[..., chunk]` (not necessarily a first run). A complete reply appends none: neither the
            digit that completes it nor the closing tokens, since nothing is sampled after them. Nor
            does OPEN: who reads the opening makes the choice before and that after it at once.
        """
        xp = state.boxes.__array_namespace__()
        is_digit = action < STOP
        value = 10 * xp.maximum(state.written - 1, 0) + action
        written = xp.where(is_digit, 1 + value, state.written)
        following = self.allowed(state._replace(written=written))
        undecided = following[..., :STOP].any(-1)
        if self.max_boxes > 1:
            undecided = undecided | following[..., MORE]
        ends = ~is_digit | ~undecided
        coordinate = xp.minimum(state.coordinate + ends, DONE)
        if self.max_boxes > 1:
            coordinate = xp.where(action == MORE, 0, coordinate)
        if self.abstain:
            coordinate = xp.where(action == self.none, DONE, coordinate)
        here = (xp.arange(self.max_boxes) == state.count[..., None])[..., None]
        here = here & (xp.arange(4) == state.coordinate[..., None])[..., None, :]
        after = GrammarState(
            coordinate=coordinate,
            written=xp.where(ends, 0, written),
            boxes=xp.where(ends[..., None, None] & here, written[..., None, None] - 1, state.boxes),
            count=state.count + (ends & (state.coordinate == 3)),
        )
        return after, *self._appended(state, action, ends, after.coordinate < DONE)

    def _appended(
        self, state: GrammarState, action: Array, ends: Array, live: Array
    ) -> tuple[Array, Array]:
        """The tokens that an action appends, and which of them count; see `advance`."""
        xp = state.boxes.__array_namespace__()
        places = xp.arange(self.chunk - 1)
        digit_token = xp.asarray(self.actions)[action][..., None]

        def tail(tokens: tuple[int, ...]) -> Array:
            padded = tokens + (0,) * (self.chunk - 1 - len(tokens))
            array = xp.asarray(padded, dtype=digit_token.dtype)
            return xp.broadcast_to(array, (*action.shape, len(padded)))

        follows = (ends & live)[..., None]
        tokens, counts = tail(self.separator), follows & (places < len(self.separator))
        if self.max_boxes > 1:
            more = (action == MORE)[..., None]
            tokens = xp.where(more, tail(self.between), tokens)
            counts = xp.where(more, follows & (places < len(self.between)), counts)
        if self.abstain:
            counts = counts & (state.coordinate != OPENING)[..., None]
        digit = ((action < STOP) & live)[..., None]
        return (
            xp.concatenate([digit_token, tokens], axis=-1),
            xp.concatenate([digit, counts], axis=-1),
        )
