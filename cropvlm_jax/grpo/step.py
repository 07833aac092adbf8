# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""One GRPO step as one jitted function: rollouts, crops, rewards and the update, top to bottom.

Or as two halves, for a reward that comes from outside of the graph (`black_box.py`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cropvlm_jax import geometry
from cropvlm_jax.data.batching import Batch
from cropvlm_jax.geometry import Grammar
from cropvlm_jax.grpo import objective, rewards, rollout
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.models.decode import read_prompt
from cropvlm_jax.models.llama import KVCache
from cropvlm_jax.models.smolvlm.model import TOWER, SmolVLM
from cropvlm_jax.models.vlm import VLM, ImageTokens
from cropvlm_jax.scoring import in_graph
from cropvlm_jax.scoring.text import Metric
from cropvlm_jax.train_state import TrainState


class Experience(NamedTuple):
    """The rollouts of a microbatch and what they were worth, found once and learned from `updates`
    times. Shape letters: B prompts, G rollouts a prompt, T reply tokens.

    Attributes:
        boxes: int32 `[B, G, 4]`.
        scored: bool `[B, G]`, False where the reward is no number.
        advantages: fp32 `[B, G]`.
        reference: fp32 `[B, G, T]`, the reference's log-probabilities; None where beta is 0.
        old: fp32 `[B, G, T]`, those of the policy that sampled; None in the first update, whose
            policy is that one.
    """

    boxes: jax.Array
    scored: jax.Array
    advantages: jax.Array
    reference: jax.Array | None
    old: jax.Array | None


def merge_target(target: nnx.GraphDef, state: TrainState) -> VLM:
    """The frozen target, its tower that of the KL reference where it has none of its own."""
    if set(TOWER) & set(state.target):
        return nnx.merge(target, state.target)
    reference = state.frozen[0] if state.frozen else state.reference
    return nnx.merge(target, state.target, nnx.State({part: reference[part] for part in TOWER}))


def judge(
    reader: VLM,
    template: rewards.AnswerTemplate,
    vocabulary: in_graph.Vocabulary | None,
    config: GRPOConfig,
    batch: Batch,
    boxes: jax.Array,
    picture: ImageTokens | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What boxes `[B, G, 4]` are worth, as a reward and by component, fp32 `[B, G]`.

    The target reads the whole picture once, as `picture` `[B, 1, I, ...]` where another model's
    tower has seen the same already, then each crop. Components without a weight are left out.
    """
    if picture is None:
        picture = rewards.encode_pictures(reader, batch.canvas, batch.size)
    asked = reader, template, rewards.read_picture(reader, template, picture), batch

    def answers(boxes: jax.Array) -> dict[str, jax.Array]:
        crops = reader.encode_crops(batch.canvas, batch.size, boxes)
        found = {}
        if config.likelihood_weight:
            found["gold"] = rewards.answer_log_probs(*asked, crops)
        if config.accuracy_weight:
            found["own"] = rewards.greedy_answers(*asked, crops, config.answer_tokens)
        return found

    found = rewards.in_chunks(answers, boxes, config.reward_chunk or boxes.shape[1])
    parts: dict[str, jax.Array] = {}
    if config.likelihood_weight:
        span = rewards.answer_span(template, batch, config.official_span)
        parts["likelihood"] = rewards.log_likelihood(found["gold"], span, config.likelihood)
        if config.gain:
            alone = rewards.answer_log_probs(*asked, None)
            parts["likelihood"] -= rewards.log_likelihood(alone, span, config.likelihood)
    if config.accuracy_weight:
        if vocabulary is None or batch.gold is None:
            raise ValueError(
                "accuracy_weight needs `vocabulary` of the target's tokenizer and batches with "
                "`gold` answers"
            )
        parts["accuracy"] = in_graph.score(
            vocabulary, batch.gold, found["own"], cast(Metric, config.accuracy)
        )
    return rate(config, boxes, parts)


def rate(
    config: GRPOConfig, boxes: jax.Array, parts: dict[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The reward of boxes, fp32 `[B, G]`, and its components, of which `parts` are the target's."""
    weights = {
        "likelihood": config.likelihood_weight,
        "accuracy": config.accuracy_weight,
        "area": -config.area_weight,
    }
    if config.area_weight:
        parts = parts | {"area": geometry.area(boxes)}
    weighted = [weights[name] * part for name, part in parts.items()]
    return jnp.stack(weighted).sum(0), parts


class Attempt(NamedTuple):
    """What the policy did with a microbatch before anyone said what it was worth.

    Attributes:
        image_tokens: `[B, N, I, D]` of the tiles as the reference sees them, where another has seen
            them so: the policy, if its tower is not trained, or a target that shares it; else None.
        prefix: of the prompts, as the policy read them.
        pull_back: from gradients of the prefix's keys and values to the weights'.
        rollouts: the boxes.
    """

    image_tokens: jax.Array | None
    prefix: KVCache
    pull_back: Any
    rollouts: rollout.Rollouts


class Halves(NamedTuple):
    """A step but for the reward between its halves.

    Attributes:
        roll_out: `(state, batch, key) -> Attempt`, of a microbatch.
        learn: `(state, batch, attempt, reward, parts) -> ((grads, sums), Experience)`: unreduced
            gradients of a microbatch, and sums and counts of metrics.
        update: `(state, grads, sums, batch, seen) -> (state, metrics)`, from those of all
            microbatches; of several microbatches, `batch` and `seen` are stacked.
    """

    roll_out: Callable[..., Attempt]
    learn: Callable[..., tuple[tuple[Any, Any], Experience]]
    update: Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def summed(
    compute: Callable[..., tuple[Any, Any]], accumulate: int, state: TrainState, *inputs: Any
):
    """What `compute` returns for microbatches, first the sum of all, second stacked."""
    if accumulate == 1:
        return compute(state, *inputs)

    def add(total: Any, inputs: Any):
        part, rest = compute(state, *inputs)
        return jax.tree.map(jnp.add, total, part), rest

    one = jax.tree.map(lambda x: x[0], inputs)
    shapes, _ = jax.eval_shape(compute, state, *one)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, inputs)


def make_halves(
    policy: nnx.GraphDef,
    grammar: Grammar,
    optimizer: optax.GradientTransformation,
    config: GRPOConfig,
    base: nnx.GraphDef | None = None,
) -> Halves:
    """Builds what comes before and after the reward; arguments as of `make_step`."""
    temperature = config.temperature if config.temperature_in_log_probs else 1.0

    def read(model: SmolVLM, batch: Batch, image_tokens: jax.Array | None) -> KVCache:
        if image_tokens is None:
            image_tokens = model.encode_images(batch.tiles)
        return read_prompt(model, image_tokens, batch.crop_prompt, batch.crop_prompt_valid)

    def frozen_image_tokens(state: TrainState, batch: Batch) -> jax.Array | None:
        """The tiles as policy and reference see them alike, if the tower is not trained."""
        if set(TOWER) & set(state.params):
            return None
        return nnx.merge(policy, state.params, *state.frozen).encode_images(batch.tiles)

    def write(model: SmolVLM, prefix: KVCache, batch: Batch, boxes: jax.Array):
        """Replies, the log-probabilities of their choices, and those of all that was possible."""
        every, well_formed, reply = rollout.action_log_probs(
            model, grammar, prefix, batch.crop_prompt[:, -1], boxes, temperature
        )
        chosen = jnp.take_along_axis(every, reply.action[..., None], -1)[..., 0]
        return reply, chosen, every, well_formed

    def read_as_policy(state: TrainState, batch: Batch, image_tokens: jax.Array | None):
        """The policy reads each prompt once: the pullback carries the gradient later."""

        def keys_and_values(params: Any):
            prefix = read(nnx.merge(policy, params, *state.frozen), batch, image_tokens)
            return (prefix.keys, prefix.values), prefix.valid  # booleans have no gradient

        (keys, values), pull_back, valid = jax.vjp(keys_and_values, state.params, has_aux=True)
        return KVCache(keys, values, valid), pull_back

    def gradient(
        state: TrainState, batch: Batch, prefix: KVCache, pull_back: Any, seen: Experience
    ):
        """Unreduced gradient of a microbatch, sums and counts of metrics, the log-probabilities."""

        def loss_fn(params: Any, keys: jax.Array, values: jax.Array):
            model = nnx.merge(policy, params, *state.frozen)
            reply, chosen, every, well_formed = write(
                model, KVCache(keys, values, prefix.valid), batch, seen.boxes
            )
            mask = reply.allowed.any(-1) & seen.scored[..., None]
            old = jax.lax.stop_gradient(chosen) if seen.old is None else seen.old
            gain, low, high = objective.clipped_surrogate(
                chosen, old, seen.advantages, config.epsilon, config.epsilon_high
            )
            loss, replies, tokens = -gain, seen.scored.sum(), mask.sum()
            entropy = -(jnp.exp(every) * every * reply.allowed).sum(-1)
            sums = {"entropy": (jnp.where(mask, entropy, 0).sum(), tokens)}
            if config.num_iterations > 1:
                sums["clip_low_fraction"] = (low & mask).sum(), tokens
                sums["clip_high_fraction"] = (high & mask).sum(), tokens
            if seen.reference is not None:
                kl = objective.kl_to_reference(chosen, seen.reference)
                loss += config.beta * kl
                sums["kl"] = jnp.where(mask, kl, 0).sum(), tokens
            if config.format_weight:
                malformed = jnp.where(reply.valid, -well_formed, 0).sum(-1) / reply.valid.sum(-1)
                loss += config.format_weight * malformed[..., None]
                sums["malformed"] = jnp.where(seen.scored, malformed, 0).sum(), replies
            sums["loss"] = objective.aggregate(
                loss, mask, config.loss_type, config.normaliser or grammar.max_choices
            )
            return sums["loss"][0], (sums, jnp.where(mask, chosen, 0))

        of_loss = jax.grad(loss_fn, argnums=(0, 1, 2), has_aux=True)
        (direct, *of_prefix), (sums, log_probs) = of_loss(state.params, prefix.keys, prefix.values)
        grads = jax.tree.map(jnp.add, direct, pull_back(tuple(of_prefix))[0])
        return grads, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), sums), log_probs

    def roll_out(state: TrainState, batch: Batch, key: jax.Array) -> Attempt:
        # 1. The policy reads each prompt once.
        with jax.named_scope("prefix"):
            image_tokens = frozen_image_tokens(state, batch)
            prefix, pull_back = read_as_policy(state, batch, image_tokens)

        # 2. A group of boxes a prompt.
        with jax.named_scope("rollout"):
            rollouts = rollout.sample(
                nnx.merge(policy, state.params, *state.frozen),
                grammar,
                prefix,
                batch.crop_prompt[:, -1],
                key,
                config.num_generations,
                config.temperature,
                temperature,
            )
        return Attempt(image_tokens, prefix, pull_back, rollouts)

    def learn(
        state: TrainState,
        batch: Batch,
        attempt: Attempt,
        reward: jax.Array,
        parts: dict[str, jax.Array],
    ):
        image_tokens, prefix, pull_back, rollouts = attempt
        boxes = rollouts.boxes
        with jax.named_scope("reward"):
            scored = jnp.isfinite(reward)
            advantages = objective.advantages(reward, config.scale_rewards)

        reference = None
        if config.beta:
            with jax.named_scope("reference"):
                if base is None:
                    model = nnx.merge(policy, state.reference)
                else:
                    model = nnx.merge(base, *state.frozen)
                _, reference, *_ = write(model, read(model, batch, image_tokens), batch, boxes)

        # 5. The objective on teacher-forced log-probabilities, and its gradient.
        with jax.named_scope("update"):
            seen = Experience(boxes, scored, advantages, reference, old=None)
            grads, sums, old = gradient(state, batch, prefix, pull_back, seen)

        def over_scored(values: jax.Array):
            return jnp.where(scored, values, 0.0).sum(), scored.sum()

        deviation = jnp.nan_to_num(jnp.nanstd(jnp.where(scored, reward, jnp.nan), -1))
        others = {
            "reward": over_scored(reward),
            **{f"reward/{name}": over_scored(part) for name, part in parts.items()},
            "reward_std": (deviation.sum(), deviation.size),
            "zero_variance_groups": (objective.zero_variance(reward).sum(), deviation.size),
            "unscored": ((~scored).sum(), scored.size),
            "area": (geometry.area(boxes).sum(), scored.size),
            "sampler_gap": over_scored(jnp.abs(old.sum(-1) - rollouts.log_probs)),
        }
        sums |= jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), others)
        return (grads, sums), seen._replace(old=old)

    def again(state: TrainState, batch: Batch, seen: Experience):
        """A later gradient from the same rollouts, with the weights as they are by now."""
        with jax.named_scope("update"):
            prefix, pull_back = read_as_policy(state, batch, frozen_image_tokens(state, batch))
            grads, sums, _ = gradient(state, batch, prefix, pull_back, seen)
        return (grads, sums), None

    def apply(state: TrainState, grads: Any, sums: Any):
        """One update of the weights from unreduced gradients."""
        grads = jax.tree.map(lambda g: g / jnp.maximum(sums["loss"][1], 1), grads)
        sums["grad_norm"] = optax.tree.norm(grads), jnp.float32(1)
        return state.apply_gradients(grads, optimizer), sums

    def update(state: TrainState, grads: Any, sums: Any, batch: Batch, seen: Experience):
        after, sums = apply(state, grads, sums)

        def once_more(carry: Any, _: None):
            params, opt_state, sums = carry
            now = state._replace(params=params, opt_state=opt_state)
            (grads, more), _ = summed(again, config.gradient_accumulation_steps, now, batch, seen)
            now, more = apply(now, grads, more)
            added = {name: jax.tree.map(jnp.add, sums[name], more[name]) for name in more}
            return (now.params, now.opt_state, sums | added), None

        if config.num_iterations > 1:
            carry = after.params, after.opt_state, sums
            (params, opt_state, sums), _ = jax.lax.scan(
                once_more, carry, length=config.num_iterations - 1
            )
            after = after._replace(params=params, opt_state=opt_state)
        metrics = {name: total / jnp.maximum(count, 1) for name, (total, count) in sums.items()}
        return after._replace(step=state.step + 1), metrics

    return Halves(roll_out, learn, update)


