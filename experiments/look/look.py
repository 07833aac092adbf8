# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""GRPO where the number of looks pays: from the start weights, on scenes of handwritten digits.

    cropvlm train --config=experiments/look/look.py:pairs_k2 --workdir=runs/look/pairs_k2

| variant | scenes | a reply |
|---|---|---|
| `pairs_k1`, `pairs_k2` | `zoom_digits_pairs` | one box; one or two boxes |
| `mixed_always`, `mixed_gate` | `zoom_digits_mixed` | one box; one or none, at a price |
| `price_low`, `price_high` | `zoom_digits_mixed` | one box or none, at that price |
| `budget` | `zoom_digits_mixed` | the same, at the price of the budget that the cropper is told |
| `deep_looks1` | `zoom_digits_deep` | one box |
| `deep_looks2` | `zoom_digits_deep` | one box, then one inside of its crop or none |

The middle price is that of `mixed_gate`. `runs.sh` makes all runs, from the bundled start weights;
protocol.md says how settings are chosen.
"""

import ml_collections

from cropvlm_jax.training.config import default_config, source

# Units of the reward for 1,000 image tokens of crops, of which one crop has 16: a crop has to gain
# 0.016, 0.16 and 1.6 nats.
PRICES = {"high": 1.0, "middle": 10.0, "low": 100.0}
SCENES = {"pairs": "pairs", "mixed": "mixed", "price": "mixed", "budget": "mixed", "deep": "deep"}
VARIANTS = (
    "pairs_k1",
    "pairs_k2",
    "mixed_always",
    "mixed_gate",
    "price_low",
    "price_high",
    "budget",
    "deep_looks1",
    "deep_looks2",
)


def get_config(variant: str) -> ml_collections.ConfigDict:
    """The settings of a run.

    Args:
        variant: One of `VARIANTS`.

    Raises:
        ValueError: There is no such variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}: use one of {', '.join(VARIANTS)}")
    config = default_config()
    config.cropper = "zoom_digits_looks/cropper"
    config.target = "zoom_digits_looks/target"
    config.warmup = 0.05
    config.adam_b2 = 0.98
    config.grpo.beta = 0.0
    config.grpo.format_weight = 0.1

    kind, _, choice = variant.partition("_")
    if kind == "deep":
        config.cropper = "zoom_digits_looks/cropper_deep"
    config.steps = 400 if SCENES[kind] == "mixed" else 200
    config.learning_rate = 3e-4
    scenes = f"zoom_digits_{SCENES[kind]}"
    config.data.sources[scenes] = source()
    config.eval.sources[scenes] = source(split="validation")
    config.data.longest_edge = 64
    config.data.canvas = (896, 896) if kind == "deep" else (512, 512)
    config.data.question_tokens = 24
    config.data.answer_tokens = 3

    config.grpo.max_boxes = 2 if variant == "pairs_k2" else 1
    config.grpo.looks = 2 if variant == "deep_looks2" else 1
    config.grpo.abstain = kind in ("price", "budget") or variant == "mixed_gate"
    if kind == "budget":
        config.data.budgets = PRICES
    elif config.grpo.abstain:
        config.grpo.token_price = PRICES["middle" if kind == "mixed" else choice]
    return config
