# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Readers by name.

reader = open_reader("rapidocr:v4@256")
(reply,) = reader.answer([[picture, crop]], ["What is the total amount on the receipt?"])
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cropvlm_jax.readers.base import Reader
from cropvlm_jax.readers.chat import ChatReader
from cropvlm_jax.readers.ocr import OCRReader, rapidocr, tesseract
from cropvlm_jax.readers.vlm import VLMReader

KINDS = ("vlm", "openai", "rapidocr", "tesseract")  # of readers, before the ":" of their names
NAMES = "a VLM's folder or Hub id, openai:MODEL, rapidocr:v4, rapidocr:v6 or tesseract"


def is_black_box(spec: str) -> bool:
    """Whether a target of this name rewards from outside of the training step.

    A VLM of this package, named by its folder or Hub id alone, does not: the step itself computes
    its likelihoods.
    """
    return bool(re.match(rf"({'|'.join(KINDS)})([:@]|$)", spec))


def is_vlm(spec: str | Path) -> bool:
    """Whether a reader of this name is a VLM of this package, which has an image processor.

    Raises:
        ValueError: there is no such reader.
    """
    return _read(spec).kind == "vlm"


def open_reader(
    spec: str | Path,
    base_url: str | None = None,
    *,
    processor: Mapping[str, Any] | None = None,
    **options: Any,
) -> Reader:
    """Opens a reader by its name on the command line.

    Args:
        spec: a folder, bundled model or hub id of a VLM ("zoom_digits/target", or
            "vlm:zoom_digits/target"); "openai:MODEL", at `base_url`; "rapidocr:v4", "rapidocr:v6",
            "tesseract". Then, optionally, "@" and the pixels of pictures' longest sides; and of a
            chat endpoint "@png" or "@jpeg85", as which pictures are sent. A `Path` is always a
            VLM's folder.
        base_url: of a chat endpoint; None takes the environment's OPENAI_BASE_URL.
        processor: settings of a VLM's image processor, as `VLMReader.from_pretrained` takes them.
        **options: dtype and mesh, as `VLMReader.from_pretrained` takes them; other readers have
            no use for them.

    Raises:
        FileNotFoundError: the model or program is not there.
        ImportError: a package is not installed.
        ValueError: there is no such reader, or it has no image processor to set.
    """
    kind, name, edge, _ = _read(spec)
    if kind == "vlm":
        return VLMReader.from_pretrained(name, longest_edge=edge, processor=processor, **options)
    if any(value is not None for value in (processor or {}).values()):
        raise ValueError(f"{spec!r} has no image processor to set: only VLMs of this package have")
    if kind == "openai":
        return open_chat(spec, base_url=base_url)
    if kind == "rapidocr":
        return OCRReader(f"rapidocr:{name}", rapidocr(name), edge)
    return OCRReader(name, tesseract(), edge)


def open_chat(spec: str | Path, **options: Any) -> ChatReader:
    """Opens a model behind a chat endpoint.

    Args:
        spec: its name, "openai:MODEL" and what may follow, as `open_reader` takes it.
        **options: as `ChatReader` takes them, but for those that the name says.

    Raises:
        ImportError: the client is not installed.
        ValueError: this is no name of a chat endpoint.
    """
    kind, name, edge, picture_format = _read(spec)
    if kind != "openai":
        raise ValueError(f"{spec!r} is no chat endpoint: give openai:MODEL")
    return ChatReader(name, longest_edge=edge, picture_format=picture_format, **options)


class _Spec(NamedTuple):
    """The parts of a reader's name.

    Attributes:
        kind: one of `KINDS`.
        name: of the model; "tesseract" of Tesseract.
        longest_edge: after "@"; None where there is none.
        picture_format: after "@"; "" where there is none.
    """

    kind: str
    name: str
    longest_edge: int | None = None
    picture_format: str = ""


def _read(spec: str | Path) -> _Spec:
    """The parts of a reader's name; of a folder with "@" in its name the whole is the name.

    Raises:
        ValueError: there is no such reader.
    """
    if isinstance(spec, Path) or ("@" in spec and Path(spec).expanduser().is_dir()):
        return _Spec("vlm", str(spec))
    found = re.fullmatch(r"(?:(\w+):)?([^:@].*?)(?:@(\d+))?(?:@(png|jpeg\d+))?", spec)
    if not found:
        raise ValueError(f"{spec!r} names no reader: give {NAMES}")
    kind, name, edge = found[1], found[2], None if found[3] is None else int(found[3])
    if kind is None:
        kind = name if name == "tesseract" else "vlm"
    bare = name in KINDS and name != "tesseract"  # such as "rapidocr", without its models
    if kind not in KINDS or bare or name.endswith(":") or (kind == "tesseract" and name != kind):
        raise ValueError(f"{spec!r} names no reader: give {NAMES}")
    if edge == 0:
        raise ValueError(f"{spec!r}: of a picture whose longest side is @0 nothing is seen")
    if found[4] and kind != "openai":
        raise ValueError(f"{spec!r}: @{found[4]} is for chat endpoints, openai:MODEL")
    return _Spec(kind, name, edge, found[4] or "")
