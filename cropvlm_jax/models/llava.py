# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""LLaVA-1.5: CLIP tower, two-layer projector, Llama decoder (arXiv 2310.03744).

Shape letters: B prompts, G continuations of each, N images, S pixels of a side, I tokens of an
image, T text tokens, D text width, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cropvlm_jax.models import clip, linear, vlm
from cropvlm_jax.models.clip import Clip, ClipConfig
from cropvlm_jax.models.llama import Llama, LlamaConfig
from cropvlm_jax.pixels import device

MODEL_TYPE = "llava"
FILL = (122, 116, 104)  # 255 times CLIP's means: what pictures are padded with to squares


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
    """Shape of a LLaVA-1.5.

    Attributes:
        vision: the tower.
        text: the decoder.
        feature_layers: layers of the tower before its features are taken, all but the last one in
            the released models.
        image_token_id: id whose embeddings the image features replace.
        pad: whether pictures are padded to squares, as the original code does, and not reduced to
            their centres, as the processors that are released for transformers say. No part of
            `config.json`.
    """

    vision: ClipConfig
    text: LlamaConfig
    feature_layers: int
    image_token_id: int
    pad: bool = False

    model_type = MODEL_TYPE

    def __post_init__(self):
        if not 0 < self.feature_layers <= self.vision.num_hidden_layers:
            raise ValueError(
                f"vision_feature_layer: {self.feature_layers} layers of a tower of "
                f"{self.vision.num_hidden_layers}"
            )

    @property
    def image_seq_len(self) -> int:
        """Tokens of one image."""
        return self.vision.grid**2

    @property
    def heads(self) -> dict[str, int]:
        """Heads of each tower that can be told apart: query heads stay with the keys they share."""
        return {"vision": self.vision.num_attention_heads, "text": self.text.num_key_value_heads}

    @property
    def fill(self) -> tuple[int, int, int] | None:
        """The colour of the padding, None where pictures are not padded."""
        return FILL if self.pad else None

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "LlavaConfig":
        """Reads a Hugging Face `config.json` of type llava.

        Unknown keys are ignored, absent keys take HF's defaults.

        Raises:
            ValueError: naming the key whose value is not supported.
        """
        supported = {
            "model_type": (config.get("model_type"), MODEL_TYPE),
            "projector_hidden_act": (config.get("projector_hidden_act", "gelu"), "gelu"),
            "multimodal_projector_bias": (config.get("multimodal_projector_bias", True), True),
            "vision_feature_select_strategy": (
                config.get("vision_feature_select_strategy", "default"),
                "default",
            ),
        }
        for key, (value, expected) in supported.items():
            if value != expected:
                raise ValueError(f"{key}={value!r} is not supported, only {expected!r}")
        stored = config.get("vision_config")
        vision = cls.llava_7b().vision if stored is None else ClipConfig.from_hf(stored)
        layer = config.get("vision_feature_layer", -2)
        if not isinstance(layer, int):
            raise ValueError(f"vision_feature_layer={layer!r} is not supported, only one integer")
        text = config.get("text_config") or {}
        tied = config.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False)
        ids = config.get("image_token_index", config.get("image_token_id", 32000))
        return cls(
            vision=vision,
            text=LlamaConfig.from_hf(text, tie_word_embeddings=tied),
            feature_layers=layer if layer >= 0 else vision.num_hidden_layers + 1 + layer,
            image_token_id=ids,
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that `transformers` loads this shape from."""
        return {
            "model_type": MODEL_TYPE,
            "architectures": ["LlavaForConditionalGeneration"],
            "tie_word_embeddings": self.text.tie_word_embeddings,
            "image_token_index": self.image_token_id,
            "image_seq_length": self.image_seq_len,
            "projector_hidden_act": "gelu",
            "vision_feature_layer": self.feature_layers - self.vision.num_hidden_layers - 1,
            "vision_feature_select_strategy": "default",
            "vision_config": self.vision.to_hf(),
            "text_config": self.text.to_hf(),
        }

    @classmethod
    def llava_7b(cls) -> "LlavaConfig":
        """llava-hf/llava-1.5-7b-hf: 7,063,427,072 parameters."""
        return cls(
            vision=ClipConfig(336, 14, 1024, 4096, 24, 16),
            text=LlamaConfig(
                32064, 4096, 11008, 32, 32, 32, 128, rope_theta=1e4, max_position_embeddings=4096
            ),
            feature_layers=23,
            image_token_id=32000,
        )


class Projector(nnx.Module):
    """From the tower's width to the decoder's."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: Any, param_dtype: Any):
        """Builds randomly initialised weights."""
        layer = linear.layer(dtype, param_dtype, rngs)
        self.fc1, self.fc2 = layer(inputs, outputs), layer(outputs, outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., inputs]` to `[..., outputs]`."""
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Llava(vlm.PicturesInText):
    """The model, a `models.vlm.VLM`."""

    def __init__(
        self,
        config: LlavaConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
    ):
        """Builds randomly initialised weights; arguments as in `Llama`."""
        self.config, self.dtype = config, dtype
        options = dict(rngs=rngs, dtype=dtype, param_dtype=param_dtype)
        widths = config.vision.hidden_size, config.text.hidden_size
        self.vision = Clip(config.vision, remat=remat, **options)
        self.projector = Projector(*widths, **options)
        self.text = Llama(config.text, remat=remat, **options)

    def encode_images(self, images: jax.Array) -> jax.Array:
        """Image tokens for the decoder, of one picture a prompt after the other.

        Args:
            images: `[B, N, S, S, 3]`, uint8 pixels, or floats in 0..1 less `clip.MEAN` over
                `clip.STD`.

        Returns:
            `[B, N, I, D]`.
        """

        def encode(images: jax.Array) -> jax.Array:
            if images.dtype == jnp.uint8:
                scale, shift = 1 / (255 * np.array(clip.STD)), np.array(clip.MEAN) / clip.STD
                images = images * jnp.float32(scale) - jnp.float32(shift)
            features = self.vision(images.astype(self.dtype), self.config.feature_layers)
            return self.projector(features)

        return jax.lax.map(encode, images.swapaxes(0, 1)).swapaxes(0, 1)

    def encode_crops(self, canvas: jax.Array, size: jax.Array, boxes: jax.Array) -> jax.Array:
        """Image tokens `[B, G, I, D]` of boxes `[B, G, 4]`; see `models.vlm.VLM`."""
        config = self.config
        cut = functools.partial(
            device.bicubic_square, side=config.vision.image_size, fill=config.fill
        )
        with jax.named_scope("crop"):
            pictures = jax.vmap(cut)(canvas, size, boxes)
        return self.encode_images(pictures)
