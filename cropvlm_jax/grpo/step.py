# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""One GRPO step as one jitted function: rollouts, crops, rewards and the update, top to bottom."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cropvlm_jax import boxes as box_lib
from cropvlm_jax.boxes import Grammar
from cropvlm_jax.data.pipeline import Batch
from cropvlm_jax.grpo import objective, rewards, rollout
from cropvlm_jax.models.llama import KVCache
from cropvlm_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
    """Settings of the step.

    Attributes:
        group: rollouts a prompt.
        temperature: of the sampling; log-probabilities are of the sampling distribution.
        beta: weight of the KL to the reference; 0 needs no reference at all.
        format_weight: weight of a reply token's mean -log P(what the grammar allows), over the
            whole vocabulary. Sampling under the grammar, nothing else keeps the rest unlikely,
            which decoding without it needs, as `transformers` does after an export.
        advantage: "std" (GRPO) or "dr_grpo", for scaling and for aggregation.
        clip_low: lower clip range of the ratio.
        clip_high: upper clip range of the ratio.
        likelihood: reduction of the answer's log-likelihood, "sum" as the official code or "mean".
        validity_weight: reward of a valid box; under the grammar every box is.
        reward_chunk: rollouts of a prompt that the target reads at once; None is all of them.
        accumulate: microbatches a step, a divisor of the batch.
    """

    group: int = 8
    temperature: float = 1.0
    beta: float = 0.01
    format_weight: float = 0.0
    advantage: Literal["std", "dr_grpo"] = "std"
    clip_low: float = 0.2
    clip_high: float = 0.2
    likelihood: Literal["sum", "mean"] = "sum"
    validity_weight: float = 1.0
    reward_chunk: int | None = None
    accumulate: int = 1

    def __post_init__(self):
        if self.group < 2:
            raise ValueError(f"group={self.group}: advantages compare at least 2 rollouts")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: rollouts must be sampled")
        if self.group % (self.reward_chunk or self.group):
            raise ValueError(f"reward_chunk={self.reward_chunk} does not divide group={self.group}")
        for name in ("advantage", "likelihood"):
            allowed = GRPOConfig.__annotations__[name].__args__
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {allowed}")


