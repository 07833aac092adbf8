# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""CropVLM in JAX: a small model that learns where to zoom so that a frozen one answers better."""

import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cropvlm_jax.api import CropVLM, Target, Zoom

    __version__: str

__all__ = ["CropVLM", "Target", "Zoom", "__version__"]


def __getattr__(name: str) -> Any:
    # Not before it is asked for: data workers import this package and must not import jax.
    if name == "__version__":
        return importlib.metadata.version("cropvlm_jax")
    if name in __all__:
        from cropvlm_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
