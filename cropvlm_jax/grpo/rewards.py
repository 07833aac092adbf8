# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a box is worth: how likely it makes the frozen target give the gold answer, and whether the
target gives it.

Shape letters: B prompts, G rollouts, S pixels of a side, I tokens of a picture, D width, C crop
tokens, Q question tokens, A gold answer tokens, T tokens of the target's own answer.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from cropvlm_jax import geometry
from cropvlm_jax.data.batching import Batch
from cropvlm_jax.models.conversations import Conversations
from cropvlm_jax.models.llama import KVCache
from cropvlm_jax.models.vlm import VLM, ImageTokens


@dataclasses.dataclass(frozen=True)
class AnswerTemplate:
    """The constant parts of the answer conversation about two pictures of one tile each.

    Attributes:
        first: token ids up to the end of the whole picture.
        crop: token ids from there to the end of the crop.
        colon: token id of the ":" of "Assistant:", that ends the question.
        end: token id that ends an answer.
    """

    first: tuple[int, ...]
    crop: tuple[int, ...]
    colon: int
    end: int

    @classmethod
    def from_prompts(cls, prompts: Conversations) -> "AnswerTemplate":
        """Reads the parts off any answer conversation."""
        prompt = prompts.answer("Any question?", answer="Any answer")
        ids, (first, second) = prompt.ids.tolist(), prompt.images
        return cls(
            first=tuple(ids[: first.stop]),
            crop=tuple(ids[first.stop : second.stop]),
            colon=ids[prompt.question.stop - 1],
            end=ids[prompt.completion.stop - 1],
        )


def read_picture(target: VLM, template: AnswerTemplate, picture: ImageTokens) -> KVCache:
    """The target reads the whole picture, once a prompt.

    Args:
        target: the frozen target.
        template: of its tokenizer.
        picture: `[B, 1, I, ...]`, the whole one.

    Returns:
        The prefix cache that all answers about this picture share, G = 1.
    """
    shape = (*jax.tree.leaves(picture)[0].shape[:2], len(template.first))
    ids = jnp.broadcast_to(jnp.array(template.first), shape)
    return target.read(ids, jnp.ones_like(ids, bool), picture)[1]


def encode_pictures(target: VLM, canvas: jax.Array, size: jax.Array) -> ImageTokens:
    """Whole pictures `[B, 1, I, ...]` as the target sees them.

    Args:
        target: the frozen target.
        canvas: uint8 `[B, Hc, Wc, 3]`.
        size: int `[B, 2]`, height and width inside the canvas.
    """
    whole = jnp.broadcast_to(jnp.array(geometry.FULL), (canvas.shape[0], 1, 4))
    return target.encode_crops(canvas, size, whole)


