# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The vision tower's attention kernel, interpreted, lowered, and compiled by the TPU compiler."""

import functools
import importlib.util
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, Mesh

from cropvlm_jax import parallel
from cropvlm_jax.models import attention
from cropvlm_jax.models.smolvlm.config import SiglipConfig
from cropvlm_jax.models.smolvlm.vision import Siglip

HIGHEST = jax.lax.Precision.HIGHEST


@pytest.mark.parametrize(("patches", "heads", "channels"), [(256, 2, 64), (128, 8, 32)])
def test_kernel_is_as_accurate_as_xla(patches, heads, channels):
    rng = np.random.default_rng(0)
    shape = (2, patches, heads * channels)
    arrays = [jnp.asarray(rng.normal(0, 1, shape), jnp.bfloat16) for _ in range(4)]
    arrays[0] *= 2 * channels**-0.5

    def results(attend, dtype):
        *inputs, gradient = (x.astype(dtype) for x in arrays)
        out, pull_back = jax.vjp(attend, *inputs)
        return [np.asarray(x, np.float32) for x in (out, *pull_back(gradient))]

    with pltpu.force_tpu_interpret_mode():
        kernel = results(functools.partial(attention.flash, channels=channels), jnp.bfloat16)
    xla = functools.partial(attention.bidirectional_attention, heads=heads)
    bf16 = results(functools.partial(xla, precision=None), jnp.bfloat16)
    fp32 = results(functools.partial(xla, precision=HIGHEST), jnp.float32)
    for got, other, want in zip(kernel, bf16, fp32, strict=True):
        allowed = np.abs(want).max()
        assert np.abs(got - want).max() < 5e-3 * allowed  # bf16 resolves 4e-3
        assert np.abs(got - want).max() < 1.2 * np.abs(other - want).max()


def tower(dtype=jnp.bfloat16, image=128, patch=8, width=128, heads=2):
    """A gradient of a tower's features in its weights, and the weights' shapes."""
    config = SiglipConfig(image, patch, width, 2 * width, 1, heads)
    model = nnx.eval_shape(lambda: Siglip(config, rngs=nnx.Rngs(0), dtype=dtype, remat=True))
    graphdef, weights = nnx.split(model)

    def loss(weights, pixels):
        return nnx.merge(graphdef, weights)(pixels).astype(jnp.float32).sum()

    return jax.grad(loss), weights


@pytest.mark.parametrize(
    ("platform", "settings", "runs"),
    [
        ("tpu", {}, True),
        ("tpu", {"image": 512, "patch": 16, "width": 768, "heads": 12}, True),  # SmolVLM-256M
        ("tpu", {"image": 384, "patch": 14, "width": 1152, "heads": 16}, False),  # SmolVLM 2.2B
        ("tpu", {"dtype": jnp.float32}, False),
        ("tpu", {"image": 64}, False),  # 64 patches
        ("cuda", {}, False),
        ("cpu", {}, False),
    ],
)
def test_where_the_kernel_runs(platform, settings, runs):
    gradient, weights = tower(**settings)
    side = settings.get("image", 128)
    pixels = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    lowered = jax.jit(gradient).trace(weights, pixels).lower(lowering_platforms=(platform,))
    assert ("@tpu_custom_call" in lowered.as_text()) == runs


@pytest.mark.parametrize(
    ("kind", "capability", "has"),
    [("NVIDIA H100 80GB HBM3", "9.0", True), ("Tesla T4", "7.5", False), ("cpu", None, False)],
)
def test_which_devices_have_cudnn(kind, capability, has):
    device = types.SimpleNamespace(device_kind=kind, compute_capability=capability)
    assert attention._has_cudnn(device) == has


def test_compiled_for_four_chips(monkeypatch):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU compiler needs: pip install libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # unknown to that compiler
    devices = np.array(topologies.get_topology_desc("v5e:2x2", "tpu").devices)
    mesh = Mesh(devices.reshape(4, 1, 1), parallel.AXES, axis_types=(AxisType.Auto,) * 3)
    whole, split = parallel.replicated(mesh), parallel.batch_sharding(mesh)
    gradient, weights = tower()

    def lower(images, sharding):
        pixels = jax.ShapeDtypeStruct((images, 128, 128, 3), jnp.float32)
        step = jax.jit(gradient, in_shardings=(whole, sharding), out_shardings=whole)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step.lower(weights, pixels)

    hlo = lower(4, split).compile().as_text()
    assert hlo.count('custom_call_target="tpu_custom_call"') == 2  # forward, backward
    assert "all-reduce" in hlo and "all-gather" not in hlo and "all-to-all" not in hlo
    assert "@tpu_custom_call" in lower(1, whole).as_text()  # one image: on every chip
