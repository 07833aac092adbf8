# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains a cropper: on boxes (SFT), or by GRPO with a frozen reader's answers as the reward.

The workdir then has metrics.jsonl and tensorboard/ (what happened at each step), checkpoints/, and
cropper/, the trained model as a Hugging Face folder. Ctrl-C, SIGTERM or a preemption saves first;
the same command given again goes on from there.

Example, minutes on a CPU, with the models that come with the package:

    cropvlm train --config=experiments/zoom_digits.py --workdir=runs/try --config.steps=300

On several hosts, give the same command on each with --distributed and a workdir that all of them
see.
"""

import contextlib
import sys

from absl import app, flags
from ml_collections import config_flags

from cropvlm_jax import apps, parallel
from cropvlm_jax.training import loop

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Python file with the settings of the run; explained below."
)
flags.mark_flag_as_required("config")
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for metrics, checkpoints and the trained cropper; one for each run.",
    required=True,
)
RESUME = flags.DEFINE_bool(
    "resume",
    True,
    "Go on with the run that the workdir holds; --noresume refuses a workdir that holds one.",
)
PROFILE = flags.DEFINE_integer(
    "profile",
    None,
    "Write a profiler trace of one step to workdir/profile: of the Nth step that this process "
    "takes, from 2 on.",
    lower_bound=2,
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "This is one of several processes on a TPU pod or under Slurm, which say how many there are.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator_address",
    None,
    "This is one of several processes elsewhere: host:port of process 0, with the next two flags.",
)
PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes there are, with --coordinator_address."
)
PROCESS = flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0 on, with --coordinator_address."
)
STOPPED = 128 + 15  # what a process ended by SIGTERM exits with: launchers start it again


def main(argv: list[str]) -> None:
    """Trains as the settings say."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: settings are --config.name=value")
    alone = not (DISTRIBUTED.value or COORDINATOR.value)
    others = (
        contextlib.nullcontext()
        if alone
        else parallel.joined(
            coordinator_address=COORDINATOR.value,
            num_processes=PROCESSES.value,
            process_id=PROCESS.value,
        )
    )
    with others:
        complete = loop.run(CONFIG.value, WORKDIR.value, RESUME.value, PROFILE.value)
    if not complete:
        sys.exit(STOPPED)


if __name__ == "__main__":
    apps.run(main)
