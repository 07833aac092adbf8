# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether models may use kernels of the device: decided once, when a process starts.

A program takes what is decided when it is traced. Where kernels are not allowed, XLA compiles the
same mathematics from plain operations.
"""

import contextlib
import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass
class _Decision:
    """What holds in this process.

    Attributes:
        allowed: whether kernels are used where the device has them.
        made: whether somebody has decided.
    """

    allowed: bool = True
    made: bool = False


_decision = _Decision()


def allowed() -> bool:
    """Whether a program that is traced now may use kernels."""
    return _decision.allowed


def is_decided() -> bool:
    """Whether `allow` was called."""
    return _decision.made


def allow(yes: bool) -> None:
    """Decides for all programs that this process traces from now on."""
    _decision.allowed, _decision.made = yes, True


@contextlib.contextmanager
def allowed_for_now() -> Iterator[None]:
    """Allows kernels inside, to try them; to be left before another thread traces a program."""
    before, _decision.allowed = _decision.allowed, True
    try:
        yield
    finally:
        _decision.allowed = before
