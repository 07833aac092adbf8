# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shape of a Qwen2.5-VL; no jax import."""

import dataclasses
from typing import Any

from cropvlm_jax import geometry
from cropvlm_jax.models.config import (
    LlamaConfig,
    check_not_foreign,
    check_supported,
    read_integers,
    read_numbers,
    read_part,
    read_rope,
    read_tied,
)

MODEL_TYPE = "qwen2_5_vl"
TEMPORAL_PATCH = 2  # frames of a patch: a still picture is shown twice
VISION_THETA = 10000.0


@dataclasses.dataclass(frozen=True)
class QwenVisionConfig:
    """Shape of the tower, named as in Hugging Face's `config.json`."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    patch_size: int = 14
    spatial_merge_size: int = 2
    window_size: int = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)

    def __post_init__(self) -> None:
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"vision hidden_size={self.hidden_size} is not a multiple of 4 * "
                f"num_heads={self.num_heads}: rows and columns rotate pairs of channels"
            )
        if self.window_size % self.tile_size:
            raise ValueError(
                f"window_size={self.window_size} is not a multiple of the tile of "
                f"{self.tile_size} px (patch_size * spatial_merge_size)"
            )

    @property
    def tile_size(self) -> int:
        """Pixels of a side of what becomes one token of the decoder."""
        return self.patch_size * self.spatial_merge_size

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "QwenVisionConfig":
        """Reads a `vision_config`, whose absent keys take HF's defaults.

        Raises:
            ValueError: naming the key whose value this tower does not implement.
        """
        supported = {
            "hidden_act": "silu",
            "temporal_patch_size": TEMPORAL_PATCH,
            "in_channels": 3,
            "in_chans": 3,  # as the Hub has it
        }
        check_supported("vision_config", config, supported)
        rope = read_part(config, "rope_parameters")
        check_supported("vision_config", rope, {"rope_type": "axial", "rope_theta": VISION_THETA})
        defaults = {
            "depth": 32,
            "hidden_size": 3584,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "window_size": 112,
        }
        numbers = read_numbers("vision_config", config, defaults)
        check_supported("vision_config", config, {"spatial_patch_size": numbers["patch_size"]})
        blocks = read_integers("vision_config", config, "fullatt_block_indexes", (7, 15, 23, 31))
        return cls(**numbers, fullatt_block_indexes=blocks)

    def to_hf(self) -> dict[str, Any]:
        """The `vision_config` of this shape."""
        return {
            "model_type": "qwen2_5_vl_vision",
            "hidden_act": "silu",
            "in_channels": 3,
            "temporal_patch_size": TEMPORAL_PATCH,
            **dataclasses.asdict(self),
            "fullatt_block_indexes": list(self.fullatt_block_indexes),
        }


def _text_from_hf(config: dict[str, Any], *, tie_word_embeddings: bool) -> LlamaConfig:
    """Reads the decoder's part of a config, whose defaults are HF's."""
    check_supported("text_config", config, {"hidden_act": "silu"})
    rope = read_rope(config)
    if rope["rope_type"] != "mrope":  # so the Hub has it, and transformers 5 writes "default"
        check_supported("text_config", rope, {"rope_type": "default"})
    defaults = {
        "vocab_size": 152064,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
    }
    numbers = read_numbers("text_config", config, defaults)
    width, heads = numbers["hidden_size"], numbers["num_attention_heads"]
    shared = {"num_key_value_heads": 8} | config  # null is as many as there are heads
    kv_heads = read_numbers("text_config", shared, {"num_key_value_heads": None})
    return LlamaConfig(
        **numbers,
        num_key_value_heads=kv_heads["num_key_value_heads"] or heads,
        head_dim=width // heads,
        **read_numbers("text_config", rope, {"rope_theta": 1e6}),
        tie_word_embeddings=tie_word_embeddings,
        qkv_bias=True,
        mrope_section=read_integers("text_config", rope, "mrope_section", (16, 24, 24)),
    )


def _text_to_hf(text: LlamaConfig) -> dict[str, Any]:
    config = text.to_hf()
    del config["head_dim"]  # width / heads
    rope = config["rope_parameters"] | {"mrope_section": list(text.mrope_section)}
    return config | {"model_type": "qwen2_5_vl_text", "rope_parameters": rope}


@dataclasses.dataclass(frozen=True)
class QwenConfig:
    """Shape of a Qwen2.5-VL.

    Attributes:
        vision: the tower.
        text: the decoder.
        image_token_id: id of `<|image_pad|>`, whose embeddings the picture's features replace.
        video_token_id: id of `<|video_pad|>`.
        vision_start_token_id: id of `<|vision_start|>`, which stands before each picture.
        vision_end_token_id: id of `<|vision_end|>`.
        limits: of the pictures' sizes. Arrays have room for the largest, so the default is the
            paper's 448 px (256 tokens) instead of the 16,384 tokens of the released processors.
    """

    vision: QwenVisionConfig
    text: LlamaConfig
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    limits: geometry.PixelLimits = geometry.PixelLimits(max_pixels=448**2)

    model_type = MODEL_TYPE

    def __post_init__(self) -> None:
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise ValueError(
                f"the tower writes features of out_hidden_size={self.vision.out_hidden_size}, the "
                f"decoder reads hidden_size={self.text.hidden_size}"
            )

    @property
    def image_seq_len(self) -> int:
        """Tokens of the largest picture."""
        return self.limits.most_tiles

    @property
    def heads(self) -> dict[str, int]:
        """Attention heads of each part that devices may split; of the decoder, its key heads."""
        return {"vision": self.vision.num_heads, "text": self.text.num_key_value_heads}

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "QwenConfig":
        """Reads a `config.json`, transformers 5's or the Hub's, which has no `text_config`.

        Raises:
            ValueError: naming the key whose value is not supported.
        """
        check_supported("", {"model_type": None} | config, {"model_type": MODEL_TYPE})
        check_not_foreign("", config)
        text = read_part(config, "text_config") or config
        ids = {
            "image_token_id": 151655,
            "video_token_id": 151656,
            "vision_start_token_id": 151652,
            "vision_end_token_id": 151653,
        }
        return cls(
            vision=QwenVisionConfig.from_hf(read_part(config, "vision_config")),
            text=_text_from_hf(text, tie_word_embeddings=read_tied(config, text)),
            **read_numbers("", config, ids),
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that `transformers` loads this shape from."""
        return {
            "model_type": MODEL_TYPE,
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "tie_word_embeddings": self.text.tie_word_embeddings,
            "vision_config": self.vision.to_hf(),
            "text_config": _text_to_hf(self.text),
        }

    @classmethod
    def qwen2_5_vl_3b(cls) -> "QwenConfig":
        """Qwen2.5-VL-3B-Instruct: 3,754,622,976 parameters."""
        return cls._released(
            width=2048,
            mlp=11008,
            layers=36,
            heads=16,
            kv_heads=2,
            vocab_size=151936,
            tie_word_embeddings=True,
        )

    @classmethod
    def qwen2_5_vl_7b(cls) -> "QwenConfig":
        """Qwen2.5-VL-7B-Instruct: 8,292,166,656 parameters."""
        return cls._released(
            width=3584,
            mlp=18944,
            layers=28,
            heads=28,
            kv_heads=4,
            vocab_size=152064,
            tie_word_embeddings=False,
        )

    @classmethod
    def _released(
        cls,
        *,
        width: int,
        mlp: int,
        layers: int,
        heads: int,
        kv_heads: int,
        vocab_size: int,
        tie_word_embeddings: bool,
    ) -> "QwenConfig":
        text = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=width // heads,
            rope_theta=1e6,
            rms_norm_eps=1e-6,
            max_position_embeddings=128000,
            tie_word_embeddings=tie_word_embeddings,
            qkv_bias=True,
            mrope_section=(16, 24, 24),
        )
        vision = QwenVisionConfig(
            depth=32,
            hidden_size=1280,
            intermediate_size=3420,
            num_heads=16,
            out_hidden_size=width,
        )
        return cls(vision, text)
