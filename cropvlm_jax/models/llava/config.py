# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shape of a LLaVA-1.5, and of its CLIP tower; no jax import."""

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

MODEL_TYPE = "llava"
FILL = (122, 116, 104)  # 255 times CLIP's means: what pictures are padded with to squares


@dataclasses.dataclass(frozen=True)
class ClipConfig(ViTConfig):
    """Shape of the tower."""

    layer_norm_eps: float = 1e-5

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "ClipConfig":
        """Reads a `vision_config` of type clip_vision_model.

        Raises:
            ValueError: naming the key whose value this tower does not implement.
        """
        supported = {
            "model_type": "clip_vision_model",
            "hidden_act": "quick_gelu",
            "num_channels": 3,
        }
        check_supported("vision_config", config, supported)
        defaults = {
            "image_size": 224,
            "patch_size": 32,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "layer_norm_eps": 1e-5,
        }
        return cls(**read_numbers("vision_config", config, defaults))

    def to_hf(self) -> dict[str, Any]:
        """The `vision_config` of this shape."""
        kind = {"model_type": "clip_vision_model", "hidden_act": "quick_gelu", "num_channels": 3}
        return kind | dataclasses.asdict(self)


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

    def __post_init__(self) -> None:
        if not 0 < self.feature_layers <= self.vision.num_hidden_layers:
            raise ValueError(
                f"vision_feature_layer: {self.feature_layers} layers of a tower of "
                f"{self.vision.num_hidden_layers} (num_hidden_layers)"
            )

    @property
    def image_seq_len(self) -> int:
        """Tokens of one image."""
        return self.vision.grid**2

    @property
    def heads(self) -> dict[str, int]:
        """Attention heads of each part that devices may split; of the decoder, its key heads."""
        return {"vision": self.vision.num_attention_heads, "text": self.text.num_key_value_heads}

    @property
    def fill(self) -> tuple[int, int, int] | None:
        """The colour of the padding, None where pictures are not padded."""
        return FILL if self.pad else None

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "LlavaConfig":
        """Reads a Hugging Face `config.json` of type llava.

        Absent keys take HF's defaults.

        Raises:
            ValueError: naming the key whose value is not supported.
        """
        supported = {
            "model_type": MODEL_TYPE,
            "projector_hidden_act": "gelu",
            "multimodal_projector_bias": True,
            "vision_feature_select_strategy": "default",
        }
        check_supported("", {"model_type": None} | config, supported)
        check_not_foreign("", config)
        text, vision = read_part(config, "text_config"), cls.llava_7b().vision
        if config.get("vision_config") is not None:
            vision = ClipConfig.from_hf(read_part(config, "vision_config"))
        layer = config.get("vision_feature_layer", -2)
        if type(layer) is not int:
            raise ValueError(f"vision_feature_layer={layer!r} is not supported, only one integer")
        token = "image_token_index" if "image_token_index" in config else "image_token_id"
        return cls(
            vision=vision,
            text=LlamaConfig.from_hf(text, tie_word_embeddings=read_tied(config, text)),
            feature_layers=layer if layer >= 0 else vision.num_hidden_layers + 1 + layer,
            image_token_id=read_numbers("", config, {token: 32000})[token],
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
