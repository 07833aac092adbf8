# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Does an exported cropper say in transformers what it says here? On drawn scenes of digits.

    python experiments/check_replies.py --folder=runs/look/pairs_k2/cropper

`experiments/look/replies.json` and `replies_deep.json` are of the bundled start weights
`zoom_digits_looks/cropper`, and `cropper_deep` on scenes of `zoom_digits_deep`.

The code that runs in transformers is the snippet of the folder's own model card, so that an adapter
is loaded by PEFT. It lets the model write anything, and this package what the grammar allows: boxes
that differ are printed. Ends with 1 where any do.
"""

import collections
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from PIL import Image

from cropvlm_jax import apps
from cropvlm_jax.api import CropVLM
from cropvlm_jax.data import sources

FOLDER = flags.DEFINE_string("folder", None, "The cropper: an export or an adapter.", required=True)
SOURCES = flags.DEFINE_multi_string(
    "source",
    ["zoom_digits_mixed", "zoom_digits_pairs"],
    "Drawn data sets whose test scenes are asked about, half and half of two.",
)
SCENES = flags.DEFINE_integer("scenes", 100, "How many scenes in all.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "File of the result; None writes none.")
SHOWN = "image = Image.open("  # with which the card's snippet begins to use what it has defined

Propose = Callable[[Image.Image, str], Sequence[Any]]  # boxes of a picture for a question


def propose_of_card(folder: pathlib.Path) -> Propose:
    """The function that the model card of a folder defines.

    Args:
        folder: of the cropper.

    Raises:
        ValueError: the card has no such code, because a user wrote another one.
    """
    text = (folder / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    if found is None or SHOWN not in found[1]:
        raise ValueError(f"{folder / 'README.md'} is not the model card of an export")
    code = re.sub(r"^folder = .*", f"folder = {str(folder)!r}", found[1], flags=re.MULTILINE)
    space: dict[str, Any] = {}
    exec(code.partition(SHOWN)[0], space)  # the folder's own code, as a user would run it
    propose: Propose = space["propose"]
    return propose


def examples(names: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Test scenes of drawn data sets in turn."""
    each = -(-count // len(names))
    opened = [sources.open_drawn(name, "test", each) for name in names]
    return [source[i] for i in range(each) for source in opened][:count]


def as_boxes(proposed: Sequence[Any]) -> tuple[tuple[float, ...], ...]:
    """Boxes, to the hundredth; those of a card of a cropper of one box are that box alone."""
    rows = [proposed] if proposed and isinstance(proposed[0], int) else proposed
    return tuple(tuple(round(edge, 2) for edge in row) for row in rows)


def main(argv: list[str]) -> None:
    """Compares the replies, and prints how many are the same."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    folder = pathlib.Path(FOLDER.value).expanduser().resolve()
    asked = examples(SOURCES.value, SCENES.value)
    pictures, questions = [e["image"] for e in asked], [e["question"] for e in asked]
    ours = [
        as_boxes(reply.boxes)
        for reply in CropVLM.from_pretrained(folder).replies(pictures, questions)
    ]
    propose = propose_of_card(folder)
    theirs = [
        as_boxes(propose(Image.fromarray(picture), question))
        for picture, question in zip(pictures, questions, strict=True)
    ]
    other = [i for i in range(len(asked)) if ours[i] != theirs[i]]
    for i in other:
        print(f"scene {i}: {list(ours[i])} and {list(theirs[i])}")
    counts = collections.Counter(len(boxes) for boxes in ours)
    told = {
        "folder": FOLDER.value,
        "scenes": len(asked),
        "same": len(asked) - len(other),
        "boxes_of_a_reply": {str(count): counts[count] for count in sorted(counts)},
    }
    text = json.dumps(told, indent=2, allow_nan=False)
    print(text)
    if JSON.value:
        pathlib.Path(JSON.value).write_text(text + "\n", encoding="utf-8")
    if other:
        raise ValueError(f"{len(other)} of {len(asked)} replies differ")


if __name__ == "__main__":
    apps.run(main)
