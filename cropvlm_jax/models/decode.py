# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading prompts, scoring given replies, and greedy replies.

Shape letters: B prompts, N pictures of a prompt, G continuations of each, P prompt tokens, C
completion tokens, S key slots, T reply tokens, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cropvlm_jax.models.llama import KVCache
from cropvlm_jax.models.vlm import VLM, ImageTokens, one_row


def read_prompt(
    model: VLM, image_tokens: ImageTokens, prompt: Int[Array, "B P"], valid: Bool[Array, "B P"]
) -> KVCache:
    """Reads all of a prompt but its last token, which every continuation starts with.

    Args:
        model: cropper or target.
        image_tokens: `[B, N, I, ...]` from its `encode_images`.
        prompt: token ids, padded on the left.
        valid: False for padding.

    Returns:
        The prefix cache of P - 1 tokens, G = 1.
    """
    return model.read(prompt[:, None, :-1], valid[:, None, :-1], one_row(image_tokens))[1]


def completion_logits(
    model: VLM,
    image_tokens: ImageTokens,
    prompt: Int[Array, "B P"],
    prompt_valid: Bool[Array, "B P"],
    completion: Int[Array, "B C"],
    completion_valid: Bool[Array, "B C"],
) -> Float[Array, "B C V"]:
    """Logits that predict each token of given completions from what stands before it.

    Args:
        model: the model.
        image_tokens: `[B, N, I, ...]` from its `encode_images`.
        prompt: token ids, padded on the left so that the completion follows at once.
        prompt_valid: False for padding.
        completion: token ids, padded on the right.
        completion_valid: False for padding.

    Returns:
        fp32 logits, meaningless in the padding.
    """
    # The last completion token is only ever predicted.
    ids = jnp.concatenate([prompt, completion[:, :-1]], 1)
    valid = jnp.concatenate([prompt_valid, completion_valid[:, :-1]], 1)
    hidden, _ = model.read(ids[:, None], valid[:, None], one_row(image_tokens))
    return model.text.logits(hidden[:, 0, prompt.shape[1] - 1 :])


class Greedy(NamedTuple):
    """Greedy replies.

    Attributes:
        tokens: int32 `[B, G, T]`; what follows an end token is end tokens.
        log_probs: fp32 `[B, G]`, of each reply: those of its tokens and of the end token that it
            wrote, summed.
    """

    tokens: Int[Array, "B G T"]
    log_probs: Float[Array, "B G"]


def greedy_decode(
    model: VLM,
    prefix: KVCache,
    last_token: Int[Array, "B G"],
    *,
    end_token: int | jax.Array,
    max_tokens: int,
    own: KVCache | None = None,
    limits: Int[Array, "B G"] | None = None,
) -> Greedy:
    """The likeliest next token again and again, until every continuation has ended.

    Args:
        model: the model.
        prefix: what all continuations of a prompt have read, G = 1; without their last token.
        last_token: the last token of what each continuation was asked, `[B, G]`.
        end_token: ends a reply.
        max_tokens: T, length of the replies, at least 1.
        own: `[B, G, S]`, what each continuation has read after the prefix for itself, such as a
            crop and a question, without their last token; None where that is nothing.
        limits: tokens of each reply after which end tokens follow, however it goes on; at least 1,
            at most T, which None is for all.

    Returns:
        The replies; where nobody uses their log-probabilities, the compiler leaves these out.
    """
    shape = batch, group = last_token.shape
    if own is None:
        own = KVCache.empty(model.config.text, (batch, group, 0), prefix.keys.dtype)
    first = own.valid.shape[-1]  # slot of a reply

    def unfinished(carry: tuple[Any, ...]) -> jax.Array:
        i, _, ended, *_ = carry
        return (i < max_tokens) & ~ended.all()

    def decode(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        i, token, ended, replies, cache, total = carry
        one = jnp.ones((*shape, 1), bool)
        hidden, cache = model.read(token[..., None], one, None, prefix, cache, first + i)
        logits = model.text.logits(hidden[:, :, 0])
        token = jnp.argmax(logits, -1).astype(jnp.int32)
        total += jnp.where(ended, 0.0, logits.max(-1) - jax.nn.logsumexp(logits, -1))
        token = jnp.where(ended, end_token, token)
        replies = replies.at[:, :, i].set(token)
        ended |= (token == end_token) | (False if limits is None else i + 1 >= limits)
        return i + 1, token, ended, replies, cache, total

    start: tuple[Any, ...] = (
        jnp.int32(0),
        last_token.astype(jnp.int32),
        jnp.zeros(shape, bool),
        jnp.full((*shape, max_tokens), end_token, jnp.int32),
        own.with_free_slots(max_tokens),
        jnp.zeros(shape, jnp.float32),
    )
    *_, replies, _, total = jax.lax.while_loop(unfinished, decode, start)
    return Greedy(replies, total)
