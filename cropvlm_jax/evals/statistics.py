# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The results of an evaluation from its records: scores, differences, and their intervals.

Shape letters: n items, C conditions, K clusters, R resamples.
"""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cropvlm_jax import geometry
from cropvlm_jax.evals.conditions import NO_CROP, ORACLE, Conditions

RESAMPLES = 2000


def summarise(protocol: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The results of the records.

    Intervals are 95% percentile bootstrap intervals over pictures, as items about one picture are
    not independent; those of differences are paired. Where options come in cyclic orders, a score
    is the mean over the orders. An item that a target refused or said nothing to is wrong; one that
    something kept it from answering, or whose picture could not be read, is in no score.

    Returns:
        `protocol`; `n`; `unreadable`, reasons by item; of the first target and metric `accuracy` by
        condition; `best_scale`, which scale of the first cropper's boxes was chosen, with the
        `lead` of the last cropper over it, or why it is left out; of the last cropper `coverage`,
        `area` and `valid`; `boxes`, the same of every condition; `seconds` and `image_tokens` an
        item by stage (median, mean); and by name `targets`: `failures` by kind, `categories`, and
        by metric and condition `scores`: `n`, `score`, `gain` over no crop, `lead` of the last
        cropper over it, each with `..._interval`, and how many items the condition `rescued`,
        `harmed` and left as they were (`neutral`).

    Raises:
        ValueError: there is no readable item.
    """
    usable = [record for record in records if "unreadable" not in record]
    if not usable:
        raise ValueError("no picture could be read, so there is no result")
    conditions = Conditions.of(protocol)
    oracle = any(ORACLE in record["boxes"] for record in usable)
    base, every = conditions.names(oracle), conditions.expanded_names(oracle)
    every = [*base, *every]
    targets = {
        target: _of_target(usable, target, protocol["metrics"], base, every, conditions.last)
        for target in protocol["targets"]
    }
    headline = targets[next(iter(targets))]["scores"][next(iter(protocol["metrics"]))]
    best = dict(protocol.get("best_scale", {}))
    if "condition" in best:
        row = headline[best["condition"]]
        best |= {key: row[key] for key in ("score", "lead", "lead_interval")}
    boxes = {name: found for name in every if (found := _of_boxes(usable, name))}
    return {
        "protocol": dict(protocol),
        "n": len(usable),
        "unreadable": {r["example_id"]: r["unreadable"] for r in records if "unreadable" in r},
        "accuracy": {name: headline[name]["score"] for name in base},
        "best_scale": best,
        **{key: boxes[conditions.last][key] for key in ("coverage", "area", "valid")},
        "boxes": boxes,
        "seconds": {key: float(np.median(v)) for key, v in _stages(usable, "seconds").items()},
        "image_tokens": {
            key: float(np.mean(v)) for key, v in _stages(usable, "image_tokens").items()
        },
        "targets": targets,
    }


def score_of(replies: Mapping[str, Any], condition: str, metric: str) -> float:
    """The score of the reply under a condition; NaN where there is none or it has no score.

    Args:
        replies: a target's replies about an item, by condition.
        condition: the condition.
        metric: the metric.
    """
    score = replies[condition]["scores"][metric] if condition in replies else None
    return np.nan if score is None else score


class Groups(NamedTuple):
    """Which items belong together.

    Attributes:
        cluster: int `[n]`, the picture of each item.
        cycle: int `[n]`, the order of its options.
    """

    cluster: np.ndarray
    cycle: np.ndarray

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> "Groups":
        """The groups of records."""
        pictures = np.unique([record["picture"] for record in records], return_inverse=True)[1]
        cycles = [record.get("cycle_category", "") for record in records]
        return cls(pictures, np.unique(cycles, return_inverse=True)[1])


