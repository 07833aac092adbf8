# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""SigLIP vision tower as SmolVLM uses it: no class token, no pooling head.

Shape letters: N images, P patches, D width, H heads, C channels of a head.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cropvlm_jax.models import attention, linear, scanned
from cropvlm_jax.models.scanned import kept


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """Shape of the tower, named as in Hugging Face's `config.json`."""

    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float = 1e-6

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"vision hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "SiglipConfig":
        """Reads an idefics3 / smolvlm `vision_config`; unknown keys are ignored.

        Raises:
            ValueError: naming the key whose value this tower does not implement.
        """
        supported = {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3}
        for key, expected in supported.items():
            if config.get(key, expected) != expected:
                raise ValueError(
                    f"vision_config: {key}={config[key]!r} is not supported, only {expected!r}"
                )
        for key in ("image_size", "patch_size"):
            if not isinstance(config.get(key, 1), int):
                raise ValueError(
                    f"vision_config: {key}={config[key]!r} is not supported, only one integer"
                )
        return cls(
            image_size=config.get("image_size", 224),
            patch_size=config.get("patch_size", 32),
            hidden_size=config.get("hidden_size", 1152),
            intermediate_size=config.get("intermediate_size", 3072),
            num_hidden_layers=config.get("num_hidden_layers", 12),
            num_attention_heads=config.get("num_attention_heads", 16),
            layer_norm_eps=config.get("layer_norm_eps", 1e-6),
        )

    def to_hf(self, model_type: str) -> dict[str, Any]:
        """The `vision_config` of this shape for a VLM of `model_type`."""
        model_type = {"idefics3": "idefics3_vision", "smolvlm": "smolvlm_vision"}[model_type]
        return {
            "model_type": model_type,
            "hidden_act": "gelu_pytorch_tanh",
            "num_channels": 3,
            **dataclasses.asdict(self),
        }


class SiglipLayer(nnx.Module):
    """Pre-norm bidirectional self-attention and MLP."""

    def __init__(self, config: Any, rngs: nnx.Rngs, dtype: Any, param_dtype: Any):
        self.num_heads, self.precision = config.num_attention_heads, linear.precision(dtype)
        norm = functools.partial(
            nnx.LayerNorm,
            epsilon=config.layer_norm_eps,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        layer = linear.layer(dtype, param_dtype, rngs)
        d, ff = config.hidden_size, config.intermediate_size
        self.attention_norm, self.mlp_norm = norm(d), norm(d)
        self.q, self.k, self.v, self.o = layer(d, d), layer(d, d), layer(d, d), layer(d, d)
        self.fc1, self.fc2 = layer(d, ff), layer(ff, d)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, P, D]` to `[N, P, D]`."""
        normed, heads = self.attention_norm(x), self.num_heads
        query, keys, values = kept(self.q(normed)), kept(self.k(normed)), kept(self.v(normed))
        query *= (x.shape[-1] // heads) ** -0.5
        # As large as a layer's input, and a quarter of its time.
        attended = attention.attend(query, keys, values, heads, self.precision)
        attended = kept(attended, under_remat=True)
        x = kept(x + self.o(attended))
        hidden = kept(self.fc1(self.mlp_norm(x)))
        return x + self.fc2(self.activation(hidden))

    @staticmethod
    def activation(x: jax.Array) -> jax.Array:
        """Between the two layers of the MLP."""
        return jax.nn.gelu(x, approximate=True)


class Siglip(nnx.Module):
    """Patches in, patch features out."""

    def __init__(
        self,
        config: SiglipConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
    ):
        """Builds randomly initialised weights; arguments as in `Llama`."""
        self.config, self.remat = config, remat
        d = config.hidden_size
        self.patch_embedding = linear.layer(dtype, param_dtype, rngs)(3 * config.patch_size**2, d)
        self.position_embedding = nnx.Embed(
            config.grid**2, d, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.layers = scanned.stack(
            lambda r: SiglipLayer(config, r, dtype, param_dtype), config.num_hidden_layers, rngs
        )
        self.norm = nnx.LayerNorm(
            d, epsilon=config.layer_norm_eps, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Encodes normalised square images.

        Args:
            pixels: float `[N, S, S, 3]`, S = image_size, in [-1, 1].

        Returns:
            `[N, P, D]`, P = grid ** 2, row-major.
        """
        grid, patch = self.config.grid, self.config.patch_size
        used = grid * patch
        x = pixels[:, :used, :used].reshape(-1, grid, patch, grid, patch, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, grid**2, patch * patch * 3)
        # Patch i of a side has position i. transformers computes that in fp32, whose rounding
        # depends on its version and the hardware and moves patches by one in some odd grids.
        x = self.patch_embedding(x) + self.position_embedding(jnp.arange(grid**2))
        x, _ = scanned.scan(
            lambda layer, x, _: (layer(x), None), self.layers, x, None, remat=self.remat
        )
        return self.norm(x)
