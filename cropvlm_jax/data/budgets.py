# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Budgets that a cropper is told in words, and what they mean to its reward; no jax import."""

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a cropper may spend on crops.

    Attributes:
        name: what it is told, such as "low".
        price: what 1,000 image tokens of crops cost, in units of the reward.
    """

    name: str
    price: float

    def after(self, question: str) -> str:
        """The question with the budget after it: "What is this? Budget: low."."""
        return f"{question.strip()} Budget: {self.name}."


@dataclasses.dataclass(frozen=True)
class Budgets:
    """The budgets of a run, one of which is drawn each time that an example is shown.

    Attributes:
        prices: of each budget, by its name.
        seed: of the run.
    """

    prices: Mapping[str, float]
    seed: int

    def draw(self, index: int, step: int) -> Budget:
        """The budget of an example, the same on all hosts and after a restart.

        Args:
            index: of the example in its source.
            step: the number of the batch, and so another one in each epoch.
        """
        names = list(self.prices)
        name = names[int(np.random.default_rng([self.seed, step, index]).integers(len(names)))]
        return Budget(name, self.prices[name])
