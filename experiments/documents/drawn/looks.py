# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""From a sheet to the picture of it: how ink, paper, scanners and cameras look."""

import dataclasses
import functools

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from . import torn
from .chance import between, often, pick, weighted, whole
from .document import Document, Field, Line, Sheet, around
from .warp import Frame

_TILE = 2560  # pixels of the noise that is drawn once
_NOISES = (0, 2, 4, 8, 14)


@dataclasses.dataclass(frozen=True)
class Look:
    """How a picture of paper looks.

    Attributes:
        paper: The grey of the paper, 255 is white.
        ink: How much darker the ink is.
        shade: How unevenly it is lit, in greys.
        noise: The noise's deviation in greys: one of `_NOISES`.
        blur: Radius in pixels.
        contrast: Stretches the greys around the paper's; 1 leaves them.
        around: The grey of what lies around the paper.
        worn: Whether ink may be pale in places, or its lines thinner or thicker than printed.
    """

    paper: int
    ink: int
    shade: float
    noise: int
    blur: float
    contrast: float
    around: int
    worn: bool = True


def scanned(rng: np.random.Generator) -> Look:
    """A scan: even, mostly white, seldom blurred."""
    white = often(rng, 0.88)
    paper = whole(rng, 246, 255) if white else whole(rng, 185, 245)
    ranges = weighted(rng, {(0.8, 1.0): 6, (0.55, 0.95): 3.5, (0.3, 0.6): 1.3})
    shaded = between(rng, 0, 14 if white else 25) if often(rng, 0.6) else 0.0
    return Look(
        paper=paper,
        ink=int(paper * between(rng, *ranges)),
        shade=shaded,
        noise=weighted(rng, {0: 5, 2: 3, 4: 1, 8: 0.3}),
        blur=weighted(rng, {0: 6, 0.6: 3, 1.0: 1}),
        contrast=weighted(rng, {1: 5, 1.3: 3, 2: 0.7}),
        around=weighted(rng, {whole(rng, 0, 40): 7, 255: 2, 170: 1}),
    )


def rendered(rng: np.random.Generator) -> Look:
    """A page that was never printed: black on white."""
    ink = 255 if often(rng, 0.8) else whole(rng, 150, 255)
    return Look(
        paper=255, ink=ink, shade=0.0, noise=0, blur=0.0, contrast=1, around=255, worn=False
    )


def photographed(rng: np.random.Generator) -> Look:
    """A photo: unevenly lit, blurred, noisy."""
    paper = whole(rng, 130, 235)
    return Look(
        paper=paper,
        ink=int(paper * between(rng, 0.35, 0.8)),
        shade=between(rng, 15, 70),
        noise=weighted(rng, {2: 2, 4: 3, 8: 2, 14: 1}),
        blur=weighted(rng, {0: 2, 0.6: 2, 1: 2, 1.5: 1}),
        contrast=1,
        around=whole(rng, 10, 140),
    )


def copied(rng: np.random.Generator) -> Look:
    """A page on which the paper's edge is not seen."""
    paper = whole(rng, 248, 255)
    ink = int(paper * between(rng, *pick(rng, ((0.8, 1.0), (0.8, 1.0), (0.45, 0.8)))))
    look = dataclasses.replace(scanned(rng), paper=paper, ink=ink, around=paper)
    return dataclasses.replace(look, shade=0.0, contrast=1)


def develop(rng: np.random.Generator, sheet: Sheet, frame: Frame, look: Look) -> Document:
    """The picture of a sheet, with all that is known about it."""
    ink = frame.photograph(sheet)
    if look.blur:
        ink = ink.filter(ImageFilter.BoxBlur(look.blur * 0.8))
    if look.worn and often(rng, 0.3):
        ink = ImageChops.multiply(ink, _patches(rng, ink.size, low=whole(rng, 110, 220)))
    grey = _shade(rng, ink.size, look)
    grey -= _darkening(rng, look)[np.asarray(ink)]
    if look.around != look.paper:
        grey = np.where(_paper(rng, frame, sheet), grey, look.around)
    if look.noise:
        grey += _noise(rng, look.noise, grey.shape)
    if look.contrast != 1:
        grey = (grey - look.paper) * np.int16(round(look.contrast * 16)) // 16 + min(
            look.paper + 10, 255
        )
    image = np.clip(grey, 0, 255).astype(np.uint8)
    picture = np.stack([image] * 3, -1)
    _colour(picture, sheet, frame)
    return _document(picture, sheet, frame)


