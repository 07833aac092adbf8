# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks: a data set each, how it is asked and how replies are scored."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import logging

from cropvlm_jax import scoring
from cropvlm_jax.data import sources
from cropvlm_jax.data.source import Example
from cropvlm_jax.readers.base import Reader


class Scorer(NamedTuple):
    """How replies of a benchmark are scored.

    Attributes:
        score: from a reply and the item that was asked about to 0..1.
        description: what the score is, for reports and records.
    """

    score: Callable[[str, Example], float]
    description: str


def _vqa(variant: scoring.VQAVariant) -> Callable[[str, Example], float]:
    """VQA accuracy in one of its variants, as a score."""
    return lambda reply, example: scoring.vqa_accuracy(reply, example["answers"], variant)


SCORERS = {
    "vqa_evalai": Scorer(
        _vqa("evalai"), "VQA accuracy, EvalAI's normalisation, mean over annotators (lmms-eval)"
    ),
    "vqa_vicrop": Scorer(_vqa("vicrop"), "VQA accuracy, min(1, 0.3 * matches) (ViCrop)"),
    "vqa_official": Scorer(
        _vqa("official"), "VQA accuracy of lower-cased replies (CropVLM's code for SmolVLM)"
    ),
    "anls": Scorer(
        lambda reply, example: scoring.anls(reply, example["answers"]),
        "average normalised Levenshtein similarity, threshold 0.5 (lmms-eval)",
    ),
    "contains": Scorer(
        lambda reply, example: scoring.contains(reply, example["answers"]),
        "whether an answer is in the reply, not as a part of a longer number or word",
    ),
    "exact": Scorer(
        lambda reply, example: scoring.exact(reply, example["answers"]),
        "whether the reply is an answer, up to case, spaces and one final period",
    ),
    "vstar_letter": Scorer(
        lambda reply, example: float(scoring.vstar_letter(reply) == example["label"]),
        "whether the reply names the right option's letter (lmms-eval's rules for V*)",
    ),
    "hrbench_letter": Scorer(
        lambda reply, example: float(
            scoring.hrbench_letter(reply, example["options"]) == example["label"]
        ),
        "whether the reply names the right option by letter or text (lmms-eval's rules for "
        "HR-Bench, no judge model), mean over the cyclic orders",
    ),
    "likeliest": Scorer(
        lambda reply, example: float(reply == example["answers"][0]),
        "whether the right option has the highest mean log-likelihood a token (V*'s own code)",
    ),
}

OF_ANSWERS = ("vqa_evalai", "vqa_vicrop", "vqa_official", "anls", "contains", "exact")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A data set and how it is asked and scored.

    Attributes:
        source: one of `sources.NAMES` or `sources.DRAWN`.
        split: the part of it whose results are reported.
        metrics: names in `SCORERS`, the one to report first.
        validation: the part of it on which `sft_best_scale` is chosen, which is never `split`;
            None where the data set has no second part.
        prompt: what the target is asked, with `{question}` and `{options}`; the target's own
            instruction follows, croppers get the question alone.
        likelihood: the target's answer is the likeliest of the options.
    """

    source: str
    split: str
    metrics: tuple[str, ...]
    validation: str | None = None
    prompt: str = "{question}"
    likelihood: bool = False

    def open(
        self, folder: str | os.PathLike | None, seed: int = 0, split: str | None = None
    ) -> Any:
        """Opens the data set.

        Args:
            folder: where it is; drawn sets need none.
            seed: of the scenes of drawn sets.
            split: the part to open; None takes the one whose results are reported.

        Raises:
            FileNotFoundError: the data set is not there; see `sources.open_source`.
            ValueError: no folder is given, or `sources.open_source` refuses it.
        """
        split = self.split if split is None else split
        if self.source in sources.DRAWN:
            return sources.open_drawn(self.source, split, 10**6, seed)
        if folder is None:
            raise ValueError(f"{self.source} is read from a local folder: tell which")
        return sources.open_source(self.source, folder, split)

    @property
    def possible_metrics(self) -> tuple[str, ...]:
        """All metrics that its replies can be scored by, its own ones first."""
        if self.likelihood:
            return self.metrics
        return (*self.metrics, *(name for name in OF_ANSWERS if name not in self.metrics))

    def with_metric(self, metric: str) -> "Benchmark":
        """The same, with another metric to report first.

        Raises:
            ValueError: replies cannot be scored by it.
        """
        if metric not in self.possible_metrics:
            raise ValueError(
                f"--metric={metric}: replies of this benchmark are scored by one of "
                f"{', '.join(self.possible_metrics)}"
            )
        others = (name for name in self.metrics if name != metric)
        return dataclasses.replace(self, metrics=(metric, *others))

    def for_readers(self, readers: Sequence[Reader]) -> "Benchmark":
        """The same, with a metric first that is fair to all the readers.

        A reader that says all the text that it sees, of the picture and of the crop, never says
        just the answer: whether the answer is in its reply is what can be asked.
        """
        names = [reader.name for reader in readers if getattr(reader, "transcribes", False)]
        if not names or self.likelihood or self.metrics[0] == "contains":
            return self
        logging.info(
            "contains is reported first instead of %s, as %s says all the text that it sees",
            self.metrics[0],
            ", ".join(names),
        )
        return self.with_metric("contains")

    def ask(self, example: Example) -> str:
        """The question as the target gets it."""
        letters = zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", example.get("options", ()), strict=False)
        options = "\n".join(f"{letter}. {option}" for letter, option in letters)
        return self.prompt.format(question=example["question"], options=options)


_DIGITS = ("exact", "contains")
_VQA = ("vqa_evalai", "vqa_vicrop", "vqa_official")
_HR_PROMPT = "{question}\n{options}\nAnswer the option letter directly."
_VSTAR_PROMPT = (
    "{question}\n{options}\nAnswer with the option's letter from the given choices directly."
)
BENCHMARKS = {
    "zoom_digits": Benchmark("zoom_digits", "test", _DIGITS, "validation"),
    "zoom_digits_mixed": Benchmark("zoom_digits_mixed", "test", _DIGITS, "validation"),
    "zoom_digits_pairs": Benchmark("zoom_digits_pairs", "test", _DIGITS, "validation"),
    "zoom_digits_deep": Benchmark("zoom_digits_deep", "test", _DIGITS, "validation"),
    "textvqa": Benchmark("textvqa", "val", _VQA, "train"),
    "docvqa": Benchmark("docvqa", "val", ("anls",), "train"),
    "infographicvqa": Benchmark("infographicvqa", "val", ("anls",), "train"),
    "stvqa": Benchmark("stvqa", "val", ("anls",), "train"),
    "vstar": Benchmark("vstar", "test", ("vstar_letter",), prompt=_VSTAR_PROMPT),
    "vstar_likelihood": Benchmark("vstar", "test", ("likeliest",), likelihood=True),
    "hrbench_4k": Benchmark("hrbench_4k", "test", ("hrbench_letter",), prompt=_HR_PROMPT),
    "hrbench_8k": Benchmark("hrbench_8k", "test", ("hrbench_letter",), prompt=_HR_PROMPT),
    "sroie": Benchmark("sroie", "test", ("contains", "anls"), "val"),
    "pdfs": Benchmark("pdfs", "test", ("contains", "anls"), "val"),
    "pages": Benchmark("pages", "test", ("contains", "anls"), "val"),
    "jsonl": Benchmark("jsonl", "test", ("exact", "contains", "anls"), "val"),
}
