# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Confidence that is fitted to answers of known worth."""

import math

import numpy as np
import pytest

from cropvlm_jax import CropVLM, Zoom
from cropvlm_jax.evals.calibration import Calibration

PICTURE = np.zeros((40, 40, 3), np.uint8)


def drawn(count, told=True):
    """Zooms, and whether their answers are right: the more so, the surer the target."""
    rng = np.random.default_rng(0)
    margins, replies = rng.normal(1, 3, count), rng.uniform(0.01, 1, count)
    right = rng.uniform(size=count) < 1 / (1 + np.exp(-(0.5 * margins + np.log(replies) + 0.3)))
    zooms = [
        Zoom((), (), answer="7", reply_probability=reply, margin_with=margin if told else None)
        for margin, reply in zip(margins.tolist(), replies.tolist(), strict=True)
    ]
    return zooms, right.tolist()


def test_it_is_how_often_answers_are_right(tmp_path):
    zooms, right = drawn(20_000)
    fitted = Calibration.fit(zooms, right)
    found = fitted.reply, fitted.margin, fitted.bias
    assert found == pytest.approx((1, 0.5, 0.3), abs=0.1) and fitted.answers == 20_000
    sure = np.array([fitted.confidence(zoom) for zoom in zooms])
    for low in np.arange(0.1, 0.9, 0.2):
        inside = (low <= sure) & (sure < low + 0.2)
        assert sure[inside].mean() == pytest.approx(np.array(right)[inside].mean(), abs=0.03)
    fitted.write(tmp_path / "calibration.json")
    assert Calibration.read(tmp_path / "calibration.json") == fitted


def test_a_target_that_does_not_tell_how_sure_it_is():
    zooms, right = drawn(5_000, told=False)
    fitted = Calibration.fit(zooms, right)
    assert fitted.margin is None and fitted.reply > 0.5
    assert 0 < fitted.confidence(zooms[0]) < 1
    assert fitted.confidence(Zoom((), (), failure="empty")) == 0
    told = Calibration.fit(*drawn(500))
    with pytest.raises(ValueError, match="fit it to answers of this target"):
        told.confidence(zooms[0])


def test_few_and_separable_answers_stay_finite():
    zooms = [Zoom((), (), "7", reply_probability=1.0, margin_with=float(i)) for i in range(4)]
    fitted = Calibration.fit(zooms, [False, False, True, True])
    sure = [fitted.confidence(zoom) for zoom in zooms]
    assert all(math.isfinite(x) for x in (fitted.reply, fitted.margin, fitted.bias))
    assert 0.05 < sure[0] < sure[1] < 0.5 < sure[2] < sure[3] < 0.95


def test_a_model_says_it(tmp_path):
    names = "zoom_digits/cropper", "zoom_digits/target"
    Calibration(0.0, 0.5, 0.25, 9).write(tmp_path / "c.json")
    zoom = CropVLM.from_pretrained(*names, calibration=tmp_path / "c.json")(PICTURE, "Which digit?")
    assert zoom.confidence == pytest.approx(1 / (1 + math.exp(-0.5 * zoom.margin_with - 0.25)))
    assert 0 < zoom.reply_probability < 1
    with pytest.raises(ValueError, match="give a target"):
        CropVLM.from_pretrained(names[0], calibration=tmp_path / "c.json")
    with pytest.raises(FileNotFoundError, match="no file .*d.json"):
        CropVLM.from_pretrained(*names, calibration=tmp_path / "d.json")


@pytest.mark.parametrize("content", ["{}", '{"reply": "1", "margin": 1, "bias": 0, "answers": 1}'])
def test_what_is_no_calibration_is_refused(tmp_path, content):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match="c.json: .* is no calibration"):
        Calibration.read(tmp_path / "c.json")


def test_what_cannot_be_fitted_is_refused():
    zooms, _ = drawn(3)
    for right, message in (([True] * 3, "3 of 3"), ([True], "3 zooms, but 1"), ([False] * 3, "0 ")):
        with pytest.raises(ValueError, match=message):
            Calibration.fit(zooms, right)
