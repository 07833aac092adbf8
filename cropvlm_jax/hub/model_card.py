# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card of an export: README.md, which says what the model is and how to run it.

The text is in `templates/`. It is filled in from what is known: the run that trained the weights,
and the cards of the folders that they come from. What is not known is said to be unknown. A
README.md that a user wrote, or a card that a user changed, stays as it is.
"""

import dataclasses
import hashlib
import importlib.resources
import json
import os
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from absl import logging
from huggingface_hub import ModelCard, ModelCardData

from cropvlm_jax.hub.pretrained import CARD, Pretrained, is_bundled, is_on_hub
from cropvlm_jax.hub.replies import Replies

Role = Literal["cropper", "reader"]
LICENCE = ("license", "license_name", "license_link")
NOT_RECORDED = "How these weights were trained is not recorded here."
_MARK = "\n<!-- By cropvlm_jax. The next export replaces this file, unless it was changed: {} -->\n"
_MARKED = re.compile(_MARK.format("([0-9a-f]{16})"))
_TRAINING = re.compile(r"^## Training\n\n(.*?)\n\n## ", re.DOTALL | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Run:
    """The training run that made the weights of an export.

    Attributes:
        title: its kind and length, such as "GRPO, 300 steps".
        facts: what was trained, and on what, by name.
        settings: those that are not the default, as flags set them.
        metrics: of the last evaluation on held-out examples, by name; empty where there was none.
        measured_after: the step after which that was.
        licence: of the weights, where they were not made from others; "" is that of their base.
    """

    title: str
    facts: Mapping[str, str]
    settings: Sequence[str] = ()
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    measured_after: int = 0
    licence: str = ""

    def as_markdown(self) -> str:
        """A subsection of the card."""
        lines = [f"### {self.title}", "", *_table("what", self.facts)]
        if self.settings:
            lines += ["", "Settings that are not the default:", "", "```", *self.settings, "```"]
        if self.metrics:
            measured = {f"`{name}`": f"{x:.4g}" for name, x in self.metrics.items()}
            lines += ["", f"On held-out examples after step {self.measured_after}:", ""]
            lines += _table("metric", measured)
        else:
            lines += ["", "This run evaluated no held-out examples."]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Origin:
    """What the cards of a model's folder, and of its base's, say of it.

    Attributes:
        base_model: an id on the Hugging Face Hub; None where none is known.
        licence: the keys of a card that name it; empty where no card does.
        training: what is recorded of earlier training, a part of a card; "" where nothing is.
    """

    base_model: str | None
    licence: Mapping[str, Any]
    training: str

    @classmethod
    def of(cls, source: Pretrained) -> "Origin":
        """Reads the cards."""
        card = _read(source.own_folder / CARD)
        metadata = _metadata(source.folder / CARD) | _metadata(source.own_folder / CARD)
        written_here = _MARKED.search(card) is not None
        named = [source.name, source.adapter.base] if source.adapter else [source.name]
        base_model = next((name for name in named if is_on_hub(name)), None)
        if base_model is None and written_here:
            base_model = metadata.get("base_model")
        training = _TRAINING.search(card) if written_here else None
        known = training is not None and training[1] != NOT_RECORDED
        return cls(
            base_model=base_model,
            licence={key: metadata[key] for key in LICENCE if metadata.get(key)},
            training=training[1] if training and known else "",
        )


@dataclasses.dataclass(frozen=True)
class Card:
    """A card, and what it is written from.

    Attributes:
        name: the exported folder, as the user called it.
        source: where weights, or those that were trained on, and all other files come from.
        role: "cropper" or "reader".
        longest_edge: pixels that pictures' longest sides are resized to, where they are split.
        run: that trained the weights; None where they are those of `source`.
        adapter_of: the model that an adapter belongs to; None for a whole model.
    """

    name: str
    source: Pretrained
    role: Role
    longest_edge: int
    run: Run | None = None
    adapter_of: str | None = None

    def write(self, folder: Path, before: Path) -> None:
        """Writes README.md.

        Args:
            folder: an existing folder.
            before: the folder that it is to replace, or itself. A README.md in there is kept where
                it is not a card as an export has written it.
        """
        text = _read(before / CARD)
        if text and not is_unchanged(text):
            logging.info("%s is not a card that an export wrote: it is kept", before / CARD)
        else:
            text = self.as_text()
        (folder / CARD).write_text(text, encoding="utf-8")

    def as_text(self) -> str:
        """The text of README.md."""
        origin = Origin.of(self.source)
        own = self.run.licence if self.run else ""
        if own:
            origin = dataclasses.replace(origin, licence={"license": own})
        runs = [self.run.as_markdown()] if self.run else []
        runs += [origin.training] if origin.training else []
        replies, template = self.source.replies, f"{self.role}.md"
        if self.role == "cropper" and replies != Replies():
            template = "cropper_of_looks.md" if replies.looks > 1 else "cropper_of_boxes.md"
        text = _template(template).substitute(
            replies=replies,
            tokens=32 * replies.max_boxes,
            tile=self.source.tile_size if replies.looks > 1 else "",  # some towers have no size
            budget=_budget_clause(replies.budgets),
            metadata=self._metadata(origin),
            base=_base_sentence(origin.base_model),
            imports=self._imports(),
            folder=json.dumps(self.name, ensure_ascii=False, allow_nan=False),
            load=self._load(),
            instruction=self.source.architecture.conversations.answer_instruction,
            training="\n\n".join(runs) or NOT_RECORDED,
            resolution=self._resolution(),
            licence=f"{own}." if own else _inherited_licence(origin.licence),
            citation=_template("citation.md").substitute().strip(),
        )
        return text + _MARK.format(_digest(text))

    def _metadata(self, origin: Origin) -> str:
        """The YAML block, for the Hub."""
        base_model, relation = origin.base_model, "finetune"
        if self.adapter_of is not None:
            base_model = self.adapter_of if is_on_hub(self.adapter_of) else None
            relation = "adapter"
        data = ModelCardData(
            library_name="transformers" if self.adapter_of is None else "peft",
            pipeline_tag="image-text-to-text",
            base_model=base_model,
            base_model_relation=relation if base_model else None,
            tags=["cropvlm", "cropvlm_jax", "visual-question-answering", self.role],
            **origin.licence,
        )
        return str(data.to_yaml(line_break="\n")).strip()

    def _imports(self) -> str:
        """What the snippet for transformers imports."""
        lines = [
            "from PIL import Image",
            "from transformers import AutoModelForImageTextToText, AutoProcessor",
        ]
        if self.adapter_of is not None:
            lines.insert(0, "from peft import PeftModel")
            if is_bundled(self.adapter_of):
                lines += ["", "from cropvlm_jax.hub.pretrained import resolve"]
        return "\n".join(lines)

    def _load(self) -> str:
        """How that snippet loads the model."""
        load = "AutoModelForImageTextToText.from_pretrained"
        if self.adapter_of is None:
            return f'model = {load}(folder, dtype="float32")'
        base = json.dumps(self.adapter_of, ensure_ascii=False, allow_nan=False)
        base = f"resolve({base})" if is_bundled(self.adapter_of) else base
        return (
            f'base = {load}({base}, dtype="float32")\n'
            "model = PeftModel.from_pretrained(base, folder)"
        )

    def _resolution(self) -> str:
        """What becomes of pictures before the model sees them."""
        if not self.source.architecture.splits_pictures:
            return (
                "Pictures are resized as `preprocessor_config.json` says; smaller things are lost."
            )
        edge, tile = self.longest_edge, self.source.tile_size
        seen = f"in tiles of {tile} px" if edge > tile else "as one tile"
        return (
            f"The model sees pictures resized to a longest edge of {edge} px, {seen}: what cannot "
            "be made out at that size is not found."
        )


def _budget_clause(budgets: Sequence[str]) -> str:
    """What a cropper that was trained with budgets has to be told after a question."""
    if not budgets:
        return ""
    names = ", ".join(f"`{name}`" for name in budgets)
    return f", and after it what may be spent on crops, `Budget: {budgets[0]}.`: one of {names}"


def _base_sentence(base_model: str | None) -> str:
    if base_model is None:
        return "No base model on the Hugging Face Hub is known."
    return f"Its base model is [{base_model}](https://huggingface.co/{base_model})."


def _inherited_licence(licence: Mapping[str, Any]) -> str:
    """What the keys of a base model's card say of the licence."""
    name = licence.get("license_name") or licence.get("license")
    if name is None:
        return (
            "Unknown: no card of the model that this one was made from names one. Find out before "
            "you use or publish these weights."
        )
    link = licence.get("license_link")
    named = f"[{name}]({link})" if link else str(name)
    return (
        f"{named}: that is what the card of the model says that this one was made from. What the "
        "training data allow is not recorded here."
    )


