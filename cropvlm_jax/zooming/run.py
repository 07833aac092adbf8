# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Zooming into many pictures, into a folder that the same call goes on with after a kill."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.api import CropVLM
from cropvlm_jax.data.source import Source
from cropvlm_jax.evals.items import Item, read_parts
from cropvlm_jax.hub.files import read_json
from cropvlm_jax.pixels import sheet
from cropvlm_jax.progress import Progress
from cropvlm_jax.readers.asking import refused_alone
from cropvlm_jax.readers.base import EMPTY, ReaderUnavailable, Reply
from cropvlm_jax.training import workdir
from cropvlm_jax.zooming import contact_sheet
from cropvlm_jax.zooming.questions import RESULTS, Question
from cropvlm_jax.zooming.results import CROPS, FAILURE, THUMBNAILS, Record, Results, file_stem
from cropvlm_jax.zooms import Zoom

COMMAND = "zoom"  # in the settings of a folder, which tells it from that of a training run
CHUNK = 16  # questions that are worked on together: what a kill costs at most
SHOWN = {"answer": "with the crop", "answer_without_crop": "without the crop"}  # to the target
SIDE, QUALITY = 200, 60  # of a thumbnail's picture and of its crop, px; and of its WebP file


@dataclasses.dataclass(frozen=True)
class Zoomer:
    """The models of a folder of results, and how they are asked.

    Attributes:
        model: the cropper, with the target that answers if there is one.
        compare: whether the target is also asked about the pictures alone.
        keep_if_surer: see `CropVLM.zoom`.
    """

    model: CropVLM
    compare: bool
    keep_if_surer: bool

    def __call__(self, items: Sequence[Item]) -> list[Zoom]:
        """Zooms into pictures that are in memory."""
        return self.model.zoom(
            [item.image for item in items],
            [item.example["question"] for item in items],
            compare=self.compare,
            keep_if_surer=self.keep_if_surer,
        )

    def sure(self, zoom: Zoom) -> Record:
        """How sure cropper and target are, where the result tells it."""
        told: Record = {}
        if self.model.calibration is not None or not self.model.always_one_box:
            told["confidence"] = zoom.confidence
        if self.keep_if_surer:
            names = ("margin_with", "margin_without", "kept")
            told |= {name: getattr(zoom, name) for name in names}
        return told


def zoom_all(
    model: CropVLM,
    questions: Sequence[Question],
    out: Path,
    settings: Mapping[str, Any],
    *,
    compare: bool = True,
    keep_if_surer: bool = False,
) -> list[Record]:
    """Zooms as each question asks, and writes results, crops and a contact sheet.

    In `out` are then `results.jsonl`, a line a question; `crops/`; `contact_sheet.html`, with
    `thumbnails/` that it is made of; and `config.json`, the settings. The same call goes on where
    another one was stopped, and tries again what failed.

    Args:
        model: the cropper, with the target that answers if there is one.
        questions: what is asked; their ids differ.
        out: the folder of the results, made if need be.
        settings: what the results depend on besides the questions, nested, as JSON.
        compare: whether the target is also asked about the pictures alone.
        keep_if_surer: whether an answer without crops of which the target is surer is kept; see
            `CropVLM.zoom`.

    Returns:
        The results in the order of the questions. One that lacks something says why as `failure`.

    Raises:
        ValueError: `out` holds something else, such as results of other settings, which are named,
            or another process writes to it.
        ReaderUnavailable: the target answers nothing; what was answered before is in the results.
    """
    with workdir.held(out):
        _claim(out, {"command": COMMAND} | dict(settings))
        results = Results(out, questions)
        try:
            _go_on(Zoomer(model, compare, keep_if_surer), results)
        except ReaderUnavailable as error:
            raise ReaderUnavailable(
                f"{error}. Of {len(questions)} questions, {len(results)} are in {out / RESULTS}: "
                "the same command goes on from there"
            ) from error
        finally:
            contact_sheet.write(out, results.records(), settings, len(questions))
        return results.records()


