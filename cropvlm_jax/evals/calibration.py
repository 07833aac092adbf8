# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Confidence that means something: how likely it is that an answer is right.

Platt scaling (Platt, 1999): a logistic regression, fitted to answers of known worth, here of two
numbers: the log-probability of the cropper's reply and the target's margin of its answer.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cropvlm_jax.hub.files import blamed_on, read_json, write_json
from cropvlm_jax.zooms import Zoom

ITERATIONS = 50  # of Newton's method, which needs some ten
RIDGE = 1e-3  # keeps the weight of a number that is always the same at 0
LEAST = 1e-30  # of a reply's probability, so that its logarithm is finite


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What turns what is known of an answer into the probability that it is right.

    Attributes:
        reply: weight of the log-probability of the cropper's reply.
        margin: weight of the target's margin of the answer, `Zoom.margin_with` or, where that
            answer is given, `Zoom.margin_without`; None for targets that do not tell it.
        bias: what is added.
        answers: how many it was fitted to.
    """

    reply: float
    margin: float | None
    bias: float
    answers: int

    @classmethod
    def fit(cls, zooms: Sequence[Zoom], right: Sequence[bool]) -> "Calibration":
        """Fits it to answers, which should be of validation pictures.

        Args:
            zooms: with answers.
            right: of each, whether the answer is.

        Raises:
            ValueError: they are not of one length, or all right, or all wrong.
        """
        if len(zooms) != len(right):
            raise ValueError(
                f"{len(zooms)} zooms, but {len(right)} that say whether they are right"
            )
        answered = [i for i, zoom in enumerate(zooms) if zoom.answer is not None]
        truth = np.array([bool(right[i]) for i in answered])
        if not len(truth) or truth.all() or not truth.any():
            raise ValueError(
                f"{int(truth.sum())} of {len(truth)} answers are right: confidence is fitted to "
                "right and wrong ones"
            )
        margins = [_margin(zooms[i]) for i in answered]
        told = all(margin is not None for margin in margins)
        known = [margins if told else [0.0] * len(truth), np.ones(len(truth))]
        replies = [_reply(zooms[i]) for i in answered]
        weights = _logistic(np.array([replies, *known], float).T, truth)
        return cls(weights[0], weights[1] if told else None, weights[2], len(truth))

    def confidence(self, zoom: Zoom) -> float:
        """The probability that an answer is right, 0..1; 0 where there is none.

        Raises:
            ValueError: the target does not tell its margin, and it did when this was fitted.
        """
        if zoom.answer is None:
            return 0.0
        total, margin = self.reply * _reply(zoom) + self.bias, _margin(zoom)
        if self.margin is not None:
            if margin is None:
                raise ValueError(
                    "the calibration was fitted to a target that tells how sure it is, and this "
                    "one does not: fit it to answers of this target"
                )
            total += self.margin * margin
        return 1 / (1 + math.exp(-min(max(total, -700.0), 700.0)))

    def write(self, file: str | Path) -> None:
        """Writes it as JSON."""
        write_json(Path(file), dataclasses.asdict(self))

    @classmethod
    def read(cls, file: str | Path) -> "Calibration":
        """Reads what `write` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else.
        """
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        found: dict[str, Any] = read_json(path)
        with blamed_on(path):
            numbers = [found.get("reply"), found.get("margin", 0.0) or 0.0, found.get("bias")]
            names = {field.name for field in dataclasses.fields(cls)}
            if found.keys() != names or not all(_is_number(number) for number in numbers):
                raise ValueError(f"{found!s:.80} is no calibration: fit it anew")
            return cls(**found)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _reply(zoom: Zoom) -> float:
    return math.log(max(zoom.reply_probability, LEAST))


def _margin(zoom: Zoom) -> float | None:
    return zoom.margin_with if zoom.kept else zoom.margin_without


def _logistic(features: np.ndarray, right: np.ndarray) -> list[float]:
    """Weights of a logistic regression, by Newton's method on standardised features.

    Args:
        features: `[n, m]`, of which the last one is 1.
        right: bool `[n]`.
    """
    # Platt's targets: one more answer of each kind, so that nothing is certain.
    count = right.sum()
    targets = np.where(right, (count + 1) / (count + 2), 1 / (len(right) - count + 2))
    centre, scale = features.mean(0), np.maximum(features.std(0), 1e-6)
    centre[-1], scale[-1] = 0.0, 1.0
    x = (features - centre) / scale
    weights = np.zeros(x.shape[1])
    ridge = RIDGE * len(x) * np.array([1.0] * (x.shape[1] - 1) + [0.0])
    for _ in range(ITERATIONS):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -700, 700)))
        gradient = x.T @ (targets - p) - ridge * weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(ridge) + 1e-9 * np.eye(x.shape[1])
        step = np.linalg.solve(curvature, gradient)
        weights = weights + np.clip(step, -2.0, 2.0)
    found = weights / scale
    found[-1] -= (found[:-1] * centre[:-1]).sum()
    return [float(weight) for weight in found]