def make_step(
    policy: nnx.GraphDef,
    target: nnx.GraphDef,
    grammar: Grammar,
    template: rewards.AnswerTemplate,
    optimizer: optax.GradientTransformation,
    config: GRPOConfig,
    base: nnx.GraphDef | None = None,
    vocabulary: in_graph.Vocabulary | None = None,
    shared_tower: bool = False,
):
    """Builds the step; the caller jits it with its shardings and donates the state.

    Args:
        policy: of the cropper whose weights are `state.params` and, under adapters, those in the
            tuple `state.frozen`.
        target: of the frozen model whose weights are `state.target`, see `merge_target`.
        grammar: of the cropper's tokenizer.
        template: of the target's tokenizer.
        optimizer: of the cropper; it is applied `config.num_iterations` times a step.
        config: settings.
        base: of the cropper without adapters, whose weights are `state.frozen`: the KL reference.
            None where all weights are trained: the reference is `policy` with `state.reference`.
        vocabulary: of the target's tokenizer, where `config.accuracy_weight` is not 0.
        shared_tower: whether the vision tower and connector of the cropper before its training are
            the target's, and its one tile is the picture as the target sees it: target, reference
            and, where the tower is not trained, policy encode it once.

    Returns:
        `(state, batch, key) -> (state, metrics)`; metrics are fp32 scalars.
    """
    halves = make_halves(policy, grammar, optimizer, config, base)

    def first(state: TrainState, batch: Batch, key: jax.Array):
        """From a microbatch's prompts to the first gradient, and what later updates need."""
        # 1. and 2. The policy reads each prompt, and proposes a group of boxes.
        attempt = halves.roll_out(state, batch, key)

        # 3. and 4. The target reads the crops and says what they are worth.
        with jax.named_scope("reward"):
            reader = merge_target(target, state)
            picture = None
            if shared_tower:
                if attempt.image_tokens is None:
                    attempt = attempt._replace(image_tokens=reader.encode_images(batch.tiles))
                picture = attempt.image_tokens
            boxes = attempt.rollouts.boxes
            reward, parts = judge(reader, template, vocabulary, config, batch, boxes, picture)

        # 5. The objective and its gradient.
        return halves.learn(state, batch, attempt, reward, parts)

    def step(state: TrainState, batch: Batch, key: jax.Array):
        n = config.gradient_accumulation_steps
        if batch.size.shape[0] % n:
            raise ValueError(
                f"gradient_accumulation_steps={n} does not divide {batch.size.shape[0]} prompts"
            )
        if n > 1:
            # Microbatch i takes every n-th prompt, so that each device keeps its own prompts.
            batch = jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1), batch)
            key = jax.random.split(key, n)
        (grads, sums), seen = summed(first, n, state, batch, key)
        return halves.update(state, grads, sums, batch, seen)

    return step


