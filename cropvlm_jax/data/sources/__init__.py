# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The data sets by name."""

import importlib
import os
from typing import Any

from cropvlm_jax.data.source import Examples, Source

# Modules are imported on use: some need packages that others do not.
_OPENERS = {
    "textvqa": ("textvqa", "open"),
    "docvqa": ("docvqa", "open"),
    "infographicvqa": ("docvqa", "open_infographics"),
    "stvqa": ("stvqa", "open"),
    "sroie": ("sroie", "open"),
    "jsonl": ("jsonl", "open"),
    "vstar": ("vstar", "open"),
    "hrbench_4k": ("hrbench", "open"),
    "hrbench_8k": ("hrbench", "open"),
    "pdfs": ("pdfs", "open"),
    "pages": ("pages", "open"),
}
NAMES = tuple(_OPENERS)
# Sets whose pictures are drawn when they are asked for, without a folder.
_DRAWERS = {
    "zoom_digits": ("zoom_digits", "ZoomDigits"),
    "zoom_digits_mixed": ("zoom_digits_looks", "MixedScenes"),
    "zoom_digits_pairs": ("zoom_digits_looks", "PairScenes"),
    "zoom_digits_deep": ("zoom_digits_looks", "DeepScenes"),
}
# Their splits.
DRAWN = dict.fromkeys(_DRAWERS, ("train", "validation", "test"))

# Questions of splits as their publishers count them, for plans made before the data are there.
PUBLISHED = {
    ("textvqa", "train"): 34_602,
    ("docvqa", "train"): 39_463,
    ("stvqa", "train"): 26_308,
    ("infographicvqa", "train"): 23_946,
}


def open_source(name: str, folder: str | os.PathLike, split: str) -> Source:
    """Opens a data set that lies in a local folder, as it is distributed.

    Args:
        name: one of `NAMES`.
        folder: where it is; the modules of the same names say what must be there.
        split: "train", "val" or "test"; the benchmarks V* and HR-Bench have "test" only.

    Raises:
        ValueError: name or split is unknown, or the files are of something else.
        FileNotFoundError: the folder holds no such data set.
        ImportError: the data set's files take a package that is absent.
    """
    if name not in _OPENERS:
        raise ValueError(f"unknown data set {name!r}: use one of {', '.join(NAMES)}")
    if name.startswith("hrbench_"):
        if split != "test":
            raise ValueError(f"HR-Bench has one split, 'test', not {split!r}")
        split = name.removeprefix("hrbench_")
    module, function = _OPENERS[name]
    return _found(module, function)(folder, split)


def open_drawn(name: str, split: str, num_scenes: int, seed: int = 0) -> Examples:
    """Opens a set whose pictures are drawn when they are asked for.

    Args:
        name: one of `DRAWN`.
        split: one of its splits.
        num_scenes: how many scenes there are to be.
        seed: of the scenes.

    Raises:
        ValueError: name or split is unknown, or there are to be no scenes.
    """
    if name not in _DRAWERS:
        raise ValueError(f"unknown drawn data set {name!r}: use one of {', '.join(_DRAWERS)}")
    module, drawer = _DRAWERS[name]
    return _found(module, drawer)(split, num_scenes, seed)


def _found(module: str, name: str) -> Any:
    """What a module of this folder calls `name`."""
    return getattr(importlib.import_module(f"cropvlm_jax.data.sources.{module}"), name)
