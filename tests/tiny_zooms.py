# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A cheap stand-in for `CropVLM`, and pictures to zoom into."""

import time
import types

import numpy as np
from PIL import Image

from cropvlm_jax.hub.replies import Replies
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.base import ReaderUnavailable
from cropvlm_jax.zooms import Zoom


class Model:
    """Zooms into a box that depends on the picture alone: its first pixel says which picture."""

    calibration = None
    source = types.SimpleNamespace(replies=Replies())

    def __init__(
        self,
        answers=False,
        pause=0.0,
        silent=None,
        refuses=None,
        ends_after=None,
        always_one_box=True,
    ):
        """Says how it fails: on pictures of these numbers, or after so many.

        A model that does not always say one box says none, one and two, turn by turn.
        """
        self.always_one_box = always_one_box
        self.target = self if answers else None
        self.pause, self.silent, self.refuses, self.ends_after = pause, silent, refuses, ends_after
        self.seen = []

    def zoom(self, images, questions, compare=True, keep_if_surer=False):
        time.sleep(self.pause)
        numbers = [int(image[0, 0, 0]) for image in images]
        if self.refuses in numbers:
            raise ValueError(f"the picture {self.refuses} cannot be used")
        if self.ends_after is not None and len(self.seen) >= self.ends_after:
            raise ReaderUnavailable("nobody is there")
        self.seen += numbers
        zooms = [self._zoom(image, number) for image, number in zip(images, numbers, strict=True)]
        if keep_if_surer:
            sure = {"margin_with": 1.0, "margin_without": 2.0, "kept": False}
            zooms = [zoom._replace(answer="1 pictures", **sure) for zoom in zooms]
        alone = {} if compare else {"answer_without_crop": None, "failure_without_crop": ""}
        return [zoom._replace(**alone) for zoom in zooms]

    def _zoom(self, image, number):
        boxes = [(number % 50, 10, number % 50 + 20, 90), (50, 0, 90, 50)]
        boxes = boxes[: 1 if self.always_one_box else number % 3]
        crops = tuple(Image.fromarray(host.cut(image, box)) for box in boxes)
        zoom = Zoom(tuple(boxes), crops, confidence=0.5)
        if self.target is None:
            return zoom
        if number == self.silent:
            return zoom._replace(failure="HTTP 500: broken", failure_without_crop="empty")
        return zoom._replace(answer="2 pictures", answer_without_crop="1 pictures")


def draw_pictures(folder, count):
    """Writes p0.png, p1.png and so on where they are not there yet."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8)
        pixels[0, 0] = number
        if not (path := folder / f"p{number}.png").exists():
            Image.fromarray(pixels).save(path)
