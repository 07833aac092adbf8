# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What looking costs, what it wins, and when it pays: figures by condition and by gate.

A gate says for each item whether the target is shown a cropper's crops. To answer without any and
to answer with the crops of every item are the two plain ones. The oracle gate shows crops where
they score better than none. The confidence gate shows them where the target gave its own answer
without a crop less probability than a threshold, which `gates.py` chooses on validation items.
The surer answer is harm control: the target answers with crops and without, and the answer that it
is surer of is kept, that with crops where it is as sure (`readers.asking.keeps_crops`).

Risk-coverage curves are those of selective prediction (Geifman & El-Yaniv, 2017): where only the
surest items are answered, risk is one less their mean score. The area under the curve is the mean
risk over all coverages (AURC; Geifman et al., 2019); smaller is better.

Shape letters: n items, R resamples.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cropvlm_jax.evals.conditions import NO_CROP, ORACLE, boxes_of
from cropvlm_jax.evals.intervals import Groups, bootstrap, estimate, resamples
from cropvlm_jax.evals.statistics import score_of

ORACLE_GATE, CONFIDENCE_GATE, SURER = GATES = ("oracle gate", "confidence gate", "surer answer")
COVERAGES = np.arange(1, 101) / 100  # at which results tell the risk
BLOCK = 2**22  # weights of items in memory
LEVELS = 21  # of the confidence gate, from no crop to crops for every item


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What a condition made of the items.

    Attributes:
        score: `[n]`, NaN where there is none.
        crops: int `[n]`, how many the target was shown.
        crop_tokens: `[n]`, image tokens of crops; NaN where the target tells none.
        image_tokens: `[n]`, all image tokens that the target read; NaN where it tells none.
        sure: `[n]`, what orders the items, the surest are the largest; -inf where nothing is told.
        seconds: mean of an item, cropper and target; None where it was not measured.
    """

    score: np.ndarray
    crops: np.ndarray
    crop_tokens: np.ndarray
    image_tokens: np.ndarray
    sure: np.ndarray
    seconds: float | None

    @classmethod
    def read(
        cls, records: Sequence[Mapping[str, Any]], target: str, condition: str, metric: str
    ) -> "Outcomes":
        """The outcomes of a condition from the records of readable items."""
        replies = [record["replies"][target] for record in records]
        alone, tokens = (_image_tokens(records, target, name) for name in (NO_CROP, condition))
        shown = [boxes_of(record["boxes"].get(condition, ())) for record in records]
        crops = np.array([len(boxes) for boxes in shown])
        if order_of(records, target) == "target":
            sure = [(row.get(condition) or {}).get("log_prob", -np.inf) for row in replies]
        else:
            sure = [record.get("confidence", {}).get(condition, -np.inf) for record in records]
        return cls(
            score=np.array([score_of(row, condition, metric) for row in replies]),
            crops=crops,
            crop_tokens=tokens - alone,
            image_tokens=tokens,
            sure=np.array(sure, float),
            seconds=_seconds(records, target, condition, float((crops == 0).mean())),
        )


def order_of(records: Sequence[Mapping[str, Any]], target: str) -> str:
    """Whose confidence orders items: the "target"'s in its answer, or the "cropper"'s."""
    told = (reply or {} for record in records for reply in record["replies"][target].values())
    return "target" if any("log_prob" in reply for reply in told) else "cropper"


def _image_tokens(records: Sequence[Mapping[str, Any]], target: str, condition: str) -> np.ndarray:
    """Image tokens that a target read under a condition, `[n]`, NaN where they are not told."""
    stage = f"answer/{target}/{condition}"
    return np.array([record["image_tokens"].get(stage, np.nan) for record in records])


def _seconds(
    records: Sequence[Mapping[str, Any]], target: str, condition: str, abstained: float
) -> float | None:
    """Mean seconds of an item, from medians, so that compilation does not count.

    Args:
        records: of readable items.
        target: answers.
        condition: no crop or a cropper's; the others are not timed apart.
        abstained: share of the items without a crop, which were asked together with no crop.
    """

    def median(stage: str) -> float:
        return float(np.median([record["seconds"].get(stage, 0.0) for record in records]))

    alone = median(f"answer/{target}/{NO_CROP}")
    if condition == NO_CROP:
        return alone
    propose = f"propose/{condition}"
    if not any(propose in record["seconds"] for record in records):
        return None
    return median(propose) + median(f"answer/{target}/{condition}") + abstained * alone


def gate_of(cropper: str, gate: str) -> str:
    """The name of a gate before a cropper's crops."""
    return f"{cropper}, {gate}"


def oracle_gate(crop: Outcomes, alone: Outcomes) -> Outcomes:
    """Crops where they score better than none, and nothing else is asked."""
    looked = crop.score > alone.score
    gated = _chosen(looked, crop, alone)
    return dataclasses.replace(
        gated,
        image_tokens=np.where(looked, crop.image_tokens, alone.image_tokens),
        seconds=_mixed(float(looked.mean()), crop.seconds, alone.seconds),
    )


