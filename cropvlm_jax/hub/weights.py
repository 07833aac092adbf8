# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights in and out of safetensors by the table of an architecture, read in both directions."""

import collections
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from cropvlm_jax.hub.adapters import FLOATS, Adapter, LowRank
from cropvlm_jax.hub.files import read_json
from cropvlm_jax.models.weight_table import Table, Weight

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Buffers that old versions of transformers stored; they hold nothing that was learned.
IGNORED = (".rotary_emb.inv_freq", ".embeddings.position_ids")


def _path(keys: Sequence[Any]) -> str:
    """Dotted path of a leaf, the same for an `nnx.State` and for its pure dict."""
    return ".".join(str(k.key) for k in keys if isinstance(k, jax.tree_util.DictKey))


def _match(table: Table, params: Any) -> dict[str, tuple[Weight, Any]]:
    """Rows and leaves of the parameters by path, in the table's order."""
    leaves = {_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
    matched = {row.ours: (row, leaves[row.ours]) for row in table if row.ours in leaves}
    unmatched = sorted(leaves.keys() - matched.keys())
    unmatched += sorted(r.ours for r in table if r.ours not in leaves and not r.tied_to)
    if unmatched:
        raise ValueError(f"the weight table and the model disagree about: {', '.join(unmatched)}")
    return matched


class _Stored(NamedTuple):
    """A weight in an open safetensors file, and what an adapter adds to it."""

    file: Any
    name: str
    path: Path
    added: LowRank | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.file.get_slice(self.name).get_shape())

    @property
    def kind(self) -> str:
        """The type of its numbers, as safetensors calls it."""
        return str(self.file.get_slice(self.name).get_dtype())

    def read(self, part: tuple[int, int] = (0, 1)) -> np.ndarray:
        """The array, or the i-th of n equal parts of it where `part` is (i, n)."""
        index, count = part
        if count == 1:
            first, array = 0, self.file.get_tensor(self.name)
        else:
            rows = self.shape[0] // count
            first = index * rows
            array = self.file.get_slice(self.name)[first : first + rows]
        return array if self.added is None else self.added.add_to(array, first)


def _shards(folder: Path) -> list[str]:
    """Names of the files of a model in several, which its index tells."""
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{folder / INDEX}: weight_map={weight_map!r:.80} names no files")
    files = sorted({str(file) for file in weight_map.values()})
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise ValueError(f"{folder / INDEX} names files that are not there: {', '.join(missing)}")
    return files


def _open(folder: Path, aliases: dict[str, str], stack: contextlib.ExitStack) -> dict[str, _Stored]:
    """Opens the safetensors files of `folder`; returns its weights by name, `aliases` undone."""
    if (folder / FILE).is_file():
        files = [FILE]
    elif (folder / INDEX).is_file():
        files = _shards(folder)
    elif any(folder.glob("*.bin")):
        raise ValueError(
            f"{folder} holds pickled .bin weights, and only safetensors are read. Convert them: "
            "from transformers import AutoModelForImageTextToText as Auto (a text model: "
            f"AutoModelForCausalLM); Auto.from_pretrained({str(folder)!r}).save_pretrained(...)"
        )
    else:
        raise ValueError(f"{folder} has neither {FILE} nor {INDEX}")
    stored: dict[str, _Stored] = {}
    for file in files:
        try:
            opened = stack.enter_context(safetensors.safe_open(folder / file, "numpy"))
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{folder / file} is not a safetensors file: cut short, or a git-lfs pointer?"
            ) from error
        for name in opened.keys():  # noqa: SIM118 (not a mapping)
            known = aliases.get(name, name)
            if known in stored:
                raise ValueError(f"duplicate weight {name} in {folder}, again in {file}")
            stored[known] = _Stored(opened, name, folder / file)
    return stored


def _cast(array: np.ndarray, dtype: Any) -> np.ndarray:
    """The array in another type, in which what is too large becomes infinity."""
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def _blame(weights: Sequence[_Stored], dtype: Any) -> str:
    """What to say of weights of which some are not finite."""
    broken = [weight for weight in weights if not np.isfinite(_cast(weight.read(), dtype)).all()]
    names = ", ".join(weight.name for weight in broken)
    return (
        f"{broken[0].path} has NaN or infinity, as {np.dtype(dtype)}, in {names}: "
        "it is damaged, or its training had diverged"
    )


