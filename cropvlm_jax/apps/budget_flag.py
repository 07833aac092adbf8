# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The flag --budget of commands that open a cropper."""

from typing import Any

from absl import app, flags

from cropvlm_jax.api import CropVLM


def define() -> flags.FlagHolder[str | None]:
    """Defines the flag."""
    return flags.DEFINE_string(
        "budget",
        None,
        "What the cropper is told that it may spend on crops: the name of one of the budgets that "
        "it was trained with (data.budgets), such as low.",
    )


def open_cropper(name: str, budget: str | None, target: Any = None, **options: Any) -> CropVLM:
    """Opens a cropper that is told a budget, if it was trained to be told one.

    Args:
        name: of the cropper.
        budget: what --budget says.
        target: as `CropVLM.from_pretrained` takes it.
        **options: as it takes them.

    Raises:
        UsageError: it was trained with budgets, and none is given.
    """
    if budget is not None:
        options["budget"] = budget
    model = CropVLM.from_pretrained(name, target, **options)
    budgets = model.source.replies.budgets
    if budgets and budget is None:
        raise app.UsageError(
            f"--cropper={name} was trained with budgets: give --budget={'|'.join(budgets)}"
        )
    return model
