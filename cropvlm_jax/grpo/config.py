# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings of GRPO."""

import dataclasses
from typing import Annotated, Literal

from cropvlm_jax import geometry
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
            None does so where `abstain` or `token_price` is set, and there of every part that the
            target is asked for: a reply is then worth what it gains over answering at once.
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
        area_weight: weight of a cost in the reward: the box's share of the picture's area, of
            several boxes the sum of their shares.
        max_boxes: the most boxes of a reply. The target reads the picture, the crops in the order
            of the reply, and the question. More than one suits a target that was trained to read
            several crops.
        abstain: whether a reply may be "Not needed.", which shows no crop: it gains exactly 0.
        looks: how often the cropper looks. With 2 it is shown its crop as a second picture, in a
            conversation of its own: the crop as one tile, cut from the original pixels, and the
            same question. It replies with a box in percent of that crop, or with "Not needed.",
            which keeps the crop. The target is shown the one crop that comes of both. Both replies
            are sampled, rewarded and trained as one. Needs `max_boxes=1`; 1 is one look.
        token_price: a cost in the reward: units of the reward for 1,000 image tokens of the target
            that the crops of a reply take, padding left out. With a `likelihood_weight` of 1 a
            price of 2 asks a crop of 64 tokens to gain 0.128 nats.
        crop_tokens: image tokens that a crop takes, for a target outside of the graph that does not
            tell how many; None asks the target.
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
    gain: bool | None = None
    verification_weight: Weight = 0.0
    official_span: bool = False
    accuracy_weight: Weight = 0.0
    accuracy: HostMetric = "evalai"
    answer_tokens: Tokens = 16
    area_weight: Weight = 0.0
    max_boxes: Annotated[int, Range(1, geometry.MAX_BOXES)] = 1
    abstain: bool = False
    looks: Annotated[int, Range(1, 2)] = 1
    token_price: Weight = 0.0
    crop_tokens: Annotated[int, Range(1, 1_000_000)] | None = None
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
        if self.gain is False and (self.abstain or self.token_price):
            raise ValueError(
                f"gain=False with abstain={self.abstain} and token_price={self.token_price}: what "
                "a reply without a crop is worth is a gain of 0, and prices are compared with "
                "gains: leave gain out"
            )
        if self.looks > 1 and self.max_boxes > 1:
            raise ValueError(
                f"looks={self.looks} looks closer at the one crop of a reply, and max_boxes="
                f"{self.max_boxes} allows several: set one of them to 1"
            )
        if self.token_price and self.multi_objective_aggregation == "normalize_then_sum":
            raise ValueError(
                f"token_price={self.token_price} is in units of the reward, which "
                "multi_objective_aggregation='normalize_then_sum' does away with: use "
                "'sum_then_normalize'"
            )

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

    @property
    def compared(self) -> list[str]:
        """The parts of which what the picture alone is worth is subtracted."""
        if self.abstain or self.token_price:
            return self.asked
        return ["likelihood"] if self.gain else []

    @property
    def asked_alone(self) -> list[str]:
        """What the target is asked about the picture alone, by names of parts."""
        # What the crops alone are worth is compared with the likelihood given the picture alone.
        names = {"verification": "likelihood"}
        return list(dict.fromkeys(names.get(name, name) for name in self.compared))

    @property
    def varies(self) -> bool:
        """Whether replies differ in how many boxes they have."""
        return self.max_boxes > 1 or self.abstain
