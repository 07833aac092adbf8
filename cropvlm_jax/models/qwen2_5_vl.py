# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL (arXiv 2502.13923): a tower for pictures of any size, Qwen2 decoder with M-RoPE.

A picture is cut into square tiles of `merge * patch` (28) pixels, each of which becomes one token
of the decoder. Arrays have room for I tiles, rows * columns of which are the picture's: how many,
and in which shape, is data. So pictures of every shape share one compiled function.

Shape letters: B prompts, G continuations of each, N pictures, I tiles of a picture, M merge, S
pixels of a tile's side, T tokens, D width, H heads, C channels of a head, L layers, W tokens of a
window (which are W / M**2 tiles), K keys.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cropvlm_jax import geometry
from cropvlm_jax.models import clip, linear, scanned, vlm
from cropvlm_jax.models.llama import NEGATIVE, KVCache, Llama, LlamaConfig, Places, turn
from cropvlm_jax.pixels import device, host

MODEL_TYPE = "qwen2_5_vl"
TEMPORAL_PATCH = 2  # frames of a patch: a still picture is shown twice
EPSILON = 1e-6  # of the tower's norms, which no config tells
VISION_THETA = 10000.0
QUERIES = (
    1024  # most patches that look at all others at a time: bounds the logits of large pictures
)


class Pictures(NamedTuple):
    """Pictures as tiles.

    Attributes:
        tiles: uint8 pixels `[..., I, S, S, 3]`, or floats already normalised; row-major, and then
            padding.
        grid: int `[..., 2]`, rows and columns of the tiles.
    """

    tiles: Any
    grid: Any


class PictureTokens(NamedTuple):
    """What the decoder reads of pictures, token by token.

    Attributes:
        features: `[..., I, D]`; row-major, and then padding.
        real: bool `[..., I]`, False for padding.
        place: int32 `[..., I, 2]`, row and column.
        advance: int32 `[..., I]`, by how many positions a token moves the ones after it: the last
            one by the picture's longer side, the others not at all.
    """

    features: jax.Array
    real: jax.Array
    place: jax.Array
    advance: jax.Array


