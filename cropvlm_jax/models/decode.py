# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Greedy replies of whole words, for targets that answer in text.

Shape letters: B prompts.
"""

import jax
import jax.numpy as jnp

from cropvlm_jax.models.llama import KVCache
from cropvlm_jax.models.vlm import VLM


def greedy(
    model: VLM, prefix: KVCache, last_token: jax.Array, end_token: int, max_tokens: int
) -> jax.Array:
    """The likeliest next token again and again, until every row has ended.

    Args:
        model: the model.
        prefix: of the prompts without their last tokens, G = 1.
        last_token: the last prompt token `[B]`.
        end_token: ends a reply.
        max_tokens: length of the replies, at least 1.

    Returns:
        int32 `[B, max_tokens]`; what follows an end token is end tokens.
    """
    batch = last_token.shape[0]
    cache = KVCache.empty(model.config.text, (batch, 1, max_tokens), prefix.keys.dtype)

    def unfinished(carry):
        i, _, ended, *_ = carry
        return (i < max_tokens) & ~ended.all()

    def decode(carry):
        i, token, ended, reply, cache = carry
        one = jnp.ones((batch, 1, 1), bool)
        hidden, cache = model.read(token[:, None, None], one, None, prefix, cache, i)
        token = jnp.argmax(model.text.logits(hidden[:, 0, 0]), -1).astype(jnp.int32)
        token = jnp.where(ended, end_token, token)
        return i + 1, token, ended | (token == end_token), reply.at[:, i].set(token), cache

    reply = jnp.full((batch, max_tokens), end_token, jnp.int32)
    start = (jnp.int32(0), last_token.astype(jnp.int32), jnp.zeros(batch, bool), reply, cache)
    return jax.lax.while_loop(unfinished, decode, start)[3]
