# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Replies of none to several boxes: what looking costs, when it pays, and who says so."""

import json

import jax
import numpy as np
import pytest
from tiny_evals import Guesser, Looker, Reader, SureReader, run, without_seconds

from cropvlm_jax import parallel
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.data.sources.zoom_digits_looks import MixedScenes
from cropvlm_jax.evals import shares, study
from cropvlm_jax.evals.best_scale import Validation
from cropvlm_jax.evals.conditions import CENTRE, NO_CROP, ORACLE, RANDOM, Conditions, boxes_of
from cropvlm_jax.evals.gates import best_threshold
from cropvlm_jax.evals.records import open_records
from cropvlm_jax.evals.tradeoffs import (
    CONFIDENCE_GATE,
    GATES,
    ORACLE_GATE,
    Outcomes,
    aurcs,
    confidence_gate,
    gate_of,
    oracle_gate,
    surer_answer,
)


def outcomes(score, crops=None, sure=None, seconds=1.0):
    score = np.array(score, float)
    crops = np.zeros(len(score), int) if crops is None else np.array(crops)
    sure = np.zeros(len(score)) if sure is None else np.array(sure, float)
    return Outcomes(score, crops, 16.0 * crops, 16.0 * (1 + crops), sure, seconds)


def test_the_area_under_a_risk_coverage_curve_by_hand():
    apart = np.arange(4)
    (area, *resampled) = aurcs(np.array([9, 8, 7, 6.0]), np.array([1, 1, 0, 1.0]), apart)
    assert area == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)
    assert len(resampled) == 2000 and np.std(resampled) > 0
    # Items that no confidence orders may come in any order: the risk is their mean throughout.
    same = aurcs(np.zeros(4), np.array([1, 1, 0, 1.0]), apart)
    assert same[0] == pytest.approx(1 / 4)
    unscored = aurcs(np.array([9, 8, 7, 6.0]), np.array([1, np.nan, 0, 1]), apart)
    assert unscored[0] == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    assert np.isnan(aurcs(np.zeros(2), np.full(2, np.nan), np.arange(2))).all()


def test_the_area_of_items_that_nothing_orders_is_their_risk():
    rng = np.random.default_rng(0)
    score, sure = rng.integers(0, 2, 400).astype(float), rng.random(400)
    areas = aurcs(sure, score, np.arange(400))
    assert areas[0] == pytest.approx(1 - score.mean(), abs=0.06)
    low, high = np.percentile(areas[1:], [2.5, 97.5])
    assert low < areas[0] < high
    best = aurcs(score, score, np.arange(400))
    risk = 1 - score.mean()
    # Of perfect confidence: r + (1 - r) ln(1 - r), r the risk of all.
    assert best[0] == pytest.approx(risk + (1 - risk) * np.log(1 - risk), abs=0.005)


def test_gates_by_hand():
    alone = outcomes([1, 1, 0, 0], sure=[-0.1, -2, -1, -3], seconds=1.0)
    crop = outcomes([1, 0, 1, 0], crops=[1, 1, 1, 0], sure=[-0.5] * 4, seconds=3.0)
    oracle = oracle_gate(crop, alone)
    assert oracle.score.tolist() == [1, 1, 1, 0] and oracle.crops.tolist() == [0, 0, 1, 0]
    assert oracle.image_tokens.tolist() == [16, 16, 32, 16] and oracle.seconds == 1.5
    gate = confidence_gate(crop, alone, -0.5)
    assert gate.score.tolist() == [1, 0, 1, 0] and gate.crops.tolist() == [0, 1, 1, 0]
    assert gate.crop_tokens.tolist() == [0, 16, 16, 0]
    assert gate.image_tokens.tolist() == [16, 48, 48, 32]  # the picture alone is read first
    assert gate.seconds == 1 + 3 * 3 / 4 and gate.sure.tolist() == [-0.1, -0.5, -0.5, -0.5]
    surer = surer_answer(crop, alone)
    assert surer.score.tolist() == [1, 0, 1, 0] and surer.sure.tolist() == [-0.1, -0.5, -0.5, -0.5]
    assert surer.crops.tolist() == [1, 1, 1, 0] and surer.seconds == 3 + 3 / 4
    assert surer.image_tokens.tolist() == [48, 48, 48, 16]


