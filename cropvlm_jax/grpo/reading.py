# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How the frozen target reads a picture, crops of it and a question, and what it answers.

A reply names `count` boxes, at most K. The target reads the picture, the crops in their order, and
the question. There are always K slots: those beyond `count` are masked, so that the positions of
what follows close up, and one program serves all replies.

Shape letters: B prompts, G rollouts a prompt, K boxes of a reply, I tokens of a picture, P tokens
up to the end of the whole picture, C crop tokens, Q question tokens, A gold answer tokens, T tokens
of the target's own answer.
"""

import dataclasses
import itertools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real, UInt8

from cropvlm_jax import geometry
from cropvlm_jax.data.batching import Batch
from cropvlm_jax.models.conversations import Conversations
from cropvlm_jax.models.decode import greedy_decode
from cropvlm_jax.models.llama import KVCache
from cropvlm_jax.models.vlm import VLM, ImageTokens, real_tokens


@dataclasses.dataclass(frozen=True)
class AnswerTemplate:
    """The constant parts of the answer conversation about pictures of one tile each.

    Attributes:
        first: token ids up to the end of the whole picture.
        crop: token ids from there to the end of the first crop, and from the end of each crop to
            the end of the next one.
        colon: token id of the ":" of "Assistant:", that ends the question.
        end: token id that ends an answer.
    """

    first: tuple[int, ...]
    crop: tuple[int, ...]
    colon: int
    end: int

    @classmethod
    def from_conversations(
        cls, conversations: Conversations, max_boxes: int = 1
    ) -> "AnswerTemplate":
        """Reads the parts off any answer conversation.

        Args:
            conversations: of the target.
            max_boxes: the most crops beside the picture.

        Raises:
            ValueError: the target does not take so many pictures, one after the other.
        """
        try:
            conversation = conversations.answer("Any question?", 1 + max_boxes, "Any answer")
        except ValueError as error:
            raise ValueError(_too_many(conversations, max_boxes, str(error))) from error
        ids = conversation.ids.tolist()
        ends = [picture.stop for picture in conversation.images]
        crops = [tuple(ids[start:stop]) for start, stop in itertools.pairwise(ends)]
        if len(crops) != max_boxes or len(set(crops)) != 1:
            raise ValueError(_too_many(conversations, max_boxes, "its pictures are not alike"))
        return cls(
            first=tuple(ids[: ends[0]]),
            crop=crops[0],
            colon=ids[conversation.question.stop - 1],
            end=ids[conversation.completion.stop - 1],
        )


def _too_many(conversations: Conversations, max_boxes: int, reason: str) -> str:
    """Says that a target cannot read all crops of a reply."""
    kind = type(conversations).__name__
    return (
        f"grpo.max_boxes={max_boxes}: a question about a picture and {max_boxes} crops of it is "
        f"{1 + max_boxes} pictures, which the target's {kind} do not take ({reason}): set a "
        "smaller grpo.max_boxes or another target"
    )


class Crops(NamedTuple):
    """The crops of replies, as the target reads them.

    Attributes:
        tokens: image tokens `[B, G, K * I, ...]`, crop after crop.
        there: bool `[B, G, K]`, False in slots beyond a reply's count.
    """

    tokens: ImageTokens
    there: jax.Array

    @classmethod
    def of(
        cls, target: VLM, batch: Batch, boxes: Real[Array, "B G K 4"], count: Int[Array, "B G"]
    ) -> "Crops":
        """Cuts and encodes the crops of replies.

        Args:
            target: the frozen target.
            batch: the prompts.
            boxes: percent boxes; those beyond `count` are encoded and masked.
            count: how many boxes a reply has.
        """
        b, g, k, _ = boxes.shape
        tokens = target.encode_crops(batch.canvas, batch.size, boxes.reshape(b, g * k, 4))
        tokens = jax.tree.map(lambda x: x.reshape((b, g, -1, *x.shape[3:])), tokens)
        return cls(tokens, there(boxes, count))

    @property
    def total(self) -> Float[Array, "B G"]:
        """How many image tokens a reply's crops take."""
        real = real_tokens(self.tokens).reshape((*self.there.shape, -1)).sum(-1)
        return jnp.where(self.there, real, 0).sum(-1).astype(jnp.float32)


def there(boxes: Real[Array, "B G K 4"], count: Int[Array, "B G"]) -> Bool[Array, "B G K"]:
    """Which of the K slots of each reply hold a box."""
    return jnp.arange(boxes.shape[2]) < count[..., None]


