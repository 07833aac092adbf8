# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The flag that sets the image processor of targets, for the commands that open targets."""

import json
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from cropvlm_jax.readers.registry import is_vlm

HELP = (
    "Settings of the image processor of targets that are VLMs of this package, as NAME=VALUE with "
    "commas between: do_pad=true of a LLaVA, max_pixels=802816 of a Qwen."
)


def define() -> flags.FlagHolder:
    """Defines --target_processor."""
    return flags.DEFINE_list("target_processor", [], HELP)


def read(pairs: Sequence[str], targets: Sequence[str]) -> dict[str, Any]:
    """The settings, from what --target_processor says.

    Args:
        pairs: of the flag.
        targets: names of readers, at least one of which is to have an image processor.

    Raises:
        UsageError: a pair is none, or no target has an image processor.
        ValueError: there is no such reader.
    """
    if pairs and not any(map(is_vlm, targets)):
        raise app.UsageError("--target_processor is for VLMs of this package; no target is one")
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
