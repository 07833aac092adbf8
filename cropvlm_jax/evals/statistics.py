# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The results of an evaluation from its records: scores, differences, and their intervals.

Shape letters: n items, C conditions, K boxes of a reply, M true boxes.
"""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cropvlm_jax import geometry
from cropvlm_jax.evals.conditions import NO_CROP, ORACLE, Boxes, Conditions, boxes_of
from cropvlm_jax.evals.intervals import METHOD, Groups, bootstrap, estimate


def summarise(protocol: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The results of the records.

    Intervals are over pictures, as items about one picture are not independent; those of
    differences are paired. Where options come in cyclic orders, a score is the mean over the
    orders. An item that a target refused or said nothing to is wrong; one that something kept it
    from answering, or whose picture could not be read, is in no score. There is no NaN: what has no
    value is None, and `missing` says why.

    Returns:
        `protocol`; `n`; `unreadable`, reasons by item; `intervals`, the method; of the first target
        and metric `accuracy` by condition; `best_scale`, which scale of the first cropper's boxes
        was chosen, with the `lead` of the last cropper over it, or why it is left out; of the last
        cropper `coverage`, `area` and `valid`; `missing`, why values of these are None; `boxes`,
        the same of every condition; `seconds` and `image_tokens` an item by stage (median, mean);
        and by name `targets`: `failures` by kind, `categories`, and by metric and condition
        `scores`: `n` items that have a score, `score`, `gain` over no crop, `lead` of the last
        cropper over it, each with `..._interval`, how many items the condition `rescued`, `harmed`
        and left as they were (`neutral`), and where one of these is None, why it is `missing`.

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
    missing = {} if oracle else {"coverage": "the data set knows no true box"}
    missing |= {
        f"accuracy/{name}": headline[name]["missing"]["score"]
        for name in base
        if headline[name]["score"] is None
    }
    return {
        "protocol": dict(protocol),
        "n": len(usable),
        "unreadable": {r["example_id"]: r["unreadable"] for r in records if "unreadable" in r},
        "intervals": METHOD,
        "accuracy": {name: headline[name]["score"] for name in base},
        "best_scale": best,
        **{key: boxes[conditions.last][key] for key in ("coverage", "area", "valid")},
        "missing": missing,
        "boxes": boxes,
        "seconds": {key: float(np.median(v)) for key, v in _stages(usable, "seconds").items()},
        "image_tokens": {
            key: float(np.mean(v)) for key, v in _stages(usable, "image_tokens").items()
        },
        "targets": targets,
    }


def throughput(shares: Sequence[Sequence[Mapping[str, Any]]], devices: int) -> dict[str, Any]:
    """How fast the evaluation was, compilation and the reading of pictures included.

    Processes ask side by side, so that the slowest share takes the time. Tokens are those that
    decoders read, a picture once for all questions about it, and those of replies; endpoints and
    OCR engines tell none.

    Args:
        shares: the records of each process.
        devices: of all of them.

    Returns:
        `processes`; `devices`; `items_per_second` and `tokens_per_second` of all processes together
        (None where no model tells its tokens); and the same by stage, such as "propose/sft", in
        `stages`, while a process was in that stage.
    """
    usable = [[record for record in share if "unreadable" not in record] for share in shares]
    items = sum(map(len, usable))
    seconds = [_totals(share, "seconds") for share in usable]
    tokens = _totals([r for share in usable for r in share if "tokens" in r], "tokens")

    def rates(taken: float, read: float | None) -> dict[str, float | None]:
        taken = max(taken, 1e-9)
        return {
            "items_per_second": items / taken,
            "tokens_per_second": None if read is None else read / taken,
        }

    stages = dict.fromkeys(stage for share in seconds for stage in share)
    slowest = {stage: max(share.get(stage, 0.0) for share in seconds) for stage in stages}
    return {
        "processes": len(shares),
        "devices": devices,
        **rates(
            max(sum(share.values()) for share in seconds), sum(tokens.values()) if tokens else None
        ),
        "stages": {stage: rates(taken, tokens.get(stage)) for stage, taken in slowest.items()},
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
        for name, row in scores[metric].items():
            if row["score"] is None:
                row["missing"]["score"] = _why_unscored(replies, name)
    kinds = _failures(replies, every)
    categories = _by_category(records, target, next(iter(metrics)), base)
    return {"failures": dict(kinds), "scores": scores, "categories": categories}


def _failures(
    replies: Sequence[Mapping[str, Any]], conditions: Sequence[str]
) -> collections.Counter[str]:
    """How many of a target's replies failed under the conditions, by kind."""
    return collections.Counter(
        by_condition[name]["failure"].partition(":")[0]
        for by_condition in replies
        for name in conditions
        if "failure" in by_condition.get(name, ())
    )


