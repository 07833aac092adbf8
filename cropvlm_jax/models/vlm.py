# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What rewards and answers need of a vision-language model, whatever its architecture.

A new architecture is a module with these methods, a row of `hub.pretrained.ARCHITECTURES`, a case
of `flops.picture_flops`, and conversations whose class has the `answer` of `prompts.Prompts`.

Shape letters: B prompts, G continuations of each, N pictures of a prompt, I tokens of a picture,
T text tokens, S key slots, D text width.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from cropvlm_jax.models.llama import KVCache

# Pictures as the decoder reads them: arrays `[B, G, I, ...]`, one for each token. `[B, G, I, D]`
# alone, or a named tuple that also tells which tokens are real, or where in the picture they stand.
Pictures = Any


class Decoder(Protocol):
    """The text half of a `VLM`."""

    def logits(self, hidden: jax.Array) -> jax.Array:
        """fp32 `[..., V]` of hidden states `[..., D]`."""


class VLM(Protocol):
    """A model that answers a question about a picture and a crop of it.

    Attributes:
        config: its shape: `text`, which `KVCache.empty` understands, `image_seq_len` (I),
            `image_token_id`, and `heads` of each tower, as `parallel.state_shardings` wants them.
    """

    config: Any

    @property
    def text(self) -> Decoder:
        """Its decoder."""

    def encode_images(self, images: Any) -> Pictures:
        """Pictures `[B, N, I, ...]` that the host has prepared.

        Args:
            images: what the architecture's `see` returns, stacked: leaves `[B, N, ...]`.
        """

    def encode_crops(self, canvas: jax.Array, size: jax.Array, boxes: jax.Array) -> Pictures:
        """Crops as `encode_images` has them of the same pixels, for boxes that may be traced.

        Args:
            canvas: uint8 `[B, Hc, Wc, 3]`, original pixels padded at the bottom and right.
            size: int `[B, 2]`, height and width inside the canvas.
            boxes: int `[B, G, 4]` percent.

        Returns:
            Pictures `[B, G, I, ...]`. I does not depend on the boxes: where a crop has fewer
            tokens, the others are not real, and `read` leaves them out.
        """

    def read(
        self,
        ids: jax.Array,
        valid: jax.Array,
        pictures: Pictures | None = None,
        prefix: KVCache | None = None,
        cache: KVCache | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[jax.Array, KVCache]:
        """Runs the decoder on T new tokens of each continuation, at the positions due to them.

        Args:
            ids: int `[B, G, T]`; image tokens take the tokens of `pictures` in their order.
            valid: bool `[B, G, T]`, False for padding, which may stand anywhere.
            pictures: `[B, G, M, ...]`, at least as many tokens as a row has places.
            prefix: as of `Llama.__call__`, and so are the arguments that follow.
            cache: likewise.
            slot: likewise.

        Returns:
            Final hidden states `[B, G, T, D]` and the own slots, as `Llama.__call__`.
        """


class PicturesInText(nnx.Module):
    """How models read whose pictures' tokens take the places of image tokens in the text.

    They have `config`, `text` and `encode_images`, as `VLM` says.
    """

    config: Any
    text: Any
    encode_images: Callable[..., Pictures]

    def read(
        self,
        ids: jax.Array,
        valid: jax.Array,
        pictures: Pictures | None = None,
        prefix: KVCache | None = None,
        cache: KVCache | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[jax.Array, KVCache]:
        """Embeds and decodes T new tokens `[B, G, T]`; see `VLM`."""
        x = self.text.embedding(ids)
        if pictures is not None:
            x = put_in_place(x, ids == self.config.image_token_id, pictures)
        return self.text(x, valid, prefix, cache, slot)

    def __call__(self, ids: jax.Array, valid: jax.Array, images: Any) -> jax.Array:
        """Logits of whole sequences.

        Args:
            ids: int `[B, T]`.
            valid: bool `[B, T]`.
            images: leaves `[B, N, ...]` as in `encode_images`.

        Returns:
            fp32 `[B, T, V]`.
        """
        pictures = one_row(self.encode_images(images))
        hidden, _ = self.read(ids[:, None], valid[:, None], pictures)
        return self.text.logits(hidden[:, 0])


def one_row(pictures: Pictures) -> Pictures:
    """The N pictures of a prompt `[B, N, I, ...]` in a row, `[B, 1, N * I, ...]`."""
    return jax.tree.map(lambda x: x.reshape(len(x), 1, -1, *x.shape[3:]), pictures)


def put_in_place(x: jax.Array, is_image: jax.Array, image_tokens: jax.Array) -> jax.Array:
    """Embeddings whose image tokens are replaced by those of pictures, in their order.

    Args:
        x: `[..., T, D]`.
        is_image: bool `[..., T]`.
        image_tokens: `[..., M, D]`, at least as many as there are places in each row.
    """
    order = jnp.maximum(jnp.cumsum(is_image, -1) - 1, 0)
    features = jnp.take_along_axis(image_tokens, order[..., None], axis=-2, mode="clip")
    return jnp.where(is_image[..., None], features, x)
