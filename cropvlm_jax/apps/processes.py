# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Flags of the commands that several hosts may run together, and how their processes meet."""

import contextlib
import re

from absl import app, flags

from cropvlm_jax import parallel
from cropvlm_jax.apps import command

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # the flags belong to the command that asks for them


def define() -> None:
    """Defines the flags that say which processes there are."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "This is one of several processes on a TPU pod or under Slurm, which say how many there "
        "are. They meet at a port of process 0: JAX_COORDINATOR_PORT, or what JAX chooses, 8482 on "
        "TPUs.",
    )
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "This is one of several processes elsewhere: host:port of process 0, with the next two "
        "flags.",
    )
    flags.DEFINE_integer(
        "num_processes",
        None,
        "How many processes there are, with --coordinator_address.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "process_id",
        None,
        "Which of them this is, from 0 on, with --coordinator_address.",
        lower_bound=0,
    )
    flags.DEFINE_integer(
        "initialization_timeout_seconds",
        parallel.INITIALIZATION_SECONDS,
        "How long a process waits at the start until all the others are there.",
        lower_bound=1,
        upper_bound=86_400,
    )
    flags.DEFINE_integer(
        "heartbeat_timeout_seconds",
        parallel.HEARTBEAT_SECONDS,
        "How long a process may be silent before it counts as dead, and all end. A busy host may "
        "be silent while it compiles the first step, so a short time is for runs that have "
        "compiled.",
        lower_bound=1,
        upper_bound=86_400,
    )


def are_several() -> bool:
    """Whether the flags make this process one of several."""
    return bool(FLAGS.distributed or FLAGS.coordinator_address)


def joined() -> contextlib.AbstractContextManager[None]:
    """What joins this process to the others of the run, where there are others.

    Raises:
        UsageError: the flags do not say which processes there are.
    """
    address, count, number = FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id
    if not are_several():
        if not (count is None and number is None):
            raise app.UsageError("--num_processes and --process_id need --coordinator_address")
        return contextlib.nullcontext()
    if address and not re.fullmatch(r".+:\d{1,5}", address):
        raise app.UsageError(f"--coordinator_address={address} is not host:port")
    if not FLAGS.distributed and (count is None or number is None):
        raise app.UsageError("--coordinator_address needs --num_processes and --process_id")
    if count is not None and number is not None and number >= count:
        raise app.UsageError(f"--process_id={number} is not below --num_processes={count}")
    return parallel.joined(
        coordinator_address=address,
        num_processes=count,
        process_id=number,
        initialization_timeout_seconds=FLAGS.initialization_timeout_seconds,
        heartbeat_timeout_seconds=FLAGS.heartbeat_timeout_seconds,
        explain=command.explain,
    )
