# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Boxes for the supervised stage: a labeller's replies become seed boxes and expanded labels.

`labelling.replies` says what replies are. A label is a line of JSON, `{"example_id", "box",
"seed"}`: the percent box after expansion (whole numbers) and before it (unrounded). In place of
`box` it may have `boxes`, a list of none to `geometry.MAX_BOXES` of them: what a reply that names
several places, or none, is learned from.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from cropvlm_jax import geometry
from cropvlm_jax.data import faults, framed_boxes, rows
from cropvlm_jax.data.source import Box, Source
from cropvlm_jax.pixels import host

DEFAULT_FRAME = "smart_resized"  # of the labeller that the paper takes
KNOWN = ("box", "boxes", "around")  # what a source may know of where to look
_NUMBER = r"\s*(-?\d{1,9}(?:\.\d*)?)\s*"
_LIST = rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]"
_NAMED = re.compile(rf"bbox_2d['\"]?\s*:\s*{_LIST}")
_BARE = re.compile(_LIST)


def written_box(reply: str) -> tuple[float, float, float, float]:
    """The numbers of the box that a labeller names: the first `bbox_2d`, or the first four numbers.

    Like the official code it takes the first of several boxes.

    Args:
        reply: JSON, fenced or bare, with prose around it or not.

    Raises:
        ValueError: There is no box, or it is not ordered.
    """
    match = _NAMED.search(reply) or _BARE.search(reply)
    if match is None:
        raise ValueError(f"no box in {reply[:80]!r}")
    x1, y1, x2, y2 = (float(number) for number in match.groups())
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"box {[x1, y1, x2, y2]} is empty or out of order")
    return x1, y1, x2, y2


