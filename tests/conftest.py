# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests, made before jax starts; the processes that tests start inherit them."""

import gc
import importlib.metadata
import os
import signal
import tempfile

import jaxtyping
import pytest

# Also where a TPU's library is installed, tests run on the CPU; and they need no network.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell has its background jobs, and all that they start, ignore Ctrl-C, which tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Torch's threads would fight over the cores with jax's and with the other test process.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Compiling is most of what the tests do: compile quickly, and what is the same only once.
QUICKLY = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones end at this flag
    QUICKLY += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICKLY}"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="cropvlm_jax_compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Tracing makes many objects and no garbage: looking for it as often as by default takes a third of
# the time.
gc.set_threshold(50_000, 10, 10)

# Modules whose annotated types and shapes are checked whenever a test calls or traces a function.
CHECKED = (
    "cropvlm_jax.grpo.black_box",
    "cropvlm_jax.grpo.metrics",
    "cropvlm_jax.grpo.objective",
    "cropvlm_jax.grpo.reading",
    "cropvlm_jax.grpo.rewards",
    "cropvlm_jax.grpo.rollout",
    "cropvlm_jax.grpo.step",
    "cropvlm_jax.models.attention",
    "cropvlm_jax.models.decode",
    "cropvlm_jax.models.linear",
    "cropvlm_jax.models.llama",
    "cropvlm_jax.models.llava.model",
    "cropvlm_jax.models.llava.vision",
    "cropvlm_jax.models.lora",
    "cropvlm_jax.models.qwen2_5_vl.model",
    "cropvlm_jax.models.qwen2_5_vl.vision",
    "cropvlm_jax.models.qwen3_vl.model",
    "cropvlm_jax.models.qwen3_vl.vision",
    "cropvlm_jax.models.smolvlm.model",
    "cropvlm_jax.models.smolvlm.vision",
    "cropvlm_jax.models.vit",
    "cropvlm_jax.models.vlm",
    "cropvlm_jax.pixels.device",
    "cropvlm_jax.pixels.resampling",
    "cropvlm_jax.scoring.in_graph",
)
jaxtyping.install_import_hook(CHECKED, "runtime_types.check")

FULL = bool(os.environ.get("FULL"))  # of launch/test.sh: everything is installed, nothing may skip
LONGEST = (
    "test_step.py",
    "test_sharding.py",
    "test_loop.py",
    "test_multihost.py",
    "test_apps.py",
    "test_aot.py",
    "test_black_box.py",
    "test_own_data.py",
    "test_speedrun.py",
    "test_production_flags.py",
)


def pytest_collection_modifyitems(items: list) -> None:
    """Begins with the files that take longest, or one process is left with them in the end."""
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


def fail_if_skipped(report: pytest.CollectReport | pytest.TestReport) -> None:
    """Makes a skip a failure where everything that tests need is said to be installed."""
    if FULL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"FULL=1, yet this was skipped: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    """Files that are skipped as a whole."""
    report = yield
    fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Single tests."""
    report = yield
    fail_if_skipped(report)
    return report
