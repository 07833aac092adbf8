# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The fonts of this machine, and text drawn with them: plain, stretched, or made of dots.

Any machine with a few TrueType, OpenType or Type 1 fonts will do; more fonts make better data:

    apt-get install fonts-liberation fonts-dejavu fonts-freefont-ttf fonts-noto-mono fonts-hack \\
        fonts-inconsolata fonts-croscore fonts-crosextra-carlito fonts-crosextra-caladea \\
        fonts-lato fonts-open-sans fonts-roboto fonts-urw-base35 fonts-ocr-a fonts-ocr-b \\
        fonts-lmodern
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "/usr/share/texmf/fonts/opentype",
    "/usr/share/texlive/texmf-dist/fonts/opentype",
    "~/.fonts",
    "~/.local/share/fonts",
    "/Library/Fonts",
    "/System/Library/Fonts",
    "C:/Windows/Fonts",
)
SUFFIXES = (".ttf", ".otf", ".pfb")
_UNFIT = re.compile(
    "symbol|dingbat|emoji|d050000l|math|initial|keyboard|hairline|thin|light|arabic|hebrew"
    "|cjk|thai|devanagari|dunh|caps|unsl|slant|quot|lmmi|lmsy|lmex|OCRB[EFSX]"
    "|libertine_[IK]|biolinum_k",
    re.IGNORECASE,
)
_SERIF = re.compile(
    "serif|roman|tinos|c059|p052|bookman|libertine|caladea|times|georgia|garamond|schola|pagella"
    "|termes|bonum|century|palatino|charter|cambria",
    re.IGNORECASE,
)
_REGULAR = ("regular", "book", "roman", "medium", "normal", "light")
_SIGNS = "0189AQZagz.,:-/"  # by which a font is judged


@dataclasses.dataclass(frozen=True)
class Family:
    """Files of one typeface.

    Attributes:
        name: As the font says it.
        kind: "mono", "serif" or "sans".
        regular, bold, italic: The files; a style that is not there is the regular one.
    """

    name: str
    kind: str
    regular: str
    bold: str
    italic: str


@functools.cache
def families() -> tuple[Family, ...]:
    """All usable families, sorted by name.

    Raises:
        OSError: there is no usable font on this machine.
    """
    styles: dict[str, dict[str, str]] = {}
    for path in _font_files():
        try:
            font = ImageFont.truetype(path, 24)
            name, style = font.getname()
            if name and not _UNFIT.search(name) and _draws_ascii(font):
                style = re.sub(r"^\d+ ", "", (style or "regular").lower())  # as in "10 bold"
                styles.setdefault(name, {}).setdefault(style, path)
        except (OSError, ValueError):
            continue
    found = (_family(name, of) for name, of in sorted(styles.items()))
    usable = tuple(family for family in found if family)
    if not usable:
        raise OSError(f"no usable font in {', '.join(FOLDERS)}: apt-get install fonts-liberation")
    return usable


def of_kind(kind: str) -> tuple[Family, ...]:
    """The families of a kind; all of them where there is none of that kind."""
    return tuple(family for family in families() if family.kind == kind) or families()


def _font_files() -> Iterator[str]:
    seen: set[str] = set()
    for folder in FOLDERS:
        for path in sorted(pathlib.Path(os.path.expanduser(folder)).rglob("*")):
            if path.suffix.lower() in SUFFIXES and not _UNFIT.search(path.name):
                if path.stem not in seen:  # the same font in several formats
                    seen.add(path.stem)
                    yield str(path)


def _draws_ascii(font: ImageFont.FreeTypeFont) -> bool:
    """Whether the font has shapes of its own for digits, letters and signs."""
    shapes = {bytes(font.getmask(sign)) for sign in _SIGNS}
    return len(shapes) == len(_SIGNS) and bytes(font.getmask("\uffff")) not in shapes


def _family(name: str, styles: dict[str, str]) -> Family | None:
    regular = next((styles[style] for style in _REGULAR if style in styles), None)
    if regular is None:
        return None
    bold = next((p for s, p in styles.items() if s in ("bold", "semibold", "demi")), regular)
    italic = next((p for s, p in styles.items() if s in ("italic", "oblique")), regular)
    font = ImageFont.truetype(regular, 40)
    if abs(font.getlength("iiii") - font.getlength("MMMM")) < 1:
        kind = "mono"
    else:
        kind = "serif" if _SERIF.search(name) and "sans" not in name.lower() else "sans"
    return Family(name=name, kind=kind, regular=regular, bold=bold, italic=italic)


@dataclasses.dataclass(frozen=True)
class Ink:
    """A text that was drawn, where the pen begins at (0, 0) on the base line.

    Attributes:
        mask: Coverage, an "L" picture that ends at the ink's edges.
        left, top: Where the mask lies.
        edges: Where the characters begin, and the last one ends: `[characters + 1]`.
    """

    mask: Image.Image
    left: int
    top: int
    edges: np.ndarray


