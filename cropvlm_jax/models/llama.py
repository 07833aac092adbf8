# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Llama decoder (SmolLM2, Qwen): every forward pass shares one prefix among a group of replies.

Shape letters: B prompts, G continuations of each prompt, T query tokens, S own key slots, P prefix
key slots, L layers, D width, H query heads, K key/value heads, R = H / K, C channels of a head.

One method serves prefill (no prefix, G = 1), teacher-forced scoring (G continuations on a shared
prefix) and cached decoding (a few tokens at a time into a slot buffer): the prefix keys are read by
all G continuations and never copied.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from cropvlm_jax.models import linear, scanned
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.scanned import kept

NEGATIVE = -1e30  # finite, so that a padded query row stays NaN-free


class KVCache(NamedTuple):
    """Keys and values of all layers.

    Attributes:
        keys: `[L, B, G, S, K, C]`, rotated.
        values: `[L, B, G, S, K, C]`.
        valid: bool `[B, G, S]`, False in padding and in slots not written yet.
        skipped: int32 `[B, G]`, how many positions fewer than tokens there are; None for none.
    """

    keys: jax.Array
    values: jax.Array
    valid: jax.Array
    skipped: jax.Array | None = None

    @classmethod
    def empty(cls, config: LlamaConfig, shape: tuple[int, int, int], dtype: Any) -> "KVCache":
        """A cache of `shape` = (B, G, S) free slots."""
        heads = (config.num_key_value_heads, config.head_dim)
        zeros = jnp.zeros((config.num_hidden_layers, *shape, *heads), dtype)
        return cls(zeros, zeros, jnp.zeros(shape, bool))

    def with_free_slots(self, count: int) -> "KVCache":
        """The cache with `count` more slots, not written yet, after the others."""
        free = (0, count)
        after_slots = [(0, 0), (0, 0), (0, 0), free, (0, 0), (0, 0)]
        return self._replace(
            keys=jnp.pad(self.keys, after_slots),
            values=jnp.pad(self.values, after_slots),
            valid=jnp.pad(self.valid, [(0, 0), (0, 0), free]),
        )

    @property
    def length(self) -> jax.Array:
        """Positions taken, int32 `[B, G]`: the position of the next token."""
        tokens = self.valid.sum(-1, dtype=jnp.int32)
        return tokens if self.skipped is None else tokens - self.skipped


class Places(NamedTuple):
    """Where tokens stand that do not simply follow each other, as those of a picture.

    Attributes:
        advance: int32 `[B, G, T]`, by how many positions a token moves the ones after it.
        offset: int32 `[3, B, G, T]`, what a token adds for itself in time, row and column.
    """

    advance: jax.Array
    offset: jax.Array

    def positions(self, start: jax.Array | int) -> jax.Array:
        """Time, row and column of each token, int32 `[3, B, G, T]`; `start` precedes the first."""
        return jnp.cumsum(self.advance, -1) - self.advance + start + self.offset


def rotate(
    x: Float[Array, "B G T H C"],
    positions: Int[Array, "B G T"] | Int[Array, "3 B G T"],
    theta: float,
    sections: tuple[int, ...] = (),
) -> Float[Array, "B G T H C"]:
    """Rotary position embedding in Llama's rotate-half layout (arXiv 2104.09864).

    Args:
        x: `[B, G, T, H, C]`.
        positions: int `[B, G, T]`, or `[3, B, G, T]` (M-RoPE, arXiv 2409.12191).
        theta: base of the geometric frequency series.
        sections: pairs of channels that take each of the three positions in turn.

    Returns:
        `[B, G, T, H, C]` in the dtype of `x`; angles are fp32.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if positions.ndim == x.ndim - 1:
        which = np.repeat(np.arange(len(sections)) % 3, sections)
        positions = jnp.moveaxis(positions[which], 0, -1)[..., None, :]
    else:
        positions = positions[..., None, None]
    return turn(x, positions.astype(jnp.float32) * frequencies)


def turn(x: Float[Array, "..."], angles: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rotates channels i and i + C / 2 of `x` `[..., C]` by fp32 angles `[..., C / 2]`."""
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x.dtype)


class PrefixKeys(NamedTuple):
    """What all continuations of a prompt look at in one layer.

    Attributes:
        keys: `[B, P, K, C]`, rotated.
        values: `[B, P, K, C]`.
        valid: bool `[B, P]`, False in padding.
    """

    keys: jax.Array
    values: jax.Array
    valid: jax.Array