def see(image: np.ndarray, limits: geometry.PixelLimits) -> tuple[Pictures, tuple[int, int]]:
    """One picture uint8 `[H, W, 3]` as `Pictures` of a leading axis 1, and its grid.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    tiles = host.smart_tiles(image, limits)
    grid = tiles.shape[:2]
    tiles = tiles.reshape(-1, *tiles.shape[2:])
    missing = limits.most_tiles - len(tiles)
    tiles = np.pad(tiles, [(0, missing), (0, 0), (0, 0), (0, 0)])
    return Pictures(tiles[None], np.array([grid], np.int32)), grid


def _check(part: str, config: dict[str, Any], supported: dict[str, Any]) -> None:
    for key, expected in supported.items():
        if config.get(key, expected) != expected:
            raise ValueError(f"{part}: {key}={config[key]!r} is not supported, only {expected!r}")


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

    def __post_init__(self):
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"vision hidden_size={self.hidden_size} is not a multiple of 4 * "
                f"num_heads={self.num_heads}: rows and columns rotate pairs of channels"
            )
        if self.window_size % self.tile_size:
            raise ValueError(
                f"window_size={self.window_size} is not a multiple of the tile of "
                f"{self.tile_size} px"
            )

    @property
    def tile_size(self) -> int:
        """Pixels of a side of what becomes one token of the decoder."""
        return self.patch_size * self.spatial_merge_size

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "QwenVisionConfig":
        """Reads a `vision_config`; unknown keys are ignored, absent ones take HF's defaults.

        Raises:
            ValueError: naming the key whose value this tower does not implement.
        """
        channels = {key: 3 for key in ("in_channels", "in_chans")}
        supported = {"hidden_act": "silu", "temporal_patch_size": TEMPORAL_PATCH} | channels
        _check("vision_config", config, supported)
        rope = config.get("rope_parameters") or {}
        _check("vision_config", rope, {"rope_type": "axial", "rope_theta": VISION_THETA})
        if not isinstance(config.get("patch_size", 14), int):
            raise ValueError(
                f"vision_config: patch_size={config['patch_size']!r} is not supported, only one "
                "integer"
            )
        return cls(
            depth=config.get("depth", 32),
            hidden_size=config.get("hidden_size", 3584),
            intermediate_size=config.get("intermediate_size", 3420),
            num_heads=config.get("num_heads", 16),
            out_hidden_size=config.get("out_hidden_size", 3584),
            patch_size=config.get("patch_size", 14),
            spatial_merge_size=config.get("spatial_merge_size", 2),
            window_size=config.get("window_size", 112),
            fullatt_block_indexes=tuple(config.get("fullatt_block_indexes", (7, 15, 23, 31))),
        )

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
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    _check("text_config", config, {"hidden_act": "silu", "use_sliding_window": False})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):  # version 5 writes the first, the Hub has the second
        raise ValueError(f"text_config: rope_type={kind!r} is not supported, only 'default'")
    width, heads = config.get("hidden_size", 8192), config.get("num_attention_heads", 64)
    return LlamaConfig(
        vocab_size=config.get("vocab_size", 152064),
        hidden_size=width,
        intermediate_size=config.get("intermediate_size", 29568),
        num_hidden_layers=config.get("num_hidden_layers", 80),
        num_attention_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads", 8) or heads,
        head_dim=width // heads,
        rope_theta=rope.get("rope_theta", config.get("rope_theta", 1e6)),
        rms_norm_eps=config.get("rms_norm_eps", 1e-5),
        max_position_embeddings=config.get("max_position_embeddings", 32768),
        tie_word_embeddings=tie_word_embeddings,
        qkv_bias=True,
        mrope_section=tuple(rope.get("mrope_section", (16, 24, 24))),
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

    def __post_init__(self):
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
        """Heads of each tower that can be told apart: query heads stay with the keys they share."""
        return {"vision": self.vision.num_heads, "text": self.text.num_key_value_heads}

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "QwenConfig":
        """Reads a `config.json`, transformers 5's or the Hub's, which has no `text_config`.

        Raises:
            ValueError: naming the key whose value is not supported.
        """
        model_type = config.get("model_type")
        if model_type != MODEL_TYPE:
            raise ValueError(f"model_type={model_type!r} is not supported, only {MODEL_TYPE!r}")
        text = config.get("text_config") or config
        tied = any(c.get("tie_word_embeddings", False) for c in (config, text))
        ids = {
            field.name: config.get(field.name, field.default)
            for field in dataclasses.fields(cls)
            if field.name.endswith("_token_id")
        }
        return cls(
            vision=QwenVisionConfig.from_hf(config.get("vision_config") or {}),
            text=_text_from_hf(text, tie_word_embeddings=tied),
            **ids,
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
        return cls._released(2048, 11008, 36, 16, 2, 151936, tie_word_embeddings=True)

    @classmethod
    def qwen2_5_vl_7b(cls) -> "QwenConfig":
        """Qwen2.5-VL-7B-Instruct: 8,292,166,656 parameters."""
        return cls._released(3584, 18944, 28, 28, 4, 152064, tie_word_embeddings=False)

    @classmethod
    def _released(
        cls,
        width: int,
        mlp: int,
        layers: int,
        heads: int,
        kv_heads: int,
        vocab_size: int,
        *,
        tie_word_embeddings: bool,
    ) -> "QwenConfig":
        text = LlamaConfig(
            vocab_size,
            width,
            mlp,
            layers,
            heads,
            kv_heads,
            width // heads,
            rope_theta=1e6,
            rms_norm_eps=1e-6,
            max_position_embeddings=128000,
            tie_word_embeddings=tie_word_embeddings,
            qkv_bias=True,
            mrope_section=(16, 24, 24),
        )
        return cls(QwenVisionConfig(32, 1280, 3420, 16, width), text)


def tile_places(count: int, grid: jax.Array, side: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Row, column and window of each tile, int `[N, I]`; a window has `side ** 2` tiles at most.

    Padding is in the last window, which it has for itself.
    """
    index = jnp.arange(count)
    rows, columns = grid[:, :1], grid[:, 1:]
    row, column = index // columns, index % columns
    across = -(-columns // side)
    window = row // side * across + column // side
    return row, column, jnp.where(index < rows * columns, window, count)


def attend(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    precision: jax.lax.Precision | None,
) -> jax.Array:
    """Attention among the patches of a block; what a query may see is the same for all heads.

    Args:
        query: `[N, P, T, H, C]`, P blocks.
        keys: `[N, P, K, H, C]`.
        values: `[N, P, K, H, C]`.
        mask: bool `[N, P, T, K]`.
        precision: of the matmuls.

    Returns:
        `[N, P, T, H, C]`; the softmax is fp32.
    """
    einsum = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    logits = einsum("npthc,npkhc->nphtk", query * query.shape[-1] ** -0.5, keys)
    weights = jax.nn.softmax(jnp.where(mask[:, :, None], logits, NEGATIVE)).astype(values.dtype)
    return einsum("nphtk,npkhc->npthc", weights, values).astype(query.dtype)


def _with_neighbours(x: jax.Array, fill: int = 0) -> jax.Array:
    """Blocks `[N, P, T, ...]` between the one before and the one after: `[N, P, 3T, ...]`."""
    widths = [(0, 0), (1, 1)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, widths, constant_values=fill)
    return jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=2)


