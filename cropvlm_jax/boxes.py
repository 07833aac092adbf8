# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Percent boxes: text <-> tokens <-> box, the grammar of replies, every coordinate frame.

A box is four integers `x1, y1, x2, y2` in percent of the image's width and height, 0..100, with
x2 > x1 and y2 > y1. All functions take NumPy arrays (data workers) and JAX arrays (under jit)
alike, and JAX is not imported here.
"""

import dataclasses
import math
import re
from typing import Any, NamedTuple

import numpy as np
import tokenizers

Array = Any  # np.ndarray or jax.Array
FULL = (0, 0, 100, 100)
END_OF_UTTERANCE = "<end_of_utterance>"
QUINTILE_FACTORS = (45, 10, 4, 2, 1)
PAPER_BOUNDS = (0.0016, 0.0038, 0.0091, 0.0351)  # quintiles of seed areas, CropVLM's table 2
MAX_PIXELS = 12_845_056  # of Qwen2.5-VL's released processors
MAX_ASPECT = 200  # of what they take
_REPLY = re.compile(r"\[\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\]")


# Text ---------------------------------------------------------------------------------------------


def to_text(box: Any) -> str:
    """The reply that names `box`, such as `[12, 5, 40, 33].`"""
    return "[{}, {}, {}, {}].".format(*(int(v) for v in box))


def parse(text: str) -> tuple[int, int, int, int] | None:
    """The first box in `text`, or None where there is none or it is not valid."""
    match = _REPLY.search(text)
    if match is None:
        return None
    x1, y1, x2, y2 = (int(v) for v in match.groups())
    return (x1, y1, x2, y2) if is_valid(np.array([x1, y1, x2, y2])) else None


# Geometry -----------------------------------------------------------------------------------------


def is_valid(boxes: Array) -> Array:
    """Whether boxes `[..., 4]` are inside the image, ordered and not empty: bool `[...]`."""
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return (0 <= x1) & (x1 < x2) & (x2 <= 100) & (0 <= y1) & (y1 < y2) & (y2 <= 100)


def area(boxes: Array) -> Array:
    """Share of the image that boxes `[..., 4]` cover, 0..1 `[...]`."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]) / 10_000


def intersection(boxes: Array, others: Array) -> Array:
    """Share of the image that lies in both of `[..., 4]` and `[..., 4]`, 0..1 `[...]`."""
    xp = boxes.__array_namespace__()
    low = xp.maximum(boxes[..., :2], others[..., :2])
    high = xp.minimum(boxes[..., 2:], others[..., 2:])
    return xp.prod(xp.maximum(high - low, 0), axis=-1) / 10_000


def iou(boxes: Array, others: Array) -> Array:
    """Intersection over union of `[..., 4]` and `[..., 4]`, 0..1 `[...]`."""
    both = intersection(boxes, others)
    return both / (area(boxes) + area(others) - both)


def coverage(boxes: Array, truth: Array) -> Array:
    """Share of the `truth` boxes `[..., 4]` that `boxes` `[..., 4]` contain, 0..1 `[...]`."""
    return intersection(boxes, truth) / area(truth)


def expand(boxes: Array, factor: Any) -> Array:
    """Scales boxes' areas about their centres, as the official CropVLM data preparation does.

    Each side grows by sqrt(factor), the box is shifted back inside the image, clamped, and its
    coordinates are floored; the floor is kept from emptying a thin box.

    Args:
        boxes: int or float `[..., 4]`.
        factor: area factor, a number or `[...]`.

    Returns:
        int `[..., 4]`, valid.
    """
    xp = boxes.__array_namespace__()
    size = (boxes[..., 2:] - boxes[..., :2]) * xp.asarray(factor)[..., None] ** 0.5
    size = xp.minimum(size, 100.0)
    low = (boxes[..., 2:] + boxes[..., :2]) / 2 - size / 2
    low = xp.clip(low, 0, 100 - size)
    whole = boxes.dtype if xp.isdtype(boxes.dtype, "integral") else int
    high = xp.floor(low + size).astype(whole)
    low = xp.minimum(xp.floor(low).astype(whole), 99)
    return xp.concatenate([low, xp.maximum(high, low + 1)], axis=-1)


def expand_by_quintile(boxes: Array, bounds: Array | None = None) -> Array:
    """Expands seed boxes, the small ones more: area x45, x10, x4, x2, x1 by quintile of area.

    Args:
        boxes: int or float `[N, 4]`.
        bounds: areas 0..1 `[4]` where the second to fifth quintiles begin, such as `PAPER_BOUNDS`;
            by default those of `boxes`, as in the official code.

    Returns:
        int `[N, 4]`, valid.
    """
    xp = boxes.__array_namespace__()
    areas = area(boxes)
    if bounds is None:
        bounds = xp.quantile(areas, xp.asarray([0.2, 0.4, 0.6, 0.8]))
    quintile = xp.searchsorted(xp.asarray(bounds), areas, side="right")
    return expand(boxes, xp.asarray(QUINTILE_FACTORS)[quintile])


