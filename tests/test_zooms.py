# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Replies of no box and of several from Python: crops, answers, how sure the target is of them."""

import dataclasses
import math

import numpy as np
import pytest
from absl import app

from cropvlm_jax import CropVLM, Zoom, geometry
from cropvlm_jax.api import Reply as Boxes
from cropvlm_jax.apps import budget_flag
from cropvlm_jax.hub.pretrained import BUNDLED, Pretrained
from cropvlm_jax.hub.replies import Replies
from cropvlm_jax.readers.base import Likelihood, Reply
from cropvlm_jax.readers.vlm import VLMReader

PICTURE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
ONE, TWO = (10, 20, 60, 80), (50, 0, 100, 50)
SEVERAL = Replies(max_boxes=2, abstain=True)
SAID = [Boxes((), 0.5), Boxes((ONE,), 0.25), Boxes((ONE, TWO), 0.125)]


class Counter:
    """Says how many pictures it is shown."""

    name = "counter"

    def __init__(self):
        self.asked = []

    def answer(self, images, questions):
        self.asked += images
        return [Reply(str(len(shown))) for shown in images]


class Sure(Counter):
    """Tells how likely its answers are, by the number of pictures; it refuses two questions."""

    name = "sure"
    nats = {1: -0.5, 2: -0.1, 3: -2.0}

    def check_likelihoods(self):
        pass

    def likelihoods(self, images, questions, answers):
        assert answers == [str(len(shown)) for shown in images]
        return [Likelihood(self.nats[len(shown)], 1) for shown in images]


def model_of(target, replies=SEVERAL):
    source = dataclasses.replace(Pretrained.open(BUNDLED / "zoom_digits/cropper"), replies=replies)
    return CropVLM(source, source.load(), 64, target)


@pytest.fixture
def model(monkeypatch):
    """In front of a counter: it replies with no box, one and two."""
    model = model_of(Counter())
    monkeypatch.setattr(model, "replies", lambda images, questions: SAID[: len(images)])
    return model


def test_crops_of_no_box_one_and_two(model):
    zooms = model.zoom([PICTURE] * 3, "What?")
    assert [zoom.boxes for zoom in zooms] == [(), (ONE,), (ONE, TWO)]
    assert [zoom.box for zoom in zooms] == [None, ONE, ONE]
    assert [zoom.confidence for zoom in zooms] == [0.5, 0.25, 0.125]
    assert zooms[0].crop is None and zooms[0].crops == ()
    for box, crop in zip((ONE, TWO), zooms[2].crops, strict=True):
        left, top, right, bottom = geometry.to_pixels(np.array(box), np.array([60, 80]))
        np.testing.assert_array_equal(crop, PICTURE[top:bottom, left:right])
    assert zooms[2].crop is zooms[2].crops[0]
    assert [zoom.answer for zoom in zooms] == ["1", "2", "3"]
    assert [zoom.answer_without_crop for zoom in zooms] == ["1"] * 3
    assert len(model.target.asked) == 3 + 2  # what needs no crop is asked once
    assert all(zoom.margin_with is zoom.margin_without is None and zoom.kept for zoom in zooms)
    model.target.asked.clear()
    alone = model.zoom([PICTURE] * 3, "What?", compare=False)
    assert [zoom.answer for zoom in alone] == ["1", "2", "3"] and len(model.target.asked) == 3
    assert all(zoom.answer_without_crop is None for zoom in alone)
    model.target = None
    assert [(zoom.boxes, zoom.answer) for zoom in model.zoom([PICTURE], "?")] == [((), None)]


@pytest.mark.parametrize("compare", [True, False])
def test_the_answer_that_the_target_is_surer_of_is_kept(model, compare):
    model.target = Sure()
    zooms = model.zoom([PICTURE] * 3, "What?", compare=compare, keep_if_surer=True)
    assert [zoom.answer for zoom in zooms] == ["1", "2", "1"]
    assert [zoom.kept for zoom in zooms] == [True, True, False]
    assert zooms[2].boxes == (ONE, TWO) and len(zooms[2].crops) == 2
    odds = {n: nats - math.log(1 - math.exp(nats)) for n, nats in Sure.nats.items()}
    margins = [(zoom.margin_with, zoom.margin_without) for zoom in zooms[1:]]
    assert margins == [pytest.approx((odds[2], odds[1])), pytest.approx((odds[3], odds[1]))]
    assert [zoom.answer_without_crop for zoom in zooms] == ["1" if compare else None, "1", "1"]


