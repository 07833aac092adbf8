# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Kills runs, damages checkpoints and starts runs twice, and checks that no work is lost or mixed.

    python experiments/check_resume.py --kills=10 --json=resume.json
    python experiments/check_resume.py --damage=200
    python experiments/check_resume.py --starts=20

All use `cropvlm train` on the quickstart's models, with small batches.

--kills: a run is killed by SIGKILL at random moments, while it starts, trains, evaluates or saves,
and started again each time; once it gets a SIGTERM, after which no step may be missing. Then the
last checkpoint (weights, optimizer, RNG) and the metrics of all steps, which tell the order of the
data, are compared bit by bit with those of a run that was never stopped; not so `perf/...`, which
tells how fast the steps were.

--damage: a short run leaves two checkpoints. Each time a file of the newer one is damaged, of every
kind of file in turn: a bit is flipped, a stretch set to zero, the file cut short or deleted. What
is then restored has to be the newer checkpoint bit by bit, or the older one, where the log names
the newer one and the file.

--starts: two processes start at once in one folder. One has to go on; the other has to be refused
with the name of the first, which is killed before the next two start. The last one may finish, and
its run is compared with an unbroken one.

The exit code is 1 where anything fails. Without any of the three it is --kills=10.
"""

import collections
import contextlib
import itertools
import json
import logging as standard_logging
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging

from cropvlm_jax import apps
from cropvlm_jax.training.checkpoints import Checkpoints

KILLS = flags.DEFINE_integer("kills", None, "How often the run is killed.", lower_bound=0)
DAMAGE = flags.DEFINE_integer("damage", None, "How often a file is damaged.", lower_bound=1)
STARTS = flags.DEFINE_integer("starts", None, "How often two processes start.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 60, "Steps of the run.", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments of the kills, and of the damage.")
JSON = flags.DEFINE_string("json", None, "JSON file to write the result to.")
STOPPED = 128 + signal.SIGTERM


def start(workdir: pathlib.Path, steps: int, name: str = "") -> subprocess.Popen:
    """Begins the run in `workdir`, or goes on with it; its log is called `name`."""
    settings = ("batch_size=2", "grpo.num_generations=2", "grpo.beta=0.01", "checkpoint.every=4")
    settings += ("eval.every=8", "eval.examples=4", f"steps={steps}")
    with (workdir.parent / f"{name or workdir.name}.log").open("a") as log:
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


def saved(workdir: pathlib.Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Arrays of a checkpoint, of the last one by default."""
    manager = ocp.CheckpointManager(workdir / "checkpoints")
    args = ocp.args.Composite(state=ocp.args.StandardRestore())
    state = manager.restore(manager.latest_step() if step is None else step, args=args).state
    manager.close()
    return jax.tree.map(np.asarray, state)