def load_weights(
    folder: str | Path, abstract_params: Any, table: Table, adapter: Adapter | None = None
) -> Any:
    """Reads a model's weights, one parameter at a time.

    Args:
        folder: holds `model.safetensors`, or shards and their index.
        abstract_params: what to fill: an `nnx.State` or nested dict whose leaves give shape, dtype
            and, where set, the sharding that the weight is placed on.
        table: the rows of this architecture.
        adapter: is merged into the weights, in fp32.

    Returns:
        Arrays in the structure of `abstract_params`.

    Raises:
        ValueError: naming each unused, missing, duplicate, misshaped or quantised weight, or one
            with a NaN or an infinity.
    """
    matched = _match(table, abstract_params)
    with contextlib.ExitStack() as stack:
        aliases: dict[str, str] = {}
        for row, leaf in matched.values():
            aliases |= row.aliases(leaf)
        stored = _open(Path(folder), aliases, stack)
        if adapter is not None:
            added = adapter.fit({name: weight.shape for name, weight in stored.items()})
            stored |= {name: stored[name]._replace(added=part) for name, part in added.items()}
        expected: dict[str, tuple[int, ...]] = {}
        tied: dict[str, str] = {}
        for row, leaf in matched.values():
            one = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            shapes = jax.eval_shape(row.parts, one)
            fused = row.part[1]
            whole = [(fused * first, *rest) for first, *rest in (s.shape for s in shapes)]
            expected |= zip(row.names(leaf), whole, strict=True)
        for row in table:
            if row.ours not in matched and row.tied_to and row.hf in stored:
                tied[row.hf] = matched[row.tied_to][0].hf
        problems = [f"missing weight {name}" for name in sorted(expected.keys() - stored.keys())]
        for name, weight in stored.items():
            if name in expected:
                if weight.kind not in FLOATS:
                    problems.append(
                        f"weight {name} in {weight.path.name} is quantised, or no weight: "
                        f"{weight.kind}; only {', '.join(FLOATS)} are read"
                    )
                elif weight.shape != expected[name]:
                    problems.append(f"weight {name} has shape {weight.shape}, not {expected[name]}")
            elif name not in tied and not name.endswith(IGNORED):
                problems.append(f"unused weight {name}")
        if problems:
            raise ValueError(f"{folder} does not fit the model:\n" + "\n".join(problems))
        for name, twin in tied.items():
            if not np.array_equal(stored[name].read(), stored[twin].read()):
                raise ValueError(f"{folder}: the config ties {name} to {twin}, but they differ")

        def read(keys: Sequence[Any], leaf: Any) -> jax.Array:
            row, _ = matched[_path(keys)]
            weights = [stored[name] for name in row.names(leaf)]
            array = _cast(row.join([weight.read(row.part) for weight in weights]), leaf.dtype)
            if not np.isfinite(array).all():
                raise ValueError(_blame(weights, leaf.dtype))
            if leaf.sharding is None:
                return jax.device_put(array)
            return jax.make_array_from_callback(array.shape, leaf.sharding, array.__getitem__)

        return jax.tree_util.tree_map_with_path(read, abstract_params)


def save_weights(
    params: Any, table: Table, folder: str | Path, max_shard_bytes: float = 5e9
) -> None:
    """Writes a model's weights under Hugging Face's names.

    Args:
        params: `nnx.State` or nested dict of arrays.
        table: the rows of this architecture.
        folder: an existing folder.
        max_shard_bytes: larger models become several files and an index.

    Raises:
        ValueError: a weight has a NaN or an infinity; no file is written.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    size = total = 0
    fused: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    for row, leaf in _match(table, params).values():
        leaf = np.asarray(leaf)
        if not np.isfinite(leaf).all():
            raise ValueError(f"{row.ours} has NaN or infinity, as {leaf.dtype}: it is not written")
        for name, part in zip(row.names(leaf), row.parts(leaf), strict=True):
            fused[name].append(part)
            if len(fused[name]) < row.part[1]:
                continue
            parts = fused.pop(name)
            part = np.concatenate(parts) if len(parts) > 1 else part
            if shards[-1] and size + part.nbytes > max_shard_bytes:
                shards.append({})
                size = 0
            shards[-1][name] = part
            size += part.nbytes
            total += part.nbytes
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else FILE
        contiguous = {name: np.ascontiguousarray(part) for name, part in shard.items()}
        safetensors.numpy.save_file(contiguous, Path(folder) / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (Path(folder) / INDEX).write_text(json.dumps(index, indent=2, allow_nan=False) + "\n")
