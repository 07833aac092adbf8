# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL's vision tower: every patch looks at the whole picture.

Arrays have room for I tiles, rows * columns of which are the picture's: how many, and in which
shape, is data. So pictures of every shape share one compiled function.

Shape letters: N pictures, I tiles of a picture, M merge, P = M * M patches of a tile, T = I * P
patches of a picture, S pixels of a tile's side, D width, H heads, C channels of a head, K layers
whose outputs are taken besides the last one's.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from cropvlm_jax.models import linear, scanned
from cropvlm_jax.models.llama import turn
from cropvlm_jax.models.qwen2_5_vl.config import TEMPORAL_PATCH, VISION_THETA
from cropvlm_jax.models.qwen2_5_vl.vision import QUERIES, block_attention
from cropvlm_jax.models.qwen3_vl.config import Qwen3VisionConfig
from cropvlm_jax.models.scanned import kept
from cropvlm_jax.models.vit import ViTLayer, patchify


def patch_places(count: int, grid: Int[Array, "N 2"], merge: int) -> Int[Array, "N T 2"]:
    """Row and column of each patch: tile by tile, and within a tile row by row.

    Args:
        count: I, for how many tiles there is room.
        grid: rows and columns of the tiles.
        merge: M, patches of a tile's side.
    """
    tile, inside = jnp.divmod(jnp.arange(count * merge**2), merge**2)
    columns = grid[:, 1:]
    row = tile // columns * merge + inside // merge
    column = tile % columns * merge + inside % merge
    return jnp.stack([row, column], -1)


def interpolated(
    table: Float[Array, "V D"],
    places: Int[Array, "N T 2"],
    size: Int[Array, "N 2"],
) -> Float[Array, "N T D"]:
    """Position embeddings of patches, bilinear between those of a square whose corners are theirs.

    Args:
        table: embeddings of the square, row-major.
        places: row and column of each patch.
        size: patches of a picture's height and width.
    """
    side = round(len(table) ** 0.5)
    at = places * (side - 1.0) / jnp.maximum(size - 1, 1)[:, None]
    at = jnp.minimum(at, side - 1)  # padding is outside
    low = jnp.floor(at).astype(jnp.int32)
    high, share = jnp.minimum(low + 1, side - 1), at - low

    def along(row: jax.Array) -> jax.Array:
        left, right = (table[row * side + ends[..., 1]] for ends in (low, high))
        return left + (right - left) * share[..., 1:]

    top, bottom = along(low[..., 0]), along(high[..., 0])
    return top + (bottom - top) * share[..., :1]


class Qwen3VisionLayer(ViTLayer):
    """A layer whose queries and keys are rotated by rows and columns."""

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "N T D"], angles: Float[Array, "N T A"], real: Bool[Array, "N T"]
    ) -> Float[Array, "N T D"]:
        """One layer.

        Args:
            x: patches.
            angles: A = C / 2, by which queries and keys are rotated.
            real: False for padding.
        """
        heads = (*x.shape[:2], self.num_heads, -1)
        normed = self.attention_norm(x)
        query, keys, values = (kept(f(normed)).reshape(heads) for f in (self.q, self.k, self.v))
        query, keys = turn(query, angles[:, :, None]), turn(keys, angles[:, :, None])
        keys, values, mask = keys[:, None], values[:, None], real[:, None, None]

        def attend(query: Float[Array, "N H C"]) -> Float[Array, "N H C"]:
            query = query[:, None, None]
            return block_attention(query, keys, values, mask, self.precision)[:, 0, 0]

        attended = jax.lax.map(attend, query.swapaxes(0, 1), batch_size=QUERIES).swapaxes(0, 1)
        x = kept(x + self.o(kept(attended.reshape(x.shape), under_remat=True)))
        hidden = kept(self.fc1(self.mlp_norm(x)))
        return x + self.fc2(self.activation(hidden))

    @staticmethod
    def activation(x: jax.Array) -> jax.Array:
        """GELU, approximated by tanh."""
        return jax.nn.gelu(x, approximate=True)


class Qwen3Vision(nnx.Module):
    """Tiles in, features of their patches out."""

    def __init__(
        self,
        config: Qwen3VisionConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
    ):
        """Builds randomly initialised weights; `Llama` documents the arguments."""
        self.config, self.remat = config, remat
        self.patch_embedding = linear.layer(dtype, param_dtype, rngs)(
            TEMPORAL_PATCH * 3 * config.patch_size**2, config.hidden_size
        )
        self.position_embedding = nnx.Embed(
            config.num_position_embeddings,
            config.hidden_size,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.layers = scanned.stack(
            lambda r: Qwen3VisionLayer(config.layers, r, dtype, param_dtype), config.depth, rngs
        )

    def __call__(
        self, tiles: Float[Array, "N I S S 3"], grid: Int[Array, "N 2"]
    ) -> Float[Array, "N L I P D"]:
        """Encodes pictures.

        Args:
            tiles: normalised pixels.
            grid: rows and columns of the tiles.

        Returns:
            Features of each tile's patches, meaningless in the padding, after L = 1 + K layers: the
            last one, and then those of `deepstack_visual_indexes`.
        """
        config = self.config
        n, count = tiles.shape[:2]
        merge, patch = config.spatial_merge_size, config.patch_size
        x = patchify(tiles.reshape((-1, *tiles.shape[2:])), patch).reshape(n, count * merge**2, -1)
        x = self.patch_embedding(jnp.concatenate([x] * TEMPORAL_PATCH, -1))

        places = patch_places(count, grid, merge)
        table = self.position_embedding.embedding[...].astype(jnp.float32)
        x += interpolated(table, places, grid * merge).astype(x.dtype)
        quarter = config.hidden_size // config.num_heads // 4
        frequencies = VISION_THETA ** (-jnp.arange(quarter, dtype=jnp.float32) / quarter)
        angles = (places[..., None] * frequencies).reshape(n, count * merge**2, -1)
        real = jnp.arange(count * merge**2) < grid.prod(-1, keepdims=True) * merge**2

        taken = jnp.array(config.deepstack_visual_indexes)

        def layer(
            module: Qwen3VisionLayer, states: jax.Array, index: jax.Array
        ) -> tuple[jax.Array, None]:
            x = module(states[:, 0], angles, real)[:, None]
            others = jnp.where((taken == index)[:, None, None], x, states[:, 1:])
            return jnp.concatenate([x, others], 1), None

        states = jnp.repeat(x[:, None], 1 + len(taken), axis=1)
        indices = jnp.arange(config.depth)
        states, _ = scanned.scan(layer, self.layers, states, indices, remat=self.remat)
        return states.reshape(n, 1 + len(taken), count, merge**2, -1)
