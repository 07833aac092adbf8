# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shapes that architectures share, and what all of their configs offer; no jax import."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

# Switches and numbers of other decoders and towers, which change what a model computes. Ours have
# none of them: each must be absent, null, false or 0.
FOREIGN = (
    "attention_chunk_size",
    "attention_multiplier",
    "attn_logit_softcapping",
    "clip_qkv",
    "compression_config",
    "cross_attention_layers",
    "embedding_multiplier",
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "no_rope_layer_interval",
    "no_rope_layers",
    "num_experts",
    "num_local_experts",
    "parallel_attn",
    "qk_layer_norms",
    "qk_norm",
    "quantization",
    "quantization_config",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "rope_interleaved",
    "use_alibi",
    "use_bidirectional_attention",
    "use_parallel_residual",
    "use_qk_norm",
    "use_resampler",
    "use_sliding_window",
)


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
        if not _same(value, expected):
            raise ValueError(_message(part, key, value, repr(expected)))


def _same(value: Any, expected: Any) -> bool:
    """Whether two settings are equal; fractions may be rounded, as files have them."""
    if isinstance(expected, float) and isinstance(value, int | float):
        return math.isclose(value, expected, rel_tol=1e-6)
    if isinstance(expected, list) and isinstance(value, list | tuple):
        return len(value) == len(expected) and all(map(_same, value, expected))
    return bool(value == expected)


def check_not_foreign(part: str, found: Mapping[str, Any]) -> None:
    """Refuses settings by which a model computes something that none of ours does.

    Args:
        part: which part of a model the settings belong to, for the message; "" for the whole model.
        found: settings by name.

    Raises:
        ValueError: naming the setting and its value.
    """
    for key in FOREIGN:
        if found.get(key):
            quantised = key.startswith(("quantization", "compression"))
            advice = "none: take the model before quantisation" if quantised else "False or none"
            raise ValueError(_message(part, key, found[key], advice))
    kinds = found.get("layer_types") or []
    if any(kind != "full_attention" for kind in kinds):
        raise ValueError(_message(part, "layer_types", kinds, "'full_attention'"))


def read_numbers(
    part: str, found: Mapping[str, Any], defaults: Mapping[str, int | float | None]
) -> dict[str, Any]:
    """Positive numbers of a config.

    Args:
        part: which part of a model they belong to, for the message; "" for the whole model.
        found: settings by name.
        defaults: of each number, what an absent one is. Where it is an integer or None, so must the
            number be.

    Raises:
        ValueError: naming the setting and its value.
    """
    numbers = {key: found.get(key, default) for key, default in defaults.items()}
    for key, value in numbers.items():
        if value is None and defaults[key] is None:
            continue
        real = isinstance(defaults[key], float)
        if type(value) not in ((int, float) if real else (int,)) or not 0 < value < math.inf:
            wanted = "a positive number" if real else "a positive integer"
            raise ValueError(_message(part, key, value, wanted))
    return numbers


def read_integers(
    part: str, found: Mapping[str, Any], key: str, default: tuple[int, ...]
) -> tuple[int, ...]:
    """A list of integers of a config.

    Raises:
        ValueError: naming the setting and its value.
    """
    values = found.get(key, default)
    if not isinstance(values, list | tuple) or any(type(value) is not int for value in values):
        raise ValueError(_message(part, key, values, "a list of integers"))
    return tuple(values)


def read_part(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A part of a config that is an object itself; {} where it is absent or null.

    Raises:
        ValueError: it is something else, or has a setting that none of our models has.
    """
    part = config.get(key)
    if part is None:
        return {}
    if not isinstance(part, dict):
        raise ValueError(_message("", key, part, "an object"))
    check_not_foreign(key, part)
    return part


def read_tied(*parts: Mapping[str, Any]) -> bool:
    """Whether one of the parts says that the output head is the embedding.

    Raises:
        ValueError: `tie_word_embeddings` is neither true nor false.
    """
    values = [part.get("tie_word_embeddings", False) for part in parts]
    for value in values:
        if not isinstance(value, bool):
            raise ValueError(_message("", "tie_word_embeddings", value, "true or false"))
    return any(values)


def _message(part: str, key: str, value: Any, expected: str) -> str:
    shown = repr(value)
    shown = shown if len(shown) < 100 else f"{shown[:100]}..."
    return f"{part + ': ' if part else ''}{key}={shown} is not supported, only {expected}"


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
        """Reads a parsed `config.json`; absent keys take HF's defaults.

        Raises:
            ValueError: naming the key whose value is not supported, those of `FOREIGN` among them;
                other keys that are not known do not matter.
        """

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that `transformers` loads this shape from."""


def read_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding of a decoder: its `rope_type`, and its `rope_theta` where one is given.

    transformers 5 writes `rope_parameters`, version 4 `rope_scaling` and, apart, `rope_theta`.

    Raises:
        ValueError: naming the key that is no object, or that rotates a part of the channels only.
    """
    rope = {"rope_theta": config["rope_theta"]} if "rope_theta" in config else {}
    kinds = []
    for key in ("rope_parameters", "rope_scaling"):
        part = read_part(config, key)
        kinds += [part.get("rope_type"), part.get("type")]
        rope |= part
    special = [kind for kind in kinds if kind not in (None, "default")]
    rope["rope_type"] = special[0] if special else "default"
    for found in (config, rope):
        if found.get("partial_rotary_factor") is not None:
            check_supported("text_config", found, {"partial_rotary_factor": 1.0})
    return rope


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Shape of a Llama decoder, named as in Hugging Face's `config.json`.

    Attributes that only Qwen's decoders set:
        qkv_bias: the projections to queries, keys and values have biases.
        qk_norm: the queries and keys of each head are normed before they are rotated.
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
    qk_norm: bool = False
    mrope_section: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} (hidden_size / num_attention_heads, if it is not given) "
                "must be even: RoPE rotates pairs"
            )
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
        supported = {
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "sliding_window": None,
            "is_causal": True,
        }
        check_supported("text_config", config, supported)
        rope = read_rope(config)
        check_supported("text_config", rope, {"rope_type": "default"})
        defaults = {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": None,
            "head_dim": None,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 2048,
        }
        numbers = read_numbers("text_config", config, defaults)
        heads = numbers["num_attention_heads"]
        numbers["num_key_value_heads"] = numbers["num_key_value_heads"] or heads
        numbers["head_dim"] = numbers["head_dim"] or numbers["hidden_size"] // heads
        rope_theta = read_numbers("text_config", rope, {"rope_theta": 1e4})
        return cls(**numbers, **rope_theta, tie_word_embeddings=tie_word_embeddings)

    def to_hf(self) -> dict[str, Any]:
        """The llama `config.json` of this shape, without what only Qwen's decoders set."""
        config = dataclasses.asdict(self)
        del config["qkv_bias"], config["qk_norm"], config["mrope_section"]
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
