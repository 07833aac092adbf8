# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The text of manuals that nobody wrote: prose, headings, code, dates, versions."""

import numpy as np

from . import words
from .chance import digits, often, pick, weighted, whole

_SMALL = (
    "the of and to in is a for that are with as by be this which on it can from or not an at if "
    "will may you has when its one but all also any each than more such only these into must no "
    "other there they between some so then where how same two first used using see given called"
).split()
_LARGE = (
    "command option package value file document text page line font output input function class "
    "default number list argument environment macro section table figure user example character "
    "string space width height size style type name label reference index entry note program "
    "system language version format data model method object matrix vector variable parameter "
    "expression result error warning message image color box frame margin column row header "
    "footer title author date chapter appendix bibliography citation note score staff voice chord "
    "rhythm key clef measure lyrics tempo dynamic slur beam stem octave plot axis legend series "
    "sample test distribution regression factor level formula fit residual estimate standard "
    "defined printed produced available provided described selected changed loaded required "
    "possible following current special general simple internal external optional local global "
    "define print produce load require select change describe provide support contain begin end"
).split()
_TOPICS = (
    "Introduction|Usage|Options|Installation|Examples|Implementation|Overview|Commands|"
    "Known Issues|Acknowledgements|History|Configuration|References|Syntax|Compatibility|"
    "Limitations|Basics|Getting Started|License|Requirements|Customization|Summary|Details|"
    "Arguments|Description|Notes|Value|See Also|Motivation|Background|Error Messages|"
    "User Interface|Advanced Topics|Appendix"
).split("|")
_MONTHS = (
    "January February March April May June July August September October November December"
).split()
_DATES = {
    "{y}/{m:02}/{d:02}": 4,
    "{y}-{m:02}-{d:02}": 3,
    "{n} {d}, {y}": 3,
    "{d} {n} {y}": 2,
    "{n} {y}": 2,
    "{d:02}.{m:02}.{y}": 0.5,
    "{d} {s} {y}": 0.5,
}


def word(rng: np.random.Generator) -> str:
    """A word of a sentence."""
    if often(rng, 0.5):
        return pick(rng, _SMALL)
    return words.invented(rng).lower() if often(rng, 0.08) else pick(rng, _LARGE)


def sentence(rng: np.random.Generator, count: int) -> str:
    """A sentence of some words."""
    parts = [word(rng) for _ in range(count)]
    if count > 8 and often(rng, 0.5):
        parts[count // 2] += ","
    return " ".join(parts).capitalize() + "."


def paragraph(rng: np.random.Generator, count: int) -> list[str]:
    """The words of some sentences."""
    return " ".join(sentence(rng, whole(rng, 5, 22)) for _ in range(count)).split()


def heading(rng: np.random.Generator) -> str:
    """A short title."""
    if often(rng, 0.3):
        return pick(rng, _TOPICS)
    parts = [word(rng) for _ in range(whole(rng, 1, 6))]
    if often(rng, 0.5):
        return " ".join(part if part in _SMALL else part.capitalize() for part in parts).strip()
    return " ".join(parts).capitalize()


def caption(rng: np.random.Generator) -> str:
    """What a figure or a table shows, mostly with a point at its end."""
    text = " ".join(word(rng) for _ in range(whole(rng, 2, 7))).capitalize()
    return text + "." if often(rng, 0.7) else text


def section(rng: np.random.Generator, level: int) -> str:
    """A section's number: of a chapter at level 1, with points below."""
    first = pick(rng, "ABCDE") if often(rng, 0.06) else str(whole(rng, 1, 14))
    return ".".join([first, *(str(whole(rng, 1, 12)) for _ in range(level - 1))])


def code(rng: np.random.Generator) -> str:
    """A line of a program."""
    name, other = words.invented(rng).lower(), pick(rng, _LARGE)
    forms = (
        "\\newcommand{{\\{a}}}[{n}]{{\\{b}}}",
        "\\def\\{a}@{b}#1{{\\{b}{{#1}}}}",
        "\\begin{{{b}}}[{a}={n}]",
        "\\{b}{{{a}}}",
        "{a} <- {b}({a}, n = {n})",
        "  {a} = {b}[{n}] + {a};",
        "if ({a} > {n}) return {b};",
        "{a}.{b}({n}, {m})",
        "% {a} {b}",
        "  \\relative {{ c'{n} d e f | g{m} }}",
        "cs_new:Npn \\{a}_{b}:n #1",
        "$ {a} --{b}={n} file.{a}",
        "}}",
    )
    text = pick(rng, forms).format(a=name, b=other, n=whole(rng, 0, 16), m=whole(rng, 1, 99))
    return " " * (2 * whole(rng, 0, 2)) + text


def date(rng: np.random.Generator) -> str:
    """A date as title pages have it."""
    month = whole(rng, 1, 12)
    name = _MONTHS[month - 1]
    return weighted(rng, _DATES).format(
        y=whole(rng, 1990, 2025), m=month, d=whole(rng, 1, 28), n=name, s=name[:3]
    )


def version(rng: np.random.Generator) -> str:
    """A version's number."""
    return ".".join(str(whole(rng, 0, 30)) for _ in range(whole(rng, 2, 3))) + pick(
        rng, ("", "", "a")
    )


def person(rng: np.random.Generator) -> str:
    """An author."""
    return f"{words.invented(rng).title()} {words.invented(rng).title()}"


def roman(number: int) -> str:
    """A small number in Roman digits."""
    tens, ones = divmod(number, 10)
    return "x" * tens + "|i|ii|iii|iv|v|vi|vii|viii|ix".split("|")[ones]


def title(rng: np.random.Generator) -> str:
    """The title of a manual."""
    name = words.invented(rng).lower() if often(rng, 0.5) else words.invented(rng).title()
    forms = (
        "The {n} package",
        "{n}",
        "The {n} class",
        "{n} Reference Manual",
        "A User's Guide to {n}",
        "{n} {b}",
        "The {n} {b}",
        "Package {n}",
        "{n}: {h}",
        "{h}",
    )
    return pick(rng, forms).format(n=name, b=pick(rng, _LARGE), h=heading(rng))


def label(rng: np.random.Generator) -> str:
    """The number of a figure or of a table."""
    if often(rng, 0.5):
        return str(whole(rng, 1, 30))
    return f"{whole(rng, 1, 12)}.{whole(rng, 1, 20)}" if often(rng, 0.9) else f"A.{digits(rng, 1)}"