def make_step(
    policy: nnx.GraphDef,
    target: nnx.GraphDef,
    grammar: Grammar,
    template: rewards.AnswerTemplate,
    optimizer: optax.GradientTransformation,
    config: GRPOConfig,
):
    """Builds the step; the caller jits it with its shardings and donates the state.

    Args:
        policy: of the cropper whose weights are `state.params` (and `state.reference`).
        target: of the frozen model whose weights are `state.target`.
        grammar: of the cropper's tokenizer.
        template: of the target's tokenizer.
        optimizer: of the cropper.
        config: settings.

    Returns:
        `(state, batch, key) -> (state, metrics)`; metrics are fp32 scalars.
    """

    def gradients(state: TrainState, batch: Batch, key: jax.Array):
        """Unreduced gradient of a microbatch, what to divide by, and metrics."""
        reader = nnx.merge(target, state.target)
        last_token = batch.crop_prompt[:, -1]

        def read(params: Any):
            cache = rollout.read_prompt(
                nnx.merge(policy, params), batch.tiles, batch.crop_prompt, batch.crop_prompt_valid
            )
            return (cache.keys, cache.values), cache.valid  # booleans have no gradient

        def replies(params: Any, prefix: tuple[jax.Array, jax.Array], boxes: jax.Array):
            return rollout.action_log_probs(
                nnx.merge(policy, params),
                grammar,
                KVCache(prefix[0], prefix[1], prefix_valid),
                last_token,
                boxes,
                config.temperature,
            )

        # 1. The policy reads each prompt once: rollouts use what it computed, the pullback carries
        #    the gradient later.
        with jax.named_scope("prefix"):
            prefix, pull_back, prefix_valid = jax.vjp(read, state.params, has_aux=True)

        # 2. A group of boxes a prompt.
        with jax.named_scope("rollout"):
            rollouts = rollout.sample(
                nnx.merge(policy, state.params),
                grammar,
                KVCache(prefix[0], prefix[1], prefix_valid),
                last_token,
                key,
                config.group,
                config.temperature,
            )
        boxes = rollouts.boxes

        # 3. and 4. The target reads the picture once, then each crop, and says how likely the gold
        #    answer is.
        with jax.named_scope("reward"):
            picture = rewards.read_picture(reader, template, batch.canvas, batch.size)
            answer_log_probs = rewards.answer_log_probs(
                reader, template, picture, batch, boxes, config.reward_chunk or config.group
            )
            likelihood = rewards.log_likelihood(
                answer_log_probs, batch.answer_valid, config.likelihood
            )
            valid = box_lib.is_valid(boxes)
            reward = likelihood + config.validity_weight * valid
            scored = jnp.isfinite(reward)
            advantage = objective.advantages(reward, config.advantage)

        with jax.named_scope("reference"):
            if config.beta:
                frozen, _ = read(state.reference)
                reference, *_ = replies(state.reference, frozen, boxes)

        # 5. The objective on teacher-forced log-probabilities, and its gradient.
        def loss_fn(params: Any, prefix: Any):
            log_probs, well_formed, reply = replies(params, prefix, boxes)

            def chosen(log_probs: jax.Array) -> jax.Array:
                return jnp.take_along_axis(log_probs, reply.action[..., None], -1)[..., 0]

            mask = reply.allowed.any(-1) & scored[..., None]
            # One update a rollout: the old policy is this one. More updates would pass it in.
            old = jax.lax.stop_gradient(chosen(log_probs))
            gain = objective.clipped_surrogate(
                chosen(log_probs), old, advantage, config.clip_low, config.clip_high
            )
            kl = jnp.zeros_like(gain)
            if config.beta:
                kl = objective.kl_to_reference(chosen(log_probs), chosen(reference))
            loss, count = objective.aggregate(
                config.beta * kl - gain, mask, config.advantage, grammar.max_choices
            )
            if config.format_weight:
                written = reply.valid & scored[..., None]
                malformed, _ = objective.aggregate(-well_formed, written, "std", 0)
                loss += config.format_weight * malformed
            entropy = -(jnp.exp(log_probs) * log_probs * reply.allowed).sum(-1)
            tokens = mask.sum()
            gap = jnp.where(mask, old, 0).sum(-1) - rollouts.log_probs
            sums = {
                "loss": (loss, count),
                "kl": (jnp.where(mask, kl, 0).sum(), tokens),
                "entropy": (jnp.where(mask, entropy, 0).sum(), tokens),
                "sampler_gap": (jnp.where(scored, jnp.abs(gap), 0).sum(), count),
            }
            if config.format_weight:
                sums["malformed"] = (malformed, count)
            return loss, sums

        with jax.named_scope("update"):
            grads, sums = jax.grad(loss_fn, argnums=(0, 1), has_aux=True)(state.params, prefix)
            grads = jax.tree.map(jnp.add, grads[0], pull_back(grads[1])[0])

        def over_scored(values: jax.Array):
            return jnp.where(scored, values, 0.0).sum(), scored.sum()

        deviation = jnp.where(scored, reward, jnp.nan)
        deviation = jnp.nan_to_num(jnp.nanstd(deviation, -1))
        sums |= {
            "reward": over_scored(reward),
            "log_likelihood": over_scored(likelihood),
            "reward_std": (deviation.sum(), deviation.size),
            "zero_variance_groups": ((deviation < 1e-6).sum(), deviation.size),
            "unscored": ((~scored).sum(), scored.size),
            "valid": (valid.sum(), valid.size),
            "area": (box_lib.area(boxes).sum(), valid.size),
            "decode_iterations": (rollouts.iterations, 1),
        }
        return grads, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), sums)

    def step(state: TrainState, batch: Batch, key: jax.Array):
        n = config.accumulate
        if batch.size.shape[0] % n:
            raise ValueError(f"accumulate={n} does not divide {batch.size.shape[0]} prompts")
        if n == 1:
            grads, sums = gradients(state, batch, key)
        else:
            # Microbatch i takes every n-th prompt, so that each device keeps its own prompts.
            micro = jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1), batch)

            def accumulate(total, inputs):
                return jax.tree.map(jnp.add, total, gradients(state, *inputs)), None

            shapes = jax.eval_shape(gradients, state, jax.tree.map(lambda x: x[0], micro), key)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (grads, sums), _ = jax.lax.scan(accumulate, zeros, (micro, jax.random.split(key, n)))
        metrics = {name: total / jnp.maximum(count, 1) for name, (total, count) in sums.items()}
        grads = jax.tree.map(lambda g: g / jnp.maximum(sums["loss"][1], 1), grads)
        metrics["grad_norm"] = optax.tree.norm(grads)
        return state.apply_gradients(grads, optimizer), metrics

    return step
