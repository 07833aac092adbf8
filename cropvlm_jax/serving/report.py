# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a reply says of the zooming: its `cropvlm` field and its `x-cropvlm-` headers."""

import dataclasses
import json
import time
from typing import Any

from cropvlm_jax import geometry
from cropvlm_jax.serving.chat import FIELD
from cropvlm_jax.serving.looks import Look

PREFIX = "x-cropvlm-"
# In headers, of which clients and proxies take a few thousand bytes.
WARNINGS_LIMIT, WARNING_LIMIT = 4, 200  # warnings, and characters of each


@dataclasses.dataclass
class Report:
    """What was done with a request so far.

    Attributes:
        looks: at each picture that was looked at, by its number in the turn, from 0; less pixels.
        warnings: what was not done, and why.
        milliseconds: by stage.
        image_tokens: tokens that the target read of the pictures; None where it does not say.
        margins: how sure a target is that was asked with the crops and without, by "with" and
            "without"; None where only one was asked for.
        kept: whether the answer is the one with the crops.
        begun: `time.monotonic()` when the request came.
    """

    looks: dict[int, Look] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    milliseconds: dict[str, float] = dataclasses.field(default_factory=dict)
    image_tokens: int | None = None
    margins: dict[str, float | None] | None = None
    kept: bool = True
    begun: float = dataclasses.field(default_factory=time.monotonic)

    def took(self, stage: str, since: float) -> None:
        """Takes note that a stage that began at `since` has ended."""
        self.milliseconds[stage] = 1000 * (time.monotonic() - since)

    def looked(self, number: int, look: Look) -> None:
        """Takes note of a look at a picture; of stages that run at once the longest counts."""
        # Without pixels: an upstream may take minutes, and pictures are large.
        self.looks[number] = dataclasses.replace(look, crops=(), pixels=None)
        for stage, spent in look.milliseconds.items():
            self.milliseconds[stage] = max(spent, self.milliseconds.get(stage, 0.0))

    def field(self) -> dict[str, Any]:
        """The `cropvlm` field."""
        boxes = [
            {
                "picture": number,
                "percent": list(box),
                "pixels": list(pixels),
                "size": list(look.size),
                "confidence": _three_digits(look.confidence),
            }
            for number, look in sorted(self.looks.items())
            for box, pixels in zip(look.boxes, look.pixel_boxes, strict=True)
        ]
        sure = [_three_digits(look.confidence) for look in self.looks.values() if look.reply]
        total = {"total": 1000 * (time.monotonic() - self.begun)}
        told: dict[str, Any] = {
            "boxes": boxes,
            "confidence": min(sure, default=None),
            "image_tokens": self.image_tokens,
            "milliseconds": {k: round(v, 2) for k, v in (self.milliseconds | total).items()},
            "warnings": self.warnings,
        }
        if plain := [n for n, look in self.looks.items() if look.reply == geometry.NOT_NEEDED]:
            told["not_needed"] = sorted(plain)
        if self.margins is not None:
            told |= {"kept": self.kept, "margins": self.margins}
        return told

    def headers(self) -> dict[str, str]:
        """The same as headers, which clients of all languages see, also of streams."""
        field = self.field()
        values = {
            "boxes": [box["percent"] for box in field["boxes"]],
            "pixels": [box["pixels"] for box in field["boxes"]],
            "confidence": field["confidence"],
            "image-tokens": field["image_tokens"],
            "milliseconds": field["milliseconds"],
            "warnings": [text[:WARNING_LIMIT] for text in self.warnings[:WARNINGS_LIMIT]],
            "not-needed": field.get("not_needed"),
            "kept": field.get("kept"),
        }
        return {
            PREFIX + name: json.dumps(value, allow_nan=False)  # in ASCII, without line breaks
            for name, value in values.items()
            if value not in (None, [])
        }

    def json_member(self) -> bytes:
        """The field as a member of a JSON object."""
        value = json.dumps(self.field(), allow_nan=False, separators=(",", ":"))
        return f'"{FIELD}":{value}'.encode()


def with_member(text: bytes, member: bytes) -> bytes:
    """A JSON object with one more member at its end, and all else as it was written.

    Args:
        text: of the object.
        member: of which the name is not in it, or takes the place of what is: the last one counts.
    """
    head = text.rstrip()[:-1].rstrip()
    return head + (b"" if head.endswith(b"{") else b",") + member + b"}"


def is_object(text: bytes) -> bool:
    """Whether a text is a JSON object, in UTF-8."""
    try:
        return isinstance(json.loads(text.decode()), dict)
    except (ValueError, RecursionError):
        return False


def _three_digits(probability: float) -> float:
    """Rounds to three digits that count, since probabilities of single boxes are small."""
    return float(f"{probability:.3g}")
