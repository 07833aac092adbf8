# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The SmolVLM module.

Shape letters: B prompts, G continuations of each, N images, S pixels of a side, I tokens of an
image, T text tokens, D text width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Real, UInt8

from cropvlm_jax import parallel
from cropvlm_jax.models import linear
from cropvlm_jax.models.llama import Llama
from cropvlm_jax.models.smolvlm.config import SmolVLMConfig
from cropvlm_jax.models.smolvlm.vision import Siglip
from cropvlm_jax.models.vlm import VLM
from cropvlm_jax.pixels import tile_crops, tiles
from cropvlm_jax.pixels.plans import PlannedTiles

TOWER = ("vision", "connector")  # the parts that make image tokens


class SmolVLM(VLM):
    """The model; `text` is used directly for cached decoding."""

    def __init__(
        self,
        config: SmolVLMConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
    ):
        """Builds randomly initialised weights; `Llama` documents the arguments."""
        self.config, self.dtype = config, dtype
        options = dict(rngs=rngs, dtype=dtype, param_dtype=param_dtype, remat=remat)
        self.vision = Siglip(config.vision, **options)
        self.connector = linear.layer(dtype, param_dtype, rngs)(
            config.vision.hidden_size * config.scale_factor**2,
            config.text.hidden_size,
            use_bias=False,
        )
        self.text = Llama(config.text, **options)

    def encode_images(
        self, images: UInt8[Array, "B N S S 3"] | Float[Array, "B N S S 3"]
    ) -> Float[Array, "B N I D"]:
        """Image tokens for the decoder.

        The N pictures of a prompt go through the tower one after the other, so that its activations
        are those of one picture a prompt. Replicas exchange the tower's gradient after the last.

        Args:
            images: uint8 pixels, or floats already normalised to [-1, 1].
        """
        if images.shape[1] == 1:  # a loop would copy what its gradient needs
            return self._encode(images[:, 0])[:, None]
        graph, tower, *others = nnx.split(self, lambda path, _: path[0] in TOWER, ...)

        def encode(tower: nnx.State, images: jax.Array) -> jax.Array:
            encode_one = nnx.merge(graph, tower, *others)._encode
            return jax.lax.map(encode_one, images.swapaxes(0, 1)).swapaxes(0, 1)

        return parallel.replicas_apart(encode, self.dtype)(tower, images)

    def _encode(
        self, images: UInt8[Array, "B S S 3"] | Float[Array, "B S S 3"]
    ) -> Float[Array, "B I D"]:
        """Image tokens of one picture a prompt."""
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 127.5 - 1.0
        return self.tokens_of_patches(self.vision(images.astype(self.dtype)))

    def tokens_of_patches(self, patches: Float[Array, "B P W"]) -> Float[Array, "B I D"]:
        """Image tokens of the tower's P patches, W their width."""
        scale, grid = self.config.scale_factor, self.config.vision.grid
        small = grid // scale
        # Pixel shuffle: each scale x scale block of patches becomes one token, rows first.
        x = patches.reshape(-1, small, scale, small, scale, patches.shape[-1]).swapaxes(2, 3)
        return self.connector(x.reshape(len(patches), small * small, -1))

    def cut(
        self,
        canvas: UInt8[Array, "B Hc Wc 3"],
        size: Int[Array, "B 2"],
        boxes: Real[Array, "B G 4"],
    ) -> UInt8[Array, "B G S S 3"]:
        """Crops as one tile each; see `VLM.cut`."""

        def cut(rows: tuple[Array, Array, Array]) -> UInt8[Array, "B G S S 3"]:
            canvas, size, boxes = rows
            return tile_crops.crops(canvas, size, boxes, self.config.vision.image_size)

        return parallel.by_rows(cut)((canvas, size, boxes))

    def cut_tiles(
        self,
        canvas: UInt8[Array, "B Hc Wc 3"],
        size: Int[Array, "B 2"],
        planned: PlannedTiles,
        longest_edge: int,
    ) -> UInt8[Array, "B N S S 3"]:
        """Whole pictures as tiles; see `VLM.cut_tiles`."""
        side, split = self.config.vision.image_size, self.config.split

        def cut(rows: tuple[Array, Array, PlannedTiles]) -> UInt8[Array, "B N S S 3"]:
            canvas, size, planned = rows
            return tiles.cut_tiles(canvas, size, planned, side, longest_edge, split)

        return parallel.by_rows(cut)((canvas, size, planned))