def grouped_query_attention(
    query: Float[Array, "B G T H C"],
    keys: Float[Array, "B G S K C"],
    values: Float[Array, "B G S K C"],
    mask: Bool[Array, "B G T S"],
    prefix: PrefixKeys | None,
    precision: jax.lax.Precision | None,
) -> Float[Array, "B G T H C"]:
    """Attention over a shared prefix and each continuation's own slots.

    Args:
        query: of the new tokens; heads h K, h K + 1, ... share key head h.
        keys: of the own slots.
        values: of the own slots.
        mask: which of the own slots each token may look at.
        prefix: what every token may look at besides; None where there is no prefix.
        precision: of the matmuls.

    Returns:
        `[B, G, T, H, C]`; the softmax is fp32.
    """
    b, g, t, h, c = query.shape
    einsum = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    query = query.reshape(b, g, t, keys.shape[3], -1, c) * c**-0.5
    slots = keys.shape[2]
    # The mask leaves every query the slots before it, a good half: what `training.costs` counts.
    causal = functools.partial(jax.named_scope, f"useful_{slots + 1}_of_{2 * slots}")
    with causal():
        logits = einsum("bgtkrc,bgskc->bgkrts", query, keys)
    logits = jnp.where(mask[:, :, None, None], logits, NEGATIVE)
    if prefix is None:
        weights = jax.nn.softmax(logits).astype(values.dtype)
        with causal():
            out = einsum("bgkrts,bgskc->bgtkrc", weights, values)
    else:
        shared = einsum("bgtkrc,bpkc->bgkrtp", query, prefix.keys)
        shared = jnp.where(prefix.valid[:, None, None, None, None], shared, NEGATIVE)
        weights = jax.nn.softmax(jnp.concatenate([shared, logits], -1)).astype(values.dtype)
        over_prefix, over_own = jnp.split(weights, [prefix.keys.shape[1]], axis=-1)
        out = einsum("bgkrtp,bpkc->bgtkrc", over_prefix, prefix.values)
        with causal():
            out += einsum("bgkrts,bgskc->bgtkrc", over_own, values)
    return out.reshape(b, g, t, h, c).astype(query.dtype)


