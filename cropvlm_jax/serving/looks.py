# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a served request may ask of the engine, and what it gets."""

import dataclasses
import math
from typing import Literal

import numpy as np
from PIL import Image

from cropvlm_jax import geometry

Box = tuple[int, int, int, int]  # left, top, right, bottom

SCALES = 0.01, 10_000.0  # of a box's area: 10,000 makes a box of 1% x 1% the whole picture


class Busy(RuntimeError):
    """There is no room for the request: it was not accepted.

    Attributes:
        retry_after: seconds after which there should be room.
    """

    def __init__(self, waiting: int, retry_after: float):
        super().__init__(f"{waiting} requests are worked on, which is all that there is room for")
        self.retry_after = retry_after


class TooLarge(ValueError):
    """The request needs more room than there is, however long it waits."""


class DeadlineExceeded(RuntimeError):
    """The request's deadline passed before its result was there."""

    def __init__(self) -> None:
        super().__init__("the deadline of the request has passed")


class Closed(RuntimeError):
    """The engine is shutting down, or has not started: it accepts no request."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a request may say about its crops.

    Attributes:
        looks: most boxes for a picture, the first ones of the cropper's reply: 0 shows the target
            the picture alone.
        area_scale: what the area of each box is multiplied with, about its centre.
        crops: whether they are appended after their picture, or replace it.
        keep_if_surer: harm control, of a local target: whether it answers without the crops, too,
            and that answer is given where it is surer of it.
    """

    looks: int = geometry.MAX_BOXES
    area_scale: float = 1.0
    crops: Literal["append", "replace"] = "append"
    keep_if_surer: bool = False

    def __post_init__(self) -> None:
        if type(self.looks) is not int or not 0 <= self.looks <= geometry.MAX_BOXES:
            raise ValueError(
                f"looks={self.looks!r} must be a whole number from 0 to {geometry.MAX_BOXES}"
            )
        if type(self.keep_if_surer) is not bool:
            raise ValueError(f"keep_if_surer={self.keep_if_surer!r} must be true or false")
        scale, (least, most) = self.area_scale, SCALES
        number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not number or not math.isfinite(scale) or not least <= scale <= most:
            raise ValueError(f"area_scale={scale!r} must be a number from {least} to {most:.0f}")
        if self.crops not in ("append", "replace"):
            raise ValueError(f"crops={self.crops!r} must be 'append' or 'replace'")


@dataclasses.dataclass(frozen=True)
class Look:
    """What the cropper says about one picture.

    Attributes:
        boxes: percent of the picture, whole numbers; of a cropper that looks twice multiples of a
            hundredth. None where the cropper says so, and where the policy asks for none.
        pixel_boxes: the same in pixels of the original picture, turned as its EXIF says.
        crops: what is inside, of the original pixels.
        reply: what the cropper wrote, such as "[12, 5, 40, 33]." or "Not needed."; "" where it was
            not asked.
        confidence: probability of the reply under the cropper among all that it can write, 0..1; 1
            where it was not asked.
        size: width and height of the original picture, turned, px.
        milliseconds: by stage: prepare (decoding, tiles), queue, cropper, crop.
        pixels: the original picture, turned, uint8 RGB `[H, W, 3]`; None where it was not decoded.
    """

    boxes: tuple[geometry.FineBox, ...]
    pixel_boxes: tuple[Box, ...]
    crops: tuple[Image.Image, ...]
    reply: str
    confidence: float
    size: tuple[int, int]
    milliseconds: dict[str, float]
    pixels: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the local target says.

    Attributes:
        text: its answer; "" where it said nothing.
        finish_reason: "stop" where it ended its answer, "length" where that was cut.
        image_tokens: tokens that it read of the pictures.
        prompt_tokens: tokens that it read in all.
        completion_tokens: tokens that it wrote, the one that ends the answer too.
        milliseconds: by stage: prepare (decoding, tiles), queue, target.
        nats: log-probability of what it wrote.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    image_tokens: int
    prompt_tokens: int
    completion_tokens: int
    milliseconds: dict[str, float]
    nats: float = 0.0