def _why_unscored(replies: Sequence[Mapping[str, Any]], condition: str) -> str:
    """Why no reply of a target under a condition has a score."""
    kinds = _failures(replies, [condition])
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"none of {kinds.total()} questions was answered: {told}" if told else "nothing to ask"


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
        table[name] = {"n": int((~np.isnan(values[:, i])).sum())}
        table[name] |= {key: int(sign.sum()) for key, sign in signs.items()}
    itself = {"gain": NO_CROP, "lead": last}  # whose difference is 0 and no estimate
    for key, column in {"score": values, "gain": gains, "lead": leads}.items():
        means, ends = estimate(column, groups, differences=key in itself)
        for name, mean, interval in zip(conditions, means, ends.T, strict=True):
            if math.isnan(mean):
                table[name] |= {key: None, f"{key}_interval": None}
                other = f"no item has a score both here and under {itself.get(key, name)}"
                table[name].setdefault("missing", {})[key] = other
            else:
                exact = [0.0, 0.0] if itself.get(key) == name else interval.tolist()
                table[name] |= {key: float(mean), f"{key}_interval": exact}
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
    """Coverage of the true boxes, area and validity of a condition's boxes, means, 0..1.

    A true box is covered as well as the best box of an item covers it; areas of boxes are added up.
    """
    having = [record["boxes"] for record in records if name in record["boxes"]]
    if not having:
        return {}
    boxes, there = _padded([by_name[name] for by_name in having])
    truth, known = _padded([by_name.get(ORACLE, ()) for by_name in having])
    coverage = None
    if (has_truth := known.any(1)).any():
        each = geometry.coverage(boxes[has_truth, :, None], truth[has_truth, None])
        best = np.where(there[has_truth, :, None], each, 0).max(1)
        known = known[has_truth]
        coverage = float((np.where(known, best, 0).sum(1) / known.sum(1)).mean())
    valid = geometry.is_valid(boxes)
    return {
        "coverage": coverage,
        "area": float(np.where(valid & there, geometry.area(boxes), 0).sum(1).mean()),
        "valid": float((valid | ~there).all(1).mean()),
    }


def _padded(written: Sequence[Boxes]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of items as one array `[n, K, 4]`, and which of them there are, bool `[n, K]`.

    The others are of the whole picture.
    """
    rows = [boxes_of(boxes) for boxes in written]
    there = np.zeros((len(rows), max([1, *map(len, rows)])), bool)
    boxes = np.tile(np.array(geometry.FULL, float), (*there.shape, 1))
    for i, row in enumerate(rows):
        boxes[i, : len(row)] = np.reshape(row, (-1, 4))
        there[i, : len(row)] = True
    return boxes, there


def _stages(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[float]]:
    """The values that records have under `key`, by stage; a record that has none is left out."""
    by_stage: dict[str, list[float]] = {}
    for record in records:
        for stage, value in record[key].items():
            if value is not None:
                by_stage.setdefault(stage, []).append(value)
    return by_stage


def _totals(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """The sums of the values that records have under `key`, by stage."""
    return {stage: sum(values) for stage, values in _stages(records, key).items()}
