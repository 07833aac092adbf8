# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a box is worth: how likely it makes the frozen target give the gold answer.

Shape letters: B prompts, G rollouts, S pixels of a side, Q question tokens, A answer tokens.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from cropvlm_jax import boxes as box_lib
from cropvlm_jax import crops
from cropvlm_jax.data.pipeline import Batch
from cropvlm_jax.models.llama import KVCache
from cropvlm_jax.models.smolvlm import SmolVLM
from cropvlm_jax.prompts import Prompts


@dataclasses.dataclass(frozen=True)
class AnswerTemplate:
    """The constant parts of the answer conversation about two unsplit pictures.

    Attributes:
        first: token ids up to the end of the whole picture.
        crop: token ids of the crop.
    """

    first: tuple[int, ...]
    crop: tuple[int, ...]

    @classmethod
    def from_prompts(cls, prompts: Prompts) -> "AnswerTemplate":
        """Reads the parts off any answer conversation."""
        prompt = prompts.answer("Any question?")
        first, second = prompt.images
        return cls(tuple(prompt.ids[: first.stop].tolist()), tuple(prompt.ids[second].tolist()))


def read_picture(
    target: SmolVLM, template: AnswerTemplate, canvas: jax.Array, size: jax.Array
) -> KVCache:
    """The target reads the whole picture, once a prompt.

    Args:
        target: the frozen target.
        template: of its tokenizer.
        canvas: uint8 `[B, Hc, Wc, 3]`.
        size: int `[B, 2]`.

    Returns:
        The prefix cache that all answers about this picture share, G = 1.
    """
    side = target.config.vision.image_size
    full = jnp.broadcast_to(jnp.array(box_lib.FULL), (canvas.shape[0], 1, 4))
    pictures = jax.vmap(crops.crop, in_axes=(0, 0, 0, None))(canvas, size, full, side)
    ids = jnp.broadcast_to(jnp.array(template.first), (canvas.shape[0], 1, len(template.first)))
    x = target.embed(ids, target.encode_images(pictures))
    return target.text(x, jnp.ones_like(ids, bool))[1]


def answer_log_probs(
    target: SmolVLM,
    template: AnswerTemplate,
    picture: KVCache,
    batch: Batch,
    boxes: jax.Array,
    chunk: int,
) -> jax.Array:
    """Log-probabilities of the gold answer's tokens given the picture, the crop and the question.

    Args:
        target: the frozen target.
        template: of its tokenizer.
        picture: what `read_picture` returned.
        batch: the prompts.
        boxes: int `[B, G, 4]`.
        chunk: rollouts of each prompt in flight at once, a divisor of G; bounds memory.

    Returns:
        fp32 `[B, G, A]`, 0 in the padding.
    """
    side = target.config.vision.image_size
    start = len(template.crop) + batch.question.shape[1] - 1  # predicts the first answer token

    def score(boxes: jax.Array) -> jax.Array:
        shape = boxes.shape[:2]

        def spread(row: jax.Array) -> jax.Array:
            return jnp.broadcast_to(row[:, None], (*shape, row.shape[-1]))

        pictures = jax.vmap(crops.crop, in_axes=(0, 0, 0, None))(
            batch.canvas, batch.size, boxes, side
        )
        crop_ids = jnp.broadcast_to(jnp.array(template.crop), (*shape, len(template.crop)))
        question, answer = spread(batch.question), spread(batch.answer)
        ids = jnp.concatenate([crop_ids, question, answer[..., :-1]], -1)
        valid = jnp.concatenate(
            [
                jnp.ones_like(crop_ids, bool),
                spread(batch.question_valid),
                spread(batch.answer_valid[:, :-1]),
            ],
            -1,
        )
        x = target.embed(ids, target.encode_images(pictures))
        hidden, _ = target.text(x, valid, picture)
        log_probs = jax.nn.log_softmax(target.text.logits(hidden[:, :, start:]))
        chosen = jnp.take_along_axis(log_probs, answer[..., None], -1)[..., 0]
        return jnp.where(batch.answer_valid[:, None], chosen, 0.0)

    b, g = boxes.shape[:2]
    if g % chunk:
        raise ValueError(f"reward_chunk={chunk} does not divide the {g} rollouts of a group")
    chunks = boxes.reshape(b, g // chunk, chunk, 4).swapaxes(0, 1)
    return jax.lax.map(score, chunks).swapaxes(0, 1).reshape(b, g, -1)


def log_likelihood(
    log_probs: jax.Array, valid: jax.Array, reduction: Literal["sum", "mean"]
) -> jax.Array:
    """Log-likelihood of answers in nats.

    Args:
        log_probs: `[B, G, A]` of the answer tokens, the end token included.
        valid: bool `[B, A]`.
        reduction: "sum", as the official code (long answers dominate a batch), or a token's "mean".

    Returns:
        `[B, G]`.
    """
    total = log_probs.sum(-1)
    return total if reduction == "sum" else total / jnp.maximum(valid.sum(-1), 1)[:, None]
