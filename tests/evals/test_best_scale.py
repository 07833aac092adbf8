# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The control that scales the first cropper's boxes, by a factor chosen on validation items."""

import json
import logging

import numpy as np
import pytest
from tiny_evals import (
    Guesser,
    Reader,
    choice,
    folder_source,
    questions,
    run,
    without_seconds,
)

from cropvlm_jax import geometry
from cropvlm_jax.apps import evaluate as app
from cropvlm_jax.data.source import Source
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.evals import best_scale
from cropvlm_jax.evals.best_scale import FACTORS, Validation, best_factor, open_validation
from cropvlm_jax.evals.records import read_records
from cropvlm_jax.evals.registry import BENCHMARKS
from cropvlm_jax.readers.base import ReaderUnavailable, Reply

COUNT = 40
VALIDATION = Validation("validation", ZoomDigits("validation", 1000), COUNT)


class LikesSize:
    """Answers right where the crop has about as many pixels as it likes, and keeps what it saw."""

    name = "likes size"

    def __init__(self, pixels: float, failure: str = ""):
        self.pixels, self.failure, self.shown = pixels, failure, []

    def answer(self, images, questions):
        self.shown += [pictures[0] for pictures in images]
        if self.failure:
            return [Reply("", self.failure) for _ in questions]
        sizes = [pictures[-1].size / 3 for pictures in images]
        return [Reply("7" if abs(np.log(size / self.pixels)) < 0.2 else "no") for size in sizes]


class Sevens:
    """Scenes whose answer is always seven."""

    def __init__(self, split: str):
        self.scenes = ZoomDigits(split, 1000)

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        return self.scenes[index] | {"answers": ["7"]}

    @property
    def fingerprint(self):
        return f"sevens {self.scenes.fingerprint}"


def pixels_of(factor: float) -> float:
    """Of the guesser's boxes of 20 by 30 percent, their areas times `factor`."""
    return 512 * 512 * 0.06 * factor


@pytest.mark.parametrize("factor", [0.25, 1.0, 2.0])
def test_the_factor_is_the_best_on_validation_and_reported_items_have_no_part(tmp_path, factor):
    reader, validation = (
        LikesSize(pixels_of(factor)),
        Validation("validation", Sevens("validation"), 9),
    )
    results, records = run(
        tmp_path, Sevens("test"), readers=[reader], limit=5, validation=validation
    )
    best = results["best_scale"]
    assert best["chosen_scale"] == factor and best["condition"] == "first_best_scale"
    assert best["cropper"] == "first" and best["split"] == "validation"
    assert best["validation"]["n"] == 9
    scores = best["validation"]["scores"]
    assert list(scores) == [f"{f:g}" for f in FACTORS]
    assert scores[f"{factor:g}"] == 1 and sum(scores.values()) < 2.5
    assert results["protocol"]["best_scale"]["chosen_scale"] == factor
    names = ["no_crop", "centre", "random", "upscaled", "first", "first_best_scale", "last"]
    assert list(results["accuracy"]) == [*names, "oracle"]
    for record in records:
        scaled = geometry.expand(np.array(record["boxes"]["first"]), factor)
        assert record["boxes"]["first_best_scale"] == scaled.tolist()

    # The pictures that chose were those of the validation scenes: all factors of 9 items.
    count = questions(read_records(tmp_path / best["validation"]["records"]), controls=False)
    chose = reader.shown[:count]
    scenes = [Sevens("validation")[i]["image"] for i in range(9)]
    assert all(any(np.array_equal(picture, scene) for scene in scenes) for picture in chose)
    seen = reader.shown[count:]
    assert 9 * len(FACTORS) / 2 < count and len(seen) == questions(records)
    assert not any(np.array_equal(seen[0], scene) for scene in scenes)
    row = results["targets"][reader.name]["scores"]["exact"]["first_best_scale"]
    assert (best["score"], best["lead"]) == (row["score"], row["lead"])
    assert best["lead"] == results["accuracy"]["last"] - results["accuracy"]["first_best_scale"]
    assert best["lead_interval"] == row["lead_interval"]


def test_of_equal_scores_the_factor_nearest_to_1_and_then_the_smaller_is_taken():
    assert best_factor(dict.fromkeys(FACTORS, 0.3)) == 1
    assert best_factor({0.5: 0.3, 1.0: 0.2, 2.0: 0.3}) == 0.5
    assert best_factor({0.25: 0.3, 1.0: 0.2, 2.0: 0.3}) == 2
    assert best_factor({0.25: 0.31, 1.0: 0.2, 2.0: 0.3}) == 0.25