def confidence_gate(crop: Outcomes, alone: Outcomes, threshold: float) -> Outcomes:
    """Crops where the target's answer without any has a log-probability below the threshold.

    The target has to answer without a crop first, which counts.
    """
    looked = alone.sure < threshold
    gated = _chosen(looked, crop, alone)
    seconds = None
    if crop.seconds is not None and alone.seconds is not None:
        seconds = alone.seconds + float(looked.mean()) * crop.seconds
    return dataclasses.replace(
        gated,
        image_tokens=alone.image_tokens + np.where(looked, crop.image_tokens, 0),
        seconds=seconds,
    )


def surer_answer(crop: Outcomes, alone: Outcomes) -> Outcomes:
    """The answer of the two that the target is surer of; both are asked for, where there is a crop.

    Answers to the same pictures are one.
    """
    gated = _chosen(crop.sure >= alone.sure, crop, alone)
    seconds = None
    if crop.seconds is not None and alone.seconds is not None:
        seconds = crop.seconds + float((crop.crops > 0).mean()) * alone.seconds
    return dataclasses.replace(
        gated,
        crops=crop.crops,
        crop_tokens=crop.crop_tokens,
        image_tokens=crop.image_tokens + np.where(crop.crops > 0, alone.image_tokens, 0),
        seconds=seconds,
    )


def _chosen(looked: np.ndarray, crop: Outcomes, alone: Outcomes) -> Outcomes:
    """The outcomes of crops where they were looked at, and of no crop elsewhere."""
    names = ("score", "crops", "crop_tokens", "sure")
    chosen = {n: np.where(looked, getattr(crop, n), getattr(alone, n)) for n in names}
    return dataclasses.replace(alone, **chosen)


def _mixed(share: float, crop: float | None, alone: float | None) -> float | None:
    """Seconds of an item where a share of the items is shown crops."""
    return None if crop is None or alone is None else share * crop + (1 - share) * alone


# Risk and coverage --------------------------------------------------------------------------------


