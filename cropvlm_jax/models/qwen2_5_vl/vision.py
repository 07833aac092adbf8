# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL's vision tower: attention in windows, in a few layers over the whole picture.

Arrays have room for I tiles, rows * columns of which are the picture's: how many, and in which
shape, is data. So pictures of every shape share one compiled function.

Shape letters: N pictures, I tiles of a picture, M merge, S pixels of a tile's side, T patches, D
width, H heads, C channels of a head, W patches of a window (which are W / M**2 tiles), K keys.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from cropvlm_jax.models import linear, scanned
from cropvlm_jax.models.llama import NEGATIVE, turn
from cropvlm_jax.models.qwen2_5_vl.config import TEMPORAL_PATCH, VISION_THETA, QwenVisionConfig
from cropvlm_jax.models.vit import patchify

EPSILON = 1e-6  # of the norms, which no config tells
# Most patches that look at all others at a time: bounds the logits of large pictures.
QUERIES = 1024


def tile_places(
    count: int, grid: Int[Array, "N 2"], side: int
) -> tuple[Int[Array, "N I"], Int[Array, "N I"], Int[Array, "N I"]]:
    """Where the tiles of pictures are.

    Args:
        count: I, for how many tiles there is room.
        grid: rows and columns of the tiles.
        side: tiles of a window's side.

    Returns:
        Row, column and window of each tile. Padding has a window of its own, the last one.
    """
    index = jnp.arange(count)
    rows, columns = grid[:, :1], grid[:, 1:]
    row, column = index // columns, index % columns
    across = -(-columns // side)
    window = row // side * across + column // side
    return row, column, jnp.where(index < rows * columns, window, count)


def block_attention(
    query: Float[Array, "N B T H C"],
    keys: Float[Array, "N B K H C"],
    values: Float[Array, "N B K H C"],
    mask: Bool[Array, "N B T K"],
    precision: jax.lax.Precision | None,
) -> Float[Array, "N B T H C"]:
    """Attention among the patches of a block.

    Args:
        query: of the T patches of B blocks.
        keys: of the K patches that a block may look at.
        values: of the same patches.
        mask: which of them each patch may look at, the same for all heads.
        precision: of the matmuls.

    Returns:
        `[N, B, T, H, C]`; the softmax is fp32.
    """
    einsum = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    logits = einsum("npthc,npkhc->nphtk", query * query.shape[-1] ** -0.5, keys)
    weights = jax.nn.softmax(jnp.where(mask[:, :, None], logits, NEGATIVE)).astype(values.dtype)
    return einsum("nphtk,npkhc->npthc", weights, values).astype(query.dtype)


def _with_neighbours(x: jax.Array, fill: int = 0) -> jax.Array:
    """Blocks `[N, P, T, ...]` between the one before and the one after: `[N, P, 3T, ...]`."""
    widths = [(0, 0), (1, 1)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, widths, constant_values=fill)
    return jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=2)


