# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which metric is reported first, and which part of the data."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_evals import Guesser, Reader, choice, folder_source, run

from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.evals.conditions import NO_CROP, ORACLE
from cropvlm_jax.evals.registry import BENCHMARKS, OF_ANSWERS, SCORERS
from cropvlm_jax.readers.ocr import OCRReader

TEXTS = [name for name, benchmark in BENCHMARKS.items() if not benchmark.likelihood]


def ocr(read=lambda picture: "text") -> OCRReader:
    return OCRReader("fake", read, workers=1)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_first_metric_fits_every_kind_of_reader(name):
    benchmark = BENCHMARKS[name]
    assert benchmark.for_readers([Reader()]) is benchmark  # a VLM, a chat endpoint
    for readers in ([ocr()], [Reader(), ocr()], [ocr(), Reader()]):
        metrics = benchmark.for_readers(readers).metrics
        assert metrics[0] == (benchmark.metrics[0] if benchmark.likelihood else "contains")
        assert set(benchmark.metrics) <= set(metrics) and len(set(metrics)) == len(metrics)
        assert set(metrics) <= set(SCORERS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_any_metric_that_makes_sense_can_be_first(name):
    benchmark = BENCHMARKS[name]
    for metric in SCORERS:
        if metric in benchmark.metrics or (not benchmark.likelihood and metric in OF_ANSWERS):
            chosen = benchmark.with_metric(metric)
            assert chosen.metrics[0] == metric and set(benchmark.metrics) <= set(chosen.metrics)
        else:
            with pytest.raises(ValueError, match=f"--metric={metric}.*{benchmark.metrics[0]}"):
                benchmark.with_metric(metric)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("metric", ["contains", "exact", "anls", "vqa_official"])
def test_items_of_every_benchmark_can_be_scored_by_it(tmp_path, name, metric):
    source = folder_source(tmp_path, [choice(0, cycle_category="0"), choice(1, cycle_category="0")])
    results, records = run(tmp_path, source, name, metric=metric)
    assert next(iter(results["protocol"]["metrics"])) == metric
    assert set(records[0]["replies"]["reader"][NO_CROP]["scores"]) >= {metric}


def receipts(tmp_path):
    """Pictures with a word in the true box, and more words around it."""
    rows = []
    for i in range(8):
        picture = np.full((40, 60, 3), 10, np.uint8)
        picture[10:20, 15:30] = 100 + i
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        rows.append(
            {
                "example_id": f"item{i}",
                "image": str(tmp_path / f"{i}.png"),
                "question": "Total?",
                "answers": [f"word {100 + i}"],
                "box": (25, 25, 50, 50),
            }
        )
    return folder_source(tmp_path, rows)


@pytest.mark.parametrize("name", ["jsonl", "zoom_digits", "sroie", "pdfs", "docvqa", "textvqa"])
def test_an_ocr_reader_is_not_called_wrong_for_reading_everything(tmp_path, name):
    def read(picture):
        values = np.unique(picture)
        few = picture.shape[0] < 20  # print is read only where it is large
        return "header\n" + " ".join(f"word {v}" for v in values if few or v < 50)

    results, _ = run(tmp_path, receipts(tmp_path), name, readers=[ocr(read)])
    assert next(iter(results["protocol"]["metrics"])) == "contains"
    assert results["accuracy"][ORACLE] == 1 and results["accuracy"][NO_CROP] == 0
    scores = results["targets"]["fake"]["scores"]
    assert scores["contains"][ORACLE]["gain"] == 1
    asked, _ = run(tmp_path, receipts(tmp_path), name, readers=[ocr(read)], metric="exact")
    assert asked["accuracy"][ORACLE] == 0  # as was asked for


def test_the_scale_is_chosen_by_the_metric_that_is_reported(tmp_path):
    from cropvlm_jax.evals.best_scale import Validation

    validation = Validation("validation", ZoomDigits("validation", 9), 9)
    options = {"readers": [ocr(lambda picture: f"a {picture[0, 0, 0] % 10}")], "limit": 3}
    results, _ = run(tmp_path, ZoomDigits("test", 9), validation=validation, **options)
    assert results["best_scale"]["validation"]["metric"] == "contains"


def line(i: int, split: str) -> str:
    row = {"image": f"{i}.png", "question": f"Which of {split}?", "answers": ["red"]}
    return json.dumps(row) + "\n"


@pytest.mark.parametrize("split", ["train", "val", "test", "mine"])
def test_the_split_of_ones_own_files(tmp_path, split):
    receipts(tmp_path)
    for name in ("train", "val", "test", "mine"):
        (tmp_path / f"{name}.jsonl").write_text(line(0, name) + line(1, name))
    source = BENCHMARKS["jsonl"].open(tmp_path, 0, split)
    results, records = run(tmp_path / "out", source, "jsonl", split=split)
    assert results["protocol"]["split"] == split
    assert {record["question"] for record in records} == {f"Which of {split}?"}


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("split", ["tset", ""])
def test_a_split_that_is_not_there_says_which_are(tmp_path, name, split):
    (tmp_path / "train.jsonl").write_text(line(0, "train"))
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4")
    there = {"zoom_digits": "validation", "jsonl": "train.jsonl", "vstar": "'test'"}
    there |= {"vstar_likelihood": "'test'", "hrbench_4k": "'test'", "hrbench_8k": "'test'"}
    with pytest.raises((ValueError, FileNotFoundError), match=there.get(name, "train, val")):
        BENCHMARKS[name].open(tmp_path, 0, split)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_split_of_scenes(tmp_path, split):
    source = BENCHMARKS["zoom_digits"].open(None, 0, split)
    results, records = run(tmp_path, source, croppers={"a": Guesser()}, limit=2, split=split)
    assert results["protocol"]["split"] == split
    assert all(record["example_id"].startswith(f"zoom_digits/{split}/") for record in records)