def inside(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The percent box of a written one, not rounded; what reaches beyond the image is clipped.

    Args:
        box: from `written_box`.
        size: `geometry.frame_size` of the image in the labeller's frame.

    Raises:
        ValueError: No part of it is in the image.
    """
    x1, y1, x2, y2 = box
    height, width = size
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        raise ValueError(
            f"box {list(box)} lies outside of the {width} x {height} image; is the frame right?"
        )
    percent = geometry.to_percent(np.array(box), np.array(size))
    return tuple(percent.tolist())  # type: ignore[return-value]


@dataclasses.dataclass
class _Read:
    """Boxes that were read in one frame.

    Attributes:
        written: their numbers, as they stand in the replies.
        sizes: heights and widths of their pictures, in the units of the frame.
    """

    written: list[tuple[float, ...]] = dataclasses.field(default_factory=list)
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Boxes:
    """The boxes of a file of replies.

    Attributes:
        seeds: percent boxes by example.
        read: boxes and sizes by frame, and by whether that frame is known.
        unusable: a line for each example whose picture cannot be used.
        failed: a line for each reply that names no box in the picture.
    """

    seeds: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    read: dict[tuple[str, bool], _Read] = dataclasses.field(default_factory=dict)
    unusable: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)


def make_labels(
    source: Source,
    replies: Mapping[str, Mapping[str, Any]],
    frame: str | None = None,
    max_pixels: int = geometry.MAX_PIXELS,
    bounds: Sequence[float] | None = None,
    whole_image_on_failure: bool = False,
) -> list[dict[str, Any]]:
    """Labels from replies, in the order of the source.

    Args:
        source: The examples.
        replies: What `labelling.replies.read` returns; examples without a reply are left out, and
            counted in the log.
        frame: The frame of boxes whose replies do not say it, one of `geometry.FRAMES`. None takes
            `DEFAULT_FRAME`, unless the boxes do not look like it.
        max_pixels: The limit of the labeller's processor, for replies that do not carry `resized`.
        bounds: Areas where the quintiles begin, `[4]`; None takes those of the seed boxes.
        whole_image_on_failure: Whether the whole image becomes the seed box of a reply that names
            no box in it, as in the official code; by default such replies are left out.

    Raises:
        ValueError: Not one label came of it, or no frame is known and the boxes look as if they
            were in another one than the default, or `frame` contradicts the replies.
    """
    found = _read_boxes(source, replies, frame, max_pixels, whole_image_on_failure)
    known = set(source.ids())
    logging.info(
        "%s: %d examples, %d without a reply, %d with an unusable picture, %d replies failed, "
        "%d labels; %d replies are about other examples",
        source.name,
        len(known),
        len(known - replies.keys()),
        len(found.unusable),
        len(found.failed),
        len(found.seeds),
        len(replies.keys() - known),
    )
    faults.log(f"{source.name}: {len(found.unusable)} unusable pictures", found.unusable)
    faults.log(f"{source.name}: {len(found.failed)} replies failed", found.failed)
    for (read_as, is_known), boxes in found.read.items():
        _check_frame(boxes, read_as, is_known)
    if not found.seeds:
        raise ValueError(
            f"no label for {source.name}: {len(known)} examples and {len(replies)} replies share "
            f"{len(replies.keys() & known)} example ids, of which {len(found.failed)} replies "
            f"failed and {len(found.unusable)} pictures are unusable"
        )
    seeds = list(found.seeds.values())
    expanded = geometry.expand_by_quintile(np.array(seeds), bounds)
    return [
        {"example_id": name, "box": box, "seed": list(seed)}
        for name, box, seed in zip(found.seeds, expanded.tolist(), seeds, strict=True)
    ]


def _read_boxes(
    source: Source,
    replies: Mapping[str, Mapping[str, Any]],
    frame: str | None,
    max_pixels: int,
    whole_image_on_failure: bool,
) -> _Boxes:
    """The boxes of replies; the arguments are those of `make_labels`."""
    found = _Boxes()
    for index, name in enumerate(source.ids()):
        if name not in replies:
            continue
        reply = replies[name]
        told, read_as = reply.get("frame"), _frame_of(reply, frame)
        try:
            if "resized" in reply and (read_as == "smart_resized" or read_as == told == "pixels"):
                size = tuple(reply["resized"])
            else:
                height, width = host.picture_size(source[index]["image"])
                size = geometry.frame_size(read_as, height, width, max_pixels)
        except (OSError, ValueError) as error:
            found.unusable.append(f"{source.name_of(index)} is left out: {error}")
            continue
        try:
            box = written_box(reply["reply"])
            boxes = found.read.setdefault((read_as, bool(frame or told)), _Read())
            boxes.written.append(box)
            boxes.sizes.append(size)
            found.seeds[name] = inside(box, size)
        except ValueError as error:
            fate = "gets the whole image" if whole_image_on_failure else "is left out"
            found.failed.append(f"{name} {fate}: {error}")
            if whole_image_on_failure:
                found.seeds[name] = geometry.FULL
    return found


def _frame_of(reply: Mapping[str, Any], given: str | None) -> str:
    """The frame to read a reply in.

    Raises:
        ValueError: The reply says it, and another one is given. Only the official code's mistake
            may be made of a reply that is right.
    """
    told = reply.get("frame")
    if told is None or given in (None, told):
        return told or given or DEFAULT_FRAME
    if (told, given) == ("smart_resized", "smart_resized_unscaled"):
        return given
    raise ValueError(
        f"--frame={given} contradicts the replies, whose boxes are in {told}, such as that of "
        f"{reply['example_id']}: leave --frame out"
    )


def _check_frame(found: _Read, read_as: str, known: bool) -> None:
    """Refuses boxes that do not look like the default frame, and warns where it is known.

    Args:
        found: Boxes that were read in one frame.
        read_as: This frame.
        known: Whether it was given, or the replies say it.
    """
    boxes, sizes = np.array(found.written), np.array(found.sizes)
    high, wide = sizes.max(0)
    logging.info(
        "read as %s: numbers up to %g on pictures up to %d x %d", read_as, boxes.max(), wide, high
    )
    reason = framed_boxes.doubt(boxes, sizes)
    if reason and not known:
        raise ValueError(
            f"is {read_as!r} the frame of the replies? {reason}. Say it with --frame, one of "
            f"{', '.join(geometry.FRAMES)}"
        )
    if reason:
        logging.warning("is %r the frame of the replies? %s", read_as, reason)


def write_labels(labels: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Writes a label file, complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(label, allow_nan=False) + "\n" for label in labels)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def labelled(source: Source, path: str | os.PathLike) -> Source:
    """The examples of a source that a label file has boxes for, with its `box` or `boxes`.

    What the source itself knows of boxes is left out.

    Raises:
        ValueError: A line is no label, or no example has one.
    """
    labels: dict[str, rows.Row] = {}
    for where, read in rows.jsonl_rows(Path(path)):
        try:
            row = read()
            labels[row["example_id"]] = _label(row)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{where} is no label: {error!r}") from error
    found, skipped = [], []
    for row in source.rows:
        if row["example_id"] in labels:
            kept = {key: value for key, value in row.items() if key not in KNOWN}
            found.append(kept | labels[row["example_id"]])
        else:
            skipped.append(f"no label for {row['example_id']}")
    others = labels.keys() - set(source.ids())
    if others:
        logging.info("%s: %d labels are about other examples", path, len(others))
    return Source(f"{source.name} with {path}", found, source.read_image, skipped)


def _label(row: Mapping[str, Any]) -> rows.Row:
    """The `box` or the `boxes` of a line of a label file.

    Raises:
        ValueError: It has none of them, or both, or they are not valid.
    """
    if "box" in row and "boxes" in row:
        raise ValueError("there are both `box` and `boxes`")
    if "boxes" not in row:
        return {"box": _checked(row["box"])}
    boxes = row["boxes"]
    if not isinstance(boxes, list) or len(boxes) > geometry.MAX_BOXES:
        raise ValueError(f"boxes is not a list of at most {geometry.MAX_BOXES} boxes")
    ordered = geometry.in_order([_checked(box) for box in boxes])
    if len(ordered) < len(boxes):
        raise ValueError("a box is there twice")
    return {"boxes": list(ordered)}


def _checked(written: Any) -> Box:
    """A box as a label file has it.

    Raises:
        ValueError: It is not valid.
    """
    box = np.array(written)
    if box.shape != (4,) or box.dtype.kind != "i" or not geometry.is_valid(box):
        raise ValueError("the box is not four ordered whole percentages")
    x1, y1, x2, y2 = box.tolist()
    return x1, y1, x2, y2
