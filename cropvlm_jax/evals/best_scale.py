# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The control `sft_best_scale`: the first cropper's boxes at the best fixed scale.

A cropper that has learned to zoom proposes smaller boxes than the one that it started from, and
smaller boxes alone win something. So the first cropper's boxes, of a supervised cropper as a rule,
are shown with their areas times one factor for all items. The factor is the one of `FACTORS` with
the best score of the first target on validation items; of equals, the one nearest to 1, and of two
equally near ones the smaller. The items that are reported have no part in the choice.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from cropvlm_jax.evals.conditions import (
    BEST_SCALE,
    Conditions,
    best_scale_of,
    expanded,
    sorted_expansions,
)
from cropvlm_jax.evals.croppers import Cropper
from cropvlm_jax.evals.intervals import Groups, bootstrap
from cropvlm_jax.evals.items import check_answers
from cropvlm_jax.evals.registry import BENCHMARKS, Benchmark
from cropvlm_jax.evals.statistics import score_of
from cropvlm_jax.evals.study import Study
from cropvlm_jax.readers.base import Reader

# Of the boxes' areas; the least one undoes the most that labels are enlarged, 45 times.
FACTORS = (0.02, 0.04, 0.08, 0.16, 0.25, 0.35, 0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0)
ITEMS = 500  # most validation items, by default


@dataclasses.dataclass(frozen=True)
class Validation:
    """The items on which the scale is chosen.

    Attributes:
        split: the part of the data set that they are from.
        source: the items; None where there are none.
        limit: only the first items.
        left_out: why there are none, where there are none.
    """

    split: str = ""
    source: Any = None
    limit: int = ITEMS
    left_out: str = "no validation items were given"


def open_validation(
    name: str,
    reported: Any,
    folder: str | os.PathLike | None,
    seed: int = 0,
    split: str | None = None,
    limit: int = ITEMS,
) -> Validation:
    """Opens the validation items of a benchmark.

    Args:
        name: of the benchmark.
        reported: the items that are reported, which must not be among these.
        folder: where the data are.
        seed: of the scenes of drawn sets.
        split: the part of the data set; None takes the benchmark's own, and where that is not there
            or holds items that are reported, the control is left out.
        limit: most items; 0 leaves the control out.

    Raises:
        ValueError: `split` was given and holds items that are reported, or cannot be opened.
        FileNotFoundError: `split` was given and is not in the folder.
    """
    benchmark = BENCHMARKS[name]
    if not limit:
        return Validation(left_out="it was not asked for")
    if split is None and benchmark.validation is None:
        return Validation(left_out=f"{name} has no validation split")
    chosen = split or benchmark.validation or ""
    try:
        source = benchmark.open(folder, seed, chosen)
        check_apart(reported, source)
    except (FileNotFoundError, ValueError) as error:
        if split is not None:
            raise
        logging.warning("no best scale is chosen on the split %r: %s", chosen, error)
        return Validation(left_out=f"the split {chosen!r} is not there, or holds reported items")
    return Validation(chosen, source, limit)


@dataclasses.dataclass(frozen=True)
class BestScale:
    """The scale that was chosen.

    Attributes:
        factor: of the boxes' areas; None where the control is left out.
        protocol: what the records of the evaluation depend on.
        validation: how it was chosen: `n` items, the target's name, the metric, `scores` by factor
            and the file of the `records`.
    """

    factor: float | None
    protocol: Mapping[str, Any]
    validation: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def choose_scale(
    name: str,
    benchmark: Benchmark,
    targets: Sequence[Reader],
    croppers: Mapping[str, Cropper],
    source: Any,
    validation: Validation,
    out: Path,
) -> BestScale:
    """Chooses the scale of the first cropper's boxes for the first target.

    Records are appended to `{name}_validation.{digest}.jsonl`, so that a choice that was cut short
    goes on, and one that was made is not made again.

    Args:
        name: of the benchmark.
        benchmark: whose first metric chooses.
        targets: the first of which chooses.
        croppers: by name; the control is left out where there is only one.
        source: the items that are reported, which `validation` must not hold.
        validation: the items to choose on.
        out: folder for the records.

    Raises:
        ValueError: validation items are among those that are reported, or lack answers.
    """
    if validation.source is None:
        return BestScale(None, {"left_out": validation.left_out})
    if len(croppers) < 2:
        return BestScale(None, {"left_out": "there is one cropper, and none to compare it with"})
    check_apart(source, validation.source)
    first = next(iter(croppers))
    total = min(len(validation.source), validation.limit)
    check_answers(validation.source, total)
    study = Study(
        name=name,
        benchmark=benchmark,
        targets=targets[:1],
        croppers={first: croppers[first]},
        conditions=Conditions((first,), sorted_expansions(FACTORS), controls=()),
    )
    protocol = study.protocol(validation.source, validation.split)
    stem = f"{name}_validation"
    file, records = study.collect(validation.source, total, out, stem, protocol)
    metric, target = benchmark.metrics[0], targets[0].name
    usable = [record for record in records if "unreadable" not in record]
    scores = mean_scores(usable, first, target, metric)
    if not scores:
        return BestScale(None, {"left_out": f"no item of {validation.split!r} was answered"})
    factor = best_factor(scores)
    return BestScale(
        factor,
        {
            "condition": best_scale_of(first),
            "description": BEST_SCALE,
            "cropper": first,
            "chosen_scale": factor,
            "split": validation.split,
        },
        {
            "n": len(usable),
            "target": target,
            "metric": metric,
            "scores": {f"{key:g}": score for key, score in scores.items()},
            "records": file,
        },
    )


def check_apart(source: Any, validation: Any) -> None:
    """Checks that no validation item is among the items that are reported.

    Raises:
        ValueError: one is.
    """
    if source.fingerprint == validation.fingerprint:
        raise ValueError("the validation items are the items that are reported")
    if both := _questions(source) & _questions(validation):
        raise ValueError(f"{len(both)} validation items are also reported: use other files")


def _questions(source: Any) -> set[str]:
    """The questions with the places of their pictures, where the source lists them."""
    rows = getattr(source, "rows", None)
    return {repr((r["image"], r["question"])) for r in rows} if isinstance(rows, list) else set()


def mean_scores(
    records: Sequence[Mapping[str, Any]], cropper: str, target: str, metric: str
) -> dict[float, float]:
    """The mean scores of a cropper's boxes by factor, without factors that have no score."""
    if not records:
        return {}
    values = [
        [score_of(record["replies"][target], expanded(cropper, f), metric) for f in FACTORS]
        for record in records
    ]
    groups = Groups.of(records)
    means, _ = bootstrap(np.array(values), groups.cluster, groups.cycle)
    found = zip(FACTORS, means.tolist(), strict=True)
    return {factor: mean for factor, mean in found if not math.isnan(mean)}


def best_factor(scores: Mapping[float, float]) -> float:
    """The factor with the best score; of equals, the nearest to 1, and then the smaller."""
    return min(scores, key=lambda factor: (-scores[factor], abs(math.log(factor)), factor))