def without_home(name: str) -> str:
    """A name of a model or a file; of an absolute path, which is of one machine, only the end."""
    path = Path(os.path.expanduser(name))
    return "/".join(path.parts[-2:]) if path.is_absolute() else name


def _table(head: str, rows: Mapping[str, str]) -> list[str]:
    """The lines of a table of two columns."""
    cells = [(name, value.replace("|", "\\|")) for name, value in rows.items()]
    return [f"| {head} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells)]


def _template(name: str) -> string.Template:
    """A file of `templates/`."""
    folder = importlib.resources.files("cropvlm_jax.hub") / "templates"
    return string.Template((folder / name).read_text(encoding="utf-8"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(file: Path) -> str:
    """The text of a file; "" where there is none."""
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def is_unchanged(text: str) -> bool:
    """Whether a text is a card as an export wrote it."""
    mark = _MARKED.search(text)
    return (
        mark is not None
        and text == text[: mark.start()] + mark[0]
        and (mark[1] == _digest(text[: mark.start()]))
    )


def _metadata(file: Path) -> dict[str, Any]:
    """The YAML block of a card; {} where there is none that can be read."""
    text = _read(file)
    try:
        return dict(ModelCard(text, ignore_metadata_errors=True).data.to_dict()) if text else {}
    except (ValueError, yaml.YAMLError) as error:
        logging.warning("%s: its metadata cannot be read: %s", file, error)
        return {}
