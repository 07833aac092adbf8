# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Proves on the machine at hand that training computes what it should, and measures how fast.

Attention, crops and a tiny step are compared with XLA's, PIL's and the CPU's; then a GRPO step of a
256M cropper is timed at 512, 1024 and 2048 px. Weights are random, nothing is downloaded. Minutes
on an accelerator; --tiny is a quick check, also of a CPU. docs/check.md explains each
line of the result. The exit code is 0 if nothing failed, else 1.

Example:

    cropvlm check --json=check.json
"""

import dataclasses
import json
import pathlib
import sys

import jax
from absl import app, flags

from cropvlm_jax import apps
from cropvlm_jax.checks import run as checks

TINY = flags.DEFINE_bool("tiny", False, "Check with tiny models and shapes.")
LONGEST_EDGES = flags.DEFINE_list(
    "longest_edges",
    [str(edge) for edge in checks.EDGES],
    "Pixels at which the step is timed; --longest_edges= times none.",
)
PROMPTS = flags.DEFINE_integer(
    "prompts",
    0,
    "Prompts a device of the steps that are timed; 0 takes 4 for each 16 GiB of its memory, and "
    "fewer where these do not fit.",
    lower_bound=0,
)
JSON = flags.DEFINE_string("json", None, "File to write the result to, besides printing it.")


def main(argv: list[str]) -> None:
    """Checks as the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    plan = plan_of_flags()
    if JSON.value:
        check_file(pathlib.Path(JSON.value))
    if not TINY.value:
        jax.config.update("jax_enable_compilation_cache", False)  # the time is the compiler's
    devices = jax.local_devices()
    print(f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}", flush=True)
    verdicts = checks.run(plan)
    print(checks.to_text(verdicts))
    report = checks.as_json(verdicts)
    if JSON.value:
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
        pathlib.Path(JSON.value).write_text(text, encoding="utf-8")
    if not report["ok"]:
        sys.exit(1)


def check_file(path: pathlib.Path) -> None:
    """Checks, before minutes of work, that a file can be written.

    Raises:
        UsageError: its folder is not there, or it is a folder itself.
    """
    if not path.absolute().parent.is_dir():
        raise app.UsageError(f"--json={path}: there is no such folder")
    if path.is_dir():
        raise app.UsageError(f"--json={path} is a folder: name a file")


def plan_of_flags() -> checks.Plan:
    """What the flags say is to be checked.

    Raises:
        UsageError: they do not go together, or ask for what this machine or the step does not have.
    """
    if TINY.value:
        plan = checks.TINY
        if LONGEST_EDGES.present:
            if LONGEST_EDGES.value:
                raise app.UsageError("--tiny has a size of its own: leave out --longest_edges")
            plan = dataclasses.replace(plan, workloads=[])
    elif jax.default_backend() == "cpu":
        raise app.UsageError(
            "JAX sees no accelerator here, only a CPU. Where there is one, JAX for it must be "
            "installed, and no other process may hold it: docs/check.md. --tiny checks the CPU."
        )
    else:
        plan = checks.full([pixels(edge) for edge in LONGEST_EDGES.value])
    if PROMPTS.value:
        given = [dataclasses.replace(w, prompts=PROMPTS.value) for w in plan.workloads]
        plan = dataclasses.replace(plan, workloads=given)
    return plan


def pixels(edge: str) -> int:
    """The pixels that a user names.

    Raises:
        UsageError: the step is not timed at so many.
    """
    if edge not in map(str, checks.EDGES):
        there = ", ".join(map(str, checks.EDGES))
        raise app.UsageError(f"--longest_edges={edge}: choose among {there}")
    return int(edge)


if __name__ == "__main__":
    apps.run(main)
