# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Kills a run again and again, and compares what it ends with to a run that was never stopped.

    python experiments/check_resume.py --kills=10 --json=resume.json

Both are `cropvlm train` on the quickstart's models, with small batches. One is killed by SIGKILL at
random moments, while it starts, trains, evaluates or saves, and started again each time; once it
gets a SIGTERM, after which no step may be missing. Then the last checkpoint (weights, optimizer,
RNG) and the metrics of all steps, which tell the order of the data, are compared bit by bit; not so
`perf/...`, which tells how fast the steps were.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging

from cropvlm_jax import apps

KILLS = flags.DEFINE_integer("kills", 10, "How often the run is killed.", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", 60, "Steps of the run.", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments at which it is killed.")
JSON = flags.DEFINE_string("json", None, "JSON file to write the result to.")
STOPPED = 128 + signal.SIGTERM


def start(workdir: pathlib.Path) -> subprocess.Popen:
    """Begins the run in `workdir`, or goes on with it."""
    settings = ("batch_size=2", "grpo.num_generations=2", "grpo.beta=0.01", "checkpoint.every=4")
    settings += ("eval.every=8", "eval.examples=4", f"steps={STEPS.value}")
    with (workdir.parent / f"{workdir.name}.log").open("a") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "cropvlm_jax.apps.train"),
                *("--config=experiments/zoom_digits.py", f"--workdir={workdir}"),
                *(f"--config.{setting}" for setting in settings),
            ],
            stdout=log,
            stderr=log,
            # Restarts need not compile again: more of the kills hit something else.
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled")},
        )


def finish(run: subprocess.Popen, workdir: pathlib.Path) -> None:
    """Waits for the run to end well."""
    if run.wait():
        log = (workdir.parent / f"{workdir.name}.log").read_text()
        raise RuntimeError(f"the run ended with {run.returncode}:\n{log[-3000:]}")


def written_steps(workdir: pathlib.Path) -> list[int]:
    """Steps whose metrics are on disk."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines(True) if file.is_file() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def result(workdir: pathlib.Path) -> tuple[dict, list[str]]:
    """Arrays of the last checkpoint, and the metrics as they were written, without `perf/...`."""
    manager = ocp.CheckpointManager(workdir / "checkpoints")
    args = ocp.args.Composite(state=ocp.args.StandardRestore())
    state = manager.restore(manager.latest_step(), args=args).state
    manager.close()
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    metrics = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]
    return jax.tree.map(np.asarray, state), [json.dumps(row, allow_nan=False) for row in metrics]


def equal(a: tuple[dict, list[str]], b: tuple[dict, list[str]]) -> dict[str, bool]:
    """Which parts of two results are the same to the last bit."""

    def same(part: str) -> bool:
        x, y = (
            {k: v for k, v in r[0].items() if k.split("/")[0] == part or k == part} for r in (a, b)
        )
        return bool(x) and x.keys() == y.keys() and all(x[k].tobytes() == y[k].tobytes() for k in x)

    parts = {part: same(part) for part in ("step", "params", "opt_state", "key")}
    return parts | {"metrics": a[1] == b[1]}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    moments = random.Random(SEED.value)
    with tempfile.TemporaryDirectory() as name:
        whole, broken = pathlib.Path(name) / "whole", pathlib.Path(name) / "broken"
        began = time.monotonic()
        finish(start(whole), whole)
        seconds = time.monotonic() - began
        logging.info("the unbroken run took %.0f s", seconds)

        killed_at = []
        while len(killed_at) < KILLS.value:
            before = len(written_steps(broken))
            run = start(broken)
            if moments.random() < 0.2:  # while it starts
                time.sleep(moments.uniform(0, 0.3 * seconds))
            else:  # some steps later, at any moment of a step, an evaluation or a save
                more = moments.randint(1, max(STEPS.value // (2 * KILLS.value), 1))
                while run.poll() is None and len(written_steps(broken)) < before + more:
                    time.sleep(0.02)
                time.sleep(moments.uniform(0, 0.5))
            if run.poll() is not None:
                logging.warning("the run was over before kill %d", len(killed_at) + 1)
                break
            run.kill()
            run.wait()
            killed_at.append(max(written_steps(broken), default=0))
            logging.info("kill %d at step %d", len(killed_at), killed_at[-1])

        before = max(written_steps(broken), default=0)
        run = start(broken)
        while run.poll() is None and max(written_steps(broken), default=0) <= before:
            time.sleep(0.02)
        run.terminate()
        code = run.wait()
        steps = written_steps(broken)
        saved = max(int(p.name) for p in (broken / "checkpoints").iterdir() if p.name.isdigit())
        sigterm = code == STOPPED and saved == max(steps)
        finish(start(broken), broken)
        parts = equal(result(whole), result(broken))
    summary = {
        "kills": len(killed_at),
        "killed_at_steps": killed_at,
        "bitwise_equal": all(parts.values()),
        "equal": parts,
        "sigterm_loses_no_step": sigterm,
        "steps": STEPS.value,
    }
    print(json.dumps(summary, indent=2, allow_nan=False))
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    if not (summary["bitwise_equal"] and sigterm and len(killed_at) == KILLS.value):
        sys.exit(1)


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    apps.run_script(main)
