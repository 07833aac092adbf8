# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings of GRPO."""

import dataclasses
from typing import Literal

from cropvlm_jax.grpo import objective
from cropvlm_jax.scoring.text import HostMetric


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
    """Settings of the step; `training.presets.OFFICIAL` says where the released code differs.

    Attributes:
        num_generations: rollouts a prompt.
        temperature: what logits are divided by when boxes are sampled.
        temperature_in_log_probs: whether log-probabilities are those of the sampling distribution;
            False reproduces the official code, which does not divide their logits.
        num_iterations: times that the optimizer is applied to the same rollouts; ratios leave 1,
            and clipping begins, with the second.
        epsilon: lower clip range of the ratio.
        epsilon_high: upper clip range of the ratio.
        beta: weight of the KL to the reference; 0 needs no reference at all.
        format_weight: weight of a reply's mean -log P(what the grammar allows) over its tokens and
            the whole vocabulary, added to each of its choices. Sampling under the grammar, nothing
            else keeps the rest unlikely, which decoding without it needs, as `transformers` does
            after an export.
        loss_type: mean of a reply's choices and then over replies ("grpo"), their sum over a
            constant ("dr_grpo"), or mean of all choices of the batch ("dapo").
        normaliser: the constant of "dr_grpo"; None is the most choices of a reply. The official
            code's is 32, its limit of tokens, and it counts a reply's forced tokens too.
        scale_rewards: whose standard deviation centred rewards are divided by: their "group"'s, the
            whole "batch"'s, or "none".
        likelihood_weight: weight in the reward of the gold answer's log-likelihood.
        likelihood: whether that is the "sum" over the answer's tokens, as in the official code, or
            their "mean".
        gain: whether the likelihood counts from what it is without the crop.
        official_span: whether to reproduce the official code, which counts only the tokens after
            the last ":" of an answer that has one.
        accuracy_weight: weight in the reward of the score, 0..1, of the target's own answer against
            the gold ones.
        accuracy: the metric that gives this score; "contains" and "nearly_contains" are for targets
            outside of the graph.
        answer_tokens: the most tokens of the target's own answer.
        area_weight: what the reward loses for a box of the whole picture; a smaller box loses its
            share of that.
        reward_chunk: rollouts of a prompt that the target reads at once; None is all of them.
        gradient_accumulation_steps: microbatches a step, a divisor of the batch.
    """

    num_generations: int = 8
    temperature: float = 1.0
    temperature_in_log_probs: bool = True
    num_iterations: int = 1
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    beta: float = 0.01
    format_weight: float = 0.0
    loss_type: objective.LossType = "grpo"
    normaliser: int | None = None
    scale_rewards: objective.ScaleRewards = "group"
    likelihood_weight: float = 1.0
    likelihood: Literal["sum", "mean"] = "sum"
    gain: bool = False
    official_span: bool = False
    accuracy_weight: float = 0.0
    accuracy: HostMetric = "evalai"
    answer_tokens: int = 16
    area_weight: float = 0.0
    reward_chunk: int | None = None
    gradient_accumulation_steps: int = 1

    def __post_init__(self) -> None:
        if self.num_generations < 2:
            raise ValueError(
                f"num_generations={self.num_generations}: advantages compare at least 2 rollouts"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: rollouts must be sampled")
        if self.num_generations % (self.reward_chunk or self.num_generations):
            raise ValueError(
                f"reward_chunk={self.reward_chunk} does not divide "
                f"num_generations={self.num_generations}"
            )
        for name in ("loss_type", "scale_rewards", "likelihood", "accuracy"):
            allowed = GRPOConfig.__annotations__[name].__args__
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {allowed}")
        for name in (
            "num_iterations",
            "gradient_accumulation_steps",
            "answer_tokens",
            "normaliser",
        ):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.normaliser and self.loss_type != "dr_grpo":
            raise ValueError(f"normaliser={self.normaliser} needs loss_type='dr_grpo'")
        if self.scale_rewards == "batch" and self.gradient_accumulation_steps > 1:
            raise ValueError(
                "scale_rewards='batch' needs all rewards at once, which the microbatches of "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} do not have: use "
                "gradient_accumulation_steps=1 or another scale_rewards"
            )
        if not (self.likelihood_weight or self.accuracy_weight):
            raise ValueError(
                "likelihood_weight and accuracy_weight are both 0: nothing says which box is better"
            )
