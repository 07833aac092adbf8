# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""`cropvlm check`: right machines pass, wrong ones fail with what to do, and nothing ends it."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from cropvlm_jax.checks import agreement, attention, pixels, run, speed, verdict
from cropvlm_jax.checks.tiny_step import StepResults
from cropvlm_jax.models import attention as attention_of_models
from cropvlm_jax.models import kernel_trial, kernels
from cropvlm_jax.pixels import tile_crops

RESULTS = StepResults(
    boxes=np.arange(32).reshape(2, 4, 4),
    rewards=np.full((2, 4), -3.0),
    loss=np.float32(0.5),
    gradients=np.ones(100, np.float32),
)


@pytest.fixture(autouse=True)
def undecided(monkeypatch):
    monkeypatch.setattr(kernels, "_decision", kernels._Decision())


def raise_as_a_compiler_does(*_, **__):
    raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed\nand more")


def test_the_command_on_two_devices(tmp_path):
    """In a process of its own, as the number of devices cannot be changed here."""
    file = tmp_path / "check.json"
    arguments = ["check", "--tiny", "--longest_edges=", f"--json={file}"]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-m", "cropvlm_jax.apps.cli", *arguments],
        env=os.environ | {"XLA_FLAGS": flags, "NPROC": "32"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All that was checked on this machine is ok." in done.stdout
    report = json.loads(file.read_text())
    assert report["ok"] and report["devices"] == 2
    checks = report["checks"]
    assert {letter: one["outcome"] for letter, one in checks.items()} == dict.fromkeys("abcd", "ok")
    assert checks["b"]["figures"]["boxes"] == 200
    assert checks["c"]["figures"]["boxes"] == 16 and checks["d"]["figures"]["unequal_boxes"] == 0


def test_a_step_is_timed_alone_and_fed(monkeypatch):
    """Its phases are timed in tests/training/test_phases.py."""
    (workload,) = run.TINY.workloads
    apart = {}
    monkeypatch.setattr(speed.phases, "time_apart", lambda *given: apart.update(given=given))
    found = run.time_step(workload)
    assert found.outcome == "ok" and "1 x 2 rollouts, MFU not known" in found.found
    timed = found.figures
    assert set(timed["flops"]) == {"prefix", "rollout", "reward", "reference", "update"}
    assert min(timed[name] for name in ("step_seconds", "compile_seconds", "peak_gib")) > 0
    assert timed["fed"]["steps"] == 2 and 0 <= timed["fed"]["data_wait_share"] <= 1
    _, (_, batch), at_least = apart["given"]
    assert len(batch.canvas) == 1 and at_least == workload.seconds
    assert json.dumps(run.as_json({"e1": found}), allow_nan=False)


def test_a_step_that_is_not_finite_fails():
    def step(state, batch, key):
        return state, {"loss": np.float32(0), "grad_norm": np.float32("inf")}

    with pytest.raises(FloatingPointError, match="grad_norm of step 1 is inf"):
        speed.time_alone(step, (), (), jax.random.key(0), 0)


def test_each_wrong_part_fails_and_the_others_are_made_all_the_same(monkeypatch):
    crops = tile_crops.crops
    monkeypatch.setattr(attention_of_models, "flash", raise_as_a_compiler_does)
    monkeypatch.setattr(tile_crops, "crops", lambda *a, **k: crops(*a, **k) + np.uint8(4))
    moved = RESULTS._replace(boxes=RESULTS.boxes + np.eye(4, dtype=int)[0])
    monkeypatch.setattr(agreement, "on_cpu", lambda: moved)
    monkeypatch.setattr(agreement, "take_on", lambda devices: RESULTS)
    monkeypatch.setattr(speed, "measure", raise_as_a_compiler_does)
    found = run.run(run.TINY)
    assert [v.outcome for v in found.values()] == ["FAILED"] * 3 + ["skipped", "FAILED"]
    assert found["a"].found == "JaxRuntimeError: INTERNAL: Mosaic failed and more"
    assert "--config.attention=xla" in found["a"].remedy
    assert "most 252; " in found["b"].found and "0 of 8 boxes equal" in found["c"].found
    assert not kernels.allowed()
    text = run.to_text(found)
    assert text.splitlines()[-1] == "FAILED: a, b, c, e1" and text.count("to do: ") == 4
    report = run.as_json(found)
    assert not report["ok"] and json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ({}, "ok"),
        ({"gradients": np.full(100, 1.005, np.float32)}, "ok"),
        ({"gradients": np.full(100, 1.02, np.float32)}, "FAILED"),
        ({"gradients": np.full(100, np.nan, np.float32)}, "FAILED"),
        ({"loss": np.float32(0.52)}, "FAILED"),
        ({"rewards": np.full((2, 4), -3.1)}, "FAILED"),
    ],
)
def test_steps_are_compared_within_bounds(changed, outcome):
    got = agreement.compare("x", RESULTS._replace(**changed), RESULTS, 1e-2, "do this")
    assert got.outcome == outcome and got.failed == (got.remedy == "do this")


def test_a_process_on_the_cpu_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(agreement.sys, "executable", "/bin/false")
    found = verdict.guarded("x", "do this", agreement.check_with_cpu)
    assert found.failed and found.found.startswith("OSError: the process that takes the CPU's step")


def test_attention_of_this_device_is_judged():
    found = attention.check(attention.TINY)
    assert found.outcome == "ok" and found.found.startswith("no kernel here: XLA; ")


def test_of_attention_the_part_that_is_wrong_is_named(monkeypatch):
    right, wrong = kernel_trial.Error(4e-3, 4e-3), kernel_trial.Error(float("nan"), 4e-3)
    errors = dict.fromkeys(kernel_trial.PARTS, right) | {"gradient of keys": wrong}
    monkeypatch.setattr(kernel_trial, "measure", lambda shape: errors)
    found = attention.check(attention.TINY)
    assert found.failed and "gradient of keys off by nan" in found.found


@pytest.mark.parametrize(
    ("gib", "prompts"), [(0, 1), (15.75, 4), (31.25, 8), (80, 16), (95, 16), (141, 32)]
)
def test_prompts_go_by_memory(gib, prompts):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": int(gib * 2**30)} if gib else None

    assert speed.fitting_prompts(Device()) == prompts


def test_half_as_many_prompts_where_memory_is_too_small(monkeypatch):
    tried = []

    def measure(workload, prompts, folder):
        tried.append(prompts)
        if prompts > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return {"prompts": prompts}

    monkeypatch.setattr(speed, "_measure", measure)
    (workload,) = run.TINY.workloads
    monkeypatch.setattr(speed, "fitting_prompts", lambda device: 8)
    assert speed.measure(workload) == {"prompts": 2} and tried == [8, 4, 2]
    monkeypatch.setattr(speed, "_measure", raise_as_a_compiler_does)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Mosaic"):
        speed.measure(workload)


def test_random_boxes_and_pictures_are_of_all_kinds():
    rng = np.random.default_rng(0)
    boxes = pixels.random_boxes(rng, 5000)
    assert boxes.min() == 0 and boxes.max() == 100
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    shapes = [pixels.random_picture(rng, (330, 300), number).shape for number in range(10)]
    assert shapes[:3] == [(330, 300, 3), (330, 3, 3), (11, 300, 3)]
    assert all(1 <= h <= 330 and 1 <= w <= 300 for h, w, _ in shapes)
