# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Parts of the report's page as HTML: templates, sections, tables and intervals."""

import importlib.resources
import string
from collections.abc import Callable, Iterable, Sequence


def template(name: str) -> str:
    """A file of `templates/`."""
    folder = importlib.resources.files("cropvlm_jax.evals") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def section(title: str, text: str, content: str) -> str:
    """A section of the page from its title, and from HTML: its introduction and its content."""
    return string.Template(template("section.html")).substitute(
        title=title, text=text, content=content
    )


def cells(tag: str, contents: Iterable[str]) -> str:
    """Cells of a row of a table."""
    return "".join(f"<{tag}>{content}</{tag}>" for content in contents)


def table_of(head: str, rows: Iterable[str]) -> str:
    """A table from the cells of its head and of its rows."""
    body = "".join(row if row.startswith("<tr") else f"<tr>{row}</tr>" for row in rows)
    return (
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def interval(pair: Sequence[float] | None, text: Callable[[float], str]) -> str:
    """An interval whose ends are written by `text`."""
    return f"<small>{ends(pair, text)}</small>"


def ends(pair: Sequence[float] | None, text: Callable[[float], str]) -> str:
    """The ends of an interval, written by `text`; None is the interval of nothing."""
    return "n/a" if pair is None else f"{text(pair[0])} to {text(pair[1])}"