def result(workdir: pathlib.Path) -> tuple[dict, list[str]]:
    """Arrays of the last checkpoint, and the metrics as they were written, without `perf/...`."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    metrics = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]
    return saved(workdir), [json.dumps(row, allow_nan=False) for row in metrics]


def equal(a: tuple[dict, list[str]], b: tuple[dict, list[str]]) -> dict[str, bool]:
    """Which parts of two results are the same to the last bit."""

    def same(part: str) -> bool:
        x, y = (
            {k: v for k, v in r[0].items() if k.split("/")[0] == part or k == part} for r in (a, b)
        )
        return bool(x) and x.keys() == y.keys() and all(x[k].tobytes() == y[k].tobytes() for k in x)

    parts = {part: same(part) for part in ("step", "params", "opt_state", "key")}
    return parts | {"metrics": a[1] == b[1]}


# --kills --------------------------------------------------------------------------------------


def check_kills(kills: int, whole: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Kills a run and compares what it ends with to `whole`, a run that took so many seconds."""
    moments, broken, killed_at = random.Random(SEED.value), whole.with_name("broken"), []
    while len(killed_at) < kills:
        before = len(written_steps(broken))
        run = start(broken, STEPS.value)
        if moments.random() < 0.2:  # while it starts
            time.sleep(moments.uniform(0, 0.3 * seconds))
        else:  # some steps later, at any moment of a step, an evaluation or a save
            more = moments.randint(1, max(STEPS.value // (2 * kills), 1))
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
    run = start(broken, STEPS.value)
    while run.poll() is None and max(written_steps(broken), default=0) <= before:
        time.sleep(0.02)
    run.terminate()
    code = run.wait()
    steps = written_steps(broken)
    last = max(int(p.name) for p in (broken / "checkpoints").iterdir() if p.name.isdigit())
    sigterm = code == STOPPED and last == max(steps)
    finish(start(broken, STEPS.value), broken)
    parts = equal(result(whole), result(broken))
    aside = len(list((broken / "checkpoints").glob("broken.*")))  # a kill damages no checkpoint
    return {
        "kills": len(killed_at),
        "killed_at_steps": killed_at,
        "bitwise_equal": all(parts.values()),
        "equal": parts,
        "sigterm_loses_no_step": sigterm,
        "checkpoints_set_aside": aside,
        "steps": STEPS.value,
        "ok": all(parts.values()) and sigterm and len(killed_at) == kills and not aside,
    }


# --damage -------------------------------------------------------------------------------------


def flip_a_bit(file: pathlib.Path, chance: random.Random) -> None:
    """Flips one bit of a file."""
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def make_a_hole(file: pathlib.Path, chance: random.Random) -> None:
    """Sets a stretch of a file to zero, as a lost block of a disk does."""
    data = bytearray(file.read_bytes())
    first = chance.randrange(len(data))
    last = min(first + chance.choice((1, 64, 512, 4096)), len(data))
    data[first:last] = bytes(last - first)
    file.write_bytes(data)


def cut_short(file: pathlib.Path, chance: random.Random) -> None:
    """Drops the end of a file, or all of it."""
    os.truncate(file, chance.randrange(file.stat().st_size))


def delete(file: pathlib.Path, chance: random.Random) -> None:
    """Deletes a file."""
    file.unlink()


def kind_of(name: str) -> str:
    """The kind of a file: its path without what tells files of one kind apart."""
    return re.sub(r"[0-9a-f]{16,}|\d+", "*", name)


def ways_to_damage(
    folder: pathlib.Path, chance: random.Random
) -> Iterator[tuple[str, Callable[[pathlib.Path, random.Random], None]]]:
    """Files of a checkpoint and what to do to them: every kind of both, again and again."""
    kinds = collections.defaultdict(list)
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        kinds[kind_of(str(file.relative_to(folder)))].append(file)
    ways = (flip_a_bit, make_a_hole, cut_short, delete)
    while True:
        pairs = list(itertools.product(kinds.values(), ways))
        chance.shuffle(pairs)
        for files, damage in pairs:
            file = chance.choice(files)
            damage = damage if file.stat().st_size else delete
            yield str(file.relative_to(folder)), damage


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """Collects the log's warnings and errors, which are not shown meanwhile."""
    messages: list[str] = []
    collector = standard_logging.Handler(standard_logging.WARNING)
    collector.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger, shown = logging.get_absl_logger(), logging.get_absl_handler()
    level = shown.level
    logger.addHandler(collector)
    shown.setLevel(standard_logging.CRITICAL)
    try:
        yield messages
    finally:
        shown.setLevel(level)
        logger.removeHandler(collector)


def outcome(workdir: pathlib.Path, states: dict[int, dict[str, np.ndarray]], name: str) -> str:
    """What is restored from a folder in which the file `name` of the newer checkpoint is damaged.

    Returns:
        "restored" or "refused", which are right; else what went wrong.
    """
    older, newer = sorted(states)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
        ),
        states[newer],
    )
    with logged() as messages:
        try:
            checkpoints = Checkpoints(workdir, keep=2)
            found = checkpoints.restore(shapes)
            checkpoints.close()
        except Exception as error:
            return f"failed with {type(error).__name__}: {error}"
    if found is None or found[0] not in states:
        return "nothing was restored"
    step, state, _ = found
    if any(np.asarray(state[k]).tobytes() != x.tobytes() for k, x in states[step].items()):
        return f"wrong values from checkpoint {step}"
    if step == newer:
        return "restored"
    named = any(f"checkpoint {newer}" in message and name in message for message in messages)
    aside = list((workdir / "checkpoints").glob(f"broken.{newer}.*"))
    return "refused" if named and aside else f"checkpoint {older} was taken without a word"


