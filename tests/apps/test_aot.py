# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The real TPU compiler on the tiny models, in processes of their own as users run it."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest
from absl import app
from jax.experimental import topologies

from cropvlm_jax.apps import aot, tpu_compiler
from cropvlm_jax.hub.pretrained import Pretrained

PHASES = ["prefix", "rollout", "reward", "reference", "update"]


@pytest.fixture
def asked():
    """Runs an app on the tiny models, for a slice, and gives what it prints."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU compiler needs: pip install libtpu")

    def run(app_name, topology, *arguments):
        command = [sys.executable, "-m", f"cropvlm_jax.apps.{app_name}", f"--topology={topology}"]
        command += ["--config=experiments/zoom_digits.py", *arguments]
        # The first two are the app's own business; the tests' flags are unknown to the compiler.
        ours = ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "XLA_FLAGS")
        env = {name: value for name, value in os.environ.items() if name not in ours}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def compiled(tmp_path, asked):
    """Runs `aot` and gives its report, and what it prints."""

    def run(topology, *settings, extra=()):
        file = tmp_path / "report.json"
        flags = [*extra, *(f"--config.{setting}" for setting in settings)]
        printed = asked("aot", topology, f"--save={file}", *flags)
        return json.loads(file.read_text()), printed

    return run


def test_data_parallel_step_for_four_chips(compiled):
    settings = ("batch_size=4", "grpo.num_generations=2", "grpo.beta=0.01", "data.canvas=(128,128)")
    report, printed = compiled("v5e:2x2", *settings, extra=["--search"])
    (tried,) = report["searched"]
    assert (tried["microbatches"], tried["reward_chunk"], tried["fits"]) == (1, 2, True)
    found = "--config.gradient_accumulation_steps=1 --config.grpo.reward_chunk=2"
    assert f"tried {found}: fits, 0." in printed and f"take {found}\n" in printed
    assert report["fits"] and 0 < report["peak_hbm_gib"] < 1
    assert report["hbm_gib"].keys() == {"arguments", "temporaries", "code"}
    assert 2 * 128 * 128 * 3 < report["next_batches_gib"] * 2**30 < 3 * 128 * 128 * 3
    shown = ("topology", "chips", "prompts", "group", "longest_edge", "tiles")
    assert [report[name] for name in shown] == ["v5e:2x2", 4, 4, 2, 64, 1]
    assert report["versions"]["jax"] == jax.__version__ and report["date"]
    assert report["overrides"]["grpo.num_generations"] == 2
    assert report["config"] == "experiments/zoom_digits.py"

    assert list(report["flops"]) == list(report["roofline_ms"]) == PHASES
    assert all(value > 0 for value in report["roofline_ms"].values())
    assert report["compiler_flops"] > 0 and report["compile_seconds"] > 0
    assert all(phase in printed for phase in PHASES) and "fits" in printed

    # Gradients and metrics, nothing else: the decoder's come from two passes and are reduced twice.
    assert report["collectives"].keys() == {"all-reduce"}
    reduced = report["collectives"]["all-reduce"]
    assert 0 < reduced["bytes"] - reduced["gradient_bytes"] < 1024
    weights = jax.tree.leaves(Pretrained.open("zoom_digits/cropper").abstract())
    gradients = 4 * sum(x.size for x in weights)
    assert 1 <= report["collectives"]["all-reduce"]["bytes"] / gradients < 2


def test_a_dry_run_with_a_reader_outside_of_the_step_tells_of_a_slice(tmp_path, asked):
    workdir = tmp_path / "run"
    settings = {
        "target": "openai:nobody",
        "batch_size": 8,
        "gradient_accumulation_steps": 2,
        "data.canvas": "(128,128)",
        "grpo.num_generations": 2,
        "grpo.likelihood_weight": 0,
        "grpo.accuracy_weight": 1,
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    arguments = ("--dry_run", f"--workdir={workdir}", "--dollars_per_hour=4.8", *flags)
    printed = asked("train", "v5e:2x2", *arguments)
    lines = dict(line.split(maxsplit=1) for line in printed.splitlines() if line[:1].islower())
    assert lines["devices"] == "4 x TPU v5 lite"
    assert "of 16.0 GiB a device" in lines["memory"] and "fits" in lines["memory"]
    assert lines["steps"] == "200, each of 8 prompts x 2 rollouts, in 2 microbatches"
    assert float(lines["hours"].partition(",")[0]) > 0 and lines["dollars"].startswith("$0.00 (")
    assert "16 a step, 0 an evaluation, 3,200 in all" in lines["requests"]
    assert not workdir.exists()


def test_evaluation_for_four_chips(compiled):
    settings = ("batch_size=4", "data.canvas=(128,128)")
    report, printed = compiled("v5e:2x2", *settings, extra=["--program=evaluation"])
    assert report["fits"] and "grpo (evaluation): 4 prompts, 64 px" in printed
    assert list(report["flops"]) == ["evaluation"] and report["flops"]["evaluation"] > 0
    assert all(not found["gradient_bytes"] for found in report["collectives"].values())


def test_a_step_that_does_not_fit(compiled):
    report, printed = compiled("v5e-1", "batch_size=1", "grpo.num_generations=65536")
    assert not report["fits"] and report["peak_hbm_gib"] > 15
    assert report["largest_prompts"] == 0 and "does not fit" in printed


def test_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(app.UsageError, match="pip install libtpu"):
        aot.main([""])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("v5e-1", "v5e:1x1"),
        ("v5e-8", "v5e:2x4"),
        ("v6e-8", "v6e:2x4"),
        ("v5e-256", "v5e:16x16"),
        ("v5p-8", "v5p:2x2x1"),
        ("v5p-64", "v5p:2x4x4"),
        ("v5e:2x2", "v5e:2x2"),
    ],
)
def test_names_of_slices(name, shape):
    assert tpu_compiler.shape_name(name) == shape


@pytest.mark.parametrize("name", ["v5e", "v5e-0", "v5e-6", "v4-8", "v5p-1"])
def test_unknown_slices_are_refused(name):
    with pytest.raises(ValueError, match="topology="):
        tpu_compiler.shape_name(name)


def test_a_slice_that_the_compiler_refuses_is_named(monkeypatch):
    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: not divisible")

    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(ValueError, match="topology='v5e:2x9' is no slice: INVALID_ARGUMENT"):
        tpu_compiler.slice_devices("v5e:2x9")
