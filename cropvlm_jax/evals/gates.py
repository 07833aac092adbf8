# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What validation items choose: thresholds of the confidence gate, and the calibration.

A target that is unsure of its answer without a crop may need one: the gate shows a crop where the
log-probability of that answer is below a threshold. It is the rival that needs no training, so it
gets the best threshold of all: for each target and cropper the one with the best score on
validation items, and of equals the one with the fewest crops. The items that are reported have no
part in the choice.

The same items fit the calibration of the first target's answers to the last cropper's crops.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from cropvlm_jax.evals.best_scale import Validation, check_apart
from cropvlm_jax.evals.calibration import Calibration
from cropvlm_jax.evals.conditions import NO_CROP, Conditions
from cropvlm_jax.evals.croppers import Cropper
from cropvlm_jax.evals.items import check_answers
from cropvlm_jax.evals.records import Record
from cropvlm_jax.evals.registry import Benchmark
from cropvlm_jax.evals.statistics import score_of
from cropvlm_jax.evals.study import Study
from cropvlm_jax.evals.tradeoffs import Outcomes
from cropvlm_jax.readers.base import LikelihoodReader, Reader, Reply, require_likelihoods
from cropvlm_jax.zooms import Zoom

ALWAYS = 1.0  # is above every log-probability


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The thresholds that were chosen.

    Attributes:
        confident: names of the targets that can tell how likely their own answers are.
        values: log-probabilities in nats, by target and cropper; targets that tell none have none.
        told: how they were chosen: `n` items of `split` and the file of their `records`; or why the
            gate is `left_out`.
        calibration: of the answers that the first of these targets gives to the last cropper's
            crops; None where there is none.
    """

    confident: tuple[str, ...]
    values: Mapping[str, Mapping[str, float]]
    told: Mapping[str, Any]
    calibration: Calibration | None = None


NOTHING = Thresholds((), {}, {})


def confident(targets: Sequence[Reader]) -> tuple[str, ...]:
    """The names of the targets that can tell how likely their own answers are.

    Raises:
        ReaderUnavailable: one answers nothing.
    """
    names = []
    for target in targets:
        if isinstance(target, LikelihoodReader):
            try:
                require_likelihoods(target)
            except ValueError:
                continue
            names.append(target.name)
    return tuple(names)


def choose_thresholds(
    name: str,
    benchmark: Benchmark,
    targets: Sequence[Reader],
    croppers: Mapping[str, Cropper],
    source: Any,
    validation: Validation,
    out: Path,
) -> Thresholds:
    """Chooses the thresholds of the targets that can tell how likely their own answers are.

    Records are appended to `{name}_gates.{digest}.jsonl`, so that a choice that was cut short goes
    on, and one that was made is not made again.

    Args:
        name: of the benchmark.
        benchmark: whose first metric chooses.
        targets: answer.
        croppers: by name.
        source: the items that are reported, which `validation` must not hold.
        validation: the items to choose on.
        out: folder for the records.

    Raises:
        ReaderUnavailable: a target answers nothing.
        ValueError: validation items are among those that are reported, or lack answers.
    """
    names = confident(targets)
    if not names:
        return Thresholds((), {}, {"left_out": "no target tells how likely its answers are"})
    if validation.source is None:
        return Thresholds(names, {}, {"left_out": validation.left_out})
    check_apart(source, validation.source)
    total = min(len(validation.source), validation.limit)
    check_answers(validation.source, total)
    study = Study(
        name=name,
        benchmark=benchmark,
        targets=[target for target in targets if target.name in names],
        croppers=croppers,
        conditions=Conditions(tuple(croppers), controls=(NO_CROP,)),
        tradeoffs=True,
        confident=names,
    )
    protocol = study.protocol(validation.source, validation.split)
    file, records = study.collect(validation.source, total, out, f"{name}_gates", protocol)
    usable = [record for record in records if "unreadable" not in record]
    if not usable:
        left_out = f"no picture of {validation.split!r} could be read"
        return Thresholds(names, {}, {"left_out": left_out})
    metric = benchmark.metrics[0]
    values = {
        target: {
            cropper: best_threshold(
                Outcomes.read(usable, target, NO_CROP, metric),
                Outcomes.read(usable, target, cropper, metric),
            )
            for cropper in croppers
        }
        for target in names
    }
    told = {"n": len(usable), "split": validation.split, "records": file}
    return Thresholds(names, values, told, calibrated(usable, names[0], [*croppers][-1], metric))


def best_threshold(alone: Outcomes, crop: Outcomes) -> float:
    """The threshold with the best mean score; of equals, the lowest, which shows fewest crops.

    Args:
        alone: without a crop.
        crop: with a cropper's.
    """
    known = ~np.isnan(alone.score + crop.score)
    gains, sure = (crop.score - alone.score)[known], alone.sure[known]
    candidates = [*np.unique(sure[np.isfinite(sure)]).tolist(), ALWAYS]
    wins = [float(gains[sure < threshold].sum()) for threshold in candidates]
    return candidates[int(np.argmax(wins))]


def calibrated(
    records: Sequence[Record], target: str, cropper: str, metric: str
) -> Calibration | None:
    """What makes confidence in a target's answers to a cropper's crops a probability.

    Args:
        records: of readable validation items.
        target: its name.
        cropper: its name.
        metric: whose scores of a half or more are right answers.

    Returns:
        None where the cropper tells no confidence, or answers are all right or all wrong.
    """
    zooms, right = [], []
    for record in records:
        reply, sure = record["replies"][target][cropper], record.get("confidence", {}).get(cropper)
        score = score_of(record["replies"][target], cropper, metric)
        if sure is None or reply.get("failure") or np.isnan(score):
            continue
        margin = Reply(reply["text"], nats=reply.get("log_prob")).margin
        told = Zoom((), (), reply["text"], margin_with=margin, reply_probability=sure)
        zooms.append(told)
        right.append(score >= 0.5)
    try:
        return Calibration.fit(zooms, right)
    except ValueError as error:
        logging.warning("no calibration: %s", error)
        return None
