# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pages are short enough to be read, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

from cropvlm_jax.training import presets
from cropvlm_jax.training.config import default_config

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "BUILD.md", *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize(("page", "lines"), [("README.md", 150), ("BUILD.md", 120)])
def test_length(page: str, lines: int):
    text = (ROOT / page).read_text(encoding="utf-8").splitlines()
    assert len(text) <= lines
    long = [number for number, line in enumerate(text, 1) if len(line) > 120]
    assert not long, f"lines over 120 characters: {long}"


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may say after the "#"."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link} does not exist"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link} has no such heading"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    linked = set(LINK.findall(index))
    missing = [
        page.name for page in PAGES if page.parent.name == "docs" and page.name not in linked
    ]
    assert missing in ([], ["README.md"])


def test_the_official_settings_are_in_the_decisions():
    text = (ROOT / "docs/decisions.md").read_text(encoding="utf-8")
    table = text[text.index("## What of the official code") :]
    named = set(re.findall(r"`((?:grpo|data)\.\w+)", table))
    defaults = default_config()
    for name in named:
        section, setting = name.split(".")
        assert setting in defaults[section], f"{name} is no setting"
    missing = {difference.setting for difference in presets.OFFICIAL} - named
    assert not missing, f"docs/decisions.md does not name {missing}"
