# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters: as many as the paper has, exact while untrained, gradients, dropout, merging."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from cropvlm_jax.models import lora, scanned
from cropvlm_jax.models.smolvlm.config import SmolVLMConfig
from cropvlm_jax.models.smolvlm.model import SmolVLM

# Cheaper to compile on a CPU than the default.
make_key = functools.partial(jax.random.key, impl="rbg")
CONFIG = lora.LoRAConfig(rank=4, alpha=6, dropout=0.25)


@functools.cache
def make_base(dtype: Any = jnp.float32, remat: bool = False) -> SmolVLM:
    options = dict(dtype=dtype, param_dtype=dtype, remat=remat)
    model = nnx.eval_shape(lambda: SmolVLM(tiny.CONFIG, rngs=nnx.Rngs(0), **options))
    _, params = tiny.make_model(0)
    return nnx.merge(nnx.graphdef(model), jax.tree.map(lambda x: x.astype(dtype), params))


@functools.cache
def make_adapted(remat: bool = False) -> SmolVLM:
    """The base with adapters whose `lora_b` is not zero."""
    base = make_base(remat=remat)
    adapted = nnx.eval_shape(lambda base: lora.add(base, CONFIG, nnx.Rngs(0)), base)
    graphdef, trained, _ = nnx.split(adapted, lora.LoRAParam, ...)
    rng = np.random.default_rng(1)
    trained = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), trained)
    return nnx.merge(graphdef, trained, nnx.state(base))


def make_inputs():
    rng = np.random.default_rng(0)
    image = [tiny.CONFIG.image_token_id] * tiny.CONFIG.image_seq_len
    ids = np.array([[*rng.integers(40, 90, 3), *image, *rng.integers(40, 90, 4)] for _ in range(2)])
    images = rng.integers(0, 256, (2, 1, tiny.SIDE, tiny.SIDE, 3), dtype=np.uint8)
    return ids, np.ones(ids.shape, bool), images


INPUTS = tuple(jnp.asarray(x) for x in make_inputs())


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, state) -> jax.Array:
    return nnx.merge(graphdef, state)(*INPUTS)


def logits(model: SmolVLM) -> np.ndarray:
    return np.asarray(run(*nnx.split(model)))


def paths(state) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]


def test_the_papers_number_of_parameters():
    config = SmolVLMConfig.smolvlm_256m()
    model = nnx.eval_shape(
        lambda: lora.add(SmolVLM(config, rngs=nnx.Rngs(0)), lora.LoRAConfig(), nnx.Rngs(1))
    )

    def count(part: nnx.Module) -> int:
        return sum(x.size for x in jax.tree.leaves(nnx.state(part, lora.LoRAParam)))

    assert count(model.text) == 39_075_840
    assert count(model.vision) == 18_874_368
    assert count(model.connector) == 1_646_592
    assert count(model) == 59_596_800


def test_fresh_adapters_change_nothing():
    base = make_base()
    graphdef, state = nnx.split(base)
    adapted = lora.add(base, CONFIG, nnx.Rngs(make_key(1)))
    np.testing.assert_array_equal(logits(adapted), logits(base))
    # The model given is as it was, and the frozen part has its very structure and arrays.
    assert nnx.graphdef(base) == graphdef
    _, _, frozen = nnx.split(adapted, lora.LoRAParam, ...)
    assert paths(frozen) == paths(state)
    for ours, theirs in zip(jax.tree.leaves(frozen), jax.tree.leaves(state), strict=True):
        assert ours is theirs


def test_adapters_of_a_bfloat16_model_are_fp32():
    base = make_base(jnp.bfloat16)
    adapted = lora.add(base, CONFIG, nnx.Rngs(make_key(1)))
    state = nnx.state(adapted, lora.LoRAParam)
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}

    @functools.partial(jax.jit, static_argnums=0)
    def encode(graphdef, state) -> jax.Array:
        return nnx.merge(graphdef, state).encode_images(INPUTS[2])

    expected, actual = (encode(*nnx.split(model)) for model in (base, adapted))
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_array_equal(actual, expected)


