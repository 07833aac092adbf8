# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The Qwen3-VL module: a Qwen2.5-VL with another tower, several layers of which are read.

What the tower's last layer says of a tile is a token of the decoder, as in Qwen2.5-VL. What layers
before it say is added to that token after the first layers of the decoder (DeepStack, arXiv
2406.04334).

Shape letters: B prompts, G continuations of each, I tiles of a picture, P patches of a tile, T
tokens, K layers of the tower that are read besides the last one, D width of the decoder.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from cropvlm_jax.models import linear, scanned
from cropvlm_jax.models.llama import KVCache, Llama
from cropvlm_jax.models.qwen2_5_vl.image_processing import TiledImages
from cropvlm_jax.models.qwen2_5_vl.model import Qwen2_5_VL, TileTokens
from cropvlm_jax.models.qwen3_vl.config import Qwen3Config, Qwen3VisionConfig
from cropvlm_jax.models.qwen3_vl.image_processing import MEAN, STD
from cropvlm_jax.models.qwen3_vl.vision import Qwen3Vision
from cropvlm_jax.models.vlm import put_in_place


class Merger(nnx.Module):
    """The patches of a tile as one vector of the decoder's width."""

    def __init__(
        self,
        config: Qwen3VisionConfig,
        rngs: nnx.Rngs,
        dtype: Any,
        param_dtype: Any,
        norm_merged: bool,
    ) -> None:
        """Builds randomly initialised weights.

        Args:
            config: shape of the tower.
            rngs: source of the initial weights.
            dtype: of the computation.
            param_dtype: of the weights.
            norm_merged: whether a tile is normed as a whole, instead of each of its patches.
        """
        d = config.hidden_size
        merged = d * config.spatial_merge_size**2
        layer = linear.layer(dtype, param_dtype, rngs)
        self.norm = nnx.LayerNorm(
            merged if norm_merged else d,
            epsilon=config.layers.layer_norm_eps,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.norm_merged = norm_merged
        self.fc1, self.fc2 = layer(merged, merged), layer(merged, config.out_hidden_size)

    def __call__(self, x: Float[Array, "N I P D"]) -> Float[Array, "N I W"]:
        """Features of the patches of each tile as one vector of the decoder's width."""
        merged = (*x.shape[:2], -1)
        x = self.norm(x.reshape(merged)) if self.norm_merged else self.norm(x).reshape(merged)
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Qwen3VL(Qwen2_5_VL):
    """The model; `text` is used directly for cached decoding."""

    def __init__(
        self,
        config: Qwen3Config,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
    ):
        """Builds randomly initialised weights; `Llama` documents the arguments."""
        self.config, self.dtype = config, dtype
        options = dict(rngs=rngs, dtype=dtype, param_dtype=param_dtype, remat=remat)
        build = functools.partial(Merger, config.vision, dtype=dtype, param_dtype=param_dtype)
        self.vision = Qwen3Vision(config.vision, **options)
        self.projector = build(rngs=rngs, norm_merged=False)
        self.deepstack = scanned.stack(
            lambda r: build(rngs=r, norm_merged=True),
            len(config.vision.deepstack_visual_indexes),
            rngs,
        )
        self.text = Llama(config.text, **options)

    def _encode(self, images: TiledImages) -> Float[Array, "B I W"]:
        """Features of one picture a prompt, W = (1 + K) * D: of the last layer, then the others."""
        tiles = images.tiles
        if tiles.dtype == jnp.uint8:  # floats are normalised already
            tiles = tiles * jnp.float32(1 / (255 * STD)) - jnp.float32(MEAN / STD)
        first, *others = jnp.moveaxis(self.vision(tiles.astype(self.dtype), images.grid), 1, 0)
        graphdef, weights = nnx.split(self.deepstack)
        merge = jax.vmap(lambda weights, x: nnx.merge(graphdef, weights)(x))
        return jnp.concatenate([self.projector(first), *merge(weights, jnp.stack(others))], -1)

    def read(
        self,
        ids: Int[Array, "B G T"],
        valid: Bool[Array, "B G T"],
        image_tokens: TileTokens | None = None,
        prefix: KVCache | None = None,
        cache: KVCache | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[Float[Array, "B G T D"], KVCache]:
        """Embeds and decodes T new tokens `[B, G, T]`; see `models.vlm.VLM`."""
        x = self.text.embedding(ids)
        if image_tokens is None:
            return self.text(x, valid, prefix, cache, slot)
        width = x.shape[-1]
        features = image_tokens.features
        x = jnp.pad(x, [(0, 0)] * 3 + [(0, features.shape[-1] - width)])
        x = put_in_place(x, ids == self.config.image_token_id, features)
        x, *others = jnp.split(x, features.shape[-1] // width, axis=-1)
        valid, places = self.places(ids, valid, image_tokens)
        return self.text(x, valid, prefix, cache, slot, places, jnp.stack(others))
