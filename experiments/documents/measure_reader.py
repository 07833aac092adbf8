# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether the reader of the documents experiment reads, or guesses what an answer looks like.

    python experiments/documents/measure_reader.py --documents=data/documents \
        --reader=runs/documents/reader/reader --split=test --save=runs/documents/test/reader.json

Asked is for totals and dates of receipts and for numbers of pages. The reader sees the whole
picture, and a crop of the true box at several expansions; "exact" is the share of answers that it
writes exactly. Then it is asked how likely the right answer is, with the true crop and with that of
the question before, at whose place another answer stands.
"""

import collections
import json
import pathlib
from typing import Any

import numpy as np
from absl import flags, logging
from real_crops import NUMERIC

from cropvlm_jax import apps
from cropvlm_jax.data.source import Example
from cropvlm_jax.data.sources import jsonl
from cropvlm_jax.evals.conditions import scaled
from cropvlm_jax.pixels import host
from cropvlm_jax.progress import Progress
from cropvlm_jax.readers.vlm import VLMReader
from cropvlm_jax.scoring import text

DOCUMENTS = flags.DEFINE_string("documents", None, "Folder of the suites.", required=True)
READER = flags.DEFINE_string("reader", None, "Folder of the reader.", required=True)
SPLIT = flags.DEFINE_enum("split", "val", ["val", "test"], "Of the suites.")
LIMIT = flags.DEFINE_integer("limit", 300, "Questions of a suite at most, the first ones.")
SAVE = flags.DEFINE_string("save", None, "File to write.", required=True)

EXPANSIONS = (0.5, 1, 2, 4, 8, 16, 64)  # of the true box's area


class Asked:
    """Questions about the numbers of a suite's pictures.

    Attributes:
        examples: with true boxes.
        pictures: of each, uint8 `[H, W, 3]`.
    """

    def __init__(self, folder: pathlib.Path, split: str, limit: int) -> None:
        self.examples: list[Example] = []
        self.pictures: list[np.ndarray] = []
        source = jsonl.open(folder, split)
        for index in range(len(source)):
            example = source[index]
            if example.get("category") in NUMERIC and "box" in example:
                self.examples.append(example)
                self.pictures.append(host.to_rgb(example["image"]))
            if len(self.examples) == limit:
                break

    def exact(self, reader: VLMReader, expansion: float | None) -> float:
        """The share of exact answers, with the true box at an expansion or without a crop."""
        shown = [
            [picture] if expansion is None else [picture, cut(picture, example, expansion)]
            for picture, example in zip(self.pictures, self.examples, strict=True)
        ]
        questions = [example["question"] for example in self.examples]
        replies = reader.answer(shown, questions)
        answers = [example["answers"] for example in self.examples]
        right = [text.exact(r.text, a) for r, a in zip(replies, answers, strict=True)]
        return float(np.mean(right))

    def nats(self, reader: VLMReader, crops: list[np.ndarray]) -> float:
        """Mean loss of the right answers, nats a token."""
        shown = [list(pair) for pair in zip(self.pictures, crops, strict=True)]
        questions = [example["question"] for example in self.examples]
        answers = [example["answers"][0] for example in self.examples]
        told = reader.likelihoods(shown, questions, answers)
        return float(-np.mean([likelihood.nats_a_token for likelihood in told]))


def cut(picture: np.ndarray, example: Example, expansion: float) -> np.ndarray:
    """The true crop with its area times `expansion`."""
    return host.cut(picture, scaled(example["box"], expansion))


def measure(reader: VLMReader, asked: Asked) -> dict[str, Any]:
    """How many questions of a suite there are, the exact shares, and the losses."""
    steps = (None, *EXPANSIONS)
    progress, exact = Progress(len(steps), what="expansion"), {}
    for done, expansion in enumerate(steps, 1):
        name = "whole" if expansion is None else f"x{expansion:g}"
        exact[name] = asked.exact(reader, expansion)
        progress.update(done)
    true = [cut(p, e, 1) for p, e in zip(asked.pictures, asked.examples, strict=True)]
    return {
        "n": len(asked.examples),
        "exact": exact,
        "nats_a_token": {
            "true_crop": asked.nats(reader, true),
            "wrong_crop": asked.nats(reader, [true[-1], *true[:-1]]),
        },
    }


def main(argv: list[str]) -> None:
    del argv
    reader = VLMReader.from_pretrained(READER.value)
    found: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    for suite in ("receipts", "pages"):
        asked = Asked(pathlib.Path(DOCUMENTS.value) / suite, SPLIT.value, LIMIT.value)
        for what, value in measure(reader, asked).items():
            found[what][suite] = value
            logging.info("%s, %s: %s", suite, what, value)
    path = pathlib.Path(SAVE.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    apps.run_script(main)
