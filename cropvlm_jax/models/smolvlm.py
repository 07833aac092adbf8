# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""SmolVLM (Idefics3): SigLIP tower, pixel-shuffle connector, Llama decoder.

Shape letters: B prompts, G continuations of each, N images, S pixels of a side, I tokens of an
image, T text tokens, D text width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cropvlm_jax.models import linear, vlm
from cropvlm_jax.models.llama import Llama, LlamaConfig
from cropvlm_jax.models.siglip import Siglip, SiglipConfig
from cropvlm_jax.pixels import device

MODEL_TYPES = ("idefics3", "smolvlm")
TOWER = ("vision", "connector")  # the parts that make image tokens


@dataclasses.dataclass(frozen=True)
class SmolVLMConfig:
    """Shape of a SmolVLM.

    Attributes:
        vision: the tower.
        text: the decoder.
        scale_factor: pixel-shuffle factor; an image is (grid / scale_factor) ** 2 tokens.
        image_token_id: id whose embeddings the image features replace.
        model_type: "idefics3" (SmolVLM 1) or "smolvlm" (SmolVLM 2): the same arithmetic.
    """

    vision: SiglipConfig
    text: LlamaConfig
    scale_factor: int
    image_token_id: int
    model_type: str = "idefics3"

    def __post_init__(self):
        if self.vision.grid % self.scale_factor:
            raise ValueError(
                f"scale_factor={self.scale_factor} does not divide the {self.vision.grid} patches "
                "of an image side"
            )

    @property
    def image_seq_len(self) -> int:
        """Tokens of one image."""
        return (self.vision.grid // self.scale_factor) ** 2

    @property
    def heads(self) -> dict[str, int]:
        """Heads of each tower that can be told apart: query heads stay with the keys they share."""
        return {"vision": self.vision.num_attention_heads, "text": self.text.num_key_value_heads}

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "SmolVLMConfig":
        """Reads a Hugging Face `config.json` of type idefics3 or smolvlm.

        Unknown keys are ignored, absent keys take HF's defaults.

        Raises:
            ValueError: naming the key whose value is not supported.
        """
        model_type = config.get("model_type")
        if model_type not in MODEL_TYPES:
            raise ValueError(f"model_type={model_type!r} is not supported, only {MODEL_TYPES}")
        # A checkpoint stores no separate head when the embeddings are tied.
        tied = config.get("tie_word_embeddings", False)
        return cls(
            vision=SiglipConfig.from_hf(config.get("vision_config") or {}),
            text=LlamaConfig.from_hf(config.get("text_config") or {}, tie_word_embeddings=tied),
            scale_factor=config.get("scale_factor", 2),
            image_token_id=config.get("image_token_id", 128257),
            model_type=model_type,
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that `transformers` loads this shape from."""
        architecture = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[self.model_type]
        return {
            "model_type": self.model_type,
            "architectures": [f"{architecture}ForConditionalGeneration"],
            "tie_word_embeddings": self.text.tie_word_embeddings,
            "image_token_id": self.image_token_id,
            "scale_factor": self.scale_factor,
            "vision_config": self.vision.to_hf(self.model_type),
            "text_config": self.text.to_hf(),
        }

    @classmethod
    def smolvlm_256m(cls) -> "SmolVLMConfig":
        """SmolVLM-256M-Instruct: 256,484,928 parameters."""
        return cls(
            vision=SiglipConfig(512, 16, 768, 3072, 12, 12),
            text=LlamaConfig(49280, 576, 1536, 30, 9, 3, 64),
            scale_factor=4,
            image_token_id=49190,
        )

    @classmethod
    def smolvlm_500m(cls) -> "SmolVLMConfig":
        """SmolVLM-500M-Instruct: 507,482,304 parameters."""
        return cls(
            vision=SiglipConfig(512, 16, 768, 3072, 12, 12),
            text=LlamaConfig(49280, 960, 2560, 32, 15, 5, 64),
            scale_factor=4,
            image_token_id=49190,
        )

    @classmethod
    def smolvlm_2_2b(cls) -> "SmolVLMConfig":
        """SmolVLM-Instruct: 2,246,272,880 parameters."""
        return cls(
            vision=SiglipConfig(384, 14, 1152, 4304, 27, 16),
            text=LlamaConfig(
                49155,
                2048,
                8192,
                24,
                32,
                32,
                64,
                rope_theta=273768.0,
                max_position_embeddings=16384,
            ),
            scale_factor=3,
            image_token_id=49153,
        )

    @classmethod
    def tiny(cls, vocab_size: int, image_token_id: int) -> "SmolVLMConfig":
        """The zoom_digits models: 64 px images as 16 tokens, small enough to train on a laptop."""
        return cls(
            vision=SiglipConfig(64, 8, 64, 128, 3, 4),
            text=LlamaConfig(vocab_size, 96, 192, 3, 6, 6, 32, max_position_embeddings=512),
            scale_factor=2,
            image_token_id=image_token_id,
        )


class SmolVLM(vlm.PicturesInText):
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
        """Builds randomly initialised weights; arguments as in `Llama`."""
        self.config, self.dtype = config, dtype
        options = dict(rngs=rngs, dtype=dtype, param_dtype=param_dtype, remat=remat)
        self.vision = Siglip(config.vision, **options)
        self.connector = linear.layer(dtype, param_dtype, rngs)(
            config.vision.hidden_size * config.scale_factor**2,
            config.text.hidden_size,
            use_bias=False,
        )
        self.text = Llama(config.text, **options)

    def encode_images(self, images: jax.Array) -> jax.Array:
        """Image tokens for the decoder.

        The N pictures of a prompt go through the tower one after the other, so that its activations
        are those of one picture a prompt.

        Args:
            images: `[B, S, S, 3]` or `[B, N, S, S, 3]`, uint8 pixels, or floats already normalised
                to [-1, 1].

        Returns:
            `[B, I, D]` or `[B, N, I, D]`.
        """
        if images.ndim == 4:
            return self._encode(images)
        if images.shape[1] == 1:  # a loop would copy what its gradient needs
            return self._encode(images[:, 0])[:, None]
        return jax.lax.map(self._encode, images.swapaxes(0, 1)).swapaxes(0, 1)

    def _encode(self, images: jax.Array) -> jax.Array:
        """Image tokens `[B, I, D]` of one picture a prompt, `[B, S, S, 3]`."""
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 127.5 - 1.0
        x = self.vision(images.astype(self.dtype))
        scale, grid = self.config.scale_factor, self.config.vision.grid
        small = grid // scale
        # Pixel shuffle: each scale x scale block of patches becomes one token, rows first.
        x = x.reshape(-1, small, scale, small, scale, x.shape[-1]).swapaxes(2, 3)
        return self.connector(x.reshape(len(images), small * small, -1))

    def encode_crops(self, canvas: jax.Array, size: jax.Array, boxes: jax.Array) -> jax.Array:
        """Image tokens `[B, G, I, D]` of boxes `[B, G, 4]`; see `models.vlm.VLM`."""
        cut = jax.vmap(device.crop, in_axes=(0, 0, 0, None))
        with jax.named_scope("crop"):
            pictures = cut(canvas, size, boxes, self.config.vision.image_size)
        return self.encode_images(pictures)
