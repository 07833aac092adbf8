# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The fonts of this machine, and text drawn with them: plain, stretched, or made of dots.

Any machine with a few TrueType, OpenType or Type 1 fonts will do; more fonts make better data:

    apt-get install fonts-liberation fonts-dejavu fonts-freefont-ttf fonts-noto-mono fonts-hack \\
        fonts-inconsolata fonts-croscore fonts-crosextra-carlito fonts-crosextra-caladea fonts-lato \\
        fonts-open-sans fonts-roboto fonts-urw-base35 fonts-ocr-a fonts-ocr-b fonts-lmodern
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
    "symbol|dingbat|emoji|d050000l|math|initial|keyboard|hairline|thin|extralight|arabic|hebrew"
    "|cjk|thai|devanagari|lmdunh|lmmi|lmsy|lmex|OCRB[EFSX]|libertine_[IK]|biolinum_k",
    re.IGNORECASE,
)
_SERIF = re.compile(
    "serif|roman|tinos|c059|p052|bookman|libertine|caladea|times|georgia|garamond|schola|pagella"
    "|termes|bonum|century|palatino|charter|cambria",
    re.IGNORECASE,
)
_REGULAR = ("regular", "book", "roman", "medium", "normal", "light", "10regular")
_ASCII = "".join(map(chr, range(33, 127)))
_SCRATCH = (3000, 240)  # width and height of the picture on which a text is first drawn


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
                styles.setdefault(name, {}).setdefault((style or "Regular").lower(), path)
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
    missing = bytes(font.getmask("\uffff"))
    shapes = {bytes(font.getmask(sign)) for sign in _ASCII}
    return missing not in shapes and len(shapes) > 0.8 * len(_ASCII)


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
        scale = self._scale()
        advances = _advances(self.file, self._font_size())
        return sum(advances[sign] for sign in text) * scale * self.wide

    def ink(self, text: str) -> Ink | None:
        """Draws a text; None where it leaves no ink."""
        size, scale = self._font_size(), self._scale()
        font = _load(self.file, size)
        scratch, pen = _scratch()
        base = (size // 2, size + size // 2)
        pen.text(base, text, fill=255, font=font, anchor="ls")
        box = scratch.getbbox()
        if box is None:
            return None
        mask = scratch.crop(box)
        scratch.paste(0, box)
        across, down = self.wide * scale, self.tall * scale
        left, top = (box[0] - base[0]) * across, (box[1] - base[1]) * down
        if self.dots:
            mask = _pinned(mask, self.dots)
        width, height = (
            round(mask.width * self._rest(across)),
            round(mask.height * self._rest(down)),
        )
        if mask.size != (width, height):
            mask = mask.resize((max(width, 1), max(height, 1)), Image.Resampling.BILINEAR)
        advances = _advances(self.file, size)
        edges = np.cumsum([0.0, *(advances[sign] for sign in text)]) * across
        return Ink(mask=mask, left=round(left), top=round(top), edges=edges)

    def _font_size(self) -> int:
        return max(6, round(self.size / self.dots)) if self.dots else self.size

    def _scale(self) -> float:
        return self.size / self._font_size()

    def _rest(self, factor: float) -> float:
        """What is left to stretch after the dots were spread."""
        return factor / self.dots if self.dots else factor


class _Advances(dict[str, float]):
    """Widths of characters, measured when first asked for."""

    def __init__(self, font: ImageFont.FreeTypeFont) -> None:
        super().__init__()
        self.font = font

    def __missing__(self, sign: str) -> float:
        self[sign] = self.font.getlength(sign)
        return self[sign]


@functools.lru_cache(4096)
def _load(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(4096)
def _advances(file: str, size: int) -> _Advances:
    return _Advances(_load(file, size))


@functools.cache
def _scratch() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("L", _SCRATCH)
    return image, ImageDraw.Draw(image)


@functools.cache
def _pin(pitch: int) -> np.ndarray:
    """One dot of `pitch` pixels: full in the middle, thin at the corners."""
    away = (np.arange(pitch) - (pitch - 1) / 2) / (pitch / 2)
    return np.clip(1.35 - np.hypot(away[:, None], away[None]), 0.15, 1).astype(np.float32)


def _pinned(mask: Image.Image, pitch: int) -> Image.Image:
    """Every pixel of a small text becomes a dot, or none."""
    hit = (np.asarray(mask) > 90).astype(np.float32) * 255
    return Image.fromarray(np.kron(hit, _pin(pitch)).astype(np.uint8))
