# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Cheap readers and croppers for evaluations, and data sets of a few rows."""

import time
import types

import numpy as np
from PIL import Image

from cropvlm_jax.data.source import Source
from cropvlm_jax.evals.records import read_records
from cropvlm_jax.evals.run import evaluate
from cropvlm_jax.readers.base import Likelihood, Reply


class Reader:
    """A cheap reader: it tells digits by the darkness of what it sees last, always the same way."""

    name = "reader"

    def __init__(self, pause: float = 0.0):
        self.pause, self.asked = pause, 0

    def answer(self, images, questions):
        self.asked += len(questions)
        time.sleep(self.pause)
        return [Reply(str(int(pictures[-1].astype(int).sum()) % 10)) for pictures in images]

    def image_tokens(self, images):
        return sum(map(len, images))


class Guesser:
    """Proposes a box that depends on the picture alone."""

    def propose(self, images, questions):
        corners = [[int(image[0, 0, i]) % 60 for i in (0, 1)] for image in images]
        return np.array([[x, y, x + 20, y + 30] for x, y in corners], np.int32)


def run(out, source, name="zoom_digits", readers=None, croppers=None, **options):
    readers = readers or [Reader()]
    croppers = croppers or {"first": Guesser(), "last": Guesser()}
    results = evaluate(name, source, readers, croppers, out, **options)
    return results, read_records(out / results["records"])


def without_seconds(told):
    return {key: value for key, value in told.items() if key not in ("seconds", "throughput")}


def folder_source(tmp_path, rows):
    rng = np.random.default_rng(3)
    for row in rows:
        if row.get("image") is None:
            path = tmp_path / f"{row['example_id']}.png"
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
            row["image"] = str(path)
    return Source("rows", rows, str)


def choice(i, **more):
    options = ["red", "blue", "green", "none"]
    label = "ABCD"[i % 4]
    row = {"example_id": f"item{i}", "question": f"Which {i}?", "answers": [options[i % 4]]}
    return row | {"options": options, "label": label, "category": "xy"[i % 2]} | more


def questions(records, controls=True):
    """How many questions a target is asked: crops of the same box are shown once."""
    boxes = [len(set(map(tuple, record["boxes"].values()))) for record in records]
    return sum(boxes) + 2 * controls * len(records)


class Looker:
    """A cropper that says none, one or two boxes, by the picture and its budget."""

    def __init__(self, max_boxes=2, abstain=True, budget=None):
        self.grammar = types.SimpleNamespace(max_boxes=max_boxes, abstain=abstain)
        self.settings = {} if budget is None else {"budget": budget}

    def replies(self, images, questions):
        replies = []
        for image, _ in zip(images, questions, strict=True):
            count = 0 if self.settings.get("budget") == "low" else int(image[0, 0, 0]) % 3
            boxes = [(10, 10, 40, 30), (50, 60, 90, 95)][: min(count, self.grammar.max_boxes)]
            replies.append(types.SimpleNamespace(boxes=boxes, confidence=1 / (1 + count)))
        return replies

    def propose(self, images, questions):
        raise AssertionError("one box is not all that it says")


class SureReader(Reader):
    """A reader that also tells how likely answers are: the larger digit the likelier."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def answer(self, images, questions):
        self.shown += [len(pictures) for pictures in images]
        return super().answer(images, questions)

    def check_likelihoods(self):
        pass

    def likelihoods(self, images, questions, answers):
        return [Likelihood(-1 / (1 + int(answer)), 2) for answer in answers]