def test_initial_weights_are_distributed_as_in_peft():
    linear = nnx.Linear(400, 30, rngs=nnx.Rngs(0))
    linear.kernel = nnx.Param(jnp.zeros((2, 400, 30)))  # a stack of two layers
    adapted = lora.LoRALinear(linear, lora.LoRAConfig(rank=50), nnx.Rngs(0))
    a = np.asarray(adapted.lora_a[...])  # 40,000 values, uniform in +-1 / sqrt(400)
    assert not np.isclose(a[0], a[1], atol=0).all(-1).any()
    assert np.abs(a).max() <= 0.05
    np.testing.assert_allclose([a.mean(), a.std()], [0, 0.05 / 3**0.5], atol=1e-3)
    assert not adapted.lora_b[...].any()


def test_merged_and_removed():
    base, adapted = make_base(), make_adapted()
    actual, plain = logits(adapted), logits(base)
    assert np.abs(actual - plain).max() > 0.1
    merged, removed = lora.merge(adapted), lora.remove(adapted)
    np.testing.assert_allclose(actual, logits(merged), atol=1e-5)
    np.testing.assert_array_equal(plain, logits(removed))
    _, _, frozen = nnx.split(adapted, lora.LoRAParam, ...)
    np.testing.assert_array_equal(plain, logits(nnx.merge(nnx.graphdef(base), frozen)))
    assert nnx.graphdef(merged) == nnx.graphdef(removed) == nnx.graphdef(base)
    down = adapted.text.layers.down
    w, a, b = (np.asarray(x[...][1], np.float64) for x in (down.kernel, down.lora_a, down.lora_b))
    np.testing.assert_allclose(merged.text.layers.down.kernel[...][1], w + 1.5 * a @ b, atol=1e-6)


class Stack(nnx.Module):
    """Three linear layers, scanned."""

    def __init__(self, width: int):
        self.layers = scanned.stack(lambda r: nnx.Linear(width, width, rngs=r), 3, nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The last layer's output, and what each layer makes of `x` itself, `[L, N, D]`."""
        return scanned.scan(
            lambda layer, y, _: (jnp.tanh(layer(y)), layer(x)), self.layers, x, None, remat=True
        )


def test_gradients_are_the_projections_of_the_merged_kernels():
    """With W' = W + s A B, dA = s dW' B^T and dB = s A^T dW'; through scan and remat."""
    plain, config = Stack(8), lora.LoRAConfig(rank=4, alpha=6, targets="layers")
    adapted = lora.add(plain, config, nnx.Rngs(make_key(0)))
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 8, 4)), rng.normal(size=(3, 4, 8))
    adapted.layers.lora_a[...], adapted.layers.lora_b[...] = jnp.float32(a), jnp.float32(b)
    merged = lora.merge(adapted)
    graphdef, trained, frozen = nnx.split(adapted, lora.LoRAParam, ...)
    x = jnp.float32(rng.normal(size=(5, 8)))

    def loss(model: Stack) -> jax.Array:
        return model(x)[0].sum()

    actual = jax.jit(jax.grad(lambda t: loss(nnx.merge(graphdef, t, frozen))))(trained)
    kernel = jax.jit(jax.grad(lambda m: loss(nnx.merge(nnx.graphdef(plain), m))))(nnx.state(merged))
    actual, kernel = actual["layers"], np.asarray(kernel["layers"]["kernel"][...])
    for name, expected in {"lora_a": kernel @ b.mT, "lora_b": a.mT @ kernel}.items():
        np.testing.assert_allclose(actual[name][...], 1.5 * expected, rtol=1e-4, atol=1e-4)
        assert np.abs(expected).max() > 0.1


