# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a cropper and its target say about a picture."""

import math
from typing import NamedTuple

from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.readers.asking import keeps_crops
from cropvlm_jax.readers.base import Reply


class Zoom(NamedTuple):
    """Where the cropper looked at a picture, and what the target says.

    Attributes:
        boxes: percent of the picture's width and height: left, top, right, bottom of each; none
            where the cropper says "Not needed.". Whole numbers; of a cropper that looks twice
            multiples of a hundredth.
        crops: what is inside each, of the original pixels.
        answer: to the picture and the crops; to the picture alone where there are none, and where
            `kept` is False. None without a target, and where it gave none.
        answer_without_crop: to the picture alone; None in the same cases, and where it was not
            asked for.
        failure: why the target gave no `answer`, such as "empty", "refusal: ..." or "HTTP 500:
            ..."; "" where there is nothing to explain.
        failure_without_crop: the same of `answer_without_crop`.
        confidence: probability that `answer` is right, 0..1, where a calibration was given, see
            `evals.calibration`; else `reply_probability`, which is no such thing.
        margin_with: how sure the target is of its answer to the picture and the crops: the log-odds
            of that answer, `readers.base.Reply.margin`. None where it does not tell.
        margin_without: the same of its answer to the picture alone.
        kept: False where `keep_if_surer` put the answer without crops in the place of that with
            them.
        reply_probability: of the reply that names these boxes under the cropper, 0..1, among all
            replies that it can write.
    """

    boxes: tuple[geometry.FineBox, ...]
    crops: tuple[Image.Image, ...]
    answer: str | None = None
    answer_without_crop: str | None = None
    failure: str = ""
    failure_without_crop: str = ""
    confidence: float = math.nan
    margin_with: float | None = None
    margin_without: float | None = None
    kept: bool = True
    reply_probability: float = math.nan

    @property
    def box(self) -> geometry.FineBox | None:
        """The box, of several the first one; None where there is none."""
        return self.boxes[0] if self.boxes else None

    @property
    def crop(self) -> Image.Image | None:
        """What is inside `box`; None where there is none."""
        return self.crops[0] if self.crops else None


def answered(
    zoom: Zoom, closer: Reply, whole: Reply | None, *, compare: bool, keep_if_surer: bool
) -> Zoom:
    """The zoom with what the target said.

    Args:
        zoom: where the cropper looked.
        closer: the reply to the picture and its crops, of which there may be none.
        whole: the reply to the picture alone; None where it was not asked for, and where there are
            no crops: then it is `closer`.
        compare: whether the answer without crops is told where there are none.
        keep_if_surer: whether the answer is the one that the target is surer of; see
            `readers.asking.keeps_crops`.
    """
    if whole is None and compare and not zoom.boxes:
        whole = closer
    if whole is not None:
        zoom = zoom._replace(
            answer_without_crop=None if whole.failure else whole.text,
            failure_without_crop=whole.failure,
            margin_without=whole.margin,
        )
    kept = whole is None or not keep_if_surer or keeps_crops(closer, whole)
    answer = closer if kept or whole is None else whole
    return zoom._replace(
        answer=None if answer.failure else answer.text,
        failure=answer.failure,
        margin_with=closer.margin,
        kept=kept,
    )
