# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What all other tests compile quickly, compiled as users compile it."""

import json
import os

import forked
import numpy as np

QUICKLY = ("--xla_backend_optimization_level", "--xla_cpu_use_fusion_emitters")  # of conftest.py
SETTINGS = ("steps=2", "batch_size=2", "grpo.num_generations=4", "grpo.beta=0.01")
COMPARED = ("loss", "reward", "reward/likelihood", "entropy", "area", "grad_norm")


def train(workdir, flags: str) -> list[dict[str, float]]:
    """Two steps of GRPO on the tiny models under compiler flags; gives the metrics of each."""
    command = ["-m", "cropvlm_jax.apps.train", f"--workdir={workdir}"]
    command += ["--config=experiments/zoom_digits.py", *(f"--config.{s}" for s in SETTINGS)]
    env = os.environ | {"XLA_FLAGS": flags}  # which the names of kept programs depend on
    done = forked.python(*command, env=env)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_the_compiler_s_defaults_give_the_metrics_of_the_quick_flags(tmp_path):
    """Within 0.1%: sums in another order, in float32, and an update between the two steps."""
    quick = os.environ["XLA_FLAGS"]
    assert all(flag in quick for flag in QUICKLY)
    default = " ".join(flag for flag in quick.split() if not flag.startswith(QUICKLY))
    ours, theirs = train(tmp_path / "quick", quick), train(tmp_path / "default", default)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [1, 2]
    for quickly, by_default in zip(ours, theirs, strict=True):
        for name in COMPARED:
            np.testing.assert_allclose(
                by_default[name], quickly[name], rtol=1e-3, atol=1e-5, err_msg=name
            )
    assert ours[0]["grad_norm"] > 0 and ours[0]["reward"] != ours[1]["reward"]