def test_dropout():
    config = lora.LoRAConfig(rank=64, alpha=64, dropout=0.25, targets="layers")
    model = lora.add(Stack(64), config, nnx.Rngs(make_key(0)))
    identity = jnp.broadcast_to(jnp.eye(64), (3, 64, 64))
    model.layers.kernel[...] = jnp.zeros_like(identity)  # only the adapters' inputs pass
    model.layers.lora_a[...] = model.layers.lora_b[...] = identity
    graphdef, trained, frozen = nnx.split(model, lora.LoRAParam, ...)
    x = jnp.ones((500, 64))

    @jax.jit
    def outputs(trained, frozen, key):
        return lora.with_dropout(nnx.merge(graphdef, trained, frozen), key)(x)[1]

    np.testing.assert_array_equal(model(x)[1], np.ones((3, 500, 64)))  # not asked for: no dropout
    first = np.asarray(outputs(trained, frozen, make_key(0)))
    again = np.asarray(outputs(trained, frozen, make_key(0)))
    other = np.asarray(outputs(trained, frozen, make_key(1)))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(np.unique(first), [0, 4 / 3], rtol=1e-6)
    masks = [*(first > 0), *(other > 0)]
    for i, mask in enumerate(masks):
        np.testing.assert_allclose(mask.mean(), 0.75, atol=0.01)  # 4 standard deviations
        for earlier in masks[:i]:  # independent: both let through as often as chance has it
            np.testing.assert_allclose((mask & earlier).mean(), 0.75**2, atol=0.012)


def test_dropout_of_a_whole_model():
    adapted = make_adapted(remat=True)
    graphdef, trained, frozen = nnx.split(adapted, lora.LoRAParam, ...)

    @jax.jit
    def loss_and_gradient(trained, frozen, key):
        def loss(trained):
            model = lora.with_dropout(nnx.merge(graphdef, trained, frozen), key)
            return jnp.square(model(*INPUTS)).mean()

        return jax.value_and_grad(loss)(trained)

    keys = jax.random.split(make_key(0), 2)
    results = [loss_and_gradient(trained, frozen, key) for key in (keys[0], keys[0], keys[1])]
    assert results[0][0] == results[1][0] != results[2][0]
    for gradient in jax.tree.leaves(results[0][1]):
        assert np.isfinite(gradient).all() and gradient.any()
    # Every layer of every module has a key of its own, and the model given has none.
    modules = lora.adapters(lora.with_dropout(adapted, keys[0])).values()
    data = [np.asarray(jax.random.key_data(m.dropout_key[...])).reshape(-1, 2) for m in modules]
    assert len(np.unique(np.concatenate(data), axis=0)) == 2 * 7 + 2 * 5 + 1
    assert all(module.dropout_key is None for module in lora.adapters(adapted).values())


def test_a_rate_of_zero_drops_nothing():
    config = lora.LoRAConfig(rank=4, dropout=0.0)
    base = make_base()
    adapted = nnx.eval_shape(lambda base: lora.add(base, config, nnx.Rngs(0)), base)
    dropped = lora.with_dropout(adapted, make_key(0))
    assert nnx.graphdef(dropped) == nnx.graphdef(adapted)


@pytest.mark.parametrize("rank", [1, 2, 3, 8, 64, 100, 128, 256])
def test_the_rank_alone_does_not_change_the_scale(rank):
    assert lora.LoRAConfig(rank=rank).scale == 256 / 128  # the paper's alpha and rank
    assert lora.LoRAConfig(rank=rank, alpha=32.0).scale == 32 / rank
    layer = lora.LoRALinear(nnx.Linear(5, 7, rngs=nnx.Rngs(0)), lora.LoRAConfig(rank), nnx.Rngs(0))
    layer.lora_a[...], layer.lora_b[...] = jnp.ones((5, rank)) / rank, jnp.ones((rank, 7))
    added = layer(jnp.ones(5)) - nnx.Linear.__call__(layer, jnp.ones(5))
    np.testing.assert_allclose(added, np.full(7, 10), rtol=1e-5)  # 2 * 5 whatever the rank


def test_mistakes_are_named():
    base, adapted = make_base(), make_adapted()
    with pytest.raises(ValueError, match=r"'q_proj' matches no linear .*text\.layers\.q, .*"):
        lora.add(base, lora.LoRAConfig(targets="q_proj"), nnx.Rngs(0))
    with pytest.raises(ValueError, match="has adapters already"):
        lora.add(adapted, CONFIG, nnx.Rngs(0))
    with pytest.raises(ValueError, match="rank=0"):
        lora.LoRAConfig(rank=0)
    with pytest.raises(ValueError, match="dropout=1"):
        lora.LoRAConfig(dropout=1.0)