def encode_whole(
    target: VLM, canvas: UInt8[Array, "B Hc Wc 3"], size: Int[Array, "B 2"]
) -> ImageTokens:
    """Image tokens `[B, 1, I, ...]` of the whole pictures.

    Args:
        target: the frozen target.
        canvas: original pixels, padded at the bottom and right.
        size: height and width of the pictures inside their canvases.
    """
    whole = jnp.broadcast_to(jnp.array(geometry.FULL), (canvas.shape[0], 1, 4))
    return target.encode_crops(canvas, size, whole)


def read_picture(target: VLM, template: AnswerTemplate, whole: ImageTokens) -> KVCache:
    """The target reads the whole picture, once a prompt.

    Args:
        target: the frozen target.
        template: of its tokenizer.
        whole: image tokens `[B, 1, I, ...]`.

    Returns:
        The prefix cache that all answers about this picture share, G = 1.
    """
    shape = (*jax.tree.leaves(whole)[0].shape[:2], len(template.first))
    ids = jnp.broadcast_to(jnp.array(template.first), shape)
    return target.read(ids, jnp.ones_like(ids, bool), whole)[1]


def _questions(
    template: AnswerTemplate, batch: Batch, crops: Crops | None, after_picture: bool
) -> tuple[jax.Array, jax.Array]:
    """The crops, if any, and the question up to "Assistant:".

    Args:
        template: of the target's tokenizer.
        batch: the prompts.
        crops: of G replies a prompt, or None for no crop, G = 1.
        after_picture: whether the crops follow the picture; else the first one stands in its place.

    Returns:
        Token ids `[B, G, K * C + Q]` and which are real, bool of the same shape.
    """
    if crops is None:
        return batch.question[:, None], batch.question_valid[:, None]
    group, slots = crops.there.shape[1:]
    first = template.crop if after_picture else template.first
    opening = [first, *[template.crop] * (slots - 1)]
    ids = jnp.array(sum(opening, ()))
    slot = np.repeat(np.arange(slots), [len(tokens) for tokens in opening])
    return (
        jnp.concatenate(
            [
                jnp.broadcast_to(ids, (len(batch.question), group, ids.size)),
                _spread(batch.question, group),
            ],
            -1,
        ),
        jnp.concatenate([crops.there[..., slot], _spread(batch.question_valid, group)], -1),
    )


def _spread(row: jax.Array, group: int) -> jax.Array:
    """Repeats what all rollouts of a prompt share, `[B, T]`, to `[B, G, T]`."""
    return jnp.broadcast_to(row[:, None], (row.shape[0], group, row.shape[-1]))


def answer_log_probs(
    target: VLM,
    template: AnswerTemplate,
    batch: Batch,
    crops: Crops | None,
    picture: KVCache | None,
) -> jax.Array:
    """Log-probabilities of the gold answer's tokens given what is shown and the question.

    Args:
        target: the frozen target.
        template: of its tokenizer.
        batch: the prompts.
        crops: of G replies a prompt; None asks about the picture alone, G = 1.
        picture: what `read_picture` returned; None asks about the crops alone, the first of which
            then stands where else the whole picture does.

    Returns:
        fp32 `[B, G, A]`, meaningless in the padding.
    """
    asked, asked_valid = _questions(template, batch, crops, picture is not None)
    answer = _spread(batch.answer, asked.shape[1])
    valid = _spread(batch.answer_valid, asked.shape[1])
    ids = jnp.concatenate([asked, answer[..., :-1]], -1)
    valid = jnp.concatenate([asked_valid, valid[..., :-1]], -1)
    hidden, _ = target.read(ids, valid, None if crops is None else crops.tokens, picture)
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


def own_answers(
    target: VLM,
    template: AnswerTemplate,
    picture: KVCache,
    batch: Batch,
    crops: Crops | None,
    max_tokens: int,
) -> Int[Array, "B G T"]:
    """What the target itself answers: the likeliest next token again and again.

    Args:
        target: the frozen target.
        template: of its tokenizer.
        picture: what `read_picture` returned.
        batch: the prompts.
        crops: of G replies a prompt; None asks about the picture alone, G = 1.
        max_tokens: T, where an answer is cut; decoding stops earlier once all have ended.

    Returns:
        Token ids; what follows an end token is end tokens.
    """
    ids, valid = _questions(template, batch, crops, after_picture=True)
    # The decoding reads the last token, which the first one of the answer follows.
    tokens = None if crops is None else crops.tokens
    _, asked = target.read(ids[..., :-1], valid[..., :-1], tokens, picture)
    return greedy_decode(
        target,
        picture,
        ids[..., -1],
        end_token=template.end,
        max_tokens=max_tokens,
        own=asked,
    ).tokens
