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

import contextlib
import re
import sys
import textwrap

import jax
from absl import app, flags

from cropvlm_jax import apps, parallel
from cropvlm_jax.apps import command, config_flag, tpu_compiler
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
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "This is one of several processes on a TPU pod or under Slurm, which say how many there are. "
    "They meet at a port of process 0: JAX_COORDINATOR_PORT, or what JAX chooses, 8482 on TPUs.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator_address",
    None,
    "This is one of several processes elsewhere: host:port of process 0, with the next two flags.",
)
PROCESSES = flags.DEFINE_integer(
    "num_processes",
    None,
    "How many processes there are, with --coordinator_address.",
    lower_bound=1,
)
PROCESS = flags.DEFINE_integer(
    "process_id",
    None,
    "Which of them this is, from 0 on, with --coordinator_address.",
    lower_bound=0,
)
INITIALIZATION = flags.DEFINE_integer(
    "initialization_timeout_seconds",
    parallel.INITIALIZATION_SECONDS,
    "How long a process waits at the start until all the others are there.",
    lower_bound=1,
    upper_bound=86_400,
)
HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_timeout_seconds",
    parallel.HEARTBEAT_SECONDS,
    "How long a process may be silent before it counts as dead, and all end. A busy host may be "
    "silent while it compiles the first step, so a short time is for runs that have compiled.",
    lower_bound=1,
    upper_bound=86_400,
)
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
    with processes():
        complete = loop.run(CONFIG.value, WORKDIR.value, RESUME.value, PROFILE.value)
    if not complete:
        sys.exit(STOPPED)


def planned(config: TrainConfig) -> str:
    """What a run takes, for people.

    Raises:
        UsageError: the TPU compiler is asked for and not installed, or this is one of several
            processes.
    """
    if DISTRIBUTED.value or COORDINATOR.value:
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


def processes() -> contextlib.AbstractContextManager[None]:
    """What joins this process to the others of the run, where there are others.

    Raises:
        UsageError: the flags do not say which processes there are.
    """
    address, count, number = COORDINATOR.value, PROCESSES.value, PROCESS.value
    if not (DISTRIBUTED.value or address):
        if not (count is None and number is None):
            raise app.UsageError("--num_processes and --process_id need --coordinator_address")
        return contextlib.nullcontext()
    if address and not re.fullmatch(r".+:\d{1,5}", address):
        raise app.UsageError(f"--coordinator_address={address} is not host:port")
    if not DISTRIBUTED.value and (count is None or number is None):
        raise app.UsageError("--coordinator_address needs --num_processes and --process_id")
    if count is not None and number is not None and number >= count:
        raise app.UsageError(f"--process_id={number} is not below --num_processes={count}")
    return parallel.joined(
        coordinator_address=address,
        num_processes=count,
        process_id=number,
        initialization_timeout_seconds=INITIALIZATION.value,
        heartbeat_timeout_seconds=HEARTBEAT.value,
        explain=command.explain,
    )


if __name__ == "__main__":
    apps.run(main)