@pytest.mark.parametrize(
    ("gains", "sure", "shown"),
    [
        ([1, 1, 0, 0], [-4, -3, -2, -1], 2),  # no more crops than are worth it
        ([-1, -1, -1, -1], [-4, -3, -2, -1], 0),
        ([0, 0, 0, 1], [-4, -3, -2, -1], 4),
        ([1, np.nan, -1, -1], [-np.inf, -3, -2, -1], 2),  # no answer: as unsure as can be
    ],
)
def test_the_threshold_has_the_best_score_and_of_equals_the_fewest_crops(gains, sure, shown):
    alone, crop = outcomes(np.full(4, 0.5), sure=sure), outcomes(0.5 + np.array(gains) / 2)
    threshold = best_threshold(alone, crop)
    assert (alone.sure < threshold).sum() == shown


def test_controls_have_as_many_boxes_as_the_reply():
    known = {"one": [0, 0, 50, 50], "last": [[10, 10, 20, 30], [50, 50, 90, 80]], ORACLE: []}
    boxes = Conditions(("one", "last"), (4.0,), best_scale=4.0).boxes(3, known)
    assert boxes["one"] == [0, 0, 50, 50] and boxes["one x4"] == [0, 0, 100, 100]
    assert boxes["one_best_scale"] == [0, 0, 100, 100] and boxes["oracle x4"] == []
    assert boxes_of(boxes["last x4"])[1][2:] == [100, 95]
    for control in (CENTRE, RANDOM):
        sides = [np.subtract(box[2:], box[:2]).tolist() for box in boxes[control]]
        assert sides == [[10, 20], [40, 30]]
    none = Conditions(("last",)).boxes(0, {"last": []})
    assert none == {CENTRE: [], RANDOM: [], "last": []}


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """An evaluation of a cropper of one box and one of none to two, and all that it is made of."""
    out, reader = tmp_path_factory.mktemp("looks"), SureReader()
    options = {
        "name": "zoom_digits_mixed",
        "croppers": {"always": Guesser(), "looks": Looker()},
        "validation": Validation("validation", MixedScenes("validation", 20), 20),
        "limit": 40,
    }
    results, records = run(out, MixedScenes("test", 40), readers=[reader], **options)
    return out, options, results, records, reader


def test_no_crop_is_asked_once_and_every_crop_is_shown(evaluation):
    _, _, results, records, reader = evaluation
    for record in records:
        replies, boxes = record["replies"]["reader"], record["boxes"]
        assert np.shape(boxes["always"]) == (4,)
        assert len(boxes["looks"]) == round(1 / record["confidence"]["looks"]) - 1
        if not boxes["looks"]:
            assert replies["looks"] == replies[NO_CROP]
        tokens = record["image_tokens"]
        shown = [tokens[f"answer/reader/{name}"] for name in (NO_CROP, "looks", ORACLE)]
        assert shown == [1, 1 + len(boxes["looks"]), 1 + len(boxes[ORACLE])]
        assert replies["looks"]["log_prob"] == round(-1 / (1 + int(replies["looks"]["text"])), 4)
    assert {len(record["boxes"]["looks"]) for record in records} == {0, 1, 2}
    assert max(reader.shown) == 3
    assert sum(len(record["boxes"][ORACLE]) == 0 for record in records) > 5
    protocol = results["protocol"]["croppers"]
    assert protocol["looks"] == {"kind": "Looker", "max_boxes": 2, "abstain": True}
    assert protocol["always"] == {"kind": "Guesser"}


def test_figures_by_condition_and_gate(evaluation):
    _, _, results, records, _ = evaluation
    found = results["tradeoffs"]["reader"]
    rows, scores = found["conditions"], results["targets"]["reader"]["scores"]["exact"]
    gates = [gate_of(n, g) for n in ("always", "looks") for g in GATES]
    assert list(rows) == [NO_CROP, "always", "looks", ORACLE, *gates]
    counts = np.array([len(record["boxes"]["looks"]) for record in records])
    assert rows["looks"]["crops"] == rows["looks"]["crop_tokens"] == counts.mean()
    assert rows["looks"]["image_tokens"] == 1 + counts.mean()
    assert rows["looks"]["no_crop_rate"] == (counts == 0).mean()
    assert (rows[NO_CROP]["crops"], rows[NO_CROP]["no_crop_rate"]) == (0, 1)
    assert (rows["always"]["crops"], rows["always"]["no_crop_rate"]) == (1, 0)
    for name in ("always", "looks", ORACLE):
        assert rows[name]["score"] == scores[name]["score"]
        assert rows[name]["harm_rate"] == pytest.approx(scores[name]["harmed"] / 40)
        assert rows[name]["rescue_rate"] == pytest.approx(scores[name]["rescued"] / 40)
    oracle = rows[gate_of("always", ORACLE_GATE)]
    assert oracle["harm_rate"] == 0 and oracle["rescue_rate"] == rows["always"]["rescue_rate"]
    assert oracle["crop_tokens"] == pytest.approx(oracle["rescue_rate"])
    assert found["ordered_by"] == "target" and results["gates"]["n"] == 20
    assert rows["looks"]["aurc_lead"] == 0 and len(rows["looks"]["risks"]) == 100
    low, high = rows["always"]["aurc_interval"]
    assert low < rows["always"]["aurc"] < high
    assert rows["always"]["risks"][-1] == pytest.approx(1 - rows["always"]["score"])
    levels = found["levels"]["always"]
    assert levels["score"][0] == rows[NO_CROP]["score"]
    assert levels["score"][-1] == rows["always"]["score"] and levels["crops"][-1] == 1
    assert rows["looks"]["seconds"] > 0 and rows[ORACLE]["seconds"] is None
    assert results["calibration"]["answers"] == 20
    json.loads(json.dumps(results, allow_nan=False))


