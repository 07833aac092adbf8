# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains a cropper: on boxes (SFT), or by GRPO with a frozen reader's answers as the reward.

It also teaches a reader to answer (`stage = "reader"`). The workdir then has metrics.jsonl and
tensorboard/ (what happened at each step), checkpoints/, and cropper/ or reader/, the trained model
as a Hugging Face folder. Ctrl-C, SIGTERM or a preemption saves first;
the same command given again goes on from there.

Example, minutes on a CPU, with the models that come with the package:

    cropvlm train --config=experiments/zoom_digits.py --workdir=runs/try --config.steps=300

What a run would take, before it starts (--topology asks about a TPU that is not there):

    cropvlm train --dry_run --config=experiments/zoom_digits.py

On several hosts, give the same command on each with --distributed and a workdir that all of them
see.
"""

import sys
import textwrap

import jax
from absl import app, flags

from cropvlm_jax import apps
from cropvlm_jax.apps import config_flag, processes, tpu_compiler
from cropvlm_jax.training import dry_run, loop
from cropvlm_jax.training.config import TrainConfig, load_config

CONFIG = config_flag.define_config()
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for metrics, checkpoints and the trained cropper; one for each run.",
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Train nothing and write nothing: say what the run takes, in steps, memory, hours and requests "
    "to a reader, as far as that can be known before. Reads no weights and needs no --workdir.",
)
flags.register_validator(
    "workdir",
    lambda value: value is not None or flags.FLAGS["dry_run"].value,
    message="Flag --workdir must have a value other than None.",
)
TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "With --dry_run: say it of a TPU slice that is not there, such as v5e-8; it takes libtpu.",
)
DOLLARS_PER_HOUR = flags.DEFINE_float(
    "dollars_per_hour",
    None,
    "With --dry_run: the price of all devices together.",
    lower_bound=0,
)
DOLLARS_PER_1000_REQUESTS = flags.DEFINE_float(
    "dollars_per_1000_requests",
    None,
    "With --dry_run: the price of requests to the reader.",
    lower_bound=0,
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
processes.define()
STOPPED = 128 + 15  # what a process ended by SIGTERM exits with: launchers start it again


def main(argv: list[str]) -> None:
    """Trains as the settings say."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: settings are --config.name=value")
    config = load_config(CONFIG.value)  # what is wrong ends one process before others wait for it
    if DRY_RUN.value:
        print(planned(config))
        return
    for flag in (TOPOLOGY, DOLLARS_PER_HOUR, DOLLARS_PER_1000_REQUESTS):
        if flag.value is not None:
            raise app.UsageError(f"--{flag.name} is for --dry_run")
    assert WORKDIR.value is not None  # its validator sees to it
    with processes.joined():
        complete = loop.run(CONFIG.value, WORKDIR.value, RESUME.value, PROFILE.value)
    if not complete:
        sys.exit(STOPPED)


def planned(config: TrainConfig) -> str:
    """What a run takes, for people.

    Raises:
        UsageError: the TPU compiler is asked for and not installed, or this is one of several
            processes.
    """
    if processes.are_several():
        raise app.UsageError("--dry_run is one process: --topology tells of a slice of many hosts")
    if TOPOLOGY.value is None:
        devices = jax.devices()
    else:
        tpu_compiler.use()
        jax.config.update("jax_enable_compilation_cache", False)  # the time is the compiler's
        devices = tpu_compiler.slice_devices(TOPOLOGY.value)
    prices = dry_run.Prices(DOLLARS_PER_HOUR.value, DOLLARS_PER_1000_REQUESTS.value)
    lines = ["This is a dry run: nothing is trained or written, no weights are read."]
    for label, text in dry_run.report(config, devices, prices):
        lines += textwrap.wrap(
            f"{label:<15} {text}", 100, subsequent_indent=" " * 16, break_on_hyphens=False
        )
    return "\n".join(lines)


if __name__ == "__main__":
    apps.run(main)