def check_damage(folder: pathlib.Path) -> dict[str, Any]:
    """Damages the newer of two checkpoints, and looks at what is restored."""
    run, chance = folder / "damaged", random.Random(SEED.value)
    finish(start(run, steps=8), run)
    steps = sorted(int(path.name) for path in (run / "checkpoints").iterdir())
    states = {step: saved(run, step) for step in steps}
    began, outcomes, wrong = time.monotonic(), collections.Counter(), []
    by_kind: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    newer = run / "checkpoints" / str(steps[-1])
    for name, damage in itertools.islice(ways_to_damage(newer, chance), DAMAGE.value):
        copy = folder / "copy"
        shutil.copytree(run / "checkpoints", copy / "checkpoints")
        damage(copy / "checkpoints" / newer.name / name, chance)
        found = outcome(copy, states, name)
        shutil.rmtree(copy)
        outcomes[found if found in ("restored", "refused") else "wrong"] += 1
        by_kind[kind_of(name)][damage.__name__] += 1
        if found not in ("restored", "refused"):
            wrong.append(f"{damage.__name__} {name}: {found}")
            logging.error("%s", wrong[-1])
        if outcomes.total() % 20 == 0:
            logging.info("%d of %d: %s", outcomes.total(), DAMAGE.value, dict(outcomes))
    return {
        "damages": outcomes.total(),
        "restored_exactly": outcomes["restored"],
        "refused_by_name": outcomes["refused"],
        "wrong": wrong,
        "by_kind_of_file": {kind: dict(counts) for kind, counts in sorted(by_kind.items())},
        "seconds": round(time.monotonic() - began, 1),
        "ok": not wrong and outcomes.total() == DAMAGE.value,
    }


# --starts -------------------------------------------------------------------------------------


def check_starts(whole: pathlib.Path) -> dict[str, Any]:
    """Starts two processes at once in one folder, again and again."""
    shared, refused, seconds = whole.with_name("shared"), 0, []
    for number in range(STARTS.value):
        began = time.monotonic()
        names = [f"shared-{number}-{i}" for i in range(2)]
        runs = [start(shared, STEPS.value, name) for name in names]
        while all(run.poll() is None for run in runs):
            time.sleep(0.05)
        seconds.append(round(time.monotonic() - began, 1))
        second = 0 if runs[0].poll() is not None else 1
        first = runs[1 - second]
        said = (shared.parent / f"{names[second]}.log").read_text().splitlines()[-1]
        time.sleep(1)  # the first one has to go on
        told = f"is in use by process {first.pid} on" in said
        right = bool(told and runs[second].returncode and first.poll() is None)
        refused += right
        logging.info("start %d, after %.1f s: %s", number + 1, seconds[-1], said)
        if number + 1 < STARTS.value:
            first.kill()
            first.wait()
    finish(first, shared.with_name(names[1 - second]))
    parts = equal(result(whole), result(shared))
    return {
        "starts": STARTS.value,
        "refused": refused,
        "seconds_to_refusal": seconds,
        "bitwise_equal": all(parts.values()),
        "ok": refused == STARTS.value and all(parts.values()),
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    kills = KILLS.value
    if kills is None and not (DAMAGE.value or STARTS.value):
        kills = 10
    summary: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if DAMAGE.value:
            summary["damage"] = check_damage(folder)
        if kills is not None or STARTS.value:
            whole, began = folder / "whole", time.monotonic()
            finish(start(whole, STEPS.value), whole)
            seconds = time.monotonic() - began
            logging.info("the unbroken run took %.0f s", seconds)
            if STARTS.value:
                summary["starts"] = check_starts(whole)
            if kills is not None:
                summary["kills"] = check_kills(kills, whole, seconds)
    print(json.dumps(summary, indent=2, allow_nan=False))
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    if not all(part["ok"] for part in summary.values()):
        sys.exit(1)


def is_told(record: standard_logging.LogRecord) -> bool:
    """Whether a line is shown: of Orbax, which writes many, only warnings and errors."""
    return "orbax" not in record.pathname or record.levelno >= standard_logging.WARNING


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(is_told)
    apps.run_script(main)
