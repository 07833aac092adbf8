# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Zooming into many pictures, into a folder that the same call goes on with after a kill."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.api import CropVLM, Zoom
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

COMMAND = "zoom"  # in the settings of a folder, which tells it from that of a training run
CHUNK = 16  # questions that are worked on together: what a kill costs at most
SHOWN = {"answer": "with the crop", "answer_without_crop": "without the crop"}  # to the target
SIDE, QUALITY = 200, 60  # of a thumbnail's picture and of its crop, px; and of its WebP file


ZoomAt = Callable[[Sequence[np.ndarray], Sequence[str]], list[Zoom]]  # pictures, by questions


def zoom_all(
    model: CropVLM,
    questions: Sequence[Question],
    out: Path,
    settings: Mapping[str, Any],
    *,
    compare: bool = True,
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
            _go_on(functools.partial(model.zoom, compare=compare), results)
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


def _go_on(zoom_at: ZoomAt, results: Results) -> None:
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
            results.append(_zoom_part(zoom_at, part, questions, results.folder))
            progress.update(len(results))


def _zoom_part(
    zoom_at: ZoomAt, items: Sequence[Item], questions: Sequence[Question], out: Path
) -> list[Record]:
    """The results of items whose pictures are in memory; their files are written."""

    def zoom(rows: Sequence[Item]) -> Sequence[Zoom | str]:
        return zoom_at([row.image for row in rows], [row.example["question"] for row in rows])

    readable = [item for item in items if not item.unreadable]
    zooms = iter(refused_alone(zoom, readable, str))
    records = []
    for item in items:
        question, found = questions[item.number], item.unreadable or next(zooms)
        if isinstance(found, str):
            records.append(_failed(question, found))
        else:
            records.append(_zoomed(question, item.image, found, out))
    return records


def _failed(question: Question, reason: str) -> Record:
    """The result of a question that nothing was found out about."""
    return {"id": question.id, "image": question.image, "question": question.question} | {
        FAILURE: reason
    }


def _zoomed(question: Question, image: np.ndarray, zoom: Zoom, out: Path) -> Record:
    """A result, whose crop and thumbnail are written.

    Args:
        question: what was asked.
        image: uint8 `[H, W, 3]`.
        zoom: what was found.
        out: the folder of the results.
    """
    stem = file_stem(question.id)
    crop = f"{CROPS}/{stem}.png"
    zoom.crop.save(out / crop, compress_level=1)  # 0.4 of the time, 15% larger
    thumbnail = sheet.panel(Image.fromarray(image), zoom.box, side=SIDE)
    thumbnail.save(out / THUMBNAILS / f"{stem}.webp", quality=QUALITY)
    height, width = image.shape[:2]
    pixels = geometry.to_pixels(np.array(zoom.box), np.array([height, width]))
    record: Record = {
        "id": question.id,
        "image": question.image,
        "question": question.question,
        "width": width,
        "height": height,
        "box": list(zoom.box),
        "box_pixels": pixels.tolist(),
        "crop": crop,
    }
    return record | _said(zoom)


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