@dataclasses.dataclass(frozen=True)
class Face:
    """A way to print text.

    Attributes:
        file: The font's file.
        size: Height of a line in pixels, before stretching.
        wide, tall: How much letters are stretched; printers of receipts double either.
        dots: Pixels between the pins of a dot-matrix printer; 0 prints smoothly.
    """

    file: str
    size: int
    wide: float = 1.0
    tall: float = 1.0
    dots: int = 0

    @property
    def height(self) -> float:
        """Height of a line in pixels."""
        return self.size * self.tall

    def stretched(self, wide: float = 1.0, tall: float = 1.0) -> "Face":
        """This face, wider or taller."""
        return dataclasses.replace(self, wide=self.wide * wide, tall=self.tall * tall)

    def length(self, text: str) -> float:
        """The width of a text in pixels."""
        glyphs = _glyphs(self.file, self.size, self.dots)
        return sum(glyphs[sign].advance for sign in text) * self.wide

    def ink(self, text: str, space: float = 0.0) -> Ink | None:
        """Draws a text, its spaces wider by some pixels; None where it leaves no ink."""
        cached = _glyphs(self.file, self.size, self.dots)
        glyphs = [cached[sign] for sign in text]
        advances = [glyph.advance for glyph in glyphs]
        if space:
            advances = [
                advance + space * (sign == " ")
                for sign, advance in zip(text, advances, strict=True)
            ]
        edges = np.cumsum([0.0, *advances])
        placed = [
            (round(start) + glyph.left, glyph.top, glyph.mask)
            for start, glyph in zip(edges[:-1].tolist(), glyphs, strict=True)
            if glyph.mask.size
        ]
        if not placed:
            return None
        left = min(x for x, _, _ in placed)
        top = min(y for _, y, _ in placed)
        width = max(x + mask.shape[1] for x, _, mask in placed) - left
        height = max(y + mask.shape[0] for _, y, mask in placed) - top
        line = np.zeros((height, width), np.uint8)
        for x, y, mask in placed:
            part = line[y - top : y - top + mask.shape[0], x - left : x - left + mask.shape[1]]
            np.maximum(part, mask, out=part)
        return self._stretch(Image.fromarray(line), left, top, edges)

    def _stretch(self, mask: Image.Image, left: int, top: int, edges: np.ndarray) -> Ink:
        if self.wide != 1 or self.tall != 1:
            size = max(1, round(mask.width * self.wide)), max(1, round(mask.height * self.tall))
            mask = mask.resize(size, Image.Resampling.BILINEAR)
        return Ink(
            mask=mask,
            left=round(left * self.wide),
            top=round(top * self.tall),
            edges=edges * self.wide,
        )


@dataclasses.dataclass(frozen=True)
class _Glyph:
    """A character's coverage (uint8, empty for a space), its place, and how far the pen moves."""

    mask: np.ndarray
    left: int
    top: int
    advance: float


class _Glyphs(dict[str, _Glyph]):
    """The characters of a face that were asked for so far."""

    def __init__(self, file: str, size: int, dots: int) -> None:
        super().__init__()
        self.dots = dots
        pixels = max(7, round(size / dots)) if dots else size
        self.font = ImageFont.truetype(file, pixels, layout_engine=ImageFont.Layout.BASIC)
        self.scratch = Image.new("L", (4 * pixels, 4 * pixels))
        self.pen = ImageDraw.Draw(self.scratch)
        self.base = 2 * pixels

    def __missing__(self, sign: str) -> _Glyph:
        self.pen.text((self.base, self.base), sign, fill=255, font=self.font, anchor="ls")
        box = self.scratch.getbbox() or (self.base, self.base, self.base, self.base)
        mask = np.array(self.scratch.crop(box))
        self.scratch.paste(0, box)
        scale = self.dots or 1
        if self.dots:
            mask = _pinned(mask, self.dots)
        self[sign] = _Glyph(
            mask=mask,
            left=(box[0] - self.base) * scale,
            top=(box[1] - self.base) * scale,
            advance=self.font.getlength(sign) * scale,
        )
        return self[sign]


@functools.lru_cache(2048)
def _glyphs(file: str, size: int, dots: int) -> _Glyphs:
    return _Glyphs(file, size, dots)


@functools.cache
def _pin(pitch: int) -> np.ndarray:
    """One dot of `pitch` pixels: full in the middle, thin at the corners."""
    away = (np.arange(pitch) - (pitch - 1) / 2) / (pitch / 2)
    return np.clip(1.35 - np.hypot(away[:, None], away[None]), 0.15, 1).astype(np.float32)


def _pinned(mask: np.ndarray, pitch: int) -> np.ndarray:
    """Every pixel of a small character becomes a dot, or none."""
    hit = (mask > 90).astype(np.float32) * 255
    return np.kron(hit, _pin(pitch)).astype(np.uint8)
