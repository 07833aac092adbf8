# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters as folders that PEFT reads, written."""

import collections
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from cropvlm_jax.hub.adapters import (
    BASE,
    CONFIG,
    PREFIX,
    WEIGHTS,
    Adapter,
    LowRank,
    bare_name,
)
from cropvlm_jax.hub.files import write_json
from cropvlm_jax.models import lora
from cropvlm_jax.models.registry import architecture_of
from cropvlm_jax.models.weight_table import TRANSPOSE


def export_adapter(folder: str | Path, model: Any, base: str, start: Adapter | None = None) -> None:
    """Writes the adapters of a model as a folder that PEFT loads.

    Args:
        folder: where to; an older adapter there is replaced.
        model: an adapted model (see `models.lora`).
        base: the name on the Hugging Face Hub, or the folder, of the model they belong to.
        start: an adapter of `base` that was merged into `model` before it got its own ones. What
            is written computes both: the factors stand side by side.

    Raises:
        ValueError: the model has no adapters, or one that PEFT has no equal of.
    """
    low_ranks = _low_ranks(model)
    if start is not None:
        low_ranks = _side_by_side(start.read(), low_ranks)
    some = next(iter(low_ranks.values()))
    rank = some.a.shape[0]
    config = {
        "peft_type": "LORA",
        BASE: base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": some.scale * rank,
        "lora_dropout": next(iter(lora.adapters(model).values())).config.dropout,
        "target_modules": _targets(low_ranks),
        "bias": "none",
    }
    arrays = {}
    for module, low_rank in low_ranks.items():
        a, b = low_rank.a, low_rank.b
        b = b.reshape(b.shape + (1,) * (a.ndim - 2))  # a convolution's has kernels of one pixel
        for letter, array in (("A", a), ("B", b)):
            arrays[f"{PREFIX}{module}.lora_{letter}.weight"] = np.ascontiguousarray(array)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:  # so that no file appears half written
        temporary = Path(name)
        safetensors.numpy.save_file(arrays, temporary / WEIGHTS, metadata={"format": "pt"})
        write_json(temporary / CONFIG, config)
        (temporary / WEIGHTS).replace(folder / WEIGHTS)
        (temporary / CONFIG).replace(folder / CONFIG)


def _low_ranks(model: Any) -> dict[str, LowRank]:
    """The adapters of a model by Hugging Face's names of the modules."""
    adapters = lora.adapters(model)
    if not adapters:
        raise ValueError("the model has no adapters; a whole model is written by `export`")
    # PEFT has no equal of adapters of the others: parts of a fused layer, and the patch embedding.
    rows = {
        row.ours.removesuffix(".kernel"): row
        for row in architecture_of(model.config).weights
        if row.ours.endswith(".kernel") and row.layout is TRANSPOSE and row.part == (0, 1)
    }
    if other := sorted(adapters.keys() - rows.keys()):
        raise ValueError(f"PEFT has no equal of the adapters of {', '.join(other)}: merge them")
    found = {}
    for path, layer in adapters.items():
        names = rows[path].names(layer.kernel)
        a = rows[path].parts(np.asarray(layer.lora_a[...]))
        b = rows[path].parts(np.asarray(layer.lora_b[...]))
        for i, name in enumerate(names):
            found[name.removesuffix(".weight")] = LowRank(a[i], b[i], layer.config.scale)
    return found


def _side_by_side(first: dict[str, LowRank], second: dict[str, LowRank]) -> dict[str, LowRank]:
    """One adapter that computes what two do; all layers have one rank, and a scale of 1."""
    names = {bare_name(module): module for module in second}
    first = {names.get(bare_name(module), module): low_rank for module, low_rank in first.items()}
    rank = sum(max(len(x.a) for x in adapter.values()) for adapter in (first, second))
    joined = {}
    for module in first | second:
        parts = [adapter[module] for adapter in (first, second) if module in adapter]
        a = np.concatenate([part.a for part in parts])
        b = np.concatenate([np.float32(part.scale) * part.b for part in parts], axis=1)
        more = (0, rank - len(a))
        a = np.pad(a, (more, *[(0, 0)] * (a.ndim - 1)))
        joined[module] = LowRank(a, np.pad(b, ((0, 0), more)), 1.0)
    return joined


def _targets(modules: Iterable[str]) -> str:
    """A regular expression that these modules match, and no others."""
    numbers: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    patterns = []
    for module in modules:
        if layer := re.fullmatch(r"(.+?\.)(\d+)(\..+)", module):
            numbers[layer[1], layer[3]].append(layer[2])
        else:
            patterns.append(re.escape(module))
    for (before, after), found in numbers.items():
        patterns.append(f"{re.escape(before)}({'|'.join(found)}){re.escape(after)}")
    return "|".join(patterns)
