# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The flag that sets the image processor of targets, for the commands that open targets."""

import json
from collections.abc import Sequence
from typing import Any

from absl import app, flags

HELP = (
    "Settings of the image processor of targets that are VLMs of this package, as NAME=VALUE with "
    "commas between: do_pad=true of a LLaVA, max_pixels=802816 of a Qwen2.5-VL."
)


def define() -> flags.FlagHolder:
    """Defines --target_processor."""
    return flags.DEFINE_list("target_processor", [], HELP)


def read(pairs: Sequence[str]) -> dict[str, Any]:
    """The settings, from what --target_processor says."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            if not name.strip():
                raise ValueError
            settings[name.strip()] = json.loads(value.lower())
        except ValueError:
            raise app.UsageError(
                f"--target_processor takes pairs such as max_pixels=802816, got {pair!r}"
            ) from None
    return settings
