# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Seconds that an item of an evaluation takes, beside an earlier commit in the same run.

The bundled models answer zoom_digits under its seven conditions: no crop, centre, random, enlarged,
two croppers, true box. The second cropper is the first one with noise on its weights, so that the
two do not agree. Both commits take turns, each time in a process of their own, which first
evaluates one chunk of items to compile. Times are of the items after that, without the intervals.

    python experiments/measure_evaluation.py --json=experiments/evaluation_speed.json
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags

from cropvlm_jax import apps

ROOT = pathlib.Path(__file__).parents[1]
BEFORE = flags.DEFINE_string("before", "0bef273", "The commit to compare with.")
ITEMS = flags.DEFINE_integer("items", 96, "Items that are timed in a turn.", lower_bound=1)
TURNS = flags.DEFINE_integer("turns", 3, "Turns of each commit.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "File for the results.")
WORKER = flags.DEFINE_bool("worker", False, "Times the package that is imported, for one turn.")
CHUNK, NOISE = 32, 0.002


def time_turn(items: int) -> dict[str, Any]:
    """Evaluates items with the package that is imported, and returns seconds and replies."""
    import jax

    from cropvlm_jax.api import CropVLM
    from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
    from cropvlm_jax.evals.conditions import Conditions
    from cropvlm_jax.evals.registry import BENCHMARKS
    from cropvlm_jax.evals.study import Study
    from cropvlm_jax.readers.vlm import VLMReader

    croppers = {name: CropVLM.from_pretrained("zoom_digits/cropper") for name in ("sft", "grpo")}
    last = croppers["grpo"]
    last.params = jax.tree.map(
        lambda x: x + NOISE * jax.random.normal(jax.random.key(0), x.shape, x.dtype), last.params
    )
    study = Study(
        name="zoom_digits",
        benchmark=BENCHMARKS["zoom_digits"],
        targets=[VLMReader.from_pretrained("zoom_digits/target")],
        croppers=croppers,
        conditions=Conditions(("sft", "grpo")),
    )
    source = ZoomDigits("test", 10**6)
    protocol = study.protocol(source, "test")
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)
        study.collect(source, CHUNK, out, "zoom_digits", protocol)
        began, began_cpu = time.perf_counter(), time.process_time()
        _, records = study.collect(source, CHUNK + items, out, "zoom_digits", protocol)
        taken, taken_cpu = time.perf_counter() - began, time.process_time() - began_cpu
    replies = [record["replies"]["zoom_digits/target"] for record in records]
    return {
        "seconds_an_item": taken / items,
        "cpu_seconds_an_item": taken_cpu / items,
        "conditions": sorted(replies[0]),
        "texts": [{name: told["text"] for name, told in row.items()} for row in replies],
    }


def run_turn(tree: pathlib.Path) -> dict[str, Any]:
    """One turn of the package in a folder, in a process of its own."""
    command = [sys.executable, __file__, "--worker", f"--items={ITEMS.value}"]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tree)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare() -> dict[str, Any]:
    """Times both commits in turns."""
    git = ["git", "-C", str(ROOT)]
    with tempfile.TemporaryDirectory() as folder:
        before = pathlib.Path(folder) / "before"
        add = ["worktree", "add", "--detach", str(before), BEFORE.value]
        subprocess.run([*git, *add], check=True, capture_output=True)
        try:
            turns = [(run_turn(before), run_turn(ROOT)) for _ in range(TURNS.value)]
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(before)], check=True)

    def median(key: str, which: int) -> float:
        return round(statistics.median(turn[which][key] for turn in turns), 5)

    old, new = turns[0]
    both = [
        (a[name], b[name]) for a, b in zip(old["texts"], new["texts"], strict=True) for name in a
    ]
    seconds = [median("seconds_an_item", which) for which in (0, 1)]
    return {
        "before_commit": BEFORE.value,
        "items": ITEMS.value,
        "turns": TURNS.value,
        "conditions": new["conditions"],
        "before_seconds_an_item": seconds[0],
        "seconds_an_item": seconds[1],
        "ratio": round(seconds[0] / seconds[1], 2),
        "before_cpu_seconds_an_item": median("cpu_seconds_an_item", 0),
        "cpu_seconds_an_item": median("cpu_seconds_an_item", 1),
        "equal_replies": sum(a == b for a, b in both),
        "replies": len(both),
    }


def main(argv: list[str]) -> None:
    """Measures, prints the results and writes them."""
    del argv
    if WORKER.value:
        print(json.dumps(time_turn(ITEMS.value), allow_nan=False))
        return
    results = compare()
    text = json.dumps(results, indent=2, allow_nan=False) + "\n"
    if JSON.value:
        pathlib.Path(JSON.value).write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    apps.run_script(main)