def make_greedy(policy: nnx.GraphDef, grammar: Grammar):
    """Builds `(state, batch) -> boxes`, int32 `[B, 1, 4]`, the policy's likeliest."""

    def greedy(state: TrainState, batch: Batch) -> jax.Array:
        model = nnx.merge(policy, state.params, *state.frozen)
        prompt = batch.crop_prompt, batch.crop_prompt_valid
        prefix = read_prompt(model, model.encode_images(batch.tiles), *prompt)
        unused = jax.random.key(0)
        last_token = batch.crop_prompt[:, -1]
        return rollout.sample(model, grammar, prefix, last_token, unused, 1, 0.0).boxes

    return greedy


def evaluation_sums(
    boxes: jax.Array, reward: jax.Array, parts: dict[str, jax.Array]
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Sums and counts of the reward, its components and the boxes' area, where they are numbers."""
    components = {f"reward/{name}": part for name, part in parts.items()}
    values = {"reward": reward, **components, "area": geometry.area(boxes)}
    return {
        name: (jnp.where(jnp.isfinite(x), x, 0).sum(), jnp.isfinite(x).sum())
        for name, x in values.items()
    }


def make_evaluation(
    policy: nnx.GraphDef,
    target: nnx.GraphDef,
    grammar: Grammar,
    template: rewards.AnswerTemplate,
    config: GRPOConfig,
    vocabulary: in_graph.Vocabulary | None = None,
):
    """Builds what tells how good the policy's likeliest boxes are; arguments as in `make_step`.

    Returns:
        `(state, batch) -> {name: (sum, count)}` of the reward, its components and the boxes' area.
    """
    alone, greedy = dataclasses.replace(config, reward_chunk=None), make_greedy(policy, grammar)

    def evaluate(state: TrainState, batch: Batch):
        boxes = greedy(state, batch)
        reader = merge_target(target, state)
        reward, parts = judge(reader, template, vocabulary, alone, batch, boxes)
        return evaluation_sums(boxes, reward, parts)

    return evaluate