def test_it_goes_on_and_two_processes_record_the_same(evaluation, monkeypatch, tmp_path):
    out, options, results, records, _ = evaluation
    reader = SureReader()
    again, _ = run(out, MixedScenes("test", 40), readers=[reader], **options)
    assert without_seconds(again) == without_seconds(results) and not reader.asked

    for module in (shares, study):
        monkeypatch.setattr(module, "CHUNK", 8)
    source, few = MixedScenes("test", 40), options | {"limit": 16, "validation": Validation()}
    expected, alone = run(tmp_path / "alone", source, readers=[SureReader()], **few)
    path = tmp_path / expected["records"]
    with open_records(path, expected["protocol"]):
        pass
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(parallel, "gather", lambda rows: rows)  # waits for nobody
    for process in (1, 0):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        try:
            together, found = run(tmp_path, source, readers=[SureReader()], **few)
        except ValueError as error:
            assert process == 1 and "there is no result" in str(error)  # process 0 gathers them
    rows = [[without_seconds(row) for row in each] for each in (found, alone)]
    assert rows[0] == rows[1]
    assert without_seconds(together["targets"]) == without_seconds(expected["targets"])


def test_each_budget_is_a_condition(tmp_path):
    croppers = {f"looks {name}": Looker(budget=name) for name in ("low", "high")}
    results, records = run(
        tmp_path, ZoomDigits("test", 9), readers=[SureReader()], croppers=croppers
    )
    rows = results["tradeoffs"]["reader"]["conditions"]
    assert rows["looks low"]["no_crop_rate"] == 1 and rows["looks high"]["no_crop_rate"] < 1
    assert results["protocol"]["croppers"]["looks low"]["budget"] == "low"
    assert results["gates"] == {"left_out": "no validation items were given"}
    assert gate_of("looks low", CONFIDENCE_GATE) not in rows
    assert all(record["boxes"]["looks low"] == [] for record in records)


def test_targets_without_likelihoods_are_ordered_by_the_cropper(tmp_path):
    results, _ = run(tmp_path, ZoomDigits("test", 9), croppers={"looks": Looker()})
    found = results["tradeoffs"]["reader"]
    assert found["ordered_by"] == "cropper" and found["conditions"]["looks"]["aurc"] > 0
    assert found["conditions"][NO_CROP]["aurc"] is None and not found["thresholds"]
    assert results["gates"] == {"left_out": "no target tells how likely its answers are"}


def test_one_box_costs_what_it_did_unless_asked(tmp_path):
    source, readers = ZoomDigits("test", 9), [SureReader()]
    plain, records = run(tmp_path, source, readers=readers)
    assert not {"tradeoffs", "gates"} & {*plain} and "confidence" not in records[0]
    assert "tradeoffs" not in plain["protocol"]
    told, more = run(tmp_path, source, readers=readers, costs=True)
    assert told["accuracy"] == plain["accuracy"] and told["boxes"] == plain["boxes"]
    assert "log_prob" in more[0]["replies"]["reader"]["last"]
    assert told["tradeoffs"]["reader"]["conditions"]["last"]["aurc"] is not None


class OnePicture(Reader):
    most_pictures = 2


def test_a_target_of_too_few_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="takes 2 pictures a question, and looks shows it up to 3"):
        run(tmp_path, ZoomDigits("test", 2), readers=[OnePicture()], croppers={"looks": Looker()})
