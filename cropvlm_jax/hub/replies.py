# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a cropper may reply, as its folder says it: a file of ours beside the weights."""

import dataclasses
from pathlib import Path

from cropvlm_jax import geometry
from cropvlm_jax.hub.files import blamed_on, read_json, write_json

FILE = "cropvlm.json"


@dataclasses.dataclass(frozen=True)
class Replies:
    """What a cropper may reply. Folders without `FILE` are of croppers that write one box.

    Attributes:
        max_boxes: the most boxes of a reply.
        abstain: whether a reply may be that nothing is to be looked at.
        looks: 2 where the cropper is to be asked once more, about its crop: it then replies with a
            box in percent of that crop, or that nothing more is to be looked at. Else 1.
        budgets: the names of the budgets that it was trained to be told; empty where it is told
            none.
    """

    max_boxes: int = 1
    abstain: bool = False
    looks: int = 1
    budgets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if type(self.max_boxes) is not int or not 1 <= self.max_boxes <= geometry.MAX_BOXES:
            raise ValueError(
                f"max_boxes={self.max_boxes!r} is not a whole number from 1 to {geometry.MAX_BOXES}"
            )
        if type(self.abstain) is not bool:
            raise ValueError(f"abstain={self.abstain!r} is neither true nor false")
        if type(self.looks) is not int or self.looks not in (1, 2):
            raise ValueError(f"looks={self.looks!r} is neither 1 nor 2")
        if self.looks > 1 and self.max_boxes > 1:
            raise ValueError(
                f"looks={self.looks} is for croppers of one box, not of max_boxes={self.max_boxes}"
            )
        if not all(type(name) is str and name.strip() for name in self.budgets):
            raise ValueError(f"budgets={list(self.budgets)!r} are not names")

    def __str__(self) -> str:
        boxes = "one box" if self.max_boxes == 1 else f"up to {self.max_boxes} boxes"
        boxes += " or none" if self.abstain else ""
        return f"{boxes}, in two looks" if self.looks > 1 else boxes

    @classmethod
    def read(cls, folder: Path) -> "Replies":
        """What the folder of a model or an adapter says.

        Raises:
            ValueError: its `FILE` is broken, or says what no cropper of this version can do.
        """
        found = read_json(folder / FILE)
        with blamed_on(folder / FILE):
            known = {field.name for field in dataclasses.fields(cls)}
            if unknown := sorted(found.keys() - known):
                raise ValueError(
                    f"{', '.join(unknown)} is not known: was the cropper made by a newer version?"
                )
            budgets = found.pop("budgets", [])
            if not isinstance(budgets, list):
                raise ValueError(f"budgets={budgets!r} is no list of names")
            return cls(**found, budgets=tuple(budgets))

    def write(self, folder: Path) -> None:
        """Writes `FILE`, but not for a cropper that writes one box."""
        if self == Replies():
            (folder / FILE).unlink(missing_ok=True)
        else:
            found = dataclasses.asdict(self)
            for name in ("looks", "budgets"):  # older versions do not know them
                if found[name] == getattr(Replies, name):
                    del found[name]
            write_json(folder / FILE, found)
