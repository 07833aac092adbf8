# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A policy that can only name 36 boxes, so that means over all of them are exact.

Shape letters: P prompts, T tokens of a reply.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny
from flax import nnx

from cropvlm_jax.geometry import grammar
from cropvlm_jax.grpo import rollout
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.rewards import weigh
from cropvlm_jax.grpo.rollout import Rollouts
from cropvlm_jax.grpo.step import GRPOStep
from cropvlm_jax.train_state import TrainState

VALUES = ((0, 4), (0, 4), (9, 10, 100), (9, 10, 100))
BOXES = np.array(list(itertools.product(*VALUES)))
RNG = np.random.default_rng(1)
ENTROPY_COEF, TEMPERATURE = 0.2, 0.5
EPSILON, EPSILON_HIGH = 0.2, 0.28  # of clipping
PROMPTS = 2


def draw_parts() -> dict[str, np.ndarray]:
    """Parts of the reward of each box about one prompt."""
    parts = {name: RNG.normal(0, 1, len(BOXES)) for name in ("likelihood", "verification")}
    return parts | {"accuracy": (RNG.random(len(BOXES)) < 0.4).astype(float)}


# By name `[P, 36]`.
PARTS = jax.tree.map(lambda *parts: np.stack(parts), *(draw_parts() for _ in range(PROMPTS)))


def successors() -> np.ndarray:
    """As `grammar.SUCCESSORS`, by coordinate: bool `[5, 102, 11]`."""
    allowed = np.zeros((5, 102, 11), bool)
    for coordinate, values in enumerate(VALUES):
        for value in values:
            digits = str(value)
            for i, digit in enumerate(digits):
                allowed[coordinate, 1 + int(digits[:i]) if i else 0, int(digit)] = True
            allowed[coordinate, 1 + value, grammar.STOP] = True
    return allowed


class SmallGrammar(grammar.Grammar):
    """Allows the 36 boxes."""

    def _allowed(self, xp: Any, coordinate: Any, low: Any, written: Any) -> Any:
        table = xp.asarray(successors())[xp.clip(coordinate, 0, 4), xp.clip(written, 0, 101)]
        digits, stop = table[..., : grammar.STOP], table[..., grammar.STOP]
        done = coordinate >= 4
        ends = stop & (coordinate < 3), stop & (coordinate == 3) | done
        return xp.concatenate([digits & ~done[..., None], *(end[..., None] for end in ends)], -1)


GRAMMAR = SmallGrammar(**dataclasses.asdict(tiny.GRAMMAR))


def number(boxes: Any) -> Any:
    """Which of `BOXES` these are, int `[...]`."""
    ranks = (boxes[..., 2:] > 9) * 1 + (boxes[..., 2:] > 10)
    return (boxes[..., 0] > 0) * 18 + (boxes[..., 1] > 0) * 9 + ranks[..., 0] * 3 + ranks[..., 1]


class TableStep(GRPOStep):
    """A step whose rewards are looked up."""

    def reward(self, state: Any, batch: Any, prompts: Any, rollouts: Rollouts) -> Any:
        rows, boxes, count = jnp.arange(len(rollouts.boxes))[:, None], *rollouts[:2]
        numbers = number(boxes[:, :, 0])
        parts = {name: jnp.asarray(PARTS[name])[rows, numbers] for name in self.config.asked}
        return prompts, weigh(self.config, batch, boxes, count, parts)


def _is_trained(path: Any, value: Any) -> bool:
    """The scales of the last norm, 32 numbers, are trained and nothing else."""
    return tuple(path)[:2] == ("text", "norm")


GRAPHDEF, POLICY = tiny.make_model(0)
REFERENCE = jax.tree.map(lambda a, b: 0.7 * a + 0.3 * b, POLICY, tiny.make_model(1)[1])
POLICY_GRAPH, TRAINED, FROZEN = nnx.split(nnx.merge(GRAPHDEF, POLICY), _is_trained, ...)
# Weights some updates later, at which ratios of probabilities are to be clipped.
MOVED = jax.tree.map(lambda x: x + 0.3 * RNG.normal(size=x.shape).astype(np.float32), TRAINED)
BATCH = jax.tree.map(jnp.asarray, tiny.make_batch(tiny.make_examples(PROMPTS)))
OPTIMIZER = optax.sgd(1.0)


