# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shape of a dense Qwen3-VL; no jax import."""

import dataclasses
import math
from typing import Any

from cropvlm_jax import geometry
from cropvlm_jax.models.config import (
    LlamaConfig,
    ViTConfig,
    check_not_foreign,
    check_supported,
    read_integers,
    read_numbers,
    read_part,
    read_rope,
    read_tied,
)
from cropvlm_jax.models.qwen2_5_vl.config import TEMPORAL_PATCH, VISION_THETA, QwenConfig

MODEL_TYPE = "qwen3_vl"


@dataclasses.dataclass(frozen=True)
class Qwen3VisionConfig:
    """Shape of the tower, named as in Hugging Face's `config.json`.

    Attributes:
        num_position_embeddings: of a square grid, from which those of a picture's patches are
            interpolated.
        deepstack_visual_indexes: layers whose outputs the decoder gets besides those of the last.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    patch_size: int = 16
    spatial_merge_size: int = 2
    num_position_embeddings: int = 2304
    deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)

    def __post_init__(self) -> None:
        if self.hidden_size % (4 * self.num_heads):
            wanted = f"a multiple of 4 * num_heads={self.num_heads}"
            raise ValueError(f"vision hidden_size={self.hidden_size} is not {wanted}")
        if math.isqrt(self.num_position_embeddings) ** 2 != self.num_position_embeddings:
            raise ValueError(
                f"num_position_embeddings={self.num_position_embeddings} is not the square of an "
                "integer: they are those of a square"
            )
        taken = self.deepstack_visual_indexes
        if not taken or list(taken) != sorted({*taken} & {*range(self.depth)}):
            raise ValueError(
                f"deepstack_visual_indexes={list(taken)} are not increasing numbers of the "
                f"{self.depth} layers, one at least"
            )

    @property
    def tile_size(self) -> int:
        """Pixels of a side of what becomes one token of the decoder."""
        return self.patch_size * self.spatial_merge_size

    @property
    def layers(self) -> ViTConfig:
        """Shape of the layers, and of the square picture that has one patch a position."""
        side = math.isqrt(self.num_position_embeddings) * self.patch_size
        return ViTConfig(
            image_size=side,
            patch_size=self.patch_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.depth,
            num_attention_heads=self.num_heads,
        )

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "Qwen3VisionConfig":
        """Reads a `vision_config`, whose absent keys take HF's defaults.

        Raises:
            ValueError: naming the key whose value this tower does not implement.
        """
        supported = {
            "hidden_act": "gelu_pytorch_tanh",
            "temporal_patch_size": TEMPORAL_PATCH,
            "in_channels": 3,
        }
        check_supported("vision_config", config, supported)
        rope = read_part(config, "rope_parameters")
        check_supported("vision_config", rope, {"rope_type": "axial", "rope_theta": VISION_THETA})
        defaults = {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "num_position_embeddings": 2304,
        }
        taken = read_integers("vision_config", config, "deepstack_visual_indexes", (8, 16, 24))
        numbers = read_numbers("vision_config", config, defaults)
        return cls(**numbers, deepstack_visual_indexes=taken)

    def to_hf(self) -> dict[str, Any]:
        """The `vision_config` of this shape."""
        return {
            "model_type": "qwen3_vl_vision",
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "temporal_patch_size": TEMPORAL_PATCH,
            **dataclasses.asdict(self),
            "deepstack_visual_indexes": list(self.deepstack_visual_indexes),
        }


def interleaved(section: tuple[int, ...], pairs: int) -> tuple[int, ...]:
    """`LlamaConfig.mrope_section` of a decoder whose axes take turns pair by pair.

    Pair i takes axis i % 3, but time where rows or columns have had their share.

    Args:
        section: how many pairs time, rows and columns have; what rows and columns leave is time's.
        pairs: how many there are.
    """
    axes = [i % 3 if i < 3 * section[i % 3] else 0 for i in range(pairs)]
    runs = [0]
    for axis in axes:
        while (len(runs) - 1) % 3 != axis:
            runs.append(0)
        runs[-1] += 1
    return tuple(runs)


def _text_from_hf(config: dict[str, Any], *, tie_word_embeddings: bool) -> LlamaConfig:
    """Reads a `text_config`, whose defaults are HF's."""
    defaults = {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 128000,
        "rope_theta": 5e5,
    }
    check_supported("text_config", config, {"model_type": "qwen3_vl_text"})
    rope = read_rope(config)
    check_supported("text_config", rope, {"mrope_interleaved": True})
    section = read_integers("text_config", rope, "mrope_section", (24, 20, 20))
    if len(section) != 3:
        raise ValueError(f"text_config: mrope_section={list(section)} are not three numbers")
    text = LlamaConfig.from_hf(
        defaults | config | {"model_type": "llama"}, tie_word_embeddings=tie_word_embeddings
    )
    return dataclasses.replace(
        text, qk_norm=True, mrope_section=interleaved(section, text.head_dim // 2)
    )


@dataclasses.dataclass(frozen=True)
class Qwen3Config(QwenConfig):
    """Shape of a Qwen3-VL, which has the special tokens of a Qwen2.5-VL.

    Attributes:
        limits: of the pictures' sizes. The default is 256 tokens, as many as Qwen2.5-VL has,
            instead of the 16,384 of the released processors.
    """

    vision: Qwen3VisionConfig  # type: ignore[assignment]
    limits: geometry.PixelLimits = geometry.PixelLimits(512**2, 256**2, factor=32)

    model_type = MODEL_TYPE

    def __post_init__(self) -> None:
        super().__post_init__()
        taken = self.vision.deepstack_visual_indexes
        if len(taken) > self.text.num_hidden_layers:
            raise ValueError(
                f"deepstack_visual_indexes={list(taken)} are more than the decoder's "
                f"num_hidden_layers={self.text.num_hidden_layers}"
            )

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "Qwen3Config":
        """Reads a `config.json`.

        Raises:
            ValueError: naming the key whose value is not supported.
        """
        check_supported("", {"model_type": None} | config, {"model_type": MODEL_TYPE})
        check_not_foreign("", config)
        text = read_part(config, "text_config")
        names = [field.name for field in dataclasses.fields(cls)]
        ids = {name: getattr(cls, name) for name in names if name.endswith("_token_id")}
        return cls(
            vision=Qwen3VisionConfig.from_hf(read_part(config, "vision_config")),
            text=_text_from_hf(text, tie_word_embeddings=read_tied(config, text)),
            **read_numbers("", config, ids),
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that `transformers` loads this shape from."""
        runs = self.text.mrope_section
        rope = {
            "rope_type": "default",
            "rope_theta": self.text.rope_theta,
            "mrope_interleaved": True,
            "mrope_section": [sum(runs[axis::3]) for axis in range(3)],
        }
        return super().to_hf() | {
            "model_type": MODEL_TYPE,
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "text_config": self.text.to_hf()
            | {"model_type": "qwen3_vl_text", "rope_parameters": rope},
        }

    @classmethod
    def qwen3_vl_2b(cls) -> "Qwen3Config":
        """Qwen3-VL-2B-Instruct: 2,127,532,032 parameters."""
        return cls._dense(width=2048, mlp=6144, layers=28, heads=16, tower=_SMALL_TOWER)

    @classmethod
    def qwen3_vl_4b(cls) -> "Qwen3Config":
        """Qwen3-VL-4B-Instruct: 4,437,815,808 parameters."""
        return cls._dense(width=2560, mlp=9728, layers=36, heads=32, tower=_SMALL_TOWER)

    @classmethod
    def qwen3_vl_8b(cls) -> "Qwen3Config":
        """Qwen3-VL-8B-Instruct: 8,767,123,696 parameters."""
        tower = Qwen3VisionConfig(27, 1152, 4304, 16, out_hidden_size=4096)
        return cls._dense(width=4096, mlp=12288, layers=36, heads=32, tower=tower)

    @classmethod
    def _dense(
        cls, *, width: int, mlp: int, layers: int, heads: int, tower: Qwen3VisionConfig
    ) -> "Qwen3Config":
        """A released shape; the smaller two are tied, and share the shape of the tower."""
        text = LlamaConfig(
            vocab_size=151936,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=8,
            head_dim=128,
            rope_theta=5e6,
            rms_norm_eps=1e-6,
            max_position_embeddings=262144,
            tie_word_embeddings=tower == _SMALL_TOWER,
            qk_norm=True,
            mrope_section=interleaved((24, 20, 20), 64),
        )
        return cls(dataclasses.replace(tower, out_hidden_size=width), text)


_SMALL_TOWER = Qwen3VisionConfig(
    depth=24,
    hidden_size=1024,
    intermediate_size=4096,
    num_heads=16,
    out_hidden_size=2048,
    deepstack_visual_indexes=(5, 11, 17),
)