# Coordinate frames --------------------------------------------------------------------------------
# Original pixels and padded canvas pixels are one frame: canvases are padded bottom and right.
# Any other frame is known by its size, an image's height and width in its units: `frame_size`.

FRAMES = ("smart_resized", "thousandths", "pixels", "percent", "smart_resized_unscaled")


def frame_size(
    frame: str, height: int, width: int, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """Height and width of an image in the units of a frame: the `size` for `to_percent`.

    Args:
        frame: one of `FRAMES`: "smart_resized", what Qwen2.5-VL writes; "thousandths", what
            Qwen2-VL and Qwen3-VL write; "pixels" of the original; "percent"; or
            "smart_resized_unscaled", the official code's mistake, which divides smart-resized
            pixels by the original size.
        height: of the image in pixels.
        width: of the image in pixels.
        max_pixels: what the labeller's processor was limited to.

    Raises:
        ValueError: there is no such frame, or no smart-resized form of the image.
    """
    match frame:
        case "smart_resized":
            return smart_resize(height, width, max_pixels=max_pixels)
        case "thousandths":
            return 1000, 1000
        case "pixels" | "smart_resized_unscaled":
            return height, width
        case "percent":
            return 100, 100
    raise ValueError(f"there is no frame {frame!r}: use one of {', '.join(FRAMES)}")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What pictures Qwen2-VL's and Qwen2.5-VL's processors make.

    Attributes:
        max_pixels: of a picture, a multiple of `factor` squared, and so is the next one.
        min_pixels: likewise.
        factor: pixels of a side of the square tiles that become one token each.
    """

    max_pixels: int = MAX_PIXELS
    min_pixels: int = 3136
    factor: int = 28

    def __post_init__(self):
        token = self.factor**2
        for name in ("max_pixels", "min_pixels"):
            pixels = getattr(self, name)
            if pixels < token or pixels % token:
                raise ValueError(f"{name}={pixels} is no multiple of a token's {token} pixels")
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} is over max_pixels={self.max_pixels}")

    @property
    def most_tiles(self) -> int:
        """Tiles of the largest picture: what `max_pixels` allows, or more where a thin picture has
        one row of tiles and is less high than these."""
        most, least = self.max_pixels // self.factor**2, self.min_pixels // self.factor**2
        longest = math.ceil(math.sqrt(MAX_ASPECT * least))
        # A side that grew to n tiles, rounded up, had over n - 1: the other one has so many.
        grown = (n * math.ceil(least / (n - 1)) for n in range(2, longest + 1))
        return max(most, math.isqrt(MAX_ASPECT * most), *grown)


def smart_resize(
    height: int,
    width: int,
    factor: int = 28,
    min_pixels: int = 3136,
    max_pixels: int = MAX_PIXELS,
) -> tuple[int, int]:
    """The size to which Qwen2-VL's and Qwen2.5-VL's processors resize an image.

    Sides are rounded to multiples of `factor`, half to even; where their product leaves the limits,
    both are scaled alike and rounded to the safe side.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    sides = (height, width)
    if max(sides) > MAX_ASPECT * min(sides):
        raise ValueError(f"{height} x {width} px: one side is over {MAX_ASPECT} times the other")
    high, wide = (round(side / factor) * factor for side in sides)
    if high * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        high, wide = (max(math.floor(side / shrink / factor), 1) * factor for side in sides)
    elif high * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        high, wide = (math.ceil(side * grow / factor) * factor for side in sides)
    return high, wide


def to_pixels(boxes: Array, size: Array) -> Array:
    """Percent boxes to pixel boxes as PIL's `crop` rounds them (half to even), 1 px at least.

    A box that is not valid becomes the corner of 2 x 2 px, as in the official training. (The
    official evaluation cuts 99 x 99 px, having meant percent, which is not reproduced.)

    Args:
        boxes: int `[..., 4]` percent.
        size: int `[..., 2]`, height and width of the image in pixels, at most 2**20.

    Returns:
        int `[..., 4]`: left, top, right, bottom; right and bottom exclusive.
    """
    xp = boxes.__array_namespace__()
    scale = xp.stack([size[..., 1], size[..., 0]], axis=-1)

    def pixels(percent):
        # Integer arithmetic, because floats would decide ties at random.
        whole, rest = percent * scale // 100, percent * scale % 100
        return whole + ((rest > 50) | ((rest == 50) & (whole % 2 == 1)))

    low = xp.minimum(pixels(boxes[..., :2]), scale - 1)
    cut = xp.concatenate([low, xp.maximum(pixels(boxes[..., 2:]), low + 1)], axis=-1)
    sides = xp.concatenate([scale, scale], axis=-1)
    corner = xp.minimum(xp.asarray((0, 0, 2, 2), dtype=scale.dtype), sides)
    return xp.where(is_valid(boxes)[..., None], cut, corner)


def from_pixels(boxes: Array, size: Array) -> Array:
    """The smallest percent boxes that contain pixel boxes.

    Args:
        boxes: int or float `[..., 4]`: left, top, right, bottom; right and bottom exclusive.
        size: int `[..., 2]`, height and width of the image in pixels, or `frame_size`.

    Returns:
        int `[..., 4]` percent, clipped to the image.
    """
    xp = boxes.__array_namespace__()
    scale = xp.stack([size[..., 1], size[..., 0]], axis=-1)
    low = xp.clip(boxes[..., :2] * 100 // scale, 0, 99).astype(scale.dtype)
    high = xp.clip(-(-boxes[..., 2:] * 100 // scale), 0, 100).astype(scale.dtype)
    return xp.concatenate([low, xp.maximum(high, low + 1)], axis=-1)


def to_percent(boxes: Array, size: Array) -> Array:
    """Pixel boxes as percent, unrounded.

    Args:
        boxes: int or float `[..., 4]`: left, top, right, bottom; right and bottom exclusive.
        size: int `[..., 2]`, height and width of the image in pixels, or `frame_size`.

    Returns:
        float `[..., 4]` percent, clipped to the image.
    """
    xp = boxes.__array_namespace__()
    scale = xp.stack([size[..., 1], size[..., 0]] * 2, axis=-1)
    return xp.clip(boxes * 100 / scale, 0, 100)


def rescale(boxes: Array, size: Array, other: Array) -> Array:
    """Pixel boxes of one frame in the nearest pixels of another, 1 px at least.

    Args:
        boxes: int or float `[..., 4]`: left, top, right, bottom; right and bottom exclusive.
        size: int `[..., 2]`, `frame_size` of the frame they are in.
        other: int `[..., 2]`, that of the other one, at most 2**20: for the image's own pixels its
            height and width.

    Returns:
        int `[..., 4]`, clipped to the image.
    """
    xp = boxes.__array_namespace__()
    scale, target = (xp.stack([s[..., 1], s[..., 0]] * 2, axis=-1) for s in (size, other))
    pixels = xp.clip(xp.round(boxes * target / scale), 0, target).astype(target.dtype)
    low = xp.minimum(pixels[..., :2], target[..., :2] - 1)
    return xp.concatenate([low, xp.maximum(pixels[..., 2:], low + 1)], axis=-1)


# Grammar ------------------------------------------------------------------------------------------

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


class State(NamedTuple):
    """Where a reply being written stands.

    Attributes:
        coordinate: int `[...]`, the coordinate being written, 4 when the reply is complete.
        written: int `[...]`, 0 when none of its digits is written, else 1 + their value.
        box: int `[..., 4]`, the coordinates completed so far.
    """

    coordinate: Array
    written: Array
    box: Array


class Reply(NamedTuple):
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

    def choice(self, state: State) -> Array:
        """The number of the choice that `state` waits for, int `[...]` in 0..11: three a
        coordinate, by how many of its digits are written."""
        return 3 * state.coordinate + (state.written > 0) + (state.written > 10)

    def may_be_ten(self, state: State) -> Array:
        """Whether a 0 would make the coordinate 10, and then 10 or 100 is one more choice.

        A decoder that reads that 0 along with what is written makes both choices in one pass.
        """
        return (state.written == 2) & (state.coordinate >= 2) & (state.coordinate < 4)

    @property
    def chunk(self) -> int:
        """Most tokens that one decode iteration appends: a digit and a separator."""
        return 1 + max(len(self.opening), len(self.separator))

    def start(self, boxes: Array) -> State:
        """The state before the first digit, for a batch shaped like `boxes` `[..., 4]`."""
        zero = boxes[..., 0] * 0
        return State(zero, zero, boxes * 0)

    def allowed(self, state: State) -> Array:
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

    def advance(self, state: State, action: Array) -> tuple[State, Array, Array]:
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
        after = State(
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

    def encode(self, boxes: Array) -> Reply:
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
        return Reply(tokens * valid, valid, action * valid, allowed)

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
            state = State(
                xp.where(taken, after.coordinate, state.coordinate),
                xp.where(taken, after.written, state.written),
                xp.where(taken[..., None], after.box, state.box),
            )
        return state.box
