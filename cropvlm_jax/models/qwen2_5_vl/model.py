# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The Qwen2.5-VL module.

A picture is cut into square tiles of `merge * patch` (28) pixels, each of which becomes one token
of the decoder. Arrays have room for I tiles, rows * columns of which are the picture's.

Shape letters: B prompts, G continuations of each, N pictures, I tiles of a picture, M merge, T
tokens, D width of the tower or of the decoder.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Real, UInt8

from cropvlm_jax.models import linear
from cropvlm_jax.models.llama import KVCache, Llama, Places
from cropvlm_jax.models.qwen2_5_vl.config import QwenConfig, QwenVisionConfig
from cropvlm_jax.models.qwen2_5_vl.image_processing import TiledImages
from cropvlm_jax.models.qwen2_5_vl.vision import EPSILON, QwenVision
from cropvlm_jax.models.vit import clip_normalised
from cropvlm_jax.models.vlm import VLM, put_in_place
from cropvlm_jax.pixels import device


class TileTokens(NamedTuple):
    """What the decoder reads of pictures, token by token.

    Attributes:
        features: `[..., I, D]`; row-major, and then padding.
        real: bool `[..., I]`, False for padding.
        place: int32 `[..., I, 2]`, row and column.
        advance: int32 `[..., I]`, by how many positions a token moves the ones after it: the last
            one by the picture's longer side, the others not at all.
    """

    features: jax.Array
    real: jax.Array
    place: jax.Array
    advance: jax.Array


class Merger(nnx.Module):
    """The patches of a tile as one token of the decoder."""

    def __init__(
        self, config: QwenVisionConfig, rngs: nnx.Rngs, dtype: Any, param_dtype: Any
    ) -> None:
        d = config.hidden_size
        merged = d * config.spatial_merge_size**2
        layer = linear.layer(dtype, param_dtype, rngs)
        self.norm = nnx.RMSNorm(d, epsilon=EPSILON, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.fc1, self.fc2 = layer(merged, merged), layer(merged, config.out_hidden_size)

    def __call__(self, x: Float[Array, "N I P D"]) -> Float[Array, "N I W"]:
        """Features of the P = M * M patches of each tile as one vector of the decoder's width."""
        x = self.norm(x).reshape(*x.shape[:2], -1)
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Qwen2_5_VL(VLM):
    """The model; `text` is used directly for cached decoding."""

    vision: Any
    projector: Any

    def __init__(
        self,
        config: QwenConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
    ):
        """Builds randomly initialised weights; `Llama` documents the arguments."""
        self.config, self.dtype = config, dtype
        options = dict(rngs=rngs, dtype=dtype, param_dtype=param_dtype, remat=remat)
        self.vision = QwenVision(config.vision, **options)
        self.projector = Merger(config.vision, rngs, dtype, param_dtype)
        self.text = Llama(config.text, **options)

    def encode_images(self, images: TiledImages) -> TileTokens:
        """Image tokens for the decoder.

        The N pictures of a prompt go through the tower one after the other, so that its activations
        are those of one picture a prompt.

        Args:
            images: tiles and grids, leaves `[B, N, ...]`.

        Returns:
            Tokens of these pictures, leaves `[B, N, I, ...]`.
        """
        turned = jax.tree.map(lambda x: x.swapaxes(0, 1), images)
        features = jax.lax.map(self._encode, turned).swapaxes(0, 1)
        index = jnp.arange(features.shape[-2])
        rows, columns = images.grid[..., :1], images.grid[..., 1:]
        return TileTokens(
            features,
            real=index < rows * columns,
            place=jnp.stack([index // columns, index % columns], -1).astype(jnp.int32),
            advance=jnp.where(index == rows * columns - 1, jnp.maximum(rows, columns), 0),
        )

    def cut(
        self,
        canvas: UInt8[Array, "B Hc Wc 3"],
        size: Int[Array, "B 2"],
        boxes: Real[Array, "B G 4"],
    ) -> TiledImages:
        """Crops as tiles, leaves `[B, G, ...]`; see `VLM.cut`."""
        cut = functools.partial(device.smart_tiles, limits=self.config.limits)
        tiles, grid = jax.vmap(cut)(canvas, size, boxes)
        return TiledImages(tiles, grid)

    def _encode(self, images: TiledImages) -> Float[Array, "B I D"]:
        """Features of one picture a prompt."""
        tiles = clip_normalised(images.tiles).astype(self.dtype)
        return self.projector(self.vision(tiles, images.grid))

    def read(
        self,
        ids: Int[Array, "B G T"],
        valid: Bool[Array, "B G T"],
        image_tokens: TileTokens | None = None,
        prefix: KVCache | None = None,
        cache: KVCache | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[Float[Array, "B G T D"], KVCache]:
        """Embeds and decodes T new tokens `[B, G, T]`; see `models.vlm.VLM`.

        There are as many `<|image_pad|>` as pictures have tokens, real and padding.
        """
        x = self.text.embedding(ids)
        if image_tokens is None:
            return self.text(x, valid, prefix, cache, slot)
        x = put_in_place(x, ids == self.config.image_token_id, image_tokens.features)
        valid, places = self.places(ids, valid, image_tokens)
        return self.text(x, valid, prefix, cache, slot, places)

    def places(
        self, ids: jax.Array, valid: jax.Array, image_tokens: TileTokens
    ) -> tuple[jax.Array, Places]:
        """Which tokens are real, pictures' padding left out, and where they stand (M-RoPE).

        The tokens of a picture share their time and spread over its rows and columns.
        """
        is_image = ids == self.config.image_token_id
        order = jnp.maximum(jnp.cumsum(is_image, -1) - 1, 0)

        def at(values: jax.Array) -> jax.Array:
            return jnp.take_along_axis(values, order, -1, mode="clip")

        valid = valid & jnp.where(is_image, at(image_tokens.real), True)
        row, column = (jnp.where(is_image, at(image_tokens.place[..., i]), 0) for i in range(2))
        return valid, Places(
            advance=jnp.where(is_image, at(image_tokens.advance), 1) * valid,
            offset=jnp.stack([jnp.zeros_like(row), row, column]),
        )