def _colour(picture: np.ndarray, sheet: Sheet, frame: Frame) -> None:
    """Gives ink its colour, in place."""
    for box, colour in sheet.colours:
        left, top, right, bottom = np.rint(frame.boxes(np.array([box]), sheet)[0]).astype(int)
        part = picture[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        part += ((255 - part.astype(np.uint16)) * np.array(colour) // 255).astype(np.uint8)


def _document(image: np.ndarray, sheet: Sheet, frame: Frame) -> Document:
    """Moves all boxes and edges from the sheet to the picture."""
    marks = list(sheet.marks.values())
    boxes = [line.box for line in sheet.lines]
    boxes += [box for mark in marks for box in (*mark.parts, *mark.lines)]
    moved = [frame.clipped(tuple(box)) for box in frame.boxes(np.array(boxes), sheet).tolist()]
    of_lines, rest = moved[: len(sheet.lines)], iter(moved[len(sheet.lines) :])
    fields, evidence = {}, {}
    for name, mark in sheet.marks.items():
        fields[name] = Field(mark.answer, around([next(rest) for _ in mark.parts]))
        evidence[name] = around([next(rest) for _ in mark.lines])
    lines = [Line(line.text, box) for line, box in zip(sheet.lines, of_lines, strict=True)]
    return Document(
        image=image, lines=lines, fields=fields, evidence=evidence, edges=_edges(sheet, frame)
    )


def _edges(sheet: Sheet, frame: Frame) -> list[np.ndarray]:
    """The edges of the characters in the picture, at the middle of their line's height."""
    middles = [(line.box[1] + line.box[3]) / 2 for line in sheet.lines]
    counts = [len(edges) for edges in sheet.edges]
    points = np.stack([np.concatenate(sheet.edges), np.repeat(middles, counts)], 1)
    return np.split(frame.forward(points, sheet)[:, 0], np.cumsum(counts)[:-1])


def _paper(rng: np.random.Generator, frame: Frame, sheet: Sheet) -> np.ndarray:
    """Where the picture shows paper: bool `[H, W]`."""
    mask = Image.new("L", (frame.width, frame.height))
    outline = frame.forward(torn.outline(rng, *sheet.image.size), sheet)
    ImageDraw.Draw(mask).polygon(outline.ravel().tolist(), fill=1)
    return np.asarray(mask).astype(bool)


def _shade(rng: np.random.Generator, size: tuple[int, int], look: Look) -> np.ndarray:
    """The paper's grey where it is bare: int16 `[H, W]`."""
    if look.shade < 3:
        return np.full(size[::-1], look.paper, np.int16)
    cells = (whole(rng, 2, 9), whole(rng, 2, 4)) if often(rng, 0.6) else (28, 14)  # or crumpled
    field = look.paper - look.shade * rng.random(cells)
    if often(rng, 0.4):  # darker towards one side, as where the lid does not close
        field[:, 0 if often(rng, 0.5) else -1] -= between(rng, 0, 2) * look.shade
    image = Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)).astype(np.int16)


def _darkening(rng: np.random.Generator, look: Look) -> np.ndarray:
    """How much darker a pixel gets, by the ink that it holds: int16 `[256]`."""
    start, slope = (
        (0.0, 1.0)
        if not look.worn
        else pick(rng, ((0.0, 1.0), (0.0, 1.3), (0.0, 1.8), (0.08, 1.4), (0.15, 2.5)))
    )
    curve = np.clip((np.arange(256) / 255 - start) * slope, 0, 1)
    return np.rint(curve * look.ink).astype(np.int16)


def _patches(rng: np.random.Generator, size: tuple[int, int], low: int) -> Image.Image:
    """A field of greys between `low` and white, that varies slowly or in stripes."""
    cells = pick(rng, ((12, 6), (30, 12), (1, 60), (40, 1), (4, 2)))
    field = np.minimum(rng.integers(low, 330, cells), 255).astype(np.uint8)
    return Image.fromarray(field).resize(size, Image.Resampling.BILINEAR)


@functools.cache
def _tile(deviation: int) -> np.ndarray:
    """Noise that is drawn once for all pictures: int8 `[_TILE, _TILE]`."""
    rng = np.random.default_rng(deviation)
    return np.rint(rng.standard_normal((_TILE, _TILE), np.float32) * deviation).astype(np.int8)


def _noise(rng: np.random.Generator, deviation: int, shape: tuple[int, ...]) -> np.ndarray:
    top, left = (int(rng.random() * (_TILE - edge)) for edge in shape)
    return _tile(deviation)[top : top + shape[0], left : left + shape[1]]
