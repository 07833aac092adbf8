# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the modules of all architectures are to rewards, answers and trainings.

Shape letters: B prompts, G continuations of each, N pictures of a prompt, I tokens of a picture,
T text tokens, S key slots, D text width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Real, UInt8

from cropvlm_jax.models.llama import KVCache, Llama
from cropvlm_jax.pixels.plans import PlannedCrops, PlannedTiles

RESAMPLING = "resampling"  # the scope of what cuts crops and tiles

# What the decoder reads of pictures: arrays `[B, G, I, ...]` with an entry for each token. Features
# `[B, G, I, D]` alone, or a named tuple that has more: which tokens are `real`, where they stand.
ImageTokens = Any


class VLM(nnx.Module):
    """A model that answers a question about a picture and a crop of it.

    An architecture's own class has `config` and `text`, and defines `encode_images`, `cut` and,
    where its `Architecture.plan` says what to cut of whole pictures, `cut_tiles`.

    Attributes:
        config: its shape: `text`, which `KVCache.empty` understands, `image_seq_len` (I),
            `image_token_id`, and `heads` of each tower, as `parallel.state_shardings` wants them.
        text: its decoder.
    """

    config: Any
    text: Llama

    def encode_images(self, images: Any) -> ImageTokens:
        """Image tokens of pictures that the host has prepared.

        Args:
            images: what `Architecture.see` returns, stacked: leaves `[B, N, ...]`.

        Returns:
            `[B, N, I, ...]`.
        """
        raise NotImplementedError

    def cut(
        self,
        canvas: UInt8[Array, "B Hc Wc 3"],
        size: Int[Array, "B 2"],
        boxes: Real[Array, "B G 4"],
    ) -> Any:
        """Crops as `encode_images` takes them, by the same arithmetic as the host's `see`.

        Args:
            canvas: uint8 `[B, Hc, Wc, 3]`, original pixels padded at the bottom and right.
            size: int `[B, 2]`, height and width inside the canvas.
            boxes: percent boxes `[B, G, 4]` as `geometry.to_pixels` takes them, maybe traced.

        Returns:
            Leaves `[B, G, ...]`.
        """
        raise NotImplementedError

    def cut_tiles(
        self,
        canvas: UInt8[Array, "B Hc Wc 3"],
        size: Int[Array, "B 2"],
        planned: PlannedTiles,
        longest_edge: int,
    ) -> Any:
        """Whole pictures as `encode_images` takes them, by the same arithmetic as the host's `see`.

        Args:
            canvas: uint8 `[B, Hc, Wc, 3]`, original pixels padded at the bottom and right.
            size: int `[B, 2]`, height and width inside the canvas.
            planned: what `Architecture.plan` says of pictures of these sizes, stacked.
            longest_edge: pixels that their longest side is resized to.

        Returns:
            Leaves `[B, N, ...]`.
        """
        raise NotImplementedError

    def encode_crops(
        self,
        canvas: UInt8[Array, "B Hc Wc 3"],
        size: Int[Array, "B 2"],
        boxes: Real[Array, "B G 4"],
    ) -> ImageTokens:
        """Image tokens of crops, as `encode_images` makes them of the same pixels.

        Args:
            canvas: as of `cut`.
            size: as of `cut`.
            boxes: as of `cut`.

        Returns:
            `[B, G, I, ...]`. I does not depend on the boxes: where a crop has fewer tokens, the
            others are not real, and `read` leaves them out.
        """
        with jax.named_scope(RESAMPLING):
            images = self.cut(canvas, size, boxes)
        return self.encode_images(images)

    def read(
        self,
        ids: Int[Array, "B G T"],
        valid: Bool[Array, "B G T"],
        image_tokens: ImageTokens | None = None,
        prefix: KVCache | None = None,
        cache: KVCache | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[Float[Array, "B G T D"], KVCache]:
        """Runs the decoder on T new tokens of each continuation, at the positions due to them.

        Args:
            ids: int `[B, G, T]`; `image_tokens` replace those that equal `config.image_token_id`,
                in their order.
            valid: bool `[B, G, T]`, False for padding, which may stand anywhere.
            image_tokens: `[B, G, M, ...]`, at least as many as a row has places for; None where it
                has none.
            prefix: keys and values that all G continuations have read before; see
                `Llama.__call__`.
            cache: each continuation's own slots; see `Llama.__call__`.
            slot: the first slot that the T tokens occupy in `cache`.

        Returns:
            Final hidden states `[B, G, T, D]` and the own slots, as `Llama.__call__`.
        """
        x = self.text.embedding(ids)
        if image_tokens is not None:
            x = put_in_place(x, ids == self.config.image_token_id, image_tokens)
        return self.text(x, valid, prefix, cache, slot)

    def __call__(
        self, ids: Int[Array, "B T"], valid: Bool[Array, "B T"], images: Any
    ) -> Float[Array, "B T V"]:
        """Logits of whole sequences.

        Args:
            ids: token ids.
            valid: False for padding.
            images: what `encode_images` takes, leaves `[B, N, ...]`.

        Returns:
            fp32 `[B, T, V]`.
        """
        image_tokens = one_row(self.encode_images(images))
        hidden, _ = self.read(ids[:, None], valid[:, None], image_tokens)
        return self.text.logits(hidden[:, 0])


def cut_planned(model: VLM, images: Any, batch: Any, longest_edge: int = 0) -> Any:
    """Images as `encode_images` takes them, cut from canvases where they are planned.

    Args:
        model: the model that is to see them.
        images: plans of what it sees, or what the host has cut, which is returned as it is.
        batch: has the pictures: `canvas`, uint8 `[B, Hc, Wc, 3]`, padded at the bottom and right,
            and `size`, int `[B, 2]`, their height and width on it.
        longest_edge: pixels of the longest edge of pictures that are split into tiles.
    """
    with jax.named_scope(RESAMPLING):
        if isinstance(images, PlannedTiles):
            return model.cut_tiles(batch.canvas, batch.size, images, longest_edge)
        if isinstance(images, PlannedCrops):
            return model.cut(batch.canvas, batch.size, images.boxes)
    return images


def real_tokens(image_tokens: ImageTokens) -> Bool[Array, "B G I"]:
    """Which image tokens are a picture's: all, but for architectures that pad smaller pictures."""
    if isinstance(image_tokens, jax.Array) or not hasattr(image_tokens, "real"):
        return jnp.ones(jax.tree.leaves(image_tokens)[0].shape[:3], bool)
    return jnp.asarray(image_tokens.real)


def one_row(image_tokens: ImageTokens) -> ImageTokens:
    """Image tokens of N pictures `[B, N, I, ...]`, one after the other: `[B, 1, N * I, ...]`."""
    return jax.tree.map(lambda x: x.reshape(len(x), 1, -1, *x.shape[3:]), image_tokens)


def put_in_place(
    x: Float[Array, "*N T D"], is_image: Bool[Array, "*N T"], image_tokens: Float[Array, "*N M D"]
) -> Float[Array, "*N T D"]:
    """Embeddings in which image tokens have taken their places, in their order.

    Args:
        x: embeddings of the text.
        is_image: where image tokens belong.
        image_tokens: at least as many as there are places in each row.
    """
    order = jnp.maximum(jnp.cumsum(is_image, -1) - 1, 0)
    features = jnp.take_along_axis(image_tokens, order[..., None], axis=-2, mode="clip")
    return jnp.where(is_image[..., None], features, x)
