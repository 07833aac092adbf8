# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains a cropper, supervised or with GRPO; a run that was stopped goes on where it was.

python -m cropvlm_jax.apps.train --config=experiments/zoom_digits.py --workdir=runs/zoom_digits \
    --config.steps=300

On several hosts, the same on each with --distributed; `workdir` is a folder that all of them see.
"""

import contextlib
import sys

from absl import app, flags
from ml_collections import config_flags

from cropvlm_jax import apps, parallel
from cropvlm_jax.training import loop

CONFIG = config_flags.DEFINE_config_file("config", None, "Module of the run; unknown keys fail.")
flags.mark_flag_as_required("config")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for metrics, checkpoints and the trained cropper.", required=True
)
RESUME = flags.DEFINE_bool("resume", True, "Go on with the run that the folder holds, if any.")
PROFILE = flags.DEFINE_integer(
    "profile", None, "Step to trace, counted from 1 where this process starts.", lower_bound=2
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes, of which TPU pods and Slurm tell the rest."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "One of several processes elsewhere: host:port of process 0."
)
PROCESSES = flags.DEFINE_integer("num_processes", None, "With coordinator_address: how many.")
PROCESS = flags.DEFINE_integer("process_id", None, "With coordinator_address: which, from 0 on.")
STOPPED = 128 + 15  # what a process ended by SIGTERM exits with: launchers start it again


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: settings are --config.name=value")
    alone = not (DISTRIBUTED.value or COORDINATOR.value)
    others = COORDINATOR.value, PROCESSES.value, PROCESS.value
    with contextlib.nullcontext() if alone else parallel.joined(*others):
        complete = loop.run(CONFIG.value, WORKDIR.value, RESUME.value, PROFILE.value)
    if not complete:
        sys.exit(STOPPED)


if __name__ == "__main__":
    apps.run(main)