def ordered_risks(sure: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The items that have a score, the surest first, and their risks.

    Items of equal confidence could come in any order; each has their mean risk.

    Returns:
        Indices of the items, and risks in that order.
    """
    known = np.flatnonzero(~np.isnan(score))
    order = known[np.argsort(-sure[known], kind="stable")]
    tie = np.unique(-sure[order], return_inverse=True)[1]
    means = np.bincount(tie, 1 - score[order]) / np.bincount(tie)
    return order, means[tie]


def selective_risks(risks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean risks of the surest items up to each one, `[..., n]`.

    Args:
        risks: `[n]`, of the surest first.
        weights: `[..., n]`, how often each item counts.
    """
    return np.cumsum(weights * risks, -1) / np.maximum(np.cumsum(weights, -1), 1)


def aurcs(sure: np.ndarray, score: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Areas under the risk-coverage curve, of the items and of each resample, `[1 + R]`.

    Args:
        sure: `[n]`, what orders the items.
        score: `[n]`, 0..1, NaN where there is none.
        cluster: int `[n]`, what is resampled.
    """
    order, risks = ordered_risks(sure, score)
    if not len(order):
        return np.full(1, np.nan)
    weights = resamples(cluster.max() + 1)
    blocks = np.array_split(weights, -(-len(weights) * len(order) // BLOCK))
    areas = []
    for block in blocks:
        often = block[:, cluster[order]]
        total = np.maximum(often.sum(-1), 1)
        areas.append((often * selective_risks(risks, often)).sum(-1) / total)
    return np.concatenate(areas)


# Results ------------------------------------------------------------------------------------------


def tradeoffs(
    protocol: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    thresholds: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """What looking costs and wins, by target.

    Args:
        protocol: of the records.
        records: of an evaluation with `Study.tradeoffs`.
        thresholds: log-probabilities of the confidence gate, by target and cropper.

    Returns:
        By target: `ordered_by`, whose confidence orders items, the "target"'s or the "cropper"'s;
        `thresholds`; `levels`, by cropper `score`, `crops` and `crop_tokens` of the confidence gate
        from no crop to crops for every item; and `conditions` by name: no crop, croppers, the true
        boxes and gates. These have `n` items with a score, and means over items: `score`,
        `harm_rate` and `rescue_rate` against no crop, `no_crop_rate`, `crops`, `crop_tokens`,
        `image_tokens` and `seconds`; `aurc`; `aurc_lead`, the area here less the last cropper's;
        and `risks` at coverages of 1% to 100%. All but crops, seconds and risks have
        `..._interval`. What is not known is None.
    """
    usable = [record for record in records if "unreadable" not in record]
    metric = next(iter(protocol["metrics"]))
    return {
        target: _of_target(usable, target, metric, list(protocol["croppers"]), thresholds)
        for target in protocol["targets"]
    }


def _of_target(
    records: Sequence[Mapping[str, Any]],
    target: str,
    metric: str,
    croppers: Sequence[str],
    thresholds: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """What looking costs and wins for one target."""
    chosen = thresholds.get(target, {})
    oracle = [ORACLE] if any(ORACLE in record["boxes"] for record in records) else []
    found = {
        name: Outcomes.read(records, target, name, metric) for name in (NO_CROP, *croppers, *oracle)
    }
    alone, levels = found[NO_CROP], {}
    ordered_by = order_of(records, target)
    for name in croppers:
        found[gate_of(name, ORACLE_GATE)] = oracle_gate(found[name], alone)
        if name in chosen:
            gated = confidence_gate(found[name], alone, chosen[name])
            found[gate_of(name, CONFIDENCE_GATE)] = gated
        if ordered_by == "target":
            found[gate_of(name, SURER)] = surer_answer(found[name], alone)
            levels[name] = _levels(found[name], alone)
    groups = Groups.of(records)
    areas = {name: aurcs(each.sure, each.score, groups.cluster) for name, each in found.items()}
    return {
        "ordered_by": ordered_by,
        "thresholds": dict(chosen),
        "levels": levels,
        "conditions": {
            name: _means(each, alone, groups)
            | _areas(each, areas[name], areas[croppers[-1]], ordered_by)
            for name, each in found.items()
        },
    }


def _means(each: Outcomes, alone: Outcomes, groups: Groups) -> dict[str, Any]:
    """Means of a condition over the items, with intervals."""
    known = ~np.isnan(each.score - alone.score)
    shares = {
        "score": each.score,
        "harm_rate": np.where(known, each.score < alone.score, np.nan),
        "rescue_rate": np.where(known, each.score > alone.score, np.nan),
        "no_crop_rate": (each.crops == 0).astype(float),
    }
    amounts = {"crop_tokens": each.crop_tokens, "image_tokens": each.image_tokens}
    told: dict[str, Any] = {"n": int((~np.isnan(each.score)).sum())}
    for columns, (means, ends) in (
        (shares, estimate(_stacked(shares), groups)),
        (amounts, bootstrap(_stacked(amounts), groups.cluster, groups.cycle)),
    ):
        for name, mean, interval in zip(columns, means, ends.T, strict=True):
            told[name] = None if np.isnan(mean) else float(mean)
            told[f"{name}_interval"] = None if np.isnan(mean) else interval.tolist()
    return told | {"crops": float(each.crops.mean()), "seconds": each.seconds}


def _stacked(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Values of items by column, `[n, C]`."""
    return np.stack(list(columns.values()), -1)


def _areas(
    each: Outcomes, areas: np.ndarray, of_last: np.ndarray, ordered_by: str
) -> dict[str, Any]:
    """The risk-coverage curve of a condition, and its area against the last cropper's."""
    names = ("aurc", "aurc_interval", "aurc_lead", "aurc_lead_interval", "risks")
    if np.isnan(areas[0]) or not np.isfinite(each.sure).any():
        return dict.fromkeys(names)
    order, risks = ordered_risks(each.sure, each.score)
    curve = selective_risks(risks, np.ones(len(order)))
    answered = np.ceil(COVERAGES * len(order)).astype(int) - 1
    told: dict[str, Any] = {"risks": curve[answered].tolist()}
    leads = areas - of_last if len(areas) == len(of_last) else np.full(1, np.nan)
    for name, values in (("aurc", areas), ("aurc_lead", leads)):
        if np.isnan(values[0]):
            told |= {name: None, f"{name}_interval": None}
            continue
        ends = np.percentile(values[1:], [2.5, 97.5])
        told |= {name: float(values[0]), f"{name}_interval": ends.tolist()}
    return told


def _levels(crop: Outcomes, alone: Outcomes) -> dict[str, list[float | None]]:
    """Means of the confidence gate as it shows crops for more and more items."""
    order = np.argsort(alone.sure, kind="stable")
    levels: dict[str, list[float | None]] = {"score": [], "crops": [], "crop_tokens": []}
    for count in np.linspace(0, len(order), LEVELS).round().astype(int):
        looked = np.zeros(len(order), bool)
        looked[order[:count]] = True
        gated = _chosen(looked, crop, alone)
        for name, values in levels.items():
            column = getattr(gated, name)
            known = column[~np.isnan(column)]
            values.append(float(known.mean()) if len(known) else None)
    return levels


def shown(results: Mapping[str, Any], target: str) -> dict[str, Mapping[str, Any]]:
    """The conditions that pages and tables show, by name: gates are those before the first cropper.

    Args:
        results: of an evaluation with `costs`.
        target: its name.
    """
    rows = results["tradeoffs"][target]["conditions"]
    croppers = list(results["protocol"]["croppers"])
    gates = (gate_of(croppers[0], gate) for gate in GATES)
    names = [NO_CROP, *croppers, ORACLE, *gates]
    return {name: rows[name] for name in names if name in rows and rows[name]["score"] is not None}
