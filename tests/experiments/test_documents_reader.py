# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The bundled models for documents: the reader reads crops, the start cropper points at answers."""

import numpy as np
import printed_lines
import pytest
from documents import drawn

from cropvlm_jax import geometry
from cropvlm_jax.api import CropVLM
from cropvlm_jax.data.sources.sroie import QUESTIONS
from cropvlm_jax.readers.vlm import VLMReader
from cropvlm_jax.scoring import text

CROPS, RECEIPTS = 48, 48


@pytest.fixture(scope="module")
def reader() -> VLMReader:
    return VLMReader.from_pretrained("documents/reader")


def _right(reader: VLMReader, shown: list[list[np.ndarray]], questions, answers) -> float:
    replies = reader.answer(shown, questions)
    right = [text.exact(r.text, [a]) for r, a in zip(replies, answers, strict=True)]
    return float(np.mean(right))


def test_the_reader_reads_crops_and_not_what_it_cannot_see(reader):
    kinds = ["total", "date"] * (CROPS // 2)
    crops = [
        printed_lines.draw(np.random.default_rng([7, seed]), kind, loose=1.3, hard=0.0)
        for seed, kind in enumerate(kinds)
    ]
    pictures = [np.repeat(crop.image[..., None], 3, -1) for crop in crops]
    questions = [printed_lines.QUESTIONS[kind] for kind in kinds]
    answers = [crop.answer for crop in crops]
    whole = np.full((600, 400, 3), 255, np.uint8)
    assert _right(reader, [[whole, picture] for picture in pictures], questions, answers) > 0.75
    others = [[whole, picture] for picture in pictures[2:] + pictures[:2]]
    assert _right(reader, others, questions, answers) < 0.1


def test_the_start_cropper_points_near_answers_of_drawn_receipts():
    receipts = [drawn.draw_receipt(np.random.default_rng([2000, i])) for i in range(RECEIPTS)]
    cropper = CropVLM.from_pretrained("documents/start")
    fields = ["total", "date"] * (RECEIPTS // 2)
    boxes = cropper.propose([r.image for r in receipts], [QUESTIONS[field] for field in fields])
    truth = np.array(
        [
            geometry.from_pixels(np.array(r.evidence[field]), np.array(r.image.shape[:2]))
            for r, field in zip(receipts, fields, strict=True)
        ]
    )
    middles, true_middles = boxes[:, :2] + boxes[:, 2:], truth[:, :2] + truth[:, 2:]
    near = np.abs(middles - true_middles).sum(1)
    of_other_receipts = np.abs(middles - np.roll(true_middles, 2, axis=0)).sum(1)
    assert np.median(near) < 0.6 * np.median(of_other_receipts)