def test_an_answer_is_kept_before_none(model, monkeypatch):
    for failing in (1, 3):
        model.target = Sure()
        answer = model.target.answer
        replies = lambda *a, failing=failing, answer=answer: [  # noqa: E731
            Reply("", "empty") if reply.text == str(failing) else reply for reply in answer(*a)
        ]
        monkeypatch.setattr(model.target, "answer", replies)
        *_, zoom = model.zoom([PICTURE] * 3, "What?", keep_if_surer=True)
        assert zoom.answer == {1: "3", 3: "1"}[failing] and zoom.failure == ""
        assert zoom.kept == (failing == 1)


def test_a_vlm_tells_how_sure_it_is_as_it_answers():
    target = VLMReader.from_pretrained("zoom_digits/target")
    model = CropVLM.from_pretrained("zoom_digits/cropper", target)
    zoom = model(PICTURE, "Which digit is in the red frame?")
    shown = [[PICTURE, np.asarray(zoom.crop)], [PICTURE]]
    answers = [zoom.answer, zoom.answer_without_crop]
    nats = target.log_likelihood(shown, ["Which digit is in the red frame?"] * 2, answers)
    expected = [x - np.log(-np.expm1(x)) for x in nats]
    np.testing.assert_allclose([zoom.margin_with, zoom.margin_without], expected, atol=1e-3)
    kept = model(PICTURE, "Which digit is in the red frame?", keep_if_surer=True)
    assert kept.kept == (zoom.margin_with >= zoom.margin_without)
    assert kept.answer == answers[0 if kept.kept else 1]


def test_margins():
    assert Reply("a").margin is None and Reply("a", nats=math.nan).margin is None
    assert Reply("a", nats=math.log(0.5)).margin == pytest.approx(0)
    assert Reply("a", nats=math.log(0.9)).margin == pytest.approx(math.log(9))
    assert 16 < Reply("a", nats=1e-6).margin < 17  # a sum of rounded numbers may exceed 0
    assert Zoom((), ()).box is None


@pytest.mark.parametrize(
    ("target", "message"),
    [(None, "give a target"), (Counter(), "counter tells no likelihoods of given answers")],
)
def test_who_does_not_tell_how_sure_it_is_cannot_be_kept_to_it(target, message):
    with pytest.raises(ValueError, match=f"keep_if_surer .*{message}"):
        model_of(target).zoom([PICTURE], "What?", keep_if_surer=True)


def test_a_target_that_takes_fewer_pictures_is_refused():
    target = Counter()
    target.most_pictures = 2
    assert model_of(target, Replies()).target is target
    with pytest.raises(ValueError, match=r"counter takes 2 picture.* up to 2 boxes or none .* 3"):
        model_of(target)


def test_a_cropper_is_told_its_budget(tmp_path):
    told = dataclasses.replace(SEVERAL, budgets=("low", "high"))
    model_of(None, told).save_pretrained(tmp_path / "cropper")
    assert Replies.read(tmp_path / "cropper") == told
    plain = CropVLM.from_pretrained(tmp_path / "cropper")
    low = CropVLM.from_pretrained(tmp_path / "cropper", budget="low")
    rows = low.crop_row(PICTURE, " What? "), plain.crop_row(PICTURE, "What? Budget: low.")
    np.testing.assert_array_equal(rows[0].prompt, rows[1].prompt)
    assert low.settings == {"replies": "up to 2 boxes or none", "budget": "low"}
    with pytest.raises(ValueError, match=r"budget='no': .*cropper was told are low, high"):
        CropVLM.from_pretrained(tmp_path / "cropper", budget="no")
    high = low.with_budget("high")
    assert (high.budget, low.budget) == ("high", "low") and high.params is low.params
    with pytest.raises(ValueError, match=r"budget='no': .*cropper was told are low, high"):
        low.with_budget("no")
    with pytest.raises(ValueError, match=r"budget='low': .*zoom_digits/cropper was told are none"):
        CropVLM.from_pretrained("zoom_digits/cropper", budget="low")
    with pytest.raises(app.UsageError, match=r"give --budget=low\|high"):
        budget_flag.open_cropper(str(tmp_path / "cropper"), None)
    assert budget_flag.open_cropper(str(tmp_path / "cropper"), "high").budget == "high"
    assert CropVLM.from_pretrained("zoom_digits/cropper").settings == {}
