# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Is attention as this device computes it for a vision tower what XLA computes?"""

import jax

from cropvlm_jax.checks.verdict import Verdict, judge
from cropvlm_jax.models import attention, kernel_trial
from cropvlm_jax.models.kernel_trial import Shape

NAME = "attention = XLA's"
REMEDY = "--config.attention=xla (a run that starts does so by itself); please report it"
TOWER = Shape(images=4, patches=1024, heads=12, channels=64)  # of a 256M model at 512 px
TINY = Shape(images=1, patches=512, heads=2, channels=64)


def check(shape: Shape) -> Verdict:
    """Compares output and gradients, in bf16, with XLA's in fp32.

    Args:
        shape: of the attention.
    """
    errors = kernel_trial.measure(shape)
    worst, error = max(
        errors.items(), key=lambda one: (not one[1].is_right, one[1].device / one[1].bound)
    )
    way = "kernel" if attention.has_kernel(jax.local_devices()[0]) else "no kernel here: XLA"
    return judge(
        NAME,
        all(error.is_right for error in errors.values()),
        f"{way}; {worst} off by {error.device:.1e} of the largest value, XLA's bf16 by "
        f"{error.xla:.1e}, bound {error.bound:.1e}",
        REMEDY,
        way=way,
        shape=shape._asdict(),
        errors={name: one._asdict() | {"bound": one.bound} for name, one in errors.items()},
    )
