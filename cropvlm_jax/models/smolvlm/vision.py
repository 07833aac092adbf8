# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""SigLIP vision tower as SmolVLM uses it: no class token, no pooling head.

Shape letters: N images, S pixels of a side, P patches, D width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cropvlm_jax.models import linear, scanned
from cropvlm_jax.models.smolvlm.config import SiglipConfig
from cropvlm_jax.models.vit import ViTLayer, patchify


class SiglipLayer(ViTLayer):
    """A layer with the tanh approximation of GELU."""

    @staticmethod
    def activation(x: jax.Array) -> jax.Array:
        """The nonlinearity of the MLP."""
        return jax.nn.gelu(x, approximate=True)


class Siglip(nnx.Module):
    """Patches in, patch features out."""

    def __init__(
        self,
        config: SiglipConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
    ):
        """Builds randomly initialised weights; `Llama` documents the arguments."""
        self.config, self.remat = config, remat
        d = config.hidden_size
        self.patch_embedding = linear.layer(dtype, param_dtype, rngs)(3 * config.patch_size**2, d)
        self.position_embedding = nnx.Embed(
            config.grid**2, d, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.layers = scanned.stack(
            lambda r: SiglipLayer(config, r, dtype, param_dtype), config.num_hidden_layers, rngs
        )
        self.norm = nnx.LayerNorm(
            d, epsilon=config.layer_norm_eps, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(self, pixels: Float[Array, "N S S 3"]) -> Float[Array, "N P D"]:
        """Encodes normalised square images.

        Args:
            pixels: in [-1, 1], S = image_size.

        Returns:
            Features of the patches, P = grid ** 2, row-major.
        """
        patches = patchify(pixels, self.config.patch_size)
        # Patch i of a side has position i. transformers computes that in fp32, whose rounding
        # depends on its version and the hardware and moves patches by one in some odd grids.
        x = self.patch_embedding(patches)
        x += self.position_embedding(jnp.arange(self.config.grid**2))
        x, _ = scanned.scan(
            lambda layer, x, _: (layer(x), None), self.layers, x, None, remat=self.remat
        )
        return self.norm(x)
