# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""CLIP vision tower as LLaVA uses it: a class token to attend to, features of an inner layer.

Shape letters: N images, S pixels of a side, P patches, D width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cropvlm_jax.models import linear, scanned
from cropvlm_jax.models.llava.config import ClipConfig
from cropvlm_jax.models.vit import ViTLayer, patchify


class ClipLayer(ViTLayer):
    """A layer with OpenAI's approximation of GELU."""

    @staticmethod
    def activation(x: jax.Array) -> jax.Array:
        """The "quick" approximation of GELU (arXiv 1606.08415, section 2)."""
        return x * jax.nn.sigmoid(1.702 * x)


class Clip(nnx.Module):
    """Patches in, patch features out."""

    def __init__(
        self,
        config: ClipConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
    ):
        """Builds randomly initialised weights; `Llama` documents the arguments."""
        self.config, self.dtype, self.remat = config, dtype, remat
        d = config.hidden_size
        initializer = nnx.initializers.normal(0.02)
        self.class_embedding = nnx.Param(initializer(rngs.params(), (d,), param_dtype))
        self.patch_embedding = linear.layer(dtype, param_dtype, rngs)(
            3 * config.patch_size**2, d, use_bias=False
        )
        self.position_embedding = nnx.Embed(
            config.grid**2 + 1, d, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

        def norm() -> nnx.LayerNorm:
            epsilon = config.layer_norm_eps
            return nnx.LayerNorm(
                d, epsilon=epsilon, dtype=dtype, param_dtype=param_dtype, rngs=rngs
            )

        self.pre_norm = norm()
        self.layers = scanned.stack(
            lambda r: ClipLayer(config, r, dtype, param_dtype), config.num_hidden_layers, rngs
        )
        self.norm = norm()  # of the last layer's features, for those who read them

    def __call__(self, pixels: Float[Array, "N S S 3"], depth: int) -> Float[Array, "N P D"]:
        """Encodes square images.

        Args:
            pixels: as `vit.clip_normalised` returns them, S = image_size.
            depth: layers to run.

        Returns:
            Features of the patches after the last of these layers, P = grid ** 2, row-major.
        """
        x = self.patch_embedding(patchify(pixels, self.config.patch_size))
        first = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (len(x), 1, x.shape[2]))
        x = jnp.concatenate([first, x], 1) + self.position_embedding(jnp.arange(x.shape[1] + 1))
        x, _ = scanned.scan(
            lambda layer, x, _: (layer(x), None),
            self.layers,
            self.pre_norm(x),
            None,
            remat=self.remat,
            depth=depth,
        )
        return x[:, 1:]
