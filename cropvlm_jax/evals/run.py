# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What croppers win for frozen targets on a benchmark, with the controls that put it in proportion.

Every item is answered without a crop and with crops of several makes, all cut from the original
pixels: these are the conditions. A line of JSON an item is appended to a file of records, so that
an evaluation that was killed goes on where it stopped; the results are computed from the records.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cropvlm_jax.evals import gates
from cropvlm_jax.evals.best_scale import BestScale, Validation, choose_scale
from cropvlm_jax.evals.conditions import CONTROLS, Conditions, best_scale_of, sorted_expansions
from cropvlm_jax.evals.croppers import Cropper, most_boxes, varies
from cropvlm_jax.evals.items import check_answers
from cropvlm_jax.evals.records import Record
from cropvlm_jax.evals.registry import BENCHMARKS
from cropvlm_jax.evals.shares import by_process
from cropvlm_jax.evals.statistics import summarise, throughput
from cropvlm_jax.evals.study import Study
from cropvlm_jax.evals.tradeoffs import tradeoffs
from cropvlm_jax.readers.base import Reader, require_likelihoods

NO_VALIDATION = Validation()


def evaluate(
    name: str,
    source: Any,
    targets: Sequence[Reader],
    croppers: Mapping[str, Cropper],
    out: str | os.PathLike,
    *,
    expansions: Sequence[float] = (),
    limit: int | None = None,
    seed: int = 0,
    validation: Validation = NO_VALIDATION,
    split: str | None = None,
    metric: str | None = None,
    costs: bool | None = None,
) -> dict[str, Any]:
    """Answers the items of a benchmark under all conditions.

    Conditions are `CONTROLS`, each cropper's box by its name, these boxes and the true one
    expanded, such as "sft x4", and, where there are two croppers and validation items, the first
    one's box at its best scale, such as "sft_best_scale". Records are appended to
    `{name}.{digest}.jsonl`, whose digest is of the protocol and the models' weights: the same call
    goes on, another one begins anew. Several processes that `parallel.joined` has joined share the
    items; all of them call this alike, and get the same results.

    Args:
        name: of the benchmark, one of `BENCHMARKS`.
        source: its items, from `Benchmark.open`.
        targets: answer; of different names; the one to report first.
        croppers: by name; the one to compare with first, the one to report last.
        out: folder for the records, which all processes see.
        expansions: factors of the boxes' areas besides 1.
        limit: only the first items.
        seed: of the random crops.
        validation: other items, on which the best scale and the thresholds of gates are chosen.
        split: the part of the data set that `source` is; None is the benchmark's own.
        metric: the one to report first, one of `Benchmark.possible_metrics`; None takes the
            benchmark's own, or one that is fair to all targets, as `Benchmark.for_readers` says.
        costs: whether results also tell what looking costs and when it pays; None does where a
            cropper may say none or several boxes.

    Returns:
        What `summarise` returns, with `records`, the name of their file, `throughput`, in
        `best_scale` how that was chosen, and with `costs` `tradeoffs` and how `gates` were chosen.

    Raises:
        ValueError: there is no cropper, names are not unique or are taken, an item has no answers,
            a target lacks likelihoods that the benchmark is about or takes fewer pictures than a
            cropper shows, or replies cannot be scored by `metric`.
        OSError: another command works on the same evaluation, or a process of this one has failed.
        ReaderUnavailable: a target answers nothing; what was answered before is in the records.
    """
    _check(name, targets, croppers)
    benchmark = BENCHMARKS[name]
    benchmark = benchmark.with_metric(metric) if metric else benchmark.for_readers(targets)
    total = len(source) if limit is None else min(limit, len(source))
    check_answers(source, total)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    best = choose_scale(name, benchmark, targets, croppers, source, validation, out)
    conditions = Conditions(
        croppers=tuple(croppers),
        expansions=sorted_expansions(expansions),
        seed=seed,
        best_scale=best.factor,
    )
    costs = any(map(varies, croppers.values())) if costs is None else costs
    choice = gates.NOTHING
    if costs:
        choice = gates.choose_thresholds(
            name, benchmark, targets, croppers, source, validation, out
        )
    study = Study(name, benchmark, targets, croppers, conditions, costs, choice.confident)
    protocol = study.protocol(source, split or benchmark.split) | {
        "best_scale": dict(best.protocol)
    }
    file, records = study.collect(source, total, out, name, protocol)
    results = _results(protocol, records, best, choice if costs else None)
    return results | {"records": file}


def _results(
    protocol: Mapping[str, Any],
    records: Sequence[Record],
    best: BestScale,
    choice: gates.Thresholds | None,
) -> dict[str, Any]:
    """The results of the records, without the name of their file.

    Args:
        protocol: of the records.
        records: of all items.
        best: the scale of the first cropper's boxes.
        choice: the thresholds of gates; None where nothing is said of what looking costs.
    """
    results = summarise(protocol, records)
    results["best_scale"] |= {"validation": dict(best.validation)} if best.validation else {}
    if choice is not None:
        results["tradeoffs"] = tradeoffs(protocol, records, choice.values)
        results["gates"] = dict(choice.told)
        if choice.calibration is not None:
            results["calibration"] = dataclasses.asdict(choice.calibration)
    return results | {"throughput": throughput(by_process(records), jax.device_count())}


def _check(name: str, targets: Sequence[Reader], croppers: Mapping[str, Cropper]) -> None:
    """Refuses targets and croppers that the benchmark `name` cannot be answered with."""
    if not croppers or not targets:
        raise ValueError("an evaluation takes at least one cropper and one target")
    names = [target.name for target in targets]
    if len(set(names)) < len(names):
        raise ValueError(f"targets need different names, got {', '.join(names)}")
    controls = {*CONTROLS, best_scale_of(next(iter(croppers)))}
    if taken := set(croppers) & controls:
        raise ValueError(f"croppers cannot be named {', '.join(sorted(taken))}: these are controls")
    for target in targets:
        for cropper, model in croppers.items():
            _check_pictures(target, cropper, 1 + most_boxes(model))
        if BENCHMARKS[name].likelihood:
            try:
                require_likelihoods(target)
            except ValueError as error:
                raise ValueError(f"{name} is about likelihoods: {error}") from error


def _check_pictures(target: Reader, cropper: str, shown: int) -> None:
    """Refuses a target that takes fewer pictures than a cropper shows it."""
    most = getattr(target, "most_pictures", shown)
    if most < shown:
        raise ValueError(
            f"{target.name} takes {most} pictures a question, and {cropper} shows it up to "
            f"{shown}, the picture and {shown - 1} crops: use a cropper of fewer boxes or another "
            "target"
        )
