# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters in and out of the folders that PEFT writes and reads."""

import json
import math
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import safetensors
from flax import nnx
from safetensors.numpy import load_file

from cropvlm_jax.hub.pretrained import resolve
from cropvlm_jax.hub.weights import FILE, save_weights
from cropvlm_jax.models import lora
from cropvlm_jax.models.config import VLMConfig
from cropvlm_jax.models.registry import architecture_of
from cropvlm_jax.models.weight_table import TRANSPOSE, Table, Weight

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

# Keys of PEFT's config that have some values that we support, then keys that we read or that do not
# change what an adapter computes. Any other key must be unset: a feature we do not know is refused.
SUPPORTED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),  # others change the base weights as well
}
# The last three are set by default, and not used by themselves.
READ_OR_HARMLESS = set(
    "r lora_alpha lora_dropout use_rslora target_modules exclude_modules layers_pattern "
    "auto_mapping base_model_name_or_path inference_mode peft_version revision task_type "
    "loftq_config megatron_core qalora_group_size".split()
)


def _linears(config: VLMConfig) -> dict[str, str]:
    """Paths of a model's linear layers, and Hugging Face's names of them, `{}` for the layer of a
    stack.

    Layers that are parts of a fused one there, and the patch embedding, a convolution there, are
    not among them: PEFT has no equal of their adapters.
    """
    return {
        row.ours.removesuffix(".kernel"): row.hf.removesuffix(".weight")
        for row in architecture_of(config).weights
        if row.ours.endswith(".kernel") and row.layout is TRANSPOSE and row.part == (0, 1)
    }


def _pattern(linear: str) -> str:
    """Regular expression of the Hugging Face modules with the name `linear`."""
    return re.escape(linear).replace(r"\{\}", r"\d+")


def _table(linears: dict[str, str], paths: Iterable[str]) -> Table:
    """Rows of the adapters of the linear layers `paths`."""
    return tuple(
        Weight(f"{PREFIX}{linears[path]}.{theirs}.weight", f"{path}.{mine}", TRANSPOSE)
        for path in paths
        for theirs, mine in (("lora_A", "lora_a"), ("lora_B", "lora_b"))
    )


def export_adapter(folder: str | Path, model: Any, base: str) -> None:
    """Writes the adapters of a model as a folder that PEFT loads.

    Args:
        folder: where to; an older adapter there is replaced.
        model: an adapted model (see `models.lora`).
        base: the name on the Hugging Face Hub, or the folder, of the model they belong to.

    Raises:
        ValueError: the model has no adapters, or one that PEFT has no equal of.
    """
    adapters = lora.adapters(model)
    if not adapters:
        raise ValueError("the model has no adapters; a whole model is written by `export`")
    linears = _linears(model.config)
    if other := sorted(adapters.keys() - linears.keys()):
        raise ValueError(f"PEFT has no equal of the adapters of {', '.join(other)}: merge them")
    settings = next(iter(adapters.values())).config
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": settings.scale * settings.rank,
        "lora_dropout": settings.dropout,
        "target_modules": "|".join(_pattern(linears[path]) for path in adapters),
        "bias": "none",
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:  # so that no file appears half written
        temporary = Path(name)
        save_weights(
            nnx.state(model, lora.LoRAParam), _table(linears, adapters), temporary, math.inf
        )
        (temporary / CONFIG).write_text(
            json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
        (temporary / FILE).replace(folder / WEIGHTS)
        (temporary / CONFIG).replace(folder / CONFIG)


def _read_config(file: Path) -> dict[str, Any]:
    """The config of an adapter that computes nothing but plain LoRA."""
    config = json.loads(file.read_text(encoding="utf-8"))
    for key, value in config.items():
        if key in SUPPORTED:
            supported = value in SUPPORTED[key]
        else:
            supported = key in READ_OR_HARMLESS or not value
        if not supported:
            raise ValueError(
                f"{file}: {key}={value!r} is not supported. Merge the adapter with PEFT's "
                "merge_and_unload() and load the model that you save then"
            )
    return config


def load_adapter(folder: str | Path, model: Any) -> Any:
    """Adapts a model as an adapter saved by PEFT does.

    Args:
        folder: a folder, or a name on the Hugging Face Hub.
        model: a plain model, possibly abstract; stays as it is.

    Returns:
        An adapted model that shares the weights of `model`, with rank, alpha, dropout and targets
        from the folder.

    Raises:
        FileNotFoundError: there is no such adapter, or a file of it is absent.
        ValueError: naming the feature that is not supported, or each unused, missing or misshaped
            weight; all layers of a stack have an adapter or none.
    """
    folder = resolve(folder)
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} has no {file}: not an adapter in safetensors")
    config = _read_config(folder / CONFIG)
    try:
        stored = load_file(folder / WEIGHTS)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{folder / WEIGHTS} is not a safetensors file: cut short, or a git-lfs pointer?"
        ) from error
    linears = _linears(model.config)
    paths = [
        path
        for path, linear in linears.items()
        if any(
            re.fullmatch(rf"{re.escape(PREFIX)}{_pattern(linear)}\.lora_[AB]\.weight", name)
            for name in stored
        )
    ]
    if not paths:
        kind, names = model.config.model_type, ", ".join(stored)
        raise ValueError(f"{folder} adapts no linear layer of a {kind}, but: {names}")
    rank = config["r"]
    settings = lora.LoRAConfig(
        rank=rank,
        # Rank-stabilised LoRA scales by alpha / sqrt(r), and we by alpha / r.
        alpha=config["lora_alpha"] * (math.sqrt(rank) if config.get("use_rslora") else 1),
        dropout=config["lora_dropout"],
        targets="|".join(map(re.escape, paths)),
    )
    adapted = nnx.eval_shape(lambda model: lora.add(model, settings, nnx.Rngs(0)), model)
    params = nnx.state(adapted, lora.LoRAParam)
    variables = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(params)}
    rows = [(row, variables[row.ours]) for row in _table(linears, paths)]
    expected: dict[str, tuple[int, ...]] = {}
    for row, variable in rows:
        shapes = jax.eval_shape(row.parts, variable.get_value())
        expected |= zip(row.names(variable), (s.shape for s in shapes), strict=True)
    problems = [f"missing weight {name}" for name in sorted(expected.keys() - stored.keys())]
    problems += [f"unused weight {name}" for name in sorted(stored.keys() - expected.keys())]
    for name in sorted(expected.keys() & stored.keys()):
        if stored[name].shape != expected[name]:
            problems.append(f"weight {name} has shape {stored[name].shape}, not {expected[name]}")
    if problems:
        raise ValueError(f"{folder} does not fit the model:\n" + "\n".join(problems))
    for row, variable in rows:
        parts = [stored[name] for name in row.names(variable)]
        variable.set_value(jnp.asarray(row.join(parts), jnp.float32))
    return nnx.merge(nnx.graphdef(adapted), params, nnx.state(model), copy=True)
