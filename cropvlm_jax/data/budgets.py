# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Budgets that a cropper is told in words, and what they mean to its reward; no jax import."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import tokenizers


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a cropper may spend on crops.

    Attributes:
        name: what it is told, such as "low".
        price: what 1,000 image tokens of crops cost, in units of the reward.
    """

    name: str
    price: float

    @property
    def words(self) -> str:
        """What follows the question, such as " Budget: low."."""
        return f" Budget: {self.name}."

    def after(self, question: str) -> str:
        """The question with the budget after it: "What is this? Budget: low."."""
        return question.strip() + self.words


@dataclasses.dataclass(frozen=True)
class Budgets:
    """The budgets of a run, one of which is drawn each time that an example is shown.

    Attributes:
        prices: of each budget, by its name.
        seed: of the run.
    """

    prices: Mapping[str, float]
    seed: int

    def room(self, tokenizer: tokenizers.Tokenizer) -> int:
        """Tokens of the longest budget's words."""
        words = [Budget(name, price).words for name, price in self.prices.items()]
        return max(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in words)

    def draw(self, index: int, step: int) -> Budget:
        """The budget of an example, the same on all hosts and after a restart.

        Args:
            index: of the example in its source.
            step: the number of the batch, and so another one in each epoch.
        """
        names = list(self.prices)
        name = names[int(np.random.default_rng([self.seed, step, index]).integers(len(names)))]
        return Budget(name, self.prices[name])