def test_a_choice_that_was_cut_short_goes_on_and_is_not_made_twice(tmp_path):
    source, short = ZoomDigits("test", 5), Validation("validation", VALIDATION.source, 10)
    run(tmp_path, source, validation=short)
    reader = Reader()
    results, _ = run(tmp_path, source, readers=[reader], validation=VALIDATION)
    again = reader.asked
    file = tmp_path / results["best_scale"]["validation"]["records"]
    assert file.name.startswith("zoom_digits_validation.")
    assert len(file.read_text().splitlines()) == 1 + COUNT
    same, _ = run(tmp_path, source, readers=[reader], validation=VALIDATION)
    assert reader.asked == again and same == results
    fresh, _ = run(tmp_path / "fresh", source, validation=VALIDATION)
    assert without_seconds(fresh) == without_seconds(results)
    # Another last cropper is compared with the same control.
    before = file.read_text()
    croppers = {"first": Guesser(), "other": Guesser()}
    run(tmp_path, source, readers=[reader], croppers=croppers, validation=VALIDATION)
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("validation", "croppers", "reason"),
    [
        (Validation(), ("first", "last"), "no validation items were given"),
        (VALIDATION, ("first",), "one cropper"),
        (Validation(left_out="it was not asked for"), ("first", "last"), "not asked for"),
    ],
)
def test_where_there_is_nothing_to_choose_on_the_protocol_says_so(
    tmp_path, validation, croppers, reason
):
    croppers = {name: Guesser() for name in croppers}
    results, records = run(
        tmp_path, ZoomDigits("test", 3), croppers=croppers, validation=validation
    )
    assert reason in results["protocol"]["best_scale"]["left_out"]
    assert not any("best_scale" in name for name in records[0]["boxes"])
    assert len(list(tmp_path.iterdir())) == 1


def test_where_nobody_answers_validation_items_the_evaluation_ends(tmp_path):
    reader = LikesSize(1, failure="timeout: 3 s")
    with pytest.raises(
        ReaderUnavailable,
        match=rf"said nothing in {32 * len(FACTORS)} replies.*timeout.*validation",
    ):
        run(tmp_path, ZoomDigits("test", 2), readers=[reader], validation=VALIDATION)


def test_items_that_are_reported_are_refused(tmp_path):
    source = ZoomDigits("test", 5)
    with pytest.raises(ValueError, match="are the items that are reported"):
        run(tmp_path, source, validation=Validation("test", source))
    rows = [choice(i) for i in range(6)]
    rows = list(folder_source(tmp_path, rows).rows)
    with pytest.raises(ValueError, match="2 validation items are also reported"):
        validation = Validation("val", Source("val", rows[2:], str))
        run(tmp_path, Source("test", rows[:4], str), "jsonl", validation=validation)
    with pytest.raises(ValueError, match="these are controls"):
        run(tmp_path, source, croppers={"a": Guesser(), "a_best_scale": Guesser()})


def test_the_validation_split_of_a_benchmark(tmp_path, caplog):
    reported = BENCHMARKS["zoom_digits"].open(None, 3)
    opened = open_validation("zoom_digits", reported, None, 3)
    assert (opened.source.split, opened.source.seed) == ("validation", 3)
    assert (opened.split, opened.limit) == ("validation", 500)
    train = open_validation("zoom_digits", reported, None, split="train", limit=7)
    assert train.source.split == "train" and train.limit == 7
    assert open_validation("zoom_digits", reported, None, limit=0).left_out
    with pytest.raises(ValueError, match="reported"):
        open_validation("zoom_digits", reported, None, 3, split="test")
    assert "no validation split" in open_validation("vstar", reported, tmp_path).left_out
    for benchmark in BENCHMARKS.values():
        assert benchmark.validation != benchmark.split

    # Files of one's own: without a validation file, and one file for all splits.
    folder_source(tmp_path, [choice(0)])
    line = json.dumps({"image": "item0.png", "question": "Which?", "answer": "red"}) + "\n"
    (tmp_path / "test.jsonl").write_text(line)
    (tmp_path / "all.jsonl").write_text(line)
    for folder in (tmp_path, tmp_path / "all.jsonl"):
        reported = BENCHMARKS["jsonl"].open(folder)
        with caplog.at_level(logging.WARNING):
            assert "'val' is not there" in open_validation("jsonl", reported, folder).left_out
        with pytest.raises((FileNotFoundError, ValueError)):
            open_validation("jsonl", reported, folder, split="val")
    (tmp_path / "val.jsonl").write_text(line.replace("Which?", "What?"))
    reported = BENCHMARKS["jsonl"].open(tmp_path)
    assert len(open_validation("jsonl", reported, tmp_path).source) == 1


def test_unreadable_pictures_have_no_part_in_the_choice(tmp_path):
    rows = [choice(i) for i in range(4)]
    source = folder_source(tmp_path, rows)
    broken = [row | {"question": f"Again {row['question']}"} for row in source.rows]
    broken[1] = broken[1] | {"image": str(tmp_path / "missing.png")}
    validation = Validation("val", Source("val", broken, str))
    results, _ = run(tmp_path, source, "jsonl", validation=validation)
    assert results["best_scale"]["validation"]["n"] == 3
    assert results["best_scale"]["chosen_scale"] == 1  # the reader is never right: all are equal


def test_the_table_tells_the_lead_over_the_control(tmp_path):
    results, _ = run(tmp_path, ZoomDigits("test", 40), validation=VALIDATION)
    printed = app.table(results)
    best = results["best_scale"]
    (line,) = [line for line in printed.splitlines() if line.startswith("lead of last over")]
    assert f"{best['lead']:+.1%}" in line and f"x{best['chosen_scale']:g}" in line
    assert f"chosen on {COUNT} items of validation" in line
    assert "first_best_scale  " in printed
    results, _ = run(tmp_path, ZoomDigits("test", 40))
    assert "no validation items were given" in app.table(results)


def test_the_grid_is_the_documented_one():
    assert FACTORS == (0.02, 0.04, 0.08, 0.16, 0.25, 0.35, 0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0)
    assert FACTORS[0] <= 1 / max(geometry.QUINTILE_FACTORS)
    assert best_scale.ITEMS == 500
