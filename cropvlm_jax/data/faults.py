# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""One line of the log for all faults of a kind, however many there are."""

from collections.abc import Sequence

from absl import logging

SHOWN = 3  # faults that a line names


def some_of(faults: Sequence[str]) -> str:
    """The first faults, and how many more there are."""
    more = len(faults) - SHOWN
    return "; ".join(faults[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def log(what: str, faults: Sequence[str]) -> None:
    """Warns about faults in one line that names the first ones; `--verbosity=1` names the others.

    Args:
        what: What happened, with how many there are of it.
        faults: A line for each: what has the fault, and which one. Nothing is logged of none.
    """
    if faults:
        logging.warning("%s: %s", what, some_of(faults))
    for fault in faults[SHOWN:]:
        logging.debug("%s: %s", what, fault)
