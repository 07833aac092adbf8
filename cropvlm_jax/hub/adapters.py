# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters in folders as PEFT writes them, opened and read.

An adapter belongs to a base model. It is added to the base's weights while these are read
(`hub.weights`), under Hugging Face's names, so it may be on any layers of the base.

Shape letters: I input features, O output features, R rank.
"""

import collections
import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from cropvlm_jax.hub.files import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
BASE = "base_model_name_or_path"
PREFIX = "base_model.model."
# Parts of a module's name that come and go with the version of transformers.
CONTAINERS = ("base_model", "model", "language_model", "vision_model")

# Keys of PEFT's config that have some values that we support, then keys that we read or that do not
# change what an adapter computes. Any other key must be unset: a feature we do not know is refused.
SUPPORTED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # Others change the base weights as well.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
READ_OR_HARMLESS = set(
    "r lora_alpha lora_dropout use_rslora rank_pattern alpha_pattern target_modules layers_pattern "
    "exclude_modules layers_to_transform auto_mapping base_model_name_or_path inference_mode "
    "peft_version revision task_type eva_config loftq_config megatron_core "
    "qalora_group_size".split()
)
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names
LARGEST = float(np.finfo(np.float32).max)
REMEDY = "Merge the adapter with PEFT's merge_and_unload() and open the model that you save then"


@dataclasses.dataclass(frozen=True)
class LowRank:
    """What an adapter adds to the weight `[O, I]` of a layer: scale * b @ a.

    A convolution's I are several axes: channels, then those of the kernel.

    Attributes:
        a: fp32 `[R, I]`.
        b: fp32 `[O, R]`.
        scale: of the product.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight: (O, I)."""
        return len(self.b), *self.a.shape[1:]

    @property
    def bound(self) -> float:
        """No value of the product is larger."""
        a, b = (float(np.abs(x).max(initial=0)) for x in (self.a, self.b))
        return self.scale * len(self.a) * a * b

    def add_to(self, weight: np.ndarray, first_row: int = 0) -> np.ndarray:
        """The sum in fp32, for the rows of the weight from `first_row` on that are given."""
        rows = self.b[first_row : first_row + len(weight)]
        added = np.float32(self.scale) * (rows @ self.a.reshape(len(self.a), -1))
        return weight.astype(np.float32) + added.reshape(weight.shape)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A folder with a LoRA adapter in PEFT's format, its weights not read yet.

    Attributes:
        folder: where it is.
        base: the folder or the name on the Hugging Face Hub of the model that it belongs to.
        revision: of the base on the Hub; None is the newest.
        rank: R of layers that `rank_pattern` does not name.
        alpha: a layer's factor is alpha / R; of layers that `alpha_pattern` does not name.
        rank_stabilised: the factor is alpha / sqrt(R) instead.
        rank_pattern: R by the name of the module.
        alpha_pattern: alpha by the name of the module.
    """

    folder: Path
    base: str
    revision: str | None
    rank: int
    alpha: float
    rank_stabilised: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    @classmethod
    def open(cls, folder: Path, weights: bool = True) -> "Adapter":
        """Reads the config of an adapter.

        Args:
            folder: where it is.
            weights: whether they must be there too.

        Raises:
            FileNotFoundError: the folder has no config, or no weights in safetensors.
            ValueError: the config is broken, or asks for more than LoRA; the message names the
                file and the key.
        """
        file = folder / CONFIG
        if not file.is_file():
            raise FileNotFoundError(f"{folder} holds the weights of an adapter but no {CONFIG}")
        if weights:
            _require(folder / WEIGHTS)
        config = read_json(file)
        _check_supported(file, config)
        base = config.get(BASE)
        if not isinstance(base, str) or not base:
            raise ValueError(
                f"{file}: {BASE}={base!r}: write there the folder or the Hugging Face id of the "
                "model that the adapter was trained on"
            )
        if not os.path.isdir(os.path.expanduser(base)) and (folder / base).is_dir():
            base = str((folder / base).resolve())
        for key, kind in (("revision", str), ("use_rslora", bool)):
            if not isinstance(config.get(key), kind | None):
                raise ValueError(f"{file}: {key}={config[key]!r} is not a {kind.__name__}")
        _number(file, "lora_dropout", config.get("lora_dropout", 0.0), least=0)
        return cls(
            folder=folder,
            base=base,
            revision=config.get("revision"),
            rank=_rank(file, "r", config.get("r", 8)),  # the defaults are PEFT's
            alpha=_number(file, "lora_alpha", config.get("lora_alpha", 8)),
            rank_stabilised=bool(config.get("use_rslora")),
            rank_pattern={k: _rank(file, n, x) for k, n, x in _pattern(file, config, "rank")},
            alpha_pattern={k: _number(file, n, x) for k, n, x in _pattern(file, config, "alpha")},
        )

    def read(self) -> dict[str, LowRank]:
        """The adapted layers by the names of their modules, which have no `PREFIX`.

        Raises:
            FileNotFoundError: there are no weights in safetensors.
            ValueError: they are damaged, or not those of plain LoRA with the ranks of the config;
                the message names the file and the weight.
        """
        file = self.folder / WEIGHTS
        stored, found, problems = _read_weights(file), {}, []
        factors: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
        for name, array in stored.items():
            parts = re.fullmatch(rf"(?:{re.escape(PREFIX)})?(.+)\.lora_([AB])\.weight", name)
            if not parts or array.ndim < 2:
                problems.append(f"{name} {list(array.shape)} is no factor of a layer")
            elif parts[2] in factors[parts[1]]:
                problems.append(f"{name} is there under two names")
            else:
                factors[parts[1]][parts[2]] = array
        for module, pair in factors.items():
            rank = _matching(self.rank_pattern, module, self.rank)
            alpha = _matching(self.alpha_pattern, module, self.alpha)
            for letter in {"A", "B"} - pair.keys():
                problems.append(f"{module}.lora_{letter}.weight is missing")
            ranks = {letter: pair[letter].shape["AB".index(letter)] for letter in sorted(pair)}
            if set(ranks.values()) != {rank}:
                problems.append(f"{module} has factors of ranks {ranks}, but {CONFIG} says {rank}")
            elif pair.keys() == {"A", "B"}:
                root = math.sqrt(rank) if self.rank_stabilised else rank
                b = pair["B"].reshape(-1, rank)  # a convolution's has kernels of one pixel
                found[module] = LowRank(pair["A"], b, alpha / root)
                if not found[module].bound < LARGEST:
                    problems.append(f"{module} has values that are too large")
        _refuse(file, problems, REMEDY)
        return found

    def fit(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, LowRank]:
        """What is added to the weights of the base.

        Args:
            shapes: of all weights of the base by Hugging Face's names.

        Returns:
            By the names in `shapes`.

        Raises:
            FileNotFoundError: there are no weights in safetensors.
            ValueError: they are damaged, or belong to another model.
        """
        names = {bare_name(name.removesuffix(".weight")): name for name in shapes}
        fitted, problems = {}, []
        for module, low_rank in self.read().items():
            name = names.get(bare_name(module))
            if name is None:
                problems.append(f"the base model has no layer {module}")
            elif name in fitted:
                problems.append(f"{module} is there under two names")
            elif tuple(shapes[name]) != low_rank.shape:
                theirs, ours = list(shapes[name]), list(low_rank.shape)
                problems.append(
                    f"{module} is for a weight {ours}, and the base model's is {theirs}"
                )
            else:
                fitted[name] = low_rank
        remedy = f"Is {BASE}={self.base!r} in {CONFIG} the model that it was trained on?"
        _refuse(self.folder / WEIGHTS, problems, remedy)
        return fitted


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model of its own.

    Raises:
        ValueError: it holds both.
    """
    files = [name for name in (CONFIG, WEIGHTS, PICKLED) if (folder / name).is_file()]
    models = sorted(file.name for file in folder.glob("model*.safetensors"))
    if files and models:
        raise ValueError(
            f"{folder} holds a model ({models[0]}) and an adapter ({files[0]}): move one of them "
            "into a folder of its own"
        )
    return bool(files)


def bare_name(module: str) -> str:
    """The name of a module without the parts that differ between versions of transformers."""
    return ".".join(part for part in module.split(".") if part not in CONTAINERS)


def _matching(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """What the first key that matches a module has, as PEFT matches them."""
    keys = (key for key in pattern if re.match(rf"(.*\.)?({key})$", module))
    return next((pattern[key] for key in keys), default)


def _check_supported(file: Path, config: Mapping[str, Any]) -> None:
    """Refuses what computes anything but plain LoRA."""
    for key, value in config.items():
        if key in SUPPORTED:
            supported = value in SUPPORTED[key]
        else:
            supported = key in READ_OR_HARMLESS or not value
        if not supported:
            raise ValueError(f"{file}: {key}={value!r} is not supported. {REMEDY}")


def _number(file: Path, key: str, value: Any, least: float | None = None) -> float:
    """Checks that a value is a number above 0, or of at least `least`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value < LARGEST:
        if value > 0 or (least is not None and value >= least):
            return float(value)
    needed = "above 0" if least is None else f"of at least {least}"
    raise ValueError(f"{file}: {key}={value!r} is not a number {needed}")