def in_chunks(function: Callable[[jax.Array], Any], boxes: jax.Array, chunk: int) -> Any:
    """`function` of a few rollouts at a time, which bounds memory.

    Args:
        function: boxes `[B, chunk, 4]` to arrays `[B, chunk, ...]`.
        boxes: int `[B, G, 4]`.
        chunk: rollouts of each prompt at once, a divisor of G.

    Returns:
        The arrays, `[B, G, ...]`.
    """
    b, g = boxes.shape[:2]
    if g % chunk:
        raise ValueError(f"reward_chunk={chunk} does not divide the {g} rollouts of a group")
    parts = jax.lax.map(function, boxes.reshape(b, g // chunk, chunk, 4).swapaxes(0, 1))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(b, g, *x.shape[3:]), parts)


def _ask(
    template: AnswerTemplate, batch: Batch, crops: ImageTokens | None
) -> tuple[jax.Array, jax.Array]:
    """What follows the whole picture, up to "Assistant:": the crop, if any, and the question.

    Args:
        template: of the target's tokenizer.
        batch: the prompts.
        crops: `[B, G, I, ...]` from `encode_crops`, or None for no crop, G = 1.

    Returns:
        Token ids `[B, G, C + Q]` and which are real, bool `[B, G, C + Q]`.
    """
    if crops is None:
        return batch.question[:, None], batch.question_valid[:, None]
    shape = (*jax.tree.leaves(crops)[0].shape[:2], len(template.crop))
    crop = jnp.broadcast_to(jnp.array(template.crop), shape)
    question = _spread(batch.question, shape[1])
    question_valid = _spread(batch.question_valid, shape[1])
    return (
        jnp.concatenate([crop, question], -1),
        jnp.concatenate([jnp.ones(shape, bool), question_valid], -1),
    )


def _spread(row: jax.Array, group: int) -> jax.Array:
    """`[B, T]` to `[B, G, T]`."""
    return jnp.broadcast_to(row[:, None], (row.shape[0], group, row.shape[-1]))


def answer_log_probs(
    target: VLM,
    template: AnswerTemplate,
    picture: KVCache,
    batch: Batch,
    crops: ImageTokens | None,
) -> jax.Array:
    """Log-probabilities of the gold answer's tokens given the picture, the crop and the question.

    Args:
        target: the frozen target.
        template: of its tokenizer.
        picture: what `read_picture` returned.
        batch: the prompts.
        crops: `[B, G, I, ...]` from `encode_crops`; None asks about the picture alone, G = 1.

    Returns:
        fp32 `[B, G, A]`, meaningless in the padding.
    """
    asked, asked_valid = _ask(template, batch, crops)
    answer = _spread(batch.answer, asked.shape[1])
    valid = _spread(batch.answer_valid, asked.shape[1])
    ids = jnp.concatenate([asked, answer[..., :-1]], -1)
    valid = jnp.concatenate([asked_valid, valid[..., :-1]], -1)
    hidden, _ = target.read(ids, valid, crops, picture)
    # The last token of what was asked predicts the first one of the answer.
    log_probs = jax.nn.log_softmax(target.text.logits(hidden[:, :, asked.shape[2] - 1 :]))
    return jnp.take_along_axis(log_probs, answer[..., None], -1)[..., 0]


def answer_span(template: AnswerTemplate, batch: Batch, official: bool) -> jax.Array:
    """Which tokens of the gold answers the likelihood counts: bool `[B, A]`.

    Args:
        template: of the target's tokenizer.
        batch: the prompts.
        official: reproduces the official code, which looks for the last ":" of the conversation and
            so counts an answer that has a colon only from after that one on.
    """
    if not official:
        return batch.answer_valid
    colons = (batch.answer == template.colon) & batch.answer_valid
    from_here_on = jnp.cumsum(colons[:, ::-1], -1)[:, ::-1]
    return batch.answer_valid & (from_here_on == 0)


def log_likelihood(
    log_probs: jax.Array, span: jax.Array, reduction: Literal["sum", "mean"]
) -> jax.Array:
    """Log-likelihood of answers in nats.

    Args:
        log_probs: `[B, G, A]` of the answer tokens, the end token included.
        span: bool `[B, A]`, tokens that count.
        reduction: "sum", as the official code (long answers dominate a batch), or a token's "mean".

    Returns:
        `[B, G]`.
    """
    total = jnp.where(span[:, None], log_probs, 0.0).sum(-1)
    return total if reduction == "sum" else total / jnp.maximum(span.sum(-1), 1)[:, None]


def greedy_answers(
    target: VLM,
    template: AnswerTemplate,
    picture: KVCache,
    batch: Batch,
    crops: ImageTokens,
    max_tokens: int,
) -> jax.Array:
    """What the target itself answers: the likeliest next token again and again.

    Args:
        target: the frozen target.
        template: of its tokenizer.
        picture: what `read_picture` returned.
        batch: the prompts.
        crops: `[B, G, I, ...]` from `encode_crops`.
        max_tokens: T, where an answer is cut; decoding stops earlier once all have ended.

    Returns:
        int32 `[B, G, T]`; what follows an end token is end tokens.
    """
    ids, valid = _ask(template, batch, crops)
    b, g, asked = ids.shape
    slots = asked - 1 + max_tokens
    cache = KVCache.empty(target.config.text, (b, g, slots), picture.keys.dtype)
    # All but the last token, which the first pass of the loop reads.
    _, cache = target.read(ids[..., :-1], valid[..., :-1], crops, picture, cache)

    def unfinished(carry):
        i, _, ended, *_ = carry
        return (i < max_tokens) & ~ended.all()

    def decode(carry):
        i, token, ended, answers, cache = carry
        one = jnp.ones((b, g, 1), bool)
        slot = asked - 1 + i
        hidden, cache = target.read(token[..., None], one, None, picture, cache, slot)
        token = jnp.argmax(target.text.logits(hidden[:, :, 0]), -1).astype(jnp.int32)
        token = jnp.where(ended, template.end, token)
        answers = answers.at[:, :, i].set(token)
        return i + 1, token, ended | (token == template.end), answers, cache

    answers = jnp.full((b, g, max_tokens), template.end, jnp.int32)
    last = ids[..., -1].astype(jnp.int32)
    start = (jnp.int32(0), last, jnp.zeros((b, g), bool), answers, cache)
    return jax.lax.while_loop(unfinished, decode, start)[3]
