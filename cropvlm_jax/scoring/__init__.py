# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How a reply is scored against gold answers: in Python here, on tokens in `scoring.in_graph`."""

from cropvlm_jax.scoring.text import (
    GoldAnswers,
    HostMetric,
    Metric,
    VQAVariant,
    anls,
    collapse,
    contains,
    encode_gold,
    exact,
    hrbench_letter,
    levenshtein,
    nearly_contains,
    official_accuracy,
    score,
    vqa_accuracy,
    vstar_letter,
)

__all__ = [
    "GoldAnswers",
    "HostMetric",
    "Metric",
    "VQAVariant",
    "anls",
    "collapse",
    "contains",
    "encode_gold",
    "exact",
    "hrbench_letter",
    "levenshtein",
    "nearly_contains",
    "official_accuracy",
    "score",
    "vqa_accuracy",
    "vstar_letter",
]
