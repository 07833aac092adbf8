# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Hours and dollars of `launch/speedrun.sh`, computed from the reports in `experiments/aot/`.

    python experiments/speedrun_cost.py

A report says for each phase of a GRPO step how long its arithmetic takes at the chip's peak rate.
The run is taken to reach `costs.UTILISATION` of that rate:

- SFT reads the picture and learns once a question: the phases "prefix" and "update".
- GRPO takes all phases.
- Evaluation proposes a box and lets the reader answer under about as many conditions as GRPO has
  rollouts: the phases "prefix", "rollout" and "reward".

The reports are of 8 rollouts with all weights trained; the run has 6 rollouts and adapters, and
takes somewhat less.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from make_results import DOLLARS, load

from cropvlm_jax import apps
from cropvlm_jax.training.costs import UTILISATION

QUESTIONS = 34_602  # of TextVQA's training split: half of them for SFT, half for GRPO
VALIDATION = 5_000
SLICE = "v5e-8"
EDGES = (512, 1024)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Minutes of the three stages, and what all of them cost on demand."""

    sft: float
    grpo: float
    evaluation: float
    dollars: float


def cost(report: Mapping[str, Any]) -> Cost:
    """The cost of the whole run on the slice, and at the resolution, of a report."""

    def minutes(questions: int, *phases: str) -> float:
        seconds = sum(report["roofline_ms"][phase] for phase in phases) / 1000 / UTILISATION
        return questions / report["prompts"] * seconds / 60

    sft = minutes(QUESTIONS // 2, "prefix", "update")
    grpo = minutes(QUESTIONS // 2, *report["roofline_ms"])
    evaluation = minutes(VALIDATION, "prefix", "rollout", "reward")
    hours = (sft + grpo + evaluation) / 60
    return Cost(sft, grpo, evaluation, hours * report["chips"] * DOLLARS[report["chip"]])


def lines() -> list[str]:
    """The cost at each resolution, as the head of `launch/speedrun.sh` has it."""
    found = []
    for edge in EDGES:
        at = cost(load(f"aot/{SLICE}_{edge}.json"))
        found.append(
            f"{edge} px: SFT {at.sft:.1f} min, GRPO {at.grpo:.1f} min, evaluation "
            f"{at.evaluation:.1f} min; ${at.dollars:.2f}"
        )
    return found


def main(argv: list[str]) -> None:
    del argv
    print("\n".join(lines()))


if __name__ == "__main__":
    apps.run_script(main)
