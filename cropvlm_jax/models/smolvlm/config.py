# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shape of a SmolVLM, and of its SigLIP tower; no jax import."""

import dataclasses
from typing import Any

from cropvlm_jax.models.config import (
    LlamaConfig,
    ViTConfig,
    check_not_foreign,
    check_supported,
    read_numbers,
    read_part,
    read_tied,
)

MODEL_TYPES = ("idefics3", "smolvlm")  # of SmolVLM 1 and 2


@dataclasses.dataclass(frozen=True)
class SiglipConfig(ViTConfig):
    """Shape of the tower."""

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "SiglipConfig":
        """Reads an idefics3 / smolvlm `vision_config`.

        Raises:
            ValueError: naming the key whose value this tower does not implement.
        """
        supported = {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3}
        check_supported("vision_config", config, supported)
        defaults = {
            "image_size": 224,
            "patch_size": 32,
            "hidden_size": 1152,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 16,
            "layer_norm_eps": 1e-6,
        }
        return cls(**read_numbers("vision_config", config, defaults))

    def to_hf(self, model_type: str) -> dict[str, Any]:
        """The `vision_config` of this shape for a VLM of `model_type`."""
        model_type = {"idefics3": "idefics3_vision", "smolvlm": "smolvlm_vision"}[model_type]
        return {
            "model_type": model_type,
            "hidden_act": "gelu_pytorch_tanh",
            "num_channels": 3,
            **dataclasses.asdict(self),
        }


_BASE_TOWER = SiglipConfig(  # of the 256M and 500M models
    image_size=512,
    patch_size=16,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
)


@dataclasses.dataclass(frozen=True)
class SmolVLMConfig:
    """Shape of a SmolVLM.

    Attributes:
        vision: the tower.
        text: the decoder.
        scale_factor: pixel-shuffle factor; an image is (grid / scale_factor) ** 2 tokens.
        image_token_id: id whose embeddings the image features replace.
        model_type: "idefics3" (SmolVLM 1) or "smolvlm" (SmolVLM 2): the same arithmetic.
        split: whether pictures of more than one tile are split into tiles, which the image
            processor decides: no part of `config.json`.
    """

    vision: SiglipConfig
    text: LlamaConfig
    scale_factor: int
    image_token_id: int
    model_type: str = "idefics3"
    split: bool = True

    def __post_init__(self) -> None:
        if self.vision.grid % self.scale_factor:
            raise ValueError(
                f"scale_factor={self.scale_factor} does not divide the {self.vision.grid} patches "
                "of an image side (image_size / patch_size)"
            )

    @property
    def image_seq_len(self) -> int:
        """Tokens of one image."""
        return (self.vision.grid // self.scale_factor) ** 2

    @property
    def heads(self) -> dict[str, int]:
        """Attention heads of each part that devices may split; of the decoder, its key heads."""
        return {"vision": self.vision.num_attention_heads, "text": self.text.num_key_value_heads}

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "SmolVLMConfig":
        """Reads a Hugging Face `config.json` of type idefics3 or smolvlm.

        Absent keys take HF's defaults.

        Raises:
            ValueError: naming the key whose value is not supported.
        """
        model_type = config.get("model_type")
        if model_type not in MODEL_TYPES:
            raise ValueError(f"model_type={model_type!r} is not supported, only {MODEL_TYPES}")
        check_not_foreign("", config)
        # A checkpoint stores no separate head when the embeddings are tied.
        tied, text = read_tied(config), read_part(config, "text_config")
        return cls(
            vision=SiglipConfig.from_hf(read_part(config, "vision_config")),
            text=LlamaConfig.from_hf(text, tie_word_embeddings=tied),
            model_type=model_type,
            **read_numbers("", config, {"scale_factor": 2, "image_token_id": 128257}),
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
            vision=_BASE_TOWER,
            text=LlamaConfig(
                vocab_size=49280,
                hidden_size=576,
                intermediate_size=1536,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
                head_dim=64,
            ),
            scale_factor=4,
            image_token_id=49190,
        )

    @classmethod
    def smolvlm_500m(cls) -> "SmolVLMConfig":
        """SmolVLM-500M-Instruct: 507,482,304 parameters."""
        return cls(
            vision=_BASE_TOWER,
            text=LlamaConfig(
                vocab_size=49280,
                hidden_size=960,
                intermediate_size=2560,
                num_hidden_layers=32,
                num_attention_heads=15,
                num_key_value_heads=5,
                head_dim=64,
            ),
            scale_factor=4,
            image_token_id=49190,
        )

    @classmethod
    def smolvlm_2_2b(cls) -> "SmolVLMConfig":
        """SmolVLM-Instruct: 2,246,272,880 parameters."""
        return cls(
            vision=SiglipConfig(
                image_size=384,
                patch_size=14,
                hidden_size=1152,
                intermediate_size=4304,
                num_hidden_layers=27,
                num_attention_heads=16,
            ),
            text=LlamaConfig(
                vocab_size=49155,
                hidden_size=2048,
                intermediate_size=8192,
                num_hidden_layers=24,
                num_attention_heads=32,
                num_key_value_heads=32,
                head_dim=64,
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
            vision=SiglipConfig(
                image_size=64,
                patch_size=8,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=3,
                num_attention_heads=4,
            ),
            text=LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=96,
                intermediate_size=192,
                num_hidden_layers=3,
                num_attention_heads=6,
                num_key_value_heads=6,
                head_dim=32,
                max_position_embeddings=512,
            ),
            scale_factor=2,
            image_token_id=image_token_id,
        )
