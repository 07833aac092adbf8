# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The quickstart in two processes: stopped together, ended by each other's death, resumed, and in
the end the same as in one process."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 12
SETTINGS = {
    "steps": STEPS,
    "batch_size": 4,
    "learning_rate": 1e-4,
    "grpo.num_generations": 2,
    # The batch's deviation, which needs the rewards of both processes. A group's own deviation
    # blows up near ties: at step 5 two rewards of a group differ by 1.74e-5 in one process and by
    # 1.76e-5 in two, which moves that group's advantages by 1% and grad_norm by 8e-5.
    "grpo.scale_rewards": "batch",
    "checkpoint.every": 4,
}


class Run:
    """A run of `apps.train`, by one process or by `launch/multihost_local.sh`'s two."""

    def __init__(self, workdir: pathlib.Path, processes: int):
        train = [sys.executable, "-m", "cropvlm_jax.apps.train"]
        command = train if processes == 1 else ["bash", ROOT / "launch/multihost_local.sh"]
        arguments = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
        arguments.append(f"--workdir={workdir}")
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "VIRTUAL_ENV": sys.prefix,
            "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.workdir, self.log = workdir, workdir.with_name(f"{workdir.name}-{time.time()}.log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--config=experiments/zoom_digits.py", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all have ended

    def wait_for(self, step: int) -> None:
        """Until the metrics of `step` are there."""
        file = self.workdir / "metrics.jsonl"
        while not file.is_file() or f'"step": {step}' not in file.read_text():
            assert self.process.poll() is None, self.log.read_text()[-5000:]
            time.sleep(0.01)

    def pid(self, process: int) -> int:
        """Of one of the two."""
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_text()
            except OSError:
                continue  # ended meanwhile
            if f"--process_id={process}\0" in command and f"={self.workdir}\0" in command:
                return int(folder.name)
        raise AssertionError(f"process {process} is not there")

    def end(self, *codes: int) -> str:
        """Waits for the end; returns the log."""
        found, log = self.process.wait(300), self.log.read_text()
        assert found in codes, log[-5000:]
        return log


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_two_processes_train_as_one(tmp_path):
    together, alone = tmp_path / "together", tmp_path / "alone"
    with Run(together, 2) as run:
        run.wait_for(2)
        run.process.send_signal(signal.SIGTERM)
        run.end(143)
    saved = max(int(folder.name) for folder in (together / "checkpoints").iterdir())
    assert 2 < saved < STEPS

    with Run(together, 2) as run:
        run.wait_for(saved + 2)
        os.kill(run.pid(1), signal.SIGKILL)
        killed = time.monotonic()
        log = run.end(1, 128 + signal.SIGKILL)  # of whichever ends first
    assert time.monotonic() - killed < 60
    assert "process 0 of 2 ends" in log
    assert not (together / "cropper").exists()

    with Run(together, 2) as run:
        log = run.end(0)
    assert "going on after step" in log and "process 1: I" not in log  # one process tells

    with Run(alone, 1) as run:
        run.end(0)
    rows = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (alone, together)
    ]
    assert [row["step"] for row in rows[1]] == list(range(1, STEPS + 1))
    for one, other in zip(*rows, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if not name.startswith("perf/"):  # how fast it was
                assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-5), (one["step"], name)
    one, other = (load_file(folder / "cropper/model.safetensors") for folder in (alone, together))
    assert max(np.abs(one[name] - other[name]).max() for name in one) < 1e-5