class LlamaLayer(nnx.Module):
    """Pre-norm self-attention and SwiGLU."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs, dtype: Any, param_dtype: Any) -> None:
        self.config, self.precision = config, linear.precision(dtype)
        norm = functools.partial(
            nnx.RMSNorm,
            epsilon=config.rms_norm_eps,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        biased = linear.layer(dtype, param_dtype, rngs)
        plain = functools.partial(biased, use_bias=False)
        d, ff = config.hidden_size, config.intermediate_size
        queries = config.num_attention_heads * config.head_dim
        shared = config.num_key_value_heads * config.head_dim
        self.attention_norm, self.mlp_norm = norm(d), norm(d)
        qkv = biased if config.qkv_bias else plain
        self.q, self.k, self.v = qkv(d, queries), qkv(d, shared), qkv(d, shared)
        if config.qk_norm:
            self.q_norm, self.k_norm = norm(config.head_dim), norm(config.head_dim)
        self.o = plain(queries, d)
        self.gate, self.up, self.down = plain(d, ff), plain(d, ff), plain(ff, d)

    def __call__(
        self,
        x: Float[Array, "B G T D"],
        positions: Int[Array, "B G T"] | Int[Array, "3 B G T"],
        mask: Bool[Array, "B G T S"],
        prefix: PrefixKeys | None,
        cache: tuple[jax.Array, jax.Array] | None,
        slot: jax.Array | int,
    ) -> tuple[Float[Array, "B G T D"], tuple[jax.Array, jax.Array]]:
        """One layer.

        Args:
            x: activations of T new tokens of each continuation.
            positions: where the tokens stand.
            mask: which of the own slots each token may look at.
            prefix: what all continuations have read before.
            cache: keys and values of the own slots `[B, G, S, K, C]`; None where the T tokens are
                all there is, S = T.
            slot: the first slot that the T tokens occupy in `cache`.

        Returns:
            Activations, and keys and values of the own slots.
        """
        config = self.config
        normed = self.attention_norm(x)
        heads = (*x.shape[:3], -1, config.head_dim)
        rope = functools.partial(
            rotate, positions=positions, theta=config.rope_theta, sections=config.mrope_section
        )
        query = kept(self.q(normed)).reshape(heads)
        keys = kept(self.k(normed)).reshape(heads)
        if config.qk_norm:
            query, keys = self.q_norm(query), self.k_norm(keys)
        query, keys = rope(query), rope(keys)
        values = kept(self.v(normed)).reshape(heads)
        if cache is not None:
            keys = jax.lax.dynamic_update_slice_in_dim(cache[0], keys, slot, axis=2)
            values = jax.lax.dynamic_update_slice_in_dim(cache[1], values, slot, axis=2)
        attended = grouped_query_attention(query, keys, values, mask, prefix, self.precision)
        attended = kept(attended)
        x = kept(x + self.o(attended.reshape(*x.shape[:3], -1)))
        normed = self.mlp_norm(x)
        gate, up = kept(self.gate(normed)), kept(self.up(normed))
        return x + self.down(jax.nn.silu(gate) * up), (keys, values)


class Llama(nnx.Module):
    """The decoder with its embedding and output head."""

    def __init__(
        self,
        config: LlamaConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
    ):
        """Builds randomly initialised weights.

        Args:
            config: the shape.
            rngs: source of the initial weights.
            dtype: of the computation; norms' statistics, softmax and logits stay fp32.
            param_dtype: of the weights.
            remat: whether the backward pass computes most of a layer again, instead of reading
                what the forward pass stored.
        """
        self.config, self.dtype, self.remat = config, dtype, remat
        self.embedding = nnx.Embed(
            config.vocab_size, config.hidden_size, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.layers = scanned.stack(
            lambda r: LlamaLayer(config, r, dtype, param_dtype), config.num_hidden_layers, rngs
        )
        self.norm = nnx.RMSNorm(
            config.hidden_size,
            epsilon=config.rms_norm_eps,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        if not config.tie_word_embeddings:
            initializer = nnx.initializers.normal(0.02)
            shape = (config.vocab_size, config.hidden_size)
            self.head = nnx.Param(initializer(rngs.params(), shape, param_dtype))

    def __call__(
        self,
        x: Float[Array, "B G T D"],
        valid: Bool[Array, "B G T"],
        prefix: KVCache | None = None,
        cache: KVCache | None = None,
        slot: jax.Array | int = 0,
        places: Places | None = None,
        deep: Float[Array, "N B G T D"] | None = None,
    ) -> tuple[Float[Array, "B G T D"], KVCache]:
        """Runs the layers on T new tokens of each continuation.

        Padding may stand anywhere: without `places` a token's position is the number of valid
        tokens before it, less the positions that earlier ones skipped.

        Args:
            x: input embeddings `[B, G, T, D]`.
            valid: bool `[B, G, T]`, False for padding.
            prefix: what all G continuations of a prompt have read already (its G is 1).
            cache: own slots written so far `[.., S, ..]`; None when the T tokens are all there is.
            slot: first slot that the T tokens occupy in `cache`.
            places: of the T tokens, where they include a picture's in a model with M-RoPE.
            deep: what is added to the outputs of the first N layers (DeepStack, arXiv 2406.04334).

        Returns:
            Final normed hidden states `[B, G, T, D]`, and the own slots: T of them without `cache`,
            else `cache` with the new tokens written.
        """
        start = 0 if prefix is None else prefix.length
        skipped = None
        if cache is not None:
            start, skipped = start + cache.length, cache.skipped
            own_valid = jax.lax.dynamic_update_slice_in_dim(cache.valid, valid, slot, axis=2)
        else:
            own_valid = valid
        start = jnp.asarray(start)[..., None]
        if places is None:
            positions = jnp.cumsum(valid, -1) - 1 + start
        else:
            positions = places.positions(start)
            fewer = (valid - places.advance).sum(-1)
            skipped = fewer if skipped is None else skipped + fewer
        slots = jnp.arange(own_valid.shape[-1])
        causal = slots <= slot + jnp.arange(x.shape[2])[:, None]
        mask = causal & own_valid[:, :, None]

        def layer(module: LlamaLayer, x: jax.Array, per_layer: Any) -> tuple[jax.Array, Any]:
            index, shared, own = per_layer
            if prefix is not None:
                keys, values = shared
                shared = PrefixKeys(keys[:, 0], values[:, 0], prefix.valid[:, 0])
            x, written = module(x, positions, mask, shared, own, slot)
            if deep is not None:
                x += jnp.where(index < len(deep), deep[jnp.minimum(index, len(deep) - 1)], 0)
            return x, written

        xs = (
            jnp.arange(self.config.num_hidden_layers),
            None if prefix is None else (prefix.keys, prefix.values),
            None if cache is None else (cache.keys, cache.values),
        )
        x, (keys, values) = scanned.scan(layer, self.layers, x, xs, remat=self.remat)
        return self.norm(x), KVCache(keys, values, own_valid, skipped)

    def logits(
        self, hidden: Float[Array, "*N D"], tokens: Int[Array, " A"] | None = None
    ) -> Float[Array, "*N V"]:
        """Output logits in fp32.

        Args:
            hidden: `[..., D]`.
            tokens: the only token ids wanted, int `[A]`; None for the whole vocabulary.

        Returns:
            fp32 `[..., V]`, or `[..., A]`.
        """
        tied = self.config.tie_word_embeddings
        table = (self.embedding.embedding if tied else self.head)[...]
        table = table if tokens is None else table[tokens]
        return jnp.einsum(
            "...d,vd->...v",
            hidden,
            table.astype(self.dtype),
            precision=linear.precision(self.dtype),
            preferred_element_type=jnp.float32,
        )