def _rank(file: Path, key: str, value: Any) -> int:
    """Checks that a value is a rank."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{file}: {key}={value!r} is not a whole number of at least 1")
    return value


def _pattern(file: Path, config: Mapping[str, Any], what: str) -> list[tuple[str, str, Any]]:
    """Key, name for messages and value of each entry of "rank_pattern" or "alpha_pattern"."""
    pattern = config.get(f"{what}_pattern") or {}
    if not isinstance(pattern, dict):
        raise ValueError(f"{file}: {what}_pattern={pattern!r} is not an object")
    for key in pattern:
        try:
            re.compile(key)
        except re.error as error:
            raise ValueError(f"{file}: {what}_pattern.{key} is no regular expression") from error
    return [(key, f"{what}_pattern.{key}", value) for key, value in pattern.items()]


def _require(file: Path) -> None:
    """Checks that there are weights."""
    if not file.is_file():
        pickled = f" but {PICKLED}" if (file.parent / PICKLED).is_file() else ""
        raise FileNotFoundError(
            f"{file.parent} has no {file.name}{pickled}: save the adapter with PEFT's "
            "save_pretrained(..., safe_serialization=True)"
        )


def _read_weights(file: Path) -> dict[str, np.ndarray]:
    """All arrays of an adapter, fp32 and finite."""
    _require(file)
    try:
        with safetensors.safe_open(file, "numpy") as opened:
            kinds = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}
            other = sorted(name for name, kind in kinds.items() if kind not in FLOATS)
            _refuse(file, [f"{name} is of type {kinds[name]}" for name in other], REMEDY)
            with np.errstate(over="ignore"):  # what is too large for fp32 is not finite below
                arrays = {name: opened.get_tensor(name).astype(np.float32) for name in kinds}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{file} is not a safetensors file: cut short, or a git-lfs pointer?"
        ) from error
    if not arrays:
        raise ValueError(f"{file} holds no weights")
    broken = [f"{name} is not finite" for name, x in arrays.items() if not np.isfinite(x).all()]
    _refuse(file, broken, "Take an earlier checkpoint of its training")
    return arrays


def _refuse(file: Path, problems: Sequence[str], remedy: str) -> None:
    """Raises a ValueError where there are problems; it tells the first, and how many follow."""
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(f"{file}: {problems[0]}{more}. {remedy}")