class QwenVisionLayer(nnx.Module):
    """Pre-norm self-attention, in windows or over the picture, and SwiGLU."""

    def __init__(
        self, config: QwenVisionConfig, rngs: nnx.Rngs, dtype: Any, param_dtype: Any
    ) -> None:
        self.num_heads, self.precision = config.num_heads, linear.precision(dtype)
        self.block = (config.window_size // config.patch_size) ** 2
        self.full_layers, self.depth = len(config.fullatt_block_indexes), config.depth
        norm = functools.partial(
            nnx.RMSNorm, epsilon=EPSILON, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        layer = linear.layer(dtype, param_dtype, rngs)
        d, ff = config.hidden_size, config.intermediate_size
        self.attention_norm, self.mlp_norm = norm(d), norm(d)
        self.q, self.k, self.v, self.o = layer(d, d), layer(d, d), layer(d, d), layer(d, d)
        self.gate, self.up, self.down = layer(d, ff), layer(d, ff), layer(ff, d)

    def __call__(
        self,
        x: Float[Array, "N T D"],
        angles: Float[Array, "N T A"],
        window: Int[Array, "N T"],
        real: Bool[Array, "N T"],
        full: Bool[Array, ""],
    ) -> Float[Array, "N T D"]:
        """One layer.

        Args:
            x: patches, window after window; T is a multiple of W.
            angles: A = C / 2, by which queries and keys are rotated.
            window: the window of each patch.
            real: False for padding.
            full: whether patches look beyond their windows.
        """
        n, t, d = x.shape
        normed = self.attention_norm(x)
        heads = (self.num_heads, d // self.num_heads)
        query, keys, values = (f(normed).reshape(n, t, *heads) for f in (self.q, self.k, self.v))
        query, keys = turn(query, angles[:, :, None]), turn(keys, angles[:, :, None])

        def everywhere() -> jax.Array:
            blocks, most = t // self.block, max(QUERIES // self.block, 1)
            size = self.block * max(k for k in range(1, most + 1) if blocks % k == 0)
            parts = query.reshape(n, t // size, 1, size, *heads).swapaxes(0, 1)
            mask = jnp.broadcast_to(real[:, None, None], (n, 1, size, t))
            attended = jax.lax.map(
                lambda part: block_attention(
                    part, keys[:, None], values[:, None], mask, self.precision
                ),
                parts,
            )
            return attended.swapaxes(0, 1).reshape(x.shape)

        def within() -> jax.Array:
            # A window has W patches at most and starts anywhere: it reaches into one more block.
            own = window.reshape(n, -1, self.block)
            mask = own[..., None] == _with_neighbours(own, -1)[:, :, None]
            blocks = (*own.shape, *heads)
            near, seen = (_with_neighbours(a.reshape(blocks)) for a in (keys, values))
            with jax.named_scope("useful_1_of_3"):  # the neighbours are masked
                attended = block_attention(query.reshape(blocks), near, seen, mask, self.precision)
            return attended.reshape(x.shape)

        # `training.costs` reads in these scopes how much of what is multiplied counts.
        with jax.named_scope(f"last_branch_{self.full_layers}_of_{self.depth}"):
            attended = jax.lax.cond(full, everywhere, within)
        x = x + self.o(attended)
        normed = self.mlp_norm(x)
        return x + self.down(jax.nn.silu(self.gate(normed)) * self.up(normed))


class QwenVision(nnx.Module):
    """Tiles in, features of their patches out."""

    def __init__(
        self,
        config: QwenVisionConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
    ):
        """Builds randomly initialised weights; `Llama` documents the arguments."""
        self.config, self.remat = config, remat
        self.patch_embedding = linear.layer(dtype, param_dtype, rngs)(
            TEMPORAL_PATCH * 3 * config.patch_size**2, config.hidden_size, use_bias=False
        )
        self.layers = scanned.stack(
            lambda r: QwenVisionLayer(config, r, dtype, param_dtype), config.depth, rngs
        )

    def __call__(
        self, tiles: Float[Array, "N I S S 3"], grid: Int[Array, "N 2"]
    ) -> Float[Array, "N I P D"]:
        """Encodes pictures.

        Args:
            tiles: normalised pixels.
            grid: rows and columns of the tiles.

        Returns:
            Features of the P = M * M patches of each tile, meaningless in the padding.
        """
        config = self.config
        n, count = tiles.shape[:2]
        merge, patch = config.spatial_merge_size, config.patch_size
        row, column, window = tile_places(count, grid, config.window_size // config.tile_size)

        # Tiles of a window become neighbours, filled up to whole blocks.
        order = jnp.argsort(window, axis=-1, stable=True)
        per_block = (config.window_size // config.tile_size) ** 2
        filled = [(0, 0), (0, -count % per_block)]
        row, column = (jnp.pad(jnp.take_along_axis(a, order, 1), filled) for a in (row, column))
        window = jnp.take_along_axis(window, order, 1)
        window = jnp.pad(window, filled, constant_values=count)
        x = jnp.take_along_axis(tiles, order[..., None, None, None], 1)
        x = jnp.pad(x, [*filled, (0, 0), (0, 0), (0, 0)])

        # Patches of a tile, row by row.
        x = patchify(x.reshape(-1, *x.shape[2:]), patch).reshape(n, -1, patch * patch * 3)
        x = self.patch_embedding(jnp.concatenate([x] * TEMPORAL_PATCH, -1))

        inside = jnp.arange(merge**2)
        rows = (row[..., None] * merge + inside // merge).reshape(n, -1)
        columns = (column[..., None] * merge + inside % merge).reshape(n, -1)
        quarter = config.hidden_size // config.num_heads // 4
        frequencies = VISION_THETA ** (-jnp.arange(quarter, dtype=jnp.float32) / quarter)
        rows, columns = (a[..., None].astype(jnp.float32) for a in (rows, columns))
        angles = jnp.concatenate([rows * frequencies, columns * frequencies], -1)
        window = jnp.repeat(window, merge**2, axis=-1)
        real = window < count

        full = jnp.isin(jnp.arange(config.depth), jnp.array(config.fullatt_block_indexes, int))

        def layer(module: QwenVisionLayer, x: jax.Array, full: jax.Array) -> tuple[jax.Array, None]:
            return module(x, angles, window, real, full), None

        x, _ = scanned.scan(layer, self.layers, x, full, remat=self.remat)
        x = x.reshape(n, -1, merge**2, x.shape[-1])
        return jnp.take_along_axis(x, jnp.argsort(order, axis=-1)[..., None, None], 1)
