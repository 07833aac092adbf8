# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shape of a LLaVA-1.5, and of its CLIP tower; no jax import."""

import dataclasses
from typing import Any

from cropvlm_jax.models.config import LlamaConfig, ViTConfig, check_integers, check_supported

MODEL_TYPE = "llava"
FILL = (122, 116, 104)  # 255 times CLIP's means: what pictures are padded with to squares


@dataclasses.dataclass(frozen=True)
class ClipConfig(ViTConfig):
    """Shape of the tower."""

    layer_norm_eps: float = 1e-5

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "ClipConfig":
        """Reads a `vision_config` of type clip_vision_model; unknown keys are ignored.

        Raises:
            ValueError: naming the key whose value this tower does not implement.
        """
        supported = {
            "model_type": "clip_vision_model",
            "hidden_act": "quick_gelu",
            "num_channels": 3,
        }
        check_supported("vision_config", config, supported)
        return cls(
            image_size=config.get("image_size", 224),
            patch_size=config.get("patch_size", 32),
            hidden_size=config.get("hidden_size", 768),
            intermediate_size=config.get("intermediate_size", 3072),
            num_hidden_layers=config.get("num_hidden_layers", 12),
            num_attention_heads=config.get("num_attention_heads", 12),
            layer_norm_eps=config.get("layer_norm_eps", 1e-5),
        )

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
                f"{self.vision.num_hidden_layers}"
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

        Unknown keys are ignored, absent keys take HF's defaults.

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
        check_integers("", config, ("vision_feature_layer",))
        stored = config.get("vision_config")
        vision = cls.llava_7b().vision if stored is None else ClipConfig.from_hf(stored)
        layer = config.get("vision_feature_layer", -2)
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
