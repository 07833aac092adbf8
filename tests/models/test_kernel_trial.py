# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A kernel that fails on a chip: noticed at the start, told by one line, and not used."""

import jax
import jax.numpy as jnp
import pytest

from cropvlm_jax import parallel
from cropvlm_jax.models import attention, kernel_trial, kernels
from cropvlm_jax.models.kernel_trial import Error, Shape


@pytest.fixture(autouse=True)
def small_and_undecided(monkeypatch):
    monkeypatch.setattr(kernels, "_decision", kernels._Decision())
    monkeypatch.setattr(kernel_trial, "TRIED", Shape(1, 512, 2, 64))


@pytest.fixture
def has_kernel(monkeypatch):
    """As if this were a device with a kernel; what a CPU does with long sequences is it."""
    monkeypatch.setattr(attention, "has_kernel", lambda device: True)


def uses_kernel() -> bool:
    """Whether a program for a TPU has the kernel in it."""
    x = jax.ShapeDtypeStruct((1, 128, 128), jnp.bfloat16)
    attend = jax.jit(lambda x: attention.bidirectional_attention(x, x, x, 2, None))
    return "tpu_custom_call" in attend.trace(x).lower(lowering_platforms=("tpu",)).as_text()


def test_a_right_way_is_within_the_bound_and_used(has_kernel, caplog):
    errors = kernel_trial.measure(kernel_trial.TRIED)
    assert tuple(errors) == kernel_trial.PARTS
    assert all(0 < error.device <= error.bound for error in errors.values())
    kernel_trial.decide("auto")
    assert kernels.allowed() and uses_kernel() and not caplog.records


@pytest.mark.parametrize("got", [float("nan"), 0.01])
def test_what_is_wrong_is_not_right(got):
    assert not Error(got, 1e-3).is_right and Error(0.01, 0.01).is_right


def broken(*arrays, **_):
    raise RuntimeError("INTERNAL: Mosaic failed to compile\nand 300 lines more")


def wrong(query, keys, values, heads, precision):
    return 1.1 * attention.by_xla(query, keys, values, heads, precision).astype(values.dtype)


@pytest.mark.parametrize(
    ("name", "kernel", "told"),
    [
        ("flash", broken, "here (RuntimeError: INTERNAL: Mosaic failed to compile). `cropvlm"),
        ("_by_head", wrong, "here (wrong: output, gradient of queries, gradient of keys, "),
    ],
)
def test_one_that_fails_is_told_once_and_not_used(
    has_kernel, name, kernel, told, monkeypatch, caplog
):
    with monkeypatch.context() as patched:
        patched.setattr(attention, name, kernel)
        kernel_trial.decide_if_nobody_has()
        kernel_trial.decide_if_nobody_has()
    (record,) = caplog.records
    assert told in record.getMessage() and "--config.attention=xla" in record.getMessage()
    assert record.levelname == "WARNING" and "\n" not in record.getMessage()
    assert not uses_kernel()


def test_one_that_fails_on_another_host_is_used_on_none(has_kernel, monkeypatch, caplog):
    monkeypatch.setattr(parallel, "on_all_hosts", lambda ok: False)
    kernel_trial.decide("auto")
    assert "fails on another host" in caplog.text and not uses_kernel()


def test_the_setting_switches_it_off_without_a_trial(monkeypatch, caplog):
    monkeypatch.setattr(kernel_trial, "find_fault", broken)
    kernel_trial.decide("xla")
    kernel_trial.decide_if_nobody_has()
    assert not uses_kernel() and not caplog.records


def test_a_device_without_one_is_not_asked(monkeypatch):
    monkeypatch.setattr(kernel_trial, "measure", broken)
    kernel_trial.decide("auto")
    assert kernels.allowed()