def _claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Makes `out` the folder of these settings.

    Raises:
        ValueError: it is the folder of other ones, or of something else.
    """
    saved = read_json(out / workdir.CONFIG)
    if saved.get("command") != COMMAND and (saved or (out / RESULTS).exists()):
        raise ValueError(f"{out} holds something else than results of zooming: take another folder")
    workdir.check_claim(out, settings, resume=True)
    workdir.claim(out, settings)


def _go_on(zoomer: Zoomer, results: Results) -> None:
    """Works on the questions that have no result."""
    questions = results.questions
    pending = results.pending()
    faulty = [questions[index] for index in pending if questions[index].fault]
    results.append([_failed(question, question.fault) for question in faulty])
    examples = [
        {"example_id": q.id, "image": q.path, "question": q.question, "answers": []}
        for q in questions
    ]
    source = Source(str(results.folder), examples, str)
    pending = results.pending()
    progress = Progress(len(questions), len(results), what="picture")
    for start in range(0, len(pending), CHUNK):
        for part in read_parts(source, pending[start : start + CHUNK]):
            results.append(_zoom_part(zoomer, part, questions, results.folder))
            progress.update(len(results))


def _zoom_part(
    zoomer: Zoomer, items: Sequence[Item], questions: Sequence[Question], out: Path
) -> list[Record]:
    """The results of items whose pictures are in memory; their files are written."""

    def zoom(rows: Sequence[Item]) -> Sequence[Zoom | str]:
        return zoomer(rows)

    readable = [item for item in items if not item.unreadable]
    zooms = iter(refused_alone(zoom, readable, str))
    records = []
    for item in items:
        question, found = questions[item.number], item.unreadable or next(zooms)
        if isinstance(found, str):
            records.append(_failed(question, found))
        else:
            record = _zoomed(question, item.image, found, out, zoomer.model.always_one_box)
            records.append(record | zoomer.sure(found) | _said(found))
    return records


def _failed(question: Question, reason: str) -> Record:
    """The result of a question that nothing was found out about."""
    return {"id": question.id, "image": question.image, "question": question.question} | {
        FAILURE: reason
    }


def _zoomed(
    question: Question, image: np.ndarray, zoom: Zoom, out: Path, always_one_box: bool
) -> Record:
    """A result without the answers, whose crops and thumbnail are written.

    Args:
        question: what was asked.
        image: uint8 `[H, W, 3]`.
        zoom: what was found.
        out: the folder of the results.
        always_one_box: whether the cropper names one box each time: then the result has `box`, and
            else `boxes`, of which there may be none.
    """
    stem = file_stem(question.id)
    names = [stem] if always_one_box else [f"{stem}-{i + 1}" for i in range(len(zoom.boxes))]
    crops = [f"{CROPS}/{name}.png" for name in names]
    for crop, name in zip(zoom.crops, crops, strict=True):
        crop.save(out / name, compress_level=1)  # 0.4 of the time, 15% larger
    picture = Image.fromarray(image)
    thumbnail = sheet.panel(picture, zoom.box, side=SIDE, others=zoom.boxes[1:])
    thumbnail.save(out / THUMBNAILS / f"{stem}.webp", quality=QUALITY)
    height, width = image.shape[:2]
    size = np.array([height, width])
    pixels = [geometry.to_pixels(np.array(box), size).tolist() for box in zoom.boxes]
    record: Record = {
        "id": question.id,
        "image": question.image,
        "question": question.question,
        "width": width,
        "height": height,
    }
    boxes = [list(box) for box in zoom.boxes]
    if always_one_box:
        return record | {"box": boxes[0], "box_pixels": pixels[0], "crop": crops[0]}
    return record | {"boxes": boxes, "boxes_pixels": pixels, "crops": crops}


def _said(zoom: Zoom) -> Record:
    """What the target answered where it was asked, and what kept it from answering.

    An answer is "" where the target read and said nothing, None where there is none.
    """
    replies = {
        "answer": (zoom.answer, zoom.failure),
        "answer_without_crop": (zoom.answer_without_crop, zoom.failure_without_crop),
    }
    told: Record = {
        key: "" if _is_empty(failure) else answer
        for key, (answer, failure) in replies.items()
        if answer is not None or failure
    }
    reasons = [
        f"{SHOWN[key]}: {failure}"
        for key, (_, failure) in replies.items()
        if failure and not _is_empty(failure)
    ]
    return told | ({FAILURE: "; ".join(reasons)} if reasons else {})


def _is_empty(failure: str) -> bool:
    """Whether a target failed to answer only in that it said nothing."""
    return Reply("", failure).kind == EMPTY
