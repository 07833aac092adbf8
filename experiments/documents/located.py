# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of which is known what stands where, as files: drawn documents and training ones."""

import dataclasses
import json
import multiprocessing
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from drawn import Document, draw_page, draw_receipt
from PIL import Image

from cropvlm_jax.pixels import host
from cropvlm_jax.progress import Progress

CHUNK = 100  # documents in a file
_DRAW = {"receipts": draw_receipt, "pages": draw_page}
_SHARE = 65535  # of a side, in the files


@dataclasses.dataclass(frozen=True)
class Located:
    """A picture and what stands where; boxes are shares of the picture, float `[4]` each.

    Attributes:
        image: grey, uint8 `[S, S]`.
        letters: code points `[L]`, without spaces.
        letter_boxes: float32 `[L, 4]`.
        lines: boxes of all printed lines `[N, 4]`; none where lines and letters are not told.
        answers: boxes by field.
    """

    image: np.ndarray
    letters: np.ndarray
    letter_boxes: np.ndarray
    lines: np.ndarray
    answers: dict[str, list[float]]


def draw_documents(
    folder: str | os.PathLike, counts: dict[str, int], side: int, seed: int, workers: int = 2
) -> None:
    """Draws documents into files, as the cropper sees them; those that are there are kept.

    Args:
        folder: for the files.
        counts: how many of each suite's kind.
        side: of the pictures, pixels.
        seed: of what is drawn.
        workers: processes.
    """
    root = pathlib.Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    todo = [
        (root / f"{suite}_{chunk:04}.npz", suite, chunk, side, seed)
        for chunk in range(max(counts.values()) // CHUNK)
        for suite, count in counts.items()
        if chunk < count // CHUNK and not (root / f"{suite}_{chunk:04}.npz").exists()
    ]
    progress = Progress(len(todo), what=f"{CHUNK} documents")
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, _ in enumerate(pool.imap_unordered(_draw_chunk, todo), 1):
            progress.update(done)


def _draw_chunk(task: tuple[pathlib.Path, str, int, int, int]) -> None:
    path, suite, chunk, side, seed = task
    found = []
    for number in range(CHUNK):
        document = _DRAW[suite](np.random.default_rng([seed, chunk, number]))
        found.append(_located(document, suite, side))
    write(path, found)


def _located(document: Document, suite: str, side: int) -> Located:
    height, width = document.image.shape[:2]
    size = np.array([width, height] * 2)
    # Of receipts the lines, which the labels of SROIE are about; of pages the words.
    answers = (
        document.evidence
        if suite == "receipts"
        else {name: field.box for name, field in document.fields.items()}
    )
    texts, boxes = [line.text for line in document.lines], [line.box for line in document.lines]
    letters, letter_boxes = spread(texts, boxes, document.edges)
    return Located(
        image=host.tile(document.image, side, side, split=False)[0][0, ..., 0],
        letters=letters,
        letter_boxes=letter_boxes / size,
        lines=np.array(boxes).reshape(-1, 4) / size,
        answers={name: (np.array(box) / size).tolist() for name, box in answers.items()},
    )


def spread(
    texts: Sequence[str], boxes: Sequence[Sequence[float]], edges: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The letters of lines: code points `[L]` and boxes `[L, 4]`, without spaces.

    Args:
        texts: of the lines.
        boxes: of the lines.
        edges: for each line, where its characters begin and the last one ends.
    """
    letters: list[int] = []
    found: list[tuple[float, float, float, float]] = []
    for text, (_, top, _, bottom), places in zip(texts, boxes, edges, strict=True):
        for letter, left, right in zip(text, places[:-1], places[1:], strict=True):
            if not letter.isspace():
                letters.append(ord(letter))
                found.append((left, top, right, bottom))
    return np.array(letters, np.int32), np.array(found, np.float32).reshape(-1, 4)


def read_receipts(
    documents: str | os.PathLike, origin: str | os.PathLike, side: int, seeds: str | os.PathLike
) -> list[Located]:
    """The training receipts with the letters of their lines, evenly spread, and their seed boxes.

    Args:
        documents: folder of the suites.
        origin: folder of SROIE, whose `receipts.jsonl` has the lines.
        side: of the pictures, pixels.
        seeds: folder of seed boxes, as `cropvlm label` writes them.
    """
    suite = pathlib.Path(documents) / "receipts"
    answers = _seeds(suite, pathlib.Path(seeds) / "receipts_train.jsonl")
    found = []
    with (pathlib.Path(origin) / "receipts.jsonl").open(encoding="utf-8") as file:
        receipts = {receipt["image"]: receipt for receipt in map(json.loads, file)}
    for name, fields in answers.items():
        lines = receipts[name]["lines"]
        texts, boxes = [line["text"] for line in lines], [line["box"] for line in lines]
        edges = [
            np.linspace(box[0], box[2], len(text) + 1)
            for text, box in zip(texts, boxes, strict=True)
        ]
        letters, letter_boxes = spread(texts, boxes, edges)
        size = np.array([receipts[name]["width"], receipts[name]["height"]] * 2)
        shares = np.array(boxes).reshape(-1, 4) / size
        image = _grey_tile(suite / name, side)
        found.append(Located(image, letters, letter_boxes / size, shares, fields))
    return found


def read_pages(
    documents: str | os.PathLike, side: int, seeds: str | os.PathLike, most: int
) -> list[Located]:
    """Training pages, of which nothing but some seed boxes is known.

    Args:
        documents: folder of the suites.
        side: of the pictures, pixels.
        seeds: folder of seed boxes, as `cropvlm label` writes them.
        most: how many pages at most.
    """
    suite = pathlib.Path(documents) / "pages"
    answers = list(_seeds(suite, pathlib.Path(seeds) / "pages_train.jsonl").items())[:most]
    progress, found = Progress(len(answers), what="training page"), []
    nothing = np.zeros(0, np.int32), np.zeros((0, 4), np.float32), np.zeros((0, 4))
    for number, (name, fields) in enumerate(answers, 1):
        image = _grey_tile(suite / name, side)
        found.append(Located(image, *nothing, fields))
        progress.update(number)
    return found


def _seeds(suite: pathlib.Path, path: pathlib.Path) -> dict[str, dict[str, list[float]]]:
    """The seed boxes of training pictures, by picture and field, as shares."""
    with path.open(encoding="utf-8") as file:
        seeds = {row["example_id"]: row["seed"] for row in map(json.loads, file)}
    found: dict[str, dict[str, list[float]]] = {}
    with (suite / "train.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["example_id"] in seeds:
                shares = [edge / 100 for edge in seeds[row["example_id"]]]
                found.setdefault(row["image"], {})[row["category"]] = shares
    return found


def _grey_tile(path: pathlib.Path, side: int) -> np.ndarray:
    """A picture file as the cropper sees it, uint8 `[S, S]`."""
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    return host.tile(pixels, side, side, split=False)[0][0, ..., 0]


def write(path: pathlib.Path, documents: Sequence[Located]) -> None:
    """Writes a file of documents; it is there once all of it is."""
    unfinished = path.with_suffix(".part.npz")
    np.savez(
        unfinished,
        images=np.stack([document.image for document in documents]),
        letters=np.concatenate([document.letters for document in documents]),
        letter_boxes=np.concatenate([_whole(document.letter_boxes) for document in documents]),
        letter_counts=[len(document.letters) for document in documents],
        lines=np.concatenate([_whole(document.lines) for document in documents]),
        line_counts=[len(document.lines) for document in documents],
        answers=json.dumps([document.answers for document in documents], allow_nan=False),
    )
    unfinished.rename(path)


def _whole(shares: np.ndarray) -> np.ndarray:
    return np.round(np.clip(shares, 0, 1) * _SHARE).astype(np.uint16)


def read(path: pathlib.Path) -> list[Located]:
    """The documents of a file."""
    with np.load(path) as file:
        starts = np.cumsum(file["letter_counts"])[:-1]
        line_starts = np.cumsum(file["line_counts"])[:-1]
        columns = (
            file["images"],
            np.split(file["letters"], starts),
            np.split(file["letter_boxes"] / np.float32(_SHARE), starts),
            np.split(file["lines"] / _SHARE, line_starts),
            json.loads(str(file["answers"])),
        )
        return [Located(*row) for row in zip(*columns, strict=True)]
