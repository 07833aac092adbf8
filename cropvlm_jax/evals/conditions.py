# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The conditions of an evaluation: which pictures a target is shown under each of them."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.pixels import host

NO_CROP, CENTRE, RANDOM, UPSCALED, ORACLE = "no_crop", "centre", "random", "upscaled", "oracle"
CONTROLS = {
    NO_CROP: "the picture alone",
    CENTRE: "with a centre crop of the last cropper's width and height on this item",
    RANDOM: "with a crop of that width and height at a random place",
    UPSCALED: "with the whole picture again, twice as large (at most 4096 px)",
    ORACLE: "with the true box, where the data set knows it",
}
BEST_SCALE = (
    "with the first cropper's box, its area times one factor for all items, which was the best on "
    "validation items"
)
MAX_UPSCALED = 4096  # px
INVALID = (0, 0, 0, 0)  # the box of a cropper that refused an item

# What records have: percent values of one box, or of none to several boxes a list each.
Boxes = Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Which crops targets are shown.

    Attributes:
        croppers: their names, the one to report last.
        expansions: factors of the boxes' areas besides 1.
        seed: of the random crops.
        best_scale: the factor of the control that scales the first cropper's boxes; None without
            that control.
        controls: the names in `CONTROLS` that targets are shown besides the croppers' boxes.
    """

    croppers: tuple[str, ...]
    expansions: tuple[float, ...] = ()
    seed: int = 0
    best_scale: float | None = None
    controls: tuple[str, ...] = tuple(CONTROLS)

    @classmethod
    def of(cls, protocol: Mapping[str, Any]) -> "Conditions":
        """The conditions of an evaluation's records, by the protocol that is kept with them."""
        return cls(
            croppers=tuple(protocol["croppers"]),
            expansions=tuple(protocol["expansions"]),
            seed=protocol["seed"],
            best_scale=protocol.get("best_scale", {}).get("chosen_scale"),
        )

    @property
    def last(self) -> str:
        """The cropper that is reported."""
        return self.croppers[-1]

    @property
    def without_box(self) -> tuple[str, ...]:
        """Conditions that need no box."""
        return tuple(name for name in (NO_CROP, UPSCALED) if name in self.controls)

    def names(self, oracle: bool) -> list[str]:
        """The conditions in the order of tables, without those of `expansions`.

        Args:
            oracle: whether the data set knows true boxes.
        """
        names = [NO_CROP, CENTRE, RANDOM, UPSCALED, *self.croppers]
        if self.best_scale is not None:
            names.insert(names.index(self.croppers[0]) + 1, best_scale_of(self.croppers[0]))
        return [*names, ORACLE] if oracle else names

    def expanded_names(self, oracle: bool) -> list[str]:
        """The conditions of `expansions`.

        Args:
            oracle: whether the data set knows true boxes.
        """
        movable = [*self.croppers, ORACLE] if oracle else self.croppers
        return [expanded(name, factor) for name in movable for factor in self.expansions]

    def boxes(self, index: int, known: Mapping[str, Boxes]) -> dict[str, Boxes]:
        """The boxes of an item by condition.

        Args:
            index: of the item, which the random crop depends on.
            known: the croppers' boxes by name, and the true ones where there are any.
        """
        boxes: dict[str, Boxes] = {}
        names = self.croppers
        if ORACLE in self.controls:
            names = (*names, ORACLE)
        if RANDOM in self.controls:
            boxes |= self._control_boxes(index, known[self.last])
        boxes |= {name: _each(list, known[name]) for name in names if name in known}
        if self.best_scale is not None:
            first = self.croppers[0]
            boxes[best_scale_of(first)] = scaled(known[first], self.best_scale)
        for factor in self.expansions:
            for name in names:
                if name in known:
                    boxes[expanded(name, factor)] = scaled(known[name], factor)
        return boxes

    def _control_boxes(self, index: int, last: Boxes) -> dict[str, Boxes]:
        """Boxes of the last cropper's widths and heights, at the centre and at random places."""
        rng = np.random.default_rng([self.seed, index])

        def centre(box: Sequence[float]) -> list[int]:
            side = _side(box)
            return _placed(50 - side // 2, side)

        def anywhere(box: Sequence[float]) -> list[int]:
            side = _side(box)
            return _placed(rng.integers(0, 101 - side), side)

        return {CENTRE: _each(centre, last), RANDOM: _each(anywhere, last)}


def boxes_of(written: Boxes) -> list[Sequence[float]]:
    """The boxes of a condition, of which records have one, or a list of none to several."""
    return [written] if _is_one(written) else list(written)


def _is_one(written: Boxes) -> bool:
    """Whether these are the percent values of a box, and not a list of boxes."""
    return len(written) > 0 and np.ndim(written[0]) == 0


def _each(change: Callable[[Sequence[float]], list[Any]], written: Boxes) -> Boxes:
    """Boxes in the form that they have, each of them changed."""
    return change(written) if _is_one(written) else [change(box) for box in written]


def _side(box: Sequence[float]) -> np.ndarray:
    """Width and height of a box in whole percent, rounded up, 1 at least."""
    return np.clip(np.ceil(np.subtract(box[2:], box[:2])).astype(int), 1, 100)


def _placed(corner: np.ndarray, side: np.ndarray) -> list[int]:
    """The box of a width and height whose left upper corner is there."""
    return [*corner.tolist(), *(corner + side).tolist()]


def sorted_expansions(factors: Iterable[float]) -> tuple[float, ...]:
    """Factors as `Conditions.expansions` has them: each once, in order, and 1 left out."""
    return tuple(sorted({float(factor) for factor in factors} - {1.0}))


def expanded(name: str, factor: float) -> str:
    """The condition of a box whose area is `factor` times as large."""
    return name if factor == 1 else f"{name} x{factor:g}"


def best_scale_of(cropper: str) -> str:
    """The condition of a cropper's box at the factor that was the best on validation items."""
    return f"{cropper}_best_scale"


def scaled(boxes: Boxes, factor: float) -> Boxes:
    """Boxes whose areas are `factor` times as large; one that is not valid stays as it is."""

    def scale(box: Sequence[float]) -> list[float]:
        values = np.array(box)
        if not geometry.is_valid(values):
            return list(box)
        return geometry.expand_reply(values, factor).tolist()

    return _each(scale, boxes)


def upscale(image: np.ndarray) -> np.ndarray:
    """A picture `[H, W, 3]` twice as large, or so that its longest side is `MAX_UPSCALED` px."""
    height, width = image.shape[:2]
    factor = min(2.0, MAX_UPSCALED / max(height, width))
    if factor <= 1:
        return image
    size = round(width * factor), round(height * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def shown_pictures(
    image: np.ndarray, condition: str, boxes: Mapping[str, Boxes]
) -> list[np.ndarray]:
    """What a target is shown: the picture, and what else there is.

    Args:
        image: uint8 `[H, W, 3]`.
        condition: one of `Conditions.names` or `Conditions.expanded_names`.
        boxes: by condition, from `Conditions.boxes`.
    """
    if condition == NO_CROP:
        return [image]
    if condition == UPSCALED:
        return [image, upscale(image)]
    return [image, *(host.cut(image, box) for box in boxes_of(boxes[condition]))]
