# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What vision transformers share: patches, the layer, and how CLIP's pixels are normalised.

Shape letters: N images, S pixels of a side, P patches, C numbers of a patch,
D width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped

from cropvlm_jax.models import attention, linear
from cropvlm_jax.models.config import ViTConfig
from cropvlm_jax.models.image_processing import CLIP_MEAN, CLIP_STD
from cropvlm_jax.models.scanned import kept


def patchify(images: Shaped[Array, "N S S 3"], patch: int) -> Shaped[Array, "N P C"]:
    """Cuts square images into patches.

    Args:
        images: `[N, S, S, 3]`; pixels at the bottom and right that fill no patch are left out.
        patch: pixels of a patch's side.

    Returns:
        `[N, P, C]`, C = patch * patch * 3; patches are row-major, and so are the pixels of a patch.
    """
    grid = images.shape[1] // patch
    used = grid * patch
    x = images[:, :used, :used].reshape(-1, grid, patch, grid, patch, 3)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, grid**2, patch * patch * 3)


def clip_normalised(images: jax.Array) -> jax.Array:
    """uint8 pixels as every CLIP was trained with them, fp32; floats are normalised already."""
    if images.dtype != jnp.uint8:
        return images
    scale, shift = 1 / (255 * np.array(CLIP_STD)), np.array(CLIP_MEAN) / CLIP_STD
    return images * jnp.float32(scale) - jnp.float32(shift)


class ViTLayer(nnx.Module):
    """Pre-norm bidirectional self-attention and MLP; a tower's own layer says its `activation`."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs, dtype: Any, param_dtype: Any) -> None:
        self.num_heads, self.precision = config.num_attention_heads, linear.precision(dtype)
        norm = functools.partial(
            nnx.LayerNorm,
            epsilon=config.layer_norm_eps,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        layer = linear.layer(dtype, param_dtype, rngs)
        d, ff = config.hidden_size, config.intermediate_size
        self.attention_norm, self.mlp_norm = norm(d), norm(d)
        self.q, self.k, self.v, self.o = layer(d, d), layer(d, d), layer(d, d), layer(d, d)
        self.fc1, self.fc2 = layer(d, ff), layer(ff, d)

    def __call__(self, x: Float[Array, "N P D"]) -> Float[Array, "N P D"]:
        """One layer."""
        normed, heads = self.attention_norm(x), self.num_heads
        query, keys, values = kept(self.q(normed)), kept(self.k(normed)), kept(self.v(normed))
        query *= (x.shape[-1] // heads) ** -0.5
        # As large as a layer's input, and a quarter of its time.
        attended = attention.bidirectional_attention(query, keys, values, heads, self.precision)
        attended = kept(attended, under_remat=True)
        x = kept(x + self.o(attended))
        hidden = kept(self.fc1(self.mlp_norm(x)))
        return x + self.fc2(self.activation(hidden))

    @staticmethod
    def activation(x: jax.Array) -> jax.Array:
        """The nonlinearity of the MLP, which each tower defines."""
        raise NotImplementedError
