# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The chat template of a model folder: where it is kept, and how a cropper's asks for a box.

`transformers` writes prompts by it; this package does not. An exported cropper's template puts the
crop instruction after a plain question, so that the question alone gets a box.
"""

import re
from pathlib import Path

from cropvlm_jax.hub.files import read_json, write_json
from cropvlm_jax.hub.processors import NESTED

FILE = "chat_template.jinja"
LEGACY = "chat_template.json"
JSON_FILES = (LEGACY, NESTED, "tokenizer_config.json")
KEY = "chat_template"  # of these
BEGIN = "{#- cropvlm_jax: a question about a picture asks for a box -#}"
END = "{#- cropvlm_jax: end -#}"
_ASKING = re.compile(re.escape(BEGIN) + r".*?" + re.escape(END), re.DOTALL)


def read(folder: Path) -> str | None:
    """The template that `transformers` uses of a folder; None where there is none.

    Raises:
        ValueError: a file is broken; the message names it.
    """
    for name in (NESTED, LEGACY):
        if isinstance(found := read_json(folder / name).get(KEY), str):
            return found
    if (folder / FILE).is_file():
        return (folder / FILE).read_text(encoding="utf-8")
    found = read_json(folder / "tokenizer_config.json").get(KEY)
    if isinstance(found, list):  # several by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def write(folder: Path, template: str) -> None:
    """Writes the template of a folder into one file, and takes it out of all others."""
    (folder / FILE).write_text(template, encoding="utf-8")
    (folder / LEGACY).unlink(missing_ok=True)
    for name in JSON_FILES:
        content = read_json(folder / name)
        if content.pop(KEY, None) is not None:
            write_json(folder / name, content)


def asks_for_boxes(template: str) -> bool:
    """Whether a template is an exported cropper's."""
    return _ASKING.search(template) is not None


def plain(template: str) -> str:
    """A template without what `asking` put before it."""
    return _ASKING.sub("", template)


def asking(template: str, ask_for_box: str) -> str:
    """A template by which plain questions ask for boxes.

    Args:
        template: of a conversation; may be asking already.
        ask_for_box: see `Architecture.ask_for_box`.
    """
    return "\n".join((BEGIN, ask_for_box.strip(), END)) + plain(template)
