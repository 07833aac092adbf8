# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The threshold of the gate "target's own confidence", chosen on validation items.

A target that is unsure of its answer without a crop may need one: the gate shows a crop where the
log-probability of that answer is below a threshold. It is the rival that needs no training, so it
gets the best threshold of all: for each target and cropper the one with the best score on
validation items, and of equals the one with the fewest crops. The items that are reported have no
part in the choice.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cropvlm_jax.evals.best_scale import Validation, check_apart
from cropvlm_jax.evals.conditions import NO_CROP, Conditions
from cropvlm_jax.evals.croppers import Cropper
from cropvlm_jax.evals.items import check_answers
from cropvlm_jax.evals.registry import Benchmark
from cropvlm_jax.evals.study import Study
from cropvlm_jax.evals.tradeoffs import Outcomes
from cropvlm_jax.readers.base import LikelihoodReader, Reader, require_likelihoods

ALWAYS = 1.0  # is above every log-probability


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The thresholds that were chosen.

    Attributes:
        confident: names of the targets that can tell how likely their own answers are.
        values: log-probabilities in nats, by target and cropper; targets that tell none have none.
        told: how they were chosen: `n` items of `split` and the file of their `records`; or why the
            gate is `left_out`.
    """

    confident: tuple[str, ...]
    values: Mapping[str, Mapping[str, float]]
    told: Mapping[str, Any]


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
    return Thresholds(names, values, {"n": len(usable), "split": validation.split, "records": file})


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
