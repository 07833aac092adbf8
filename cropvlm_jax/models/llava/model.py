# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The LLaVA-1.5 module.

Shape letters: B prompts, G continuations of each, N images, S pixels of a side, I tokens of an
image, T text tokens, D text width, V vocabulary.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Real, UInt8

from cropvlm_jax.models import linear
from cropvlm_jax.models.llama import Llama
from cropvlm_jax.models.llava.config import LlavaConfig
from cropvlm_jax.models.llava.vision import Clip
from cropvlm_jax.models.vit import clip_normalised
from cropvlm_jax.models.vlm import VLM
from cropvlm_jax.pixels import device


class Projector(nnx.Module):
    """From the tower's width to the decoder's."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: Any, param_dtype: Any):
        """Builds randomly initialised weights."""
        layer = linear.layer(dtype, param_dtype, rngs)
        self.fc1, self.fc2 = layer(inputs, outputs), layer(outputs, outputs)

    def __call__(self, x: Float[Array, "*N I"]) -> Float[Array, "*N O"]:
        """Features of the tower, `[..., inputs]`, as the decoder reads them, `[..., outputs]`."""
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Llava(VLM):
    """The model: CLIP, a projector and a Llama."""

    def __init__(
        self,
        config: LlavaConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
    ):
        """Builds randomly initialised weights; `Llama` documents the arguments."""
        self.config, self.dtype = config, dtype
        options = dict(rngs=rngs, dtype=dtype, param_dtype=param_dtype)
        widths = config.vision.hidden_size, config.text.hidden_size
        self.vision = Clip(config.vision, remat=remat, **options)
        self.projector = Projector(*widths, **options)
        self.text = Llama(config.text, remat=remat, **options)

    def encode_images(
        self, images: UInt8[Array, "B N S S 3"] | Float[Array, "B N S S 3"]
    ) -> Float[Array, "B N I D"]:
        """Image tokens for the decoder.

        The N pictures of a prompt go through the tower one after the other, so that its activations
        are those of one picture a prompt.

        Args:
            images: uint8 pixels, or floats that are normalised already.
        """

        def encode(images: jax.Array) -> jax.Array:
            pixels = clip_normalised(images).astype(self.dtype)
            features = self.vision(pixels, self.config.feature_layers)
            return self.projector(features)

        return jax.lax.map(encode, images.swapaxes(0, 1)).swapaxes(0, 1)

    def cut(
        self,
        canvas: UInt8[Array, "B Hc Wc 3"],
        size: Int[Array, "B 2"],
        boxes: Real[Array, "B G 4"],
    ) -> UInt8[Array, "B G S S 3"]:
        """Crops as one square each; see `VLM.cut`."""
        cut = functools.partial(
            device.bicubic_square, side=self.config.vision.image_size, fill=self.config.fill
        )
        return jax.vmap(cut)(canvas, size, boxes)
