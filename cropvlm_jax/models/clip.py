# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""CLIP vision tower as LLaVA uses it: a class token to attend to, features of an inner layer.

Shape letters: N images, P patches, D width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cropvlm_jax.models import linear, scanned
from cropvlm_jax.models.siglip import SiglipLayer

# Of the pixels, in 0..1, that every CLIP was trained with.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Shape of the tower, named as in Hugging Face's `config.json`."""

    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float = 1e-5

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
        for key, expected in supported.items():
            if config.get(key, expected) != expected:
                raise ValueError(
                    f"vision_config: {key}={config[key]!r} is not supported, only {expected!r}"
                )
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


class ClipLayer(SiglipLayer):
    """Pre-norm bidirectional self-attention and MLP."""

    @staticmethod
    def activation(x: jax.Array) -> jax.Array:
        """OpenAI's "quick" approximation of GELU (arXiv 1606.08415, section 2)."""
        return x * jax.nn.sigmoid(1.702 * x)


class Clip(nnx.Module):
    """Patches in, patch features out."""

    def __init__(
        self,
        config: ClipConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
    ):
        """Builds randomly initialised weights; arguments as in `Llama`."""
        self.config, self.dtype, self.remat = config, dtype, remat
        d = config.hidden_size
        initializer = nnx.initializers.normal(0.02)
        self.class_embedding = nnx.Param(initializer(rngs.params(), (d,), param_dtype))
        self.patch_embedding = linear.layer(dtype, param_dtype, rngs)(
            3 * config.patch_size**2, d, use_bias=False
        )
        self.position_embedding = nnx.Embed(
            config.grid**2 + 1, d, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

        def norm() -> nnx.LayerNorm:
            epsilon = config.layer_norm_eps
            return nnx.LayerNorm(
                d, epsilon=epsilon, dtype=dtype, param_dtype=param_dtype, rngs=rngs
            )

        self.pre_norm = norm()
        self.layers = scanned.stack(
            lambda r: ClipLayer(config, r, dtype, param_dtype), config.num_hidden_layers, rngs
        )
        self.norm = norm()  # of the last layer's features, for those who read them

    def __call__(self, pixels: jax.Array, depth: int) -> jax.Array:
        """Encodes square images.

        Args:
            pixels: float `[N, S, S, 3]`, S = image_size, in 0..1 less `MEAN` over `STD`.
            depth: layers to run.

        Returns:
            What the last of them says of the patches, `[N, P, D]`, P = grid ** 2, row-major.
        """
        grid, patch = self.config.grid, self.config.patch_size
        used = grid * patch
        x = pixels[:, :used, :used].reshape(-1, grid, patch, grid, patch, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, grid**2, patch * patch * 3)
        x = self.patch_embedding(x)
        first = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (len(x), 1, x.shape[2]))
        x = jnp.concatenate([first, x], 1) + self.position_embedding(jnp.arange(grid**2 + 1))
        x, _ = scanned.scan(
            lambda layer, x, _: (layer(x), None),
            self.layers,
            self.pre_norm(x),
            None,
            remat=self.remat,
            depth=depth,
        )
        return x[:, 1:]