def quickly(function: Any) -> Any:
    """Jits what runs once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def make_step(config: GRPOConfig) -> TableStep:
    return TableStep(policy=POLICY_GRAPH, grammar=GRAMMAR, optimizer=OPTIMIZER, config=config)


def make_state(config: GRPOConfig) -> TrainState:
    return TrainState.create(
        TRAINED,
        OPTIMIZER,
        frozen=(FROZEN,),
        reference=REFERENCE if config.beta else None,
        entropy_coef=jnp.float32(ENTROPY_COEF) if config.entropy_target else None,
    )


def first(prompts: int) -> Any:
    """The batch of the first prompts."""
    return jax.tree.map(lambda x: x[:prompts], BATCH)


@functools.cache
def sampled(group: int, steps: int, prompts: int) -> Rollouts:
    """Groups of boxes at `TEMPERATURE`, with different keys: arrays `[steps, P, G, ...]`."""
    config = GRPOConfig(num_generations=group, temperature=TEMPERATURE, beta=0.0)
    step, state, batch = make_step(config), make_state(config), first(prompts)

    @quickly
    def run(keys: jax.Array) -> Rollouts:
        read = step.read_prompts(state, batch)
        return jax.vmap(lambda key: step.sample(state, batch, read, key))(keys)

    return run(jax.random.split(jax.random.key(3), steps))


def sampled_gradients(config: GRPOConfig, steps: int, prompts: int) -> np.ndarray:
    """Gradients `[steps, 32]` of steps that sample at `TEMPERATURE`.

    With several updates a step it is that of an update at the weights `MOVED`.
    """
    step, state, batch = make_step(config), make_state(config), first(prompts)

    @quickly
    def run(rollouts: Rollouts) -> jax.Array:
        read = (step.read_prompts(state, batch),)

        def learn(rollouts: Rollouts) -> jax.Array:
            _, rewards = step.reward(state, batch, read, rollouts)
            gradients, experience = step.learn(state, batch, read, rollouts, rewards)
            if config.num_iterations > 1:
                gradients, _ = step.learn_again(state._replace(params=MOVED), batch, experience)
            (leaf,) = jax.tree.leaves(gradients.weights)
            return leaf / jnp.maximum(gradients.sums["loss"][1], 1)

        return jax.vmap(learn)(rollouts)

    assert config.temperature == TEMPERATURE
    return np.asarray(run(sampled(config.num_generations, steps, prompts)), np.float64)


@dataclasses.dataclass(frozen=True)
class Replies:
    """The 36 replies to each prompt: fp64 arrays by number of the box.

    Attributes:
        choices: `[P, 36]`, how many a reply has.
        values: by name `[P, 36]`: log-probabilities of the replies as they are "sampled", at
            `TEMPERATURE`, and "plain", at 1; and what else a loss may have, summed over the choices
            of a reply: "exact" KL and, at temperature 1, "k3", "entropy" and "malformed"; and what
            is left of "sampled" by clipping where the advantage is positive, "raised", and where it
            is negative, "lowered": ratios to the probabilities with the weights `TRAINED`, those
            not stopped, times log-probabilities.
        slopes: `[P, 36, 32]`, gradients of these values, ratios held fixed.
    """

    choices: np.ndarray
    values: dict[str, np.ndarray]
    slopes: dict[str, np.ndarray]


@functools.cache
def read_all() -> tuple[Replies, Replies]:
    """Reads all 36 replies at once: with the weights `TRAINED`, and with `MOVED`."""
    step, state = make_step(GRPOConfig()), make_state(GRPOConfig())
    every, last = jnp.asarray(np.stack([BOXES] * PROMPTS))[:, :, None], BATCH.crop_prompt[:, -1]
    one = jnp.ones(every.shape[:2], jnp.int32)

    def read(model: Any, temperature: float) -> Any:
        prefix = step.read_prefix(model, BATCH, None)
        return rollout.reply_log_probs(model, GRAMMAR, prefix, last, every, one, temperature)

    def sums(params: Any, old: jax.Array) -> tuple[dict[str, jax.Array], Any]:
        model = step.policy_model(state._replace(params=params))
        replies, plain = read(model, TEMPERATURE), read(model, 1.0)
        reference = read(step.reference_model(state), TEMPERATURE)
        allowed, valid = replies.reply.allowed, replies.reply.valid
        mask, p = allowed.any(-1), jnp.exp(replies.actions)
        gap = jnp.where(allowed, replies.actions - reference.actions, 0)
        one, two = plain.chosen, read(step.reference_model(state), 1.0).chosen
        ratio = jnp.exp(jax.lax.stop_gradient(replies.chosen) - old)
        malformed = jnp.where(valid, -replies.well_formed, 0).sum(-1) / valid.sum(-1)
        of_choices = {
            "sampled": replies.chosen,
            "raised": ratio * (ratio <= 1 + EPSILON_HIGH) * replies.chosen,
            "lowered": ratio * (ratio >= 1 - EPSILON) * replies.chosen,
            "plain": plain.chosen,
            "exact": (p * gap).sum(-1),
            "k3": jnp.exp(two - one) - (two - one) - 1,
            "entropy": -jnp.where(allowed, p * replies.actions, 0).sum(-1),
            "malformed": jnp.broadcast_to(malformed[..., None], mask.shape),
        }
        of_replies = {name: jnp.where(mask, x, 0).sum(-1) for name, x in of_choices.items()}
        return of_replies, (of_replies, mask.sum(-1))

    def all_replies(params: Any, old: jax.Array) -> Replies:
        slopes, (values, choices) = derivatives(params, old)
        slopes = {name: jax.tree.leaves(x)[0] for name, x in slopes.items()}
        as_fp64 = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float64))
        return Replies(np.asarray(choices), as_fp64(values), as_fp64(slopes))

    derivatives = quickly(jax.jacrev(sums, has_aux=True))
    old = quickly(lambda: read(step.policy_model(state), TEMPERATURE).chosen)()
    return all_replies(TRAINED, old), all_replies(MOVED, old)
