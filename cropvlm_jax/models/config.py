# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shapes that architectures share, and what all of their configs offer; no jax import."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable


def check_supported(part: str, found: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    """Refuses settings that our code does not implement.

    Args:
        part: which part of a model the settings belong to, for the message; "" for the whole model.
        found: settings by name; an absent one counts as supported.
        supported: the only value of each setting that is implemented.

    Raises:
        ValueError: naming the setting, its value and the supported one.
    """
    for key, expected in supported.items():
        value = found.get(key, expected)
        if value != expected:
            raise ValueError(_message(part, key, value, repr(expected)))


def check_integers(part: str, found: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Refuses settings that are there and are not one integer.

    Args:
        part: which part of a model the settings belong to, for the message.
        found: settings by name.
        keys: names of the settings to look at.

    Raises:
        ValueError: naming the setting and its value.
    """
    for key in keys:
        if not isinstance(found.get(key, 0), int):
            raise ValueError(_message(part, key, found[key], "one integer"))


def _message(part: str, key: str, value: Any, expected: str) -> str:
    return f"{part + ': ' if part else ''}{key}={value!r} is not supported, only {expected}"


@runtime_checkable
class VLMConfig(Protocol):
    """What the config of every architecture offers: a frozen, comparable description of a shape."""

    @property
    def model_type(self) -> str:
        """Hugging Face's name of the kind of model, by which the registry finds it."""

    @property
    def vision(self) -> Any:
        """Shape of the vision tower."""

    @property
    def text(self) -> "LlamaConfig":
        """Shape of the decoder."""

    @property
    def image_token_id(self) -> int:
        """Id of the token whose embeddings the image tokens replace."""

    @property
    def image_seq_len(self) -> int:
        """Tokens of one image; of the largest one where their number depends on its size."""

    @property
    def heads(self) -> dict[str, int]:
        """Attention heads of "vision" and "text" that may be split over devices, key heads where
        queries share them."""

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "VLMConfig":
        """Reads a parsed `config.json`; unknown keys are ignored, absent keys take HF's defaults.

        Raises:
            ValueError: naming the key whose value is not supported.
        """

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that `transformers` loads this shape from."""


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Shape of a Llama decoder, named as in Hugging Face's `config.json`.

    Attributes that only Qwen's decoders set:
        qkv_bias: the projections to queries, keys and values have biases.
        mrope_section: rotated pairs of channels that take a token's time, row and column for their
            position, in turn; empty where a position is one number.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 1e5
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 8192
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    mrope_section: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: RoPE rotates pairs")
        if self.mrope_section and sum(self.mrope_section) != self.head_dim // 2:
            raise ValueError(
                f"mrope_section={self.mrope_section} does not add up to the {self.head_dim // 2} "
                "pairs of a head's channels"
            )

    @classmethod
    def from_hf(cls, config: dict[str, Any], *, tie_word_embeddings: bool) -> "LlamaConfig":
        """Reads a Hugging Face llama config; unknown keys are ignored.

        Args:
            config: the parsed `config.json` of the text model (absent keys take HF's defaults).
            tie_word_embeddings: whether the output head is the embedding (a property of the whole
                model, which is why a VLM's top level decides it).

        Raises:
            ValueError: naming the key whose value this decoder does not implement.
        """
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        supported = {
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
        }
        check_supported("text_config", config, supported)
        kind = rope.get("rope_type", rope.get("type", "default"))
        check_supported("text_config", {"rope_type": kind}, {"rope_type": "default"})
        width, heads = config.get("hidden_size", 4096), config.get("num_attention_heads", 32)
        return cls(
            vocab_size=config.get("vocab_size", 32000),
            hidden_size=width,
            intermediate_size=config.get("intermediate_size", 11008),
            num_hidden_layers=config.get("num_hidden_layers", 32),
            num_attention_heads=heads,
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or width // heads,
            rope_theta=rope.get("rope_theta", config.get("rope_theta", 10000.0)),
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            max_position_embeddings=config.get("max_position_embeddings", 2048),
            tie_word_embeddings=tie_word_embeddings,
        )

    def to_hf(self) -> dict[str, Any]:
        """The llama `config.json` of this shape, without what only Qwen's decoders set."""
        config = dataclasses.asdict(self)
        del config["qkv_bias"], config["mrope_section"]
        # transformers 5 reads rope_parameters, version 4 reads rope_theta.
        rope = {"rope_type": "default", "rope_theta": self.rope_theta}
        return {"model_type": "llama", "hidden_act": "silu", **config, "rope_parameters": rope}


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Shape of a vision transformer for square images, named as in Hugging Face's `config.json`."""

    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"vision hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size
