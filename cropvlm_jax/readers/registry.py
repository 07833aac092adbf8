# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Readers by name.

reader = open_reader("rapidocr:v4@256")
(reply,) = reader.answer([[picture, crop]], ["What is the total amount on the receipt?"])
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    if isinstance(spec, Path) or ("@" in spec and Path(spec).expanduser().is_dir()):
        return VLMReader.from_pretrained(spec, processor=processor, **options)
    found = re.fullmatch(r"(?:(\w+):)?([^:@].*?)(?:@(\d+))?(?:@(png|jpeg\d+))?", spec)
    if not found or spec.endswith(":"):
        raise ValueError(f"{spec!r} names no reader")
    kind, name, edge = found[1], found[2], int(found[3]) if found[3] else None
    picture_format = found[4] or ""
    if edge == 0:
        raise ValueError(f"{spec!r}: a longest side of @0 pixels shows nothing")
    if picture_format and kind != "openai":
        raise ValueError(f"{spec!r}: @{picture_format} is for chat endpoints, openai:MODEL")
    if (
        is_black_box(spec)
        and kind != "vlm"
        and any(value is not None for value in (processor or {}).values())
    ):
        raise ValueError(f"{spec!r} has no image processor to set, only a VLM of this package has")
    if kind is None and name == "tesseract":
        return OCRReader(name, tesseract(), edge)
    if kind == "rapidocr":
        return OCRReader(f"rapidocr:{name}", rapidocr(name), edge)
    if kind == "openai":
        return ChatReader(name, base_url=base_url, longest_edge=edge, picture_format=picture_format)
    if kind not in (None, "vlm") or name in KINDS:
        raise ValueError(f"{spec!r} names no reader: give {NAMES}")
    return VLMReader.from_pretrained(name, longest_edge=edge, processor=processor, **options)
