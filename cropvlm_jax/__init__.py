# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""CropVLM in JAX: a small model that learns where to zoom so that a frozen one answers better."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cropvlm_jax.api import CropVLM
    from cropvlm_jax.readers.base import Reader, Reply
    from cropvlm_jax.readers.registry import open_reader
    from cropvlm_jax.readers.vlm import VLMReader
    from cropvlm_jax.zooms import Zoom

    __version__: str

__all__ = ["CropVLM", "Reader", "Reply", "VLMReader", "Zoom", "__version__", "open_reader"]

_HOMES = {  # modules of the names above
    "CropVLM": "cropvlm_jax.api",
    "Zoom": "cropvlm_jax.zooms",
    "Reader": "cropvlm_jax.readers.base",
    "Reply": "cropvlm_jax.readers.base",
    "VLMReader": "cropvlm_jax.readers.vlm",
    "open_reader": "cropvlm_jax.readers.registry",
}


def __getattr__(name: str) -> Any:
    # Not before it is asked for: data workers import this package and must not import jax.
    if name == "__version__":
        return importlib.metadata.version("cropvlm_jax")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
