# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tables of `docs/results.md` from the results of the looks experiment."""

from collections.abc import Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]  # experiments/look/results.json

# By section: its title and what its rows are called, by the name of the figures.
SECTIONS = {
    "pairs": (
        "Two far places (`zoom_digits_pairs`)",
        {
            "never": "no crop",
            "k1": "one box",
            "k2": "one or two boxes",
            "oracle": "both true boxes",
        },
    ),
    "mixed": (
        "Half of the questions need no crop (`zoom_digits_mixed`)",
        {
            "never": "never a crop",
            "always": "always a crop",
            "gate": "the cropper decides",
            "probe": "a crop where the reader is unsure without one",
            "oracle_gate": "a crop where it is better than none",
        },
    ),
    "deep": (
        "Frames too small for one look (`zoom_digits_deep`)",
        {
            "never": "no crop",
            "looks1": "one look",
            "looks2": "up to two looks",
            "oracle": "true box",
        },
    ),
    "budget": (
        "One cropper for all budgets (`zoom_digits_mixed`)",
        {
            f"{kind}{name}": f"{what}, {name} budget"
            for name in ("low", "middle", "high")
            for kind, what in (("price_", "trained for that price alone"), ("", "told the budget"))
        },
    ),
}
COLUMNS = {"": "accuracy", "_tokens": "image tokens of crops", "_harmed": "harmed", "_aurc": "AURC"}
CLAIMS = {
    "k2_over_k1": "one or two boxes over one box",
    "oracle_over_k2": "both true boxes over one or two boxes",
    "gate_kept": "accuracy of always cropping that the cropper's decision keeps",
    "gate_token_share": "tokens of always cropping that it spends",
    "gate_harm_share": "harmed scenes of always cropping that remain",
    "aurc_won_over_always": "AURC below that of always cropping by",
    "aurc_won_over_probe": "AURC below that of the unsure reader's crops by",
    "looks2_over_looks1": "two looks over one look",
    "least_over_curve": "told a budget over the curve of single prices, at the worst budget",
}


def with_interval(results: Results, section: str, key: str) -> str:
    """A share with its 95% interval, in percent; tokens and areas as they are."""
    value, ends = results[section][key], results["intervals"][section][key]
    if value is None:
        return "none"
    low, high = (float("nan") if end is None else end for end in ends)
    if key.endswith("_tokens"):
        return f"{value:.1f}"
    if "aurc" in key:
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def section_rows(results: Results, section: str) -> list[list[str]]:
    """The rows of a section's table, its head first."""
    names, known = SECTIONS[section][1], results[section]
    columns = [end for end in COLUMNS if any(f"{name}{end}" in known for name in names)]
    rows = [["", *(COLUMNS[end] for end in columns)]]
    for name, called in names.items():
        cells = [f"{name}{end}" for end in columns]
        rows.append(
            [called, *(with_interval(results, section, c) if c in known else "" for c in cells)]
        )
    return rows


def claim_rows(results: Results) -> list[list[str]]:
    """What was claimed before the runs, and what was measured: a table's rows, its head first."""
    rows = [["claim", "measured", "bar", ""]]
    for section, bars in results["protocol"]["bars"].items():
        for key, bar in bars.items():
            sign, number = bar["bar"].split()
            least = number if "aurc" in key else f"{100 * float(number):g}"
            measured = with_interval(results, section, key)
            rows.append(
                [CLAIMS[key], measured, f"{sign} {least}", "met" if bar["met"] else "missed"]
            )
    return rows


def sections(results: Results) -> Sequence[tuple[str, list[list[str]]]]:
    """The title and the rows of each section that was measured."""
    return [
        (title, section_rows(results, section))
        for section, (title, _) in SECTIONS.items()
        if section in results
    ]
