# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The second look: the cropper is shown its first crop, and says a box inside of it or stops.

Each look is a conversation of its own. In the first one the cropper is asked about the picture. In
the second one its only picture is the first crop, cut from the original pixels and seen as one
tile, and the question is the same. It replies with a box in percent of that crop, or with "Not
needed.": then the first crop stays. What the target is shown is the one box that both make,
`geometry.inside`. A reply is both replies: its log-probability is their sum.

Shape letters: B prompts, G rollouts a prompt, P prompt tokens, T reply tokens, A actions.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cropvlm_jax import geometry
from cropvlm_jax.data.batching import Batch
from cropvlm_jax.grpo.experience import Experience
from cropvlm_jax.grpo.rollout import ReplyLogProbs, Rollouts, Turns
from cropvlm_jax.models.vlm import RESAMPLING, VLM, ImageTokens


class SecondLook(NamedTuple):
    """What the cropper reads in the second turn: the crop of each rollout, and the same question.

    Attributes:
        tiles: the crops, leaves `[B, G, ...]` as `VLM.encode_images` takes them.
        crop_prompt: the tokens that ask for a box, padded on the left; int32 `[B * G, P]`.
        crop_prompt_valid: which of these are real, bool `[B * G, P]`.
    """

    tiles: Any
    crop_prompt: jax.Array
    crop_prompt_valid: jax.Array

    @classmethod
    def of(cls, batch: Batch, tiles: Any) -> "SecondLook":
        """The second look at crops.

        Args:
            batch: the prompts.
            tiles: the crops, leaves `[B, G, ...]`.
        """
        group = jax.tree.leaves(tiles)[0].shape[1]
        prompt, valid = batch.second_prompt, batch.second_prompt_valid
        return cls(tiles, jnp.repeat(prompt, group, 0), jnp.repeat(valid, group, 0))

    @classmethod
    def after(cls, model: VLM, batch: Batch, first: Rollouts) -> "SecondLook":
        """The second look after the first replies; the whole picture where these name no box.

        Args:
            model: the cropper.
            batch: the prompts, with their canvases.
            first: one box at most each.
        """
        with jax.named_scope(RESAMPLING):
            return cls.of(batch, model.cut(batch.canvas, batch.size, first.boxes[:, :, 0]))


def looks_of(batch: Batch, replies: Rollouts | Experience) -> list[Batch | SecondLook]:
    """What the cropper read before each of the replies: one look, or two."""
    if replies.turns is None:
        return [batch]
    return [batch, SecondLook.of(batch, replies.turns.tiles)]


def of_prompts(image_tokens: ImageTokens, prompts: int) -> ImageTokens:
    """Image tokens `[B, N, I, ...]` by prompts, `[prompts, N', I, ...]`.

    The crops of a second look go through the tower as the pictures of one prompt do, one after the
    other, and each belongs to a prompt of its own.
    """
    return jax.tree.map(lambda x: x.reshape((prompts, -1) + x.shape[2:]), image_tokens)


def joined(first: Rollouts, look: SecondLook, second: Rollouts) -> Rollouts:
    """Both replies of each rollout as one.

    Args:
        first: the first replies `[B, G]`.
        look: what was seen of them.
        second: the second ones `[B * G, 1]`.

    Returns:
        The boxes that both make, in percent of the picture: float32 `[B, G, 1, 4]`.
    """
    shape, asked = first.count.shape, first.count > 0
    boxes = second.boxes.reshape(first.boxes.shape)
    turns = Turns(
        tiles=look.tiles,
        first=first.boxes,
        second=jnp.where(asked[..., None, None], boxes, jnp.array(geometry.FULL)),
        second_count=jnp.where(asked, second.count.reshape(shape), 0),
    )
    return Rollouts(
        boxes=geometry.inside(turns.first, turns.second),
        count=first.count,
        log_probs=first.log_probs + jnp.where(asked, second.log_probs.reshape(shape), 0.0),
        turns=turns,
    )


def joined_log_probs(
    first: ReplyLogProbs, second: ReplyLogProbs, asked: jax.Array
) -> ReplyLogProbs:
    """The tokens of both replies of each rollout, one after the other.

    Args:
        first: of the first replies, `[B, G, T, ...]`.
        second: of the second ones, `[B * G, 1, T, ...]`.
        asked: bool `[B, G]`, whether there is a crop to look at; else the second one is no part.

    Returns:
        `[B, G, T + T, ...]`, with as many actions as the look that has more.
    """
    second = jax.tree.map(lambda x: x.reshape(asked.shape + x.shape[2:]), second)
    reply = second.reply._replace(
        valid=second.reply.valid & asked[..., None],
        allowed=second.reply.allowed & asked[..., None, None],
    )
    turns = first, second._replace(reply=reply)
    most = max(turn.actions.shape[-1] for turn in turns)
    one, other = (_with_actions(turn, most) for turn in turns)
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y], 2), one, other)


def _with_actions(turn: ReplyLogProbs, most: int) -> ReplyLogProbs:
    """The same with room for more actions, which are not allowed."""
    room = [(0, 0)] * 3 + [(0, most - turn.actions.shape[-1])]
    reply = turn.reply._replace(allowed=jnp.pad(turn.reply.allowed, room))
    return turn._replace(actions=jnp.pad(turn.actions, room), reply=reply)
