# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Asks a labeller, a model that is to point at the evidence, and keeps its replies in a file.

A reply is a line of JSON, `{"example_id", "reply"}`, with `"resized"`, the `[height, width]` of the
picture that the labeller saw, where that is known. `seed_boxes` makes boxes of replies.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from cropvlm_jax.data import faults, rows
from cropvlm_jax.data.source import Source
from cropvlm_jax.pixels import host

MAX_NEW_TOKENS = 128


def prompt(question: str) -> str:
    """What the official code asks Qwen2.5-VL."""
    return (
        "Outline the region in the image that would help answer the following question: "
        f"{question}\nOutput the coordinates in JSON format with a 'bbox_2d' field containing "
        "[x1, y1, x2, y2]."
    )


def read_replies(path: str | os.PathLike) -> dict[str, rows.Row]:
    """Replies by example; the last one where an example has several.

    Lines that are no reply, such as one that an interruption tore, are skipped; the log counts and
    names them.
    """

    def check(row: rows.Row) -> rows.Row:
        if not isinstance(row.get("reply"), str):
            raise ValueError(f"the reply is {row.get('reply')!r}, not text")
        match row.get("resized", [1, 1]):
            case [int(height), int(width)] if 0 < min(height, width) <= max(height, width) < 2**20:
                return row | {"example_id": rows.identifier(row, "example_id")}
            case size:
                raise ValueError(f"resized is {size!r}, not [height, width]")

    found = rows.collect(rows.jsonl_rows(Path(path)), check)
    skipped = found.skipped
    total = len(found.examples) + len(skipped)
    faults.log(f"{path}: {len(skipped)} of {total} lines skipped", skipped)
    return {row["example_id"]: row for row in found.examples}


def unanswered(source: Source, path: str | os.PathLike) -> list[int]:
    """Indices of the examples that have no reply in the file, which may not exist yet."""
    done = read_replies(path) if Path(path).exists() else {}
    return [index for index, name in enumerate(source.ids()) if name not in done]


def collect(
    source: Source,
    indices: Sequence[int],
    ask: Callable[[np.ndarray, str], Mapping[str, Any]],
    path: str | os.PathLike,
    progress: Callable[[int], None],
) -> None:
    """Asks about examples and appends each reply as it comes, so that an interruption loses none.

    Examples whose pictures are broken or refused are skipped; the log counts and names them.

    Args:
        source: The examples.
        indices: Indices of those to ask about, from `unanswered`.
        ask: Turns a picture uint8 `[H, W, 3]` and a prompt into `reply` and, if known, `resized`.
        path: The file of replies to append to.
        progress: Called after each example with the number of those done.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")  # what an interruption tore becomes a line of its own
        unasked: list[str] = []
        for done, index in enumerate(indices, start=1):
            try:
                example = source[index]
                picture = host.to_rgb(example["image"])
                row = {"example_id": example["example_id"]}
                row |= ask(picture, prompt(example["question"]))
            except (OSError, ValueError) as error:
                unasked.append(f"{source.name_of(index)}: {error}")
                if len(unasked) <= faults.SHOWN:  # at once, as there may be hours to go
                    logging.warning("no reply for example %d of %s: %s", index, source.name, error)
            else:
                file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
                file.flush()
            progress(done)
    what = f"{source.name}: no reply for {len(unasked)} of {len(indices)} examples"
    faults.log(what, unasked)


def load_labeller(name: str, max_pixels: int | None) -> Callable[[np.ndarray, str], dict[str, Any]]:
    """A transformers model for `collect` to ask; its replies are greedy.

    Args:
        name: Folder or hub id of an image-text-to-text model.
        max_pixels: Most pixels of a picture, for Qwen's processors; None keeps the model's own.

    Raises:
        ImportError: PyTorch or transformers is absent.
    """
    try:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor
    except ImportError as error:
        raise ImportError(
            f"asking a model takes `pip install torch torchvision transformers`: {error}"
        ) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = AutoProcessor.from_pretrained(name)
    if max_pixels:
        processor.image_processor.size["longest_edge"] = max_pixels  # pixels, despite the name
    model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
    model = model.to(device).eval()

    def ask(picture: np.ndarray, prompt: str) -> dict[str, Any]:
        content = [
            {"type": "image", "image": Image.fromarray(picture)},
            {"type": "text", "text": prompt},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(device, dtype=model.dtype)
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        written = ids[0, inputs["input_ids"].shape[1] :]
        row = {"reply": processor.decode(written, skip_special_tokens=True)}
        if "image_grid_thw" in inputs:  # Qwen's
            grid = inputs["image_grid_thw"][0, 1:]
            row["resized"] = (grid * processor.image_processor.patch_size).tolist()
        return row

    return ask
