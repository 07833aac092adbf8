# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What came of a check."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from absl import logging

Outcome = Literal["ok", "FAILED", "skipped"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of a check.

    Attributes:
        name: what is claimed, such as "two devices = one".
        outcome: "skipped" where this machine has nothing to check.
        found: the figures that decide, or why it was skipped, in one line.
        remedy: what to switch off, or to do, where it failed.
        figures: what was measured, by name, for JSON.
    """

    name: str
    outcome: Outcome
    found: str
    remedy: str = ""
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether the claim is false here, or could not be checked."""
        return self.outcome == "FAILED"


def judge(name: str, right: bool, found: str, remedy: str, **figures: Any) -> Verdict:
    """The verdict on a check that was made; the arguments are those of `Verdict`."""
    if right:
        return Verdict(name, "ok", found, figures=figures)
    return Verdict(name, "FAILED", found, remedy, figures)


def guarded(name: str, remedy: str, check: Callable[[], Verdict]) -> Verdict:
    """The verdict of a check; one that raises has failed, and those after it are still made.

    Args:
        name: of the check.
        remedy: what to do where it raises.
        check: makes the check.
    """
    logging.info("checking: %s", name)
    try:
        verdict = check()
    except Exception as error:  # compilers and devices raise what they like
        logging.debug("%s", name, exc_info=True)
        verdict = Verdict(name, "FAILED", in_one_line(error), remedy)
    logging.info("%s: %s", verdict.outcome, verdict.found)  # lest a later check hangs
    return verdict


def in_one_line(error: BaseException) -> str:
    """The class of an error and the beginning of its text."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}".rstrip(": ")


def table(verdicts: Mapping[str, Verdict]) -> str:
    """Verdicts for people.

    Args:
        verdicts: by the letters of the checks.
    """
    width = max(len(verdict.name) for verdict in verdicts.values())
    lines = []
    for letter, verdict in verdicts.items():
        lines.append(f"{letter}  {verdict.name:<{width}}  {verdict.outcome:<7}  {verdict.found}")
        if verdict.failed:
            lines.append(f"   {'':<{width}}  to do:   {verdict.remedy}")
    return "\n".join(lines)
