# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How many cores it takes to feed chips, by the reports in `experiments/aot/`."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

UTILISATION = 0.4  # of the peak rate: a generous step, so that the need is not flattered
AOT = pathlib.Path(__file__).parent / "aot"


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips and the machine that feeds them.

    Attributes:
        chips: How many.
        flops: bf16 operations a second of a chip, as published.
        host_cores: Cores of their hosts, half of the virtual ones that are published.
    """

    chips: int
    flops: float
    host_cores: int


# Google Cloud's ct5lp-hightpu-8t (224 vCPUs), ct6e-standard-8t (180), and an eighth of
# a3-ultragpu-8g (224 vCPUs and 8 H200); peak rates of Google's and NVIDIA's pages.
SLICES = {
    "v5e-8": Slice(8, 197e12, 112),
    "v6e-8": Slice(8, 918e12, 90),
    "H200": Slice(1, 989e12, 14),
}


def needs(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cores that feed chips, by kind of pictures, beside those that their hosts have."""
    found = []
    for name, chips in SLICES.items():
        for edge in sorted({one["longest_edge"] for one in cases}):
            file = AOT / f"v5e-8_{edge}.json"
            if not file.is_file():
                continue
            report = json.loads(file.read_text(encoding="utf-8"))
            prompt = sum(report["flops"].values()) / report["prompts"]
            asked = UTILISATION * chips.chips * chips.flops / prompt
            cores = {
                one["kind"]: round(asked / one["ours_per_core"], 1)
                for one in cases
                if one["longest_edge"] == edge
            }
            found.append(
                {
                    "slice": name,
                    "longest_edge": edge,
                    "pictures_per_second": round(asked, 1),
                    "cores": cores,
                    "host_cores": chips.host_cores,
                }
            )
    return found
