# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings of GRPO."""

import dataclasses
from typing import Annotated, Literal

from cropvlm_jax.grpo import objective
from cropvlm_jax.scoring.text import HostMetric
from cropvlm_jax.settings import Range, Settings

Weight = Annotated[float, Range(0, 1000)]
Tokens = Annotated[int, Range(1, 1024)]


@dataclasses.dataclass(frozen=True)
class GRPOConfig(Settings):
    """Settings of the step; `training.presets.OFFICIAL` says where the released code differs.

    Attributes:
        num_generations: rollouts of each prompt.
        temperature: what logits are divided by when boxes are sampled.
        temperature_in_log_probs: whether log-probabilities are those of the sampling distribution;
            False reproduces the official code, which does not divide their logits.
        num_iterations: times that the optimizer is applied to the same rollouts. From the second
            time on the policy differs from the one that sampled, and the ratio of their
            probabilities is clipped.
        epsilon: the ratio is clipped from below at 1 - epsilon.
        epsilon_high: the ratio is clipped from above at 1 + epsilon_high.
        beta: weight of the KL to the reference; 0 needs no reference at all.
        kl_loss_type: how this KL is found: the "exact" sum over the actions of each choice, or "k3"
            as in the official code, an estimate from the chosen action whose gradient is that of
            the KL in the other direction. The metric is named `kl` or `kl_k3`.
        format_weight: weight of a loss that makes the tokens unlikely which the grammar forbids:
            the mean of -log P(an allowed token) over a completion's tokens, where P is over the
            whole vocabulary. The sampling never takes a forbidden token, so nothing else teaches
            this; it is needed where a cropper is decoded without the grammar, as `transformers`
            does after an export.
        loss_type: how losses are averaged over choices, the tokens that the policy chooses and the
            grammar does not force: over each completion and then over completions ("grpo"), summed
            in each completion and divided by a constant ("dr_grpo"), or over all choices of the
            batch ("dapo").
        normaliser: the constant of "dr_grpo"; None is the most choices that a completion can have.
            The official code's is 32, its limit of tokens, and it counts forced tokens as well.
        scale_rewards: what rewards less their group's mean are divided by: the standard deviation
            of their "group", that of the whole "batch", or nothing ("none").
        multi_objective_aggregation: how the parts of the reward become one: their weighted sum is
            compared within its group ("sum_then_normalize"), or each part is divided by its own
            standard deviation in the group before the weighted sum ("normalize_then_sum", as in
            GDPO), so that a part's weight does not depend on its unit. `scale_rewards` then applies
            to this sum; GDPO's own is "batch".
        min_reward_std: groups whose rewards have a standard deviation (with n - 1) below this give
            no gradient, not even that of KL and format, and do not count in the mean over
            completions; 0 keeps all groups. The metric `reward_std` is the mean of the same one.
        entropy_target: nats of a choice below which the policy's entropy is rewarded: the weight of
            this reward starts at 0, and grows by 0.005 after every step whose mean entropy is not
            above the target and shrinks by as much after the others, between 0 and 1. A target of 0
            rewards no entropy.
        likelihood_weight: weight in the reward of the right answer's log-likelihood; 0 for targets
            that tell none, which are OCR and most chat endpoints.
        likelihood: whether this log-likelihood is the "sum" over the answer's tokens, as in the
            official code, or their "mean".
        gain: whether the log-likelihood without the crop is subtracted from that with the crop.
        verification_weight: weight in the reward of the right answer's log-likelihood given crop
            and question alone, without the whole picture (crop-only verification): how much of the
            answer the crop holds by itself. It is a sum or a mean as `likelihood` says.
        official_span: whether to reproduce the official code, which counts only the tokens after
            the last ":" of an answer that has one; only for targets inside of the graph.
        accuracy_weight: weight in the reward of the score, 0..1, of the target's own answer.
        accuracy: the metric that scores the target's own answer: a variant of VQA accuracy
            ("evalai", "vicrop", or "official", which is ANLS unless there are 10 right answers),
            "anls", or, for targets outside of the graph only, "contains" and
            "nearly_contains".
        answer_tokens: the most tokens of the target's own answer.
        area_weight: weight of a cost in the reward: the box's share of the picture's area.
        reward_chunk: how many of a prompt's rollouts the target reads at once; fewer take less
            memory. None is all of them.
        gradient_accumulation_steps: microbatches a step, a divisor of the batch.
    """

    num_generations: Annotated[int, Range(2, 65_536)] = 8
    temperature: Annotated[float, Range(0.01, 100)] = 1.0
    temperature_in_log_probs: bool = True
    num_iterations: Annotated[int, Range(1, 100)] = 1
    epsilon: Annotated[float, Range(0, 1)] = 0.2
    epsilon_high: Annotated[float, Range(0, 10)] = 0.2
    beta: Weight = 0.01
    kl_loss_type: objective.KLLossType = "exact"
    format_weight: Weight = 0.0
    loss_type: objective.LossType = "grpo"
    normaliser: Annotated[int, Range(1, 65_536)] | None = None
    scale_rewards: objective.ScaleRewards = "group"
    multi_objective_aggregation: objective.Aggregation = "sum_then_normalize"
    min_reward_std: Weight = 0.0
    entropy_target: Annotated[float, Range(0, 2.4)] = 0.0
    likelihood_weight: Weight = 1.0
    likelihood: Literal["sum", "mean"] = "sum"
    gain: bool = False
    verification_weight: Weight = 0.0
    official_span: bool = False
    accuracy_weight: Weight = 0.0
    accuracy: HostMetric = "evalai"
    answer_tokens: Tokens = 16
    area_weight: Weight = 0.0
    reward_chunk: Annotated[int, Range(1, 65_536)] | None = None
    gradient_accumulation_steps: Annotated[int, Range(1, 65_536)] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_generations % (self.reward_chunk or self.num_generations):
            raise ValueError(
                f"reward_chunk={self.reward_chunk} does not divide "
                f"num_generations={self.num_generations}"
            )
        if self.normaliser and self.loss_type != "dr_grpo":
            raise ValueError(f"normaliser={self.normaliser} needs loss_type='dr_grpo'")
        if self.scale_rewards == "batch" and self.gradient_accumulation_steps > 1:
            raise ValueError(
                "scale_rewards='batch' needs all rewards at once, which the microbatches of "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} do not have: use "
                "gradient_accumulation_steps=1 or another scale_rewards"
            )
        if not self.asked:
            raise ValueError(
                "likelihood_weight, verification_weight and accuracy_weight are all 0: nothing "
                "says which box is better"
            )
        if self.gain and not self.likelihood_weight:
            raise ValueError("gain=True needs a likelihood_weight above 0: it is a part of it")

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the parts of the reward by name, those of costs negative, those of 0 left out.

        In the order in which they are added up.
        """
        weights = {
            "likelihood": self.likelihood_weight,
            "verification": self.verification_weight,
            "accuracy": self.accuracy_weight,
            "area": -self.area_weight,
        }
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def asked(self) -> list[str]:
        """The parts of the reward that the target is asked for."""
        return [name for name in self.weights if name != "area"]
