# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sampling a group of boxes on it, scoring boxes teacher-forced.

Shape letters: B prompts, G rollouts a prompt, P prompt tokens, T reply tokens, A actions.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cropvlm_jax.geometry import BoxTokens, Grammar, GrammarState
from cropvlm_jax.models.llama import NEGATIVE, KVCache
from cropvlm_jax.models.smolvlm.model import SmolVLM


class Rollouts(NamedTuple):
    """Sampled boxes.

    Attributes:
        boxes: int32 `[B, G, 4]`.
        log_probs: fp32 `[B, G]`, the log-probability of each reply as the decoding saw it.
    """

    boxes: jax.Array
    log_probs: jax.Array


def masked_log_softmax(logits: jax.Array, allowed: jax.Array, temperature: float) -> jax.Array:
    """Log-probabilities `[..., A]` of the policy: logits over temperature, allowed actions only."""
    return jax.nn.log_softmax(jnp.where(allowed, logits / temperature, NEGATIVE))


def sample(
    model: SmolVLM,
    grammar: Grammar,
    prefix: KVCache,
    last_token: jax.Array,
    key: jax.Array,
    group: int,
    temperature: float,
    log_prob_temperature: float | None = None,
) -> Rollouts:
    """Samples G boxes a prompt on a shared prefix, under the box grammar.

    An iteration appends what was chosen and the tokens that it forces. Where a 0 may follow that
    would leave the choice between 10 and 100, it is read on trial: both choices are made in one
    pass, and the slot of a 0 that was not chosen is invalid ever after. So every reply is complete
    after `grammar.iterations` passes, and no device waits to hear from the others.

    Choice c of rollout (b, g), numbered by `grammar.choice`, uses entry (c, b, g) of the Gumbel
    noise `[12, B, G, A]`: results do not depend on how the batch is sharded.

    Args:
        model: the cropper.
        grammar: of its tokenizer.
        prefix: what `decode.read_prompt` returned.
        last_token: the last prompt token `[B]`.
        key: PRNG key.
        group: G.
        temperature: of the sampling; 0 takes the likeliest action.
        log_prob_temperature: of the log-probabilities returned; by default that of the sampling.
    """
    batch = last_token.shape[0]
    actions = jnp.asarray(grammar.actions)
    zero = grammar.actions[0]
    slots = grammar.iterations * grammar.chunk
    cache = KVCache.empty(model.config.text, (batch, group, slots), prefix.keys.dtype)
    noise = jnp.zeros((12, batch, group, len(grammar.actions)))
    if temperature:
        noise = jax.random.gumbel(key, noise.shape)

    opening = jnp.asarray((0, *grammar.opening), jnp.int32)
    opening = jnp.pad(opening, (0, grammar.chunk - opening.size))
    tokens = jnp.broadcast_to(opening, (batch, group, grammar.chunk))
    tokens = tokens.at[:, :, 0].set(last_token[:, None])
    valid = jnp.broadcast_to(jnp.arange(grammar.chunk) <= len(grammar.opening), tokens.shape)

    def choose(state: GrammarState, hidden: jax.Array):
        """An action, its log-probability, and what `advance` makes of it."""
        allowed = grammar.allowed(state)
        logits = model.text.logits(hidden, actions)
        number = jnp.minimum(grammar.choice(state), 11)[None, ..., None]
        own_noise = jnp.take_along_axis(noise, number, 0)[0]
        action = jnp.argmax(masked_log_softmax(logits, allowed, temperature or 1.0) + own_noise, -1)
        scored = masked_log_softmax(logits, allowed, log_prob_temperature or temperature or 1.0)
        chosen = jnp.take_along_axis(scored, action[..., None], -1)[..., 0]
        return action, jnp.where(state.coordinate < 4, chosen, 0.0), grammar.advance(state, action)

    def iterate(i: jax.Array, carry: Any):
        state, tokens, valid, cache, log_probs = carry
        newest = jnp.where(valid, jnp.arange(grammar.chunk), 0).max(-1)
        # What precedes a 0 on trial is a digit alone, so the slot after it is free.
        trial = grammar.may_be_ten(state)
        tokens = tokens.at[:, :, 1].set(jnp.where(trial, zero, tokens[:, :, 1]))
        valid = valid.at[:, :, 1].set(trial | valid[:, :, 1])
        slot = i * grammar.chunk
        hidden, cache = model.read(tokens, valid, None, prefix, cache, slot)
        last = jnp.take_along_axis(hidden, newest[..., None, None], 2)[:, :, 0]
        action, log_prob, after = choose(state, last)
        is_ten = trial & (action == 0)
        _, of_ten, after_ten = choose(after[0], hidden[:, :, 1])

        def either(ten: jax.Array, other: jax.Array) -> jax.Array:
            return jnp.where(is_ten.reshape(is_ten.shape + (1,) * (ten.ndim - 2)), ten, other)

        state, tokens, valid = jax.tree.map(either, after_ten, after)
        on_trial = trial[..., None] & (jnp.arange(slots) == slot + 1)
        cache = cache._replace(valid=cache.valid & (~on_trial | is_ten[..., None]))
        log_probs += log_prob + jnp.where(is_ten, of_ten, 0.0)
        return state, tokens, valid, cache, log_probs

    state = grammar.start(jnp.zeros((batch, group, 4), jnp.int32))
    start = state, tokens, valid, cache, jnp.zeros((batch, group))
    state, *_, log_probs = jax.lax.fori_loop(0, grammar.iterations, iterate, start)
    return Rollouts(state.box, log_probs)


def action_log_probs(
    model: SmolVLM,
    grammar: Grammar,
    prefix: KVCache,
    last_token: jax.Array,
    boxes: jax.Array,
    temperature: float,
) -> tuple[jax.Array, jax.Array, BoxTokens]:
    """Teacher-forced log-probabilities of the replies that name `boxes`, on the shared prefix.

    Args:
        model: policy or reference.
        grammar: of its tokenizer.
        prefix: what `decode.read_prompt` returned.
        last_token: the last prompt token `[B]`.
        boxes: int `[B, G, 4]`.
        temperature: that the logits are divided by.

    Returns:
        fp32 `[B, G, T, A]` of every action at every reply token, meaningful where the reply's
        `allowed` has any; fp32 `[B, G, T]`, the log-probability over the whole vocabulary that a
        token is one that the grammar allows there; and the replies, arrays `[B, G, T, ...]`.
    """
    reply = grammar.encode(boxes)
    first = jnp.broadcast_to(last_token[:, None, None], (*boxes.shape[:2], 1))
    tokens = jnp.concatenate([first, reply.tokens[..., :-1]], -1)
    valid = jnp.concatenate([jnp.ones_like(first, bool), reply.valid[..., :-1]], -1)
    hidden, _ = model.read(tokens, valid, None, prefix)
    logits = model.text.logits(hidden, jnp.asarray(grammar.actions))
    # Unused, these vocabulary-sized logits are never computed.
    everything = model.text.logits(hidden)
    only = jnp.take_along_axis(everything, reply.tokens[..., None], -1)[..., 0]
    any_of = jax.nn.logsumexp(jnp.where(reply.allowed, logits, NEGATIVE), -1)
    well_formed = jnp.where(reply.allowed.any(-1), any_of, only)
    well_formed -= jax.nn.logsumexp(everything, -1)
    return masked_log_softmax(logits, reply.allowed, temperature), well_formed, reply
