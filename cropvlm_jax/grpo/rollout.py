# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading a prompt once, sampling a group of boxes on it, scoring boxes teacher-forced.

Shape letters: B prompts, G rollouts a prompt, P prompt tokens, T reply tokens, A actions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cropvlm_jax.boxes import Grammar, Reply
from cropvlm_jax.models.llama import NEGATIVE, KVCache
from cropvlm_jax.models.smolvlm import SmolVLM


class Rollouts(NamedTuple):
    """Sampled boxes.

    Attributes:
        boxes: int32 `[B, G, 4]`.
        log_probs: fp32 `[B, G]`, the log-probability of each reply as the decoding saw it.
        iterations: int32 `[]`, decoder passes made.
    """

    boxes: jax.Array
    log_probs: jax.Array
    iterations: jax.Array


def read_prompt(model: SmolVLM, images: jax.Array, prompt: jax.Array, valid: jax.Array) -> KVCache:
    """Reads all of a prompt but its last token, which every continuation starts with.

    Args:
        model: cropper or target.
        images: uint8 `[B, N, S, S, 3]`.
        prompt: token ids `[B, P]`, padded on the left.
        valid: bool `[B, P]`.

    Returns:
        The prefix cache of P - 1 tokens, G = 1.
    """
    features = model.encode_images(images)
    features = features.reshape(features.shape[0], -1, features.shape[-1])
    x = model.embed(prompt[:, :-1], features)
    return model.text(x[:, None], valid[:, None, :-1])[1]


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

    An iteration appends one sampled token and the tokens that it forces; all rollouts stop when
    every one is complete. The i-th choice of rollout (b, g) uses entry (b, g) of the Gumbel noise
    `[B, G, A]` of key `fold_in(key, i)`, so results do not depend on how the batch is sharded.

    Args:
        model: the cropper.
        grammar: of its tokenizer.
        prefix: what `read_prompt` returned.
        last_token: the last prompt token `[B]`.
        key: PRNG key.
        group: G.
        temperature: of the sampling; 0 takes the likeliest action.
        log_prob_temperature: of the log-probabilities returned; by default that of the sampling.
    """
    batch = last_token.shape[0]
    actions = jnp.asarray(grammar.actions)
    slots = grammar.max_choices * grammar.chunk
    cache = KVCache.empty(model.config.text, (batch, group, slots), prefix.keys.dtype)

    opening = jnp.asarray((0, *grammar.opening), jnp.int32)
    opening = jnp.pad(opening, (0, grammar.chunk - opening.size))
    tokens = jnp.broadcast_to(opening, (batch, group, grammar.chunk))
    tokens = tokens.at[:, :, 0].set(last_token[:, None])
    valid = jnp.broadcast_to(jnp.arange(grammar.chunk) <= len(grammar.opening), tokens.shape)

    def unfinished(carry):
        return (carry[1].coordinate < 4).any()

    def choose(carry):
        i, state, tokens, valid, cache, log_probs = carry
        slot = i * grammar.chunk
        hidden, cache = model.text(model.embed(tokens), valid, prefix, cache, slot)
        newest = jnp.where(valid, jnp.arange(grammar.chunk), 0).max(-1)
        hidden = jnp.take_along_axis(hidden, newest[..., None, None], 2)[:, :, 0]
        allowed = grammar.allowed(state)
        logits = model.text.logits(hidden, actions)
        choice = masked_log_softmax(logits, allowed, temperature or 1.0)
        noise = jax.random.gumbel(jax.random.fold_in(key, i), choice.shape) if temperature else 0.0
        action = jnp.argmax(choice + noise, -1)
        scored = masked_log_softmax(logits, allowed, log_prob_temperature or temperature or 1.0)
        chosen = jnp.take_along_axis(scored, action[..., None], -1)[..., 0]
        live = state.coordinate < 4
        state, tokens, valid = grammar.advance(state, action)
        return i + 1, state, tokens, valid, cache, log_probs + jnp.where(live, chosen, 0.0)

    state = grammar.start(jnp.zeros((batch, group, 4), jnp.int32))
    start = (jnp.int32(0), state, tokens, valid, cache, jnp.zeros((batch, group)))
    iterations, state, *_, log_probs = jax.lax.while_loop(unfinished, choose, start)
    return Rollouts(state.box, log_probs, iterations)


def action_log_probs(
    model: SmolVLM,
    grammar: Grammar,
    prefix: KVCache,
    last_token: jax.Array,
    boxes: jax.Array,
    temperature: float,
) -> tuple[jax.Array, jax.Array, Reply]:
    """Teacher-forced log-probabilities of the replies that name `boxes`, on the shared prefix.

    Args:
        model: policy or reference.
        grammar: of its tokenizer.
        prefix: what `read_prompt` returned.
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
    hidden, _ = model.text(model.embed(tokens), valid, prefix)
    logits = model.text.logits(hidden, jnp.asarray(grammar.actions))
    # Unused, these vocabulary-sized logits are never computed.
    everything = model.text.logits(hidden)
    only = jnp.take_along_axis(everything, reply.tokens[..., None], -1)[..., 0]
    any_of = jax.nn.logsumexp(jnp.where(reply.allowed, logits, NEGATIVE), -1)
    well_formed = jnp.where(reply.allowed.any(-1), any_of, only)
    well_formed -= jax.nn.logsumexp(everything, -1)
    return masked_log_softmax(logits, reply.allowed, temperature), well_formed, reply