class QwenVisionLayer(nnx.Module):
    """Pre-norm self-attention, in windows or over the picture, and SwiGLU."""

    def __init__(self, config: QwenVisionConfig, rngs: nnx.Rngs, dtype: Any, param_dtype: Any):
        self.num_heads, self.precision = config.num_heads, linear.precision(dtype)
        self.block = (config.window_size // config.patch_size) ** 2
        norm = functools.partial(
            nnx.RMSNorm, epsilon=EPSILON, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        layer = linear.layer(dtype, param_dtype, rngs)
        d, ff = config.hidden_size, config.intermediate_size
        self.attention_norm, self.mlp_norm = norm(d), norm(d)
        self.q, self.k, self.v, self.o = layer(d, d), layer(d, d), layer(d, d), layer(d, d)
        self.gate, self.up, self.down = layer(d, ff), layer(d, ff), layer(ff, d)

    def __call__(
        self, x: jax.Array, angles: jax.Array, window: jax.Array, real: jax.Array, full: jax.Array
    ) -> jax.Array:
        """One layer.

        Args:
            x: `[N, T, D]`, window after window; T is a multiple of W.
            angles: fp32 `[N, T, C / 2]`, by which queries and keys are rotated.
            window: int `[N, T]`.
            real: bool `[N, T]`, False for padding.
            full: bool, whether patches look beyond their windows.

        Returns:
            `[N, T, D]`.
        """
        n, t, d = x.shape
        normed = self.attention_norm(x)
        heads = (self.num_heads, d // self.num_heads)
        query, keys, values = (f(normed).reshape(n, t, *heads) for f in (self.q, self.k, self.v))
        query, keys = turn(query, angles[:, :, None]), turn(keys, angles[:, :, None])

        def everywhere() -> jax.Array:
            blocks, most = t // self.block, max(QUERIES // self.block, 1)
            size = self.block * max(k for k in range(1, most + 1) if blocks % k == 0)
            parts = query.reshape(n, t // size, 1, size, *heads).swapaxes(0, 1)
            mask = jnp.broadcast_to(real[:, None, None], (n, 1, size, t))
            seen = keys[:, None], values[:, None], mask, self.precision
            attended = jax.lax.map(lambda part: attend(part, *seen), parts)
            return attended.swapaxes(0, 1).reshape(x.shape)

        def within() -> jax.Array:
            # A window has W patches at most and starts anywhere: it reaches into one more block.
            own = window.reshape(n, -1, self.block)
            mask = own[..., None] == _with_neighbours(own, -1)[:, :, None]
            blocks = (*own.shape, *heads)
            near, seen = (_with_neighbours(a.reshape(blocks)) for a in (keys, values))
            attended = attend(query.reshape(blocks), near, seen, mask, self.precision)
            return attended.reshape(x.shape)

        x = x + self.o(jax.lax.cond(full, everywhere, within))
        normed = self.mlp_norm(x)
        return x + self.down(jax.nn.silu(self.gate(normed)) * self.up(normed))


class QwenVision(nnx.Module):
    """Tiles in, features of their patches out."""

    def __init__(
        self,
        config: QwenVisionConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
    ):
        """Builds randomly initialised weights; arguments as in `Llama`."""
        self.config, self.remat = config, remat
        self.patch_embedding = linear.layer(dtype, param_dtype, rngs)(
            TEMPORAL_PATCH * 3 * config.patch_size**2, config.hidden_size, use_bias=False
        )
        self.layers = scanned.stack(
            lambda r: QwenVisionLayer(config, r, dtype, param_dtype), config.depth, rngs
        )

    def __call__(self, tiles: jax.Array, grid: jax.Array) -> jax.Array:
        """Encodes pictures.

        Args:
            tiles: float `[N, I, S, S, 3]`, normalised.
            grid: int `[N, 2]`, rows and columns of the tiles.

        Returns:
            `[N, I, M * M, D]`, meaningless in the padding.
        """
        config = self.config
        n, count = tiles.shape[:2]
        merge, patch = config.spatial_merge_size, config.patch_size
        row, column, window = tile_places(count, grid, config.window_size // config.tile_size)

        # Tiles of a window become neighbours, filled up to whole blocks.
        order = jnp.argsort(window, axis=-1, stable=True)
        per_block = (config.window_size // config.tile_size) ** 2
        filled = [(0, 0), (0, -count % per_block)]
        row, column = (jnp.pad(jnp.take_along_axis(a, order, 1), filled) for a in (row, column))
        window = jnp.take_along_axis(window, order, 1)
        window = jnp.pad(window, filled, constant_values=count)
        x = jnp.take_along_axis(tiles, order[..., None, None, None], 1)
        x = jnp.pad(x, [*filled, (0, 0), (0, 0), (0, 0)])

        # Patches of a tile, row by row.
        x = x.reshape(n, -1, merge, patch, merge, patch, 3).swapaxes(3, 4)
        x = x.reshape(n, -1, patch * patch * 3)
        x = self.patch_embedding(jnp.concatenate([x] * TEMPORAL_PATCH, -1))

        inside = jnp.arange(merge**2)
        rows = (row[..., None] * merge + inside // merge).reshape(n, -1)
        columns = (column[..., None] * merge + inside % merge).reshape(n, -1)
        quarter = config.hidden_size // config.num_heads // 4
        frequencies = VISION_THETA ** (-jnp.arange(quarter, dtype=jnp.float32) / quarter)
        rows, columns = (a[..., None].astype(jnp.float32) for a in (rows, columns))
        angles = jnp.concatenate([rows * frequencies, columns * frequencies], -1)
        window = jnp.repeat(window, merge**2, axis=-1)
        real = window < count

        full = jnp.isin(jnp.arange(config.depth), jnp.array(config.fullatt_block_indexes, int))

        def layer(module: QwenVisionLayer, x: jax.Array, full: jax.Array):
            return module(x, angles, window, real, full), None

        x, _ = scanned.scan(layer, self.layers, x, full, remat=self.remat)
        x = x.reshape(n, -1, merge**2, x.shape[-1])
        return jnp.take_along_axis(x, jnp.argsort(order, axis=-1)[..., None, None], 1)


class Merger(nnx.Module):
    """The patches of a tile as one token of the decoder."""

    def __init__(self, config: QwenVisionConfig, rngs: nnx.Rngs, dtype: Any, param_dtype: Any):
        d = config.hidden_size
        merged = d * config.spatial_merge_size**2
        layer = linear.layer(dtype, param_dtype, rngs)
        self.norm = nnx.RMSNorm(d, epsilon=EPSILON, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.fc1, self.fc2 = layer(merged, merged), layer(merged, config.out_hidden_size)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, I, M * M, D]` to `[N, I, D]` of the decoder."""
        x = self.norm(x).reshape(*x.shape[:2], -1)
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Qwen2_5_VL(vlm.PicturesInText):
    """The model; `text` is used directly for cached decoding."""

    def __init__(
        self,
        config: QwenConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
    ):
        """Builds randomly initialised weights; arguments as in `Llama`."""
        self.config, self.dtype = config, dtype
        options = dict(rngs=rngs, dtype=dtype, param_dtype=param_dtype, remat=remat)
        self.vision = QwenVision(config.vision, **options)
        self.projector = Merger(config.vision, rngs, dtype, param_dtype)
        self.text = Llama(config.text, **options)

    def encode_images(self, images: Pictures) -> PictureTokens:
        """Image tokens for the decoder.

        The N pictures of a prompt go through the tower one after the other, so that its activations
        are those of one picture a prompt.

        Args:
            images: of leading axes `[B, N]`.

        Returns:
            The same.
        """
        turned = jax.tree.map(lambda x: x.swapaxes(0, 1), images)
        features = jax.lax.map(self._encode, turned).swapaxes(0, 1)
        index = jnp.arange(features.shape[-2])
        rows, columns = images.grid[..., :1], images.grid[..., 1:]
        return PictureTokens(
            features,
            real=index < rows * columns,
            place=jnp.stack([index // columns, index % columns], -1).astype(jnp.int32),
            advance=jnp.where(index == rows * columns - 1, jnp.maximum(rows, columns), 0),
        )

    def encode_crops(self, canvas: jax.Array, size: jax.Array, boxes: jax.Array) -> PictureTokens:
        """Image tokens `[B, G, I, ...]` of boxes `[B, G, 4]`; see `models.vlm.VLM`."""
        cut = functools.partial(device.smart_tiles, limits=self.config.limits)
        with jax.named_scope("crop"):
            pictures = Pictures(*jax.vmap(cut)(canvas, size, boxes))
        return self.encode_images(pictures)

    def _encode(self, images: Pictures) -> jax.Array:
        """Features `[B, I, D]` of one picture a prompt."""
        tiles = images.tiles
        if tiles.dtype == jnp.uint8:
            scale, shift = 1 / (255 * np.array(clip.STD)), np.array(clip.MEAN) / clip.STD
            tiles = tiles * jnp.float32(scale) - jnp.float32(shift)
        return self.projector(self.vision(tiles.astype(self.dtype), images.grid))

    def read(
        self,
        ids: jax.Array,
        valid: jax.Array,
        pictures: PictureTokens | None = None,
        prefix: KVCache | None = None,
        cache: KVCache | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[jax.Array, KVCache]:
        """Embeds and decodes T new tokens `[B, G, T]`; see `models.vlm.VLM`.

        There are as many `<|image_pad|>` as pictures have tokens, real and padding.
        """
        x = self.text.embedding(ids)
        if pictures is None:
            return self.text(x, valid, prefix, cache, slot)
        x = vlm.put_in_place(x, ids == self.config.image_token_id, pictures.features)
        valid, places = self.places(ids, valid, pictures)
        return self.text(x, valid, prefix, cache, slot, places)

    def places(
        self, ids: jax.Array, valid: jax.Array, pictures: PictureTokens
    ) -> tuple[jax.Array, Places]:
        """Which tokens are real, pictures' padding left out, and where they stand (M-RoPE).

        The tokens of a picture share their time and spread over its rows and columns.
        """
        is_image = ids == self.config.image_token_id
        order = jnp.maximum(jnp.cumsum(is_image, -1) - 1, 0)

        def at(values: jax.Array) -> jax.Array:
            return jnp.take_along_axis(values, order, -1, mode="clip")

        valid = valid & jnp.where(is_image, at(pictures.real), True)
        row, column = (jnp.where(is_image, at(pictures.place[..., i]), 0) for i in range(2))
        return valid, Places(
            advance=jnp.where(is_image, at(pictures.advance), 1) * valid,
            offset=jnp.stack([jnp.zeros_like(row), row, column]),
        )