def bootstrap(
    values: np.ndarray, cluster: np.ndarray, cycle: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means with 95% intervals, from `RESAMPLES` resamples of the clusters, the same in every call.

    Args:
        values: `[n, C]`, NaN where there is none.
        cluster: int `[n]`, what is resampled.
        cycle: int `[n]`; the mean is one over cycles of means over their items.

    Returns:
        Means `[C]`, NaN where there is no value, and the ends of their intervals `[2, C]`.
    """
    count = cluster.max() + 1
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = np.concatenate([np.ones((1, count)), weights])
    known = ~np.isnan(values)
    means = []
    for number in range(cycle.max() + 1):
        rows = cycle == number
        sums, counts = np.zeros((2, count, values.shape[1]))
        np.add.at(sums, cluster[rows], np.where(known, values, 0)[rows])
        np.add.at(counts, cluster[rows], known[rows])
        with np.errstate(invalid="ignore"):
            means.append(weights @ sums / (weights @ counts))
    stacked = np.stack(means)
    present = ~np.isnan(stacked)  # a resample may lack all of a small cycle
    with np.errstate(invalid="ignore"):
        mean = np.where(present, stacked, 0).sum(0) / present.sum(0)
    ends = np.full((2, values.shape[1]), np.nan)
    has = ~np.isnan(mean[0])
    ends[:, has] = np.nanpercentile(mean[1:, has], [2.5, 97.5], axis=0)
    return mean[0], ends


def _of_target(
    records: Sequence[Mapping[str, Any]],
    target: str,
    metrics: Sequence[str],
    base: Sequence[str],
    every: Sequence[str],
    last: str,
) -> dict[str, Any]:
    """The results of one target.

    Args:
        records: of readable items.
        target: its name.
        metrics: the one to report first.
        base: conditions whose scores are also given by category.
        every: all conditions.
        last: the cropper that is reported.
    """
    replies = [record["replies"][target] for record in records]
    groups = Groups.of(records)
    scores = {}
    for metric in metrics:
        values = np.array([[score_of(row, name, metric) for name in every] for row in replies])
        scores[metric] = score_table(values, every, last, groups)
    kinds = collections.Counter(
        reply["failure"].partition(":")[0]
        for by_condition in replies
        for reply in by_condition.values()
        if "failure" in reply
    )
    categories = _by_category(records, target, next(iter(metrics)), base)
    return {"failures": dict(kinds), "scores": scores, "categories": categories}


def score_table(
    values: np.ndarray, conditions: Sequence[str], last: str, groups: Groups
) -> dict[str, dict[str, Any]]:
    """Scores, gains, leads and counts of a target in one metric, by condition.

    Args:
        values: scores `[n, C]`, NaN where there is none.
        conditions: C names.
        last: the condition whose lead over the others is computed.
        groups: of the items.
    """
    gains = values - values[:, [conditions.index(NO_CROP)]]
    leads = values[:, [conditions.index(last)]] - values
    table: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(conditions):
        known = gains[:, i][~np.isnan(gains[:, i])]
        signs = {"rescued": known > 0, "harmed": known < 0, "neutral": known == 0}
        table[name] = {"n": len(known)} | {key: int(sign.sum()) for key, sign in signs.items()}
    for key, column in {"score": values, "gain": gains, "lead": leads}.items():
        means, ends = bootstrap(column, groups.cluster, groups.cycle)
        for name, mean, interval in zip(conditions, means, ends.T, strict=True):
            table[name] |= {key: float(mean), f"{key}_interval": interval.tolist()}
    return table


def _by_category(
    records: Sequence[Mapping[str, Any]], target: str, metric: str, conditions: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """`n` and the scores by condition, for each of the data set's own categories."""
    members = collections.defaultdict(list)
    for record in records:
        if "category" in record:
            members[record["category"]].append(record)
    found = {}
    for category, rows in sorted(members.items()):
        replies = [record["replies"][target] for record in rows]
        values = [[score_of(row, name, metric) for name in conditions] for row in replies]
        groups = Groups.of(rows)
        means, _ = bootstrap(np.array(values), groups.cluster, groups.cycle)
        named = zip(conditions, means.tolist(), strict=True)
        scores = {name: mean for name, mean in named if not math.isnan(mean)}
        found[category] = {"n": len(rows)} | scores
    return found


def _of_boxes(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, float | None]:
    """Coverage of the true box, area and validity of a condition's boxes, means, 0..1."""
    having = [record["boxes"] for record in records if name in record["boxes"]]
    if not having:
        return {}
    boxes = np.array([by_name[name] for by_name in having])
    with_truth = [by_name for by_name in having if ORACLE in by_name]
    coverage = None
    if with_truth:
        found = np.array([by_name[name] for by_name in with_truth])
        truth = np.array([by_name[ORACLE] for by_name in with_truth])
        coverage = float(geometry.coverage(found, truth).mean())
    valid = geometry.is_valid(boxes)
    return {
        "coverage": coverage,
        "area": float(np.where(valid, geometry.area(boxes), 0).mean()),
        "valid": float(valid.mean()),
    }


def _stages(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[float]]:
    """The values that records have under `key`, by stage; a record that has none is left out."""
    by_stage: dict[str, list[float]] = {}
    for record in records:
        for stage, value in record[key].items():
            if value is not None:
                by_stage.setdefault(stage, []).append(value)
    return by_stage
