# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Attention of a vision tower, where each patch looks at all patches of its image.

XLA writes the fp32 logits to HBM and reads them again, which takes a TPU longer than the matmuls:
on TPU a Pallas kernel keeps them on the chip. It reads queries, keys and values as the projections
leave them. A register has 128 lanes, so heads of 64 channels lie there side by side, and masking
the queries picks one: to contract 128 channels takes the matrix unit no longer than 64.
On an NVIDIA GPU cuDNN's kernel does the same.
On a CPU long sequences go head by head: the logits of one stay in the cache.
Where `kernels.allowed()` says no, XLA computes it everywhere.

Shape letters: N images, P patches, D width, H heads, C channels of a head.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, BFloat16, Float

from cropvlm_jax import parallel
from cropvlm_jax.models import kernels

LANES = 128
MAX_PATCHES = 1024  # the logits of a head are in VMEM as a whole
LONG = 512  # patches whose logits do not stay in a CPU's cache
VMEM_BYTES = 48 * 2**20


def bidirectional_attention(
    query: Float[Array, "N P D"],
    keys: Float[Array, "N P D"],
    values: Float[Array, "N P D"],
    heads: int,
    precision: jax.lax.Precision | None,
) -> Float[Array, "N P D"]:
    """Multi-head attention in which each patch looks at all patches of its image.

    Args:
        query: `[N, P, D]`, scaled already.
        keys: `[N, P, D]`.
        values: `[N, P, D]`.
        heads: H.
        precision: of the matmuls.

    Returns:
        `[N, P, D]`; the softmax is fp32.
    """
    _, p, d = query.shape
    ways = {"default": functools.partial(by_xla, heads=heads, precision=precision)}
    if p >= LONG:
        ways["cpu"] = functools.partial(_by_head, heads=heads, precision=precision)
    lanes_fit = d % LANES == 0 and LANES % (d // heads) == 0
    may_use_kernel = query.dtype == jnp.bfloat16 and kernels.allowed()
    if may_use_kernel and lanes_fit and p % LANES == 0 and p <= MAX_PATCHES:
        ways["tpu"] = functools.partial(flash, channels=d // heads)
    if may_use_kernel and _has_cudnn(jax.devices()[0]):
        ways["cuda"] = functools.partial(_cudnn, heads=heads)
    choose: Callable[..., jax.Array] = functools.partial(jax.lax.platform_dependent, **ways)
    if {"tpu", "cuda"} & set(ways):
        # Or a layer stores what the gradient of any way needs. Layers are scanned: no CSE to fear.
        choose = jax.checkpoint(choose, prevent_cse=False)
    return choose(query, keys, values)


def _by_head(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    heads: int,
    precision: jax.lax.Precision | None,
) -> jax.Array:
    """Head by head, so that the logits of one stay in a CPU's cache."""
    n, p, d = query.shape
    dot = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)

    @jax.checkpoint  # the backward pass computes the logits again instead of reading them
    def head(qkv: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        query, keys, values = qkv
        weights = jax.nn.softmax(dot("pc,sc->ps", query, keys)).astype(values.dtype)
        return dot("ps,sc->pc", weights, values).astype(values.dtype)

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(n, p, heads, -1).swapaxes(1, 2).reshape(n * heads, p, -1)

    attended = jax.lax.map(head, (split(query), split(keys), split(values)))
    return attended.reshape(n, heads, p, -1).swapaxes(1, 2).reshape(n, p, d)


def by_xla(
    query: Float[Array, "N P D"],
    keys: Float[Array, "N P D"],
    values: Float[Array, "N P D"],
    heads: int,
    precision: jax.lax.Precision | None,
) -> Float[Array, "N P D"]:
    """`bidirectional_attention` by plain matmuls and softmax, which XLA compiles."""
    n, p, d = query.shape
    query, keys, values = (x.reshape(n, p, heads, -1) for x in (query, keys, values))
    einsum = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    logits = einsum("nphc,nshc->nhps", query, keys)
    weights = jax.nn.softmax(logits).astype(query.dtype)
    return einsum("nhps,nshc->nphc", weights, values).astype(query.dtype).reshape(n, p, d)


def has_kernel(device: Any) -> bool:
    """Whether there is a kernel for a device's attention in bf16, at some shapes at least."""
    return device.platform == "tpu" or _has_cudnn(device)


def _has_cudnn(device: Any) -> bool:
    """Whether JAX finds cuDNN's kernel here, without which it cannot even be traced."""
    return "NVIDIA" in device.device_kind and float(device.compute_capability) >= 8


def _cudnn(query: jax.Array, keys: jax.Array, values: jax.Array, heads: int) -> jax.Array:
    """Attention by cuDNN's kernel, on an NVIDIA GPU."""
    n, p, d = query.shape
    query, keys, values = (x.reshape(n, p, heads, -1) for x in (query, keys, values))
    attended = jax.nn.dot_product_attention(query, keys, values, scale=1.0, implementation="cudnn")
    return attended.reshape(n, p, d)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def flash(
    query: BFloat16[Array, "N P D"],
    keys: BFloat16[Array, "N P D"],
    values: BFloat16[Array, "N P D"],
    channels: int,
) -> BFloat16[Array, "N P D"]:
    """The kernel, for bf16; D and P are multiples of 128.

    Args:
        query: `[N, P, D]`, scaled already.
        keys: `[N, P, D]`.
        values: `[N, P, D]`.
        channels: C, a divisor of 128.

    Returns:
        `[N, P, D]`. The gradient computes the weights again.
    """
    return _run(_forward_kernel, 1, channels, query, keys, values)[0]


def _flash_forward(
    query: jax.Array, keys: jax.Array, values: jax.Array, channels: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return flash(query, keys, values, channels), (query, keys, values)


def _flash_backward(
    channels: int, residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, ...]:
    query, keys, values = residuals
    return _run(_backward_kernel, 3, channels, query, keys, values, gradient)


flash.defvjp(_flash_forward, _flash_backward)


def _run(kernel: Any, outputs: int, channels: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Runs `kernel` on 128 channels of one image at a time."""

    def call(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        n, p, d = arrays[0].shape
        block = pl.BlockSpec((None, p, LANES), lambda image, lanes: (image, 0, lanes))
        return pl.pallas_call(
            functools.partial(kernel, channels=channels),
            grid=(n, d // LANES),
            in_specs=[block] * len(arrays),
            out_specs=(block,) * outputs,
            out_shape=(jax.ShapeDtypeStruct((n, p, d), arrays[0].dtype),) * outputs,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM_BYTES
            ),
        )(*arrays)

    units = {"heads": arrays[0].shape[-1] // LANES}
    return parallel.split(call, ("batch", None, "heads"), units)(*arrays)


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Matmul over axis `contract[0]` of `a` and `contract[1]` of `b`, accumulated in fp32."""
    axes = ((contract[:1], contract[1:]), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _softmax(query: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention weights `[P, P]`, and by what to multiply their rows `[P, 1]` to sum to 1."""
    logits = _dot(query, keys, (1, 1))
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    return weights, 1 / weights.sum(-1, keepdims=True)


def _heads(channels: int) -> list[jax.Array]:
    """Which of 128 lanes belong to each head: bool `[1, 128]`."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    return [(lane >= at) & (lane < at + channels) for at in range(0, LANES, channels)]


def _forward_kernel(
    query_ref: Any, keys_ref: Any, values_ref: Any, out_ref: Any, *, channels: int
) -> None:
    """Attention of the heads in 128 lanes of one image."""
    query, keys, values = query_ref[...], keys_ref[...], values_ref[...]
    out = jnp.zeros(query.shape, jnp.float32)
    for own in _heads(channels):
        weights, scale = _softmax(jnp.where(own, query, 0), keys)
        attended = _dot(weights.astype(values.dtype), values, (1, 0)) * scale
        out = jnp.where(own, attended, out)
    out_ref[...] = out.astype(out_ref.dtype)


def _backward_kernel(
    query_ref: Any,
    keys_ref: Any,
    values_ref: Any,
    out_grad_ref: Any,
    *grad_refs: Any,
    channels: int,
) -> None:
    """Gradients of queries, keys and values; it computes the weights again."""
    every_query, keys, values = query_ref[...], keys_ref[...], values_ref[...]
    every_out_grad = out_grad_ref[...]
    dtype = keys.dtype
    query_grad = keys_grad = values_grad = jnp.zeros(keys.shape, jnp.float32)
    for own in _heads(channels):
        query, out_grad = jnp.where(own, every_query, 0), jnp.where(own, every_out_grad, 0)
        weights, scale = _softmax(query, keys)
        weights *= scale
        weights_grad = _dot(out_grad, values, (1, 1))
        mean = (weights * weights_grad).sum(-1, keepdims=True)
        logits_grad = (weights * (weights_grad - mean)).astype(dtype)
        query_grad = jnp.where(own, _dot(logits_grad, keys, (1, 0)), query_grad)
        keys_grad += _dot(logits_grad, query, (0, 0))
        values_grad += _dot(weights.astype(dtype), out_grad, (0, 0))
    for ref, grad in zip(grad_refs, (query_grad, keys_grad, values_grad), strict=True):
        ref[...] = grad.astype(dtype)
