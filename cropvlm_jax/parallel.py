# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Meshes and shardings: the only file that names mesh axes.

A weight's place in its module says what its axes mean (`LOGICAL_AXES`); one table says which mesh
axis each meaning is split over (`RULES`). An axis that the mesh does not divide stays whole.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

RULES: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}

# Path of a weight inside a model -> its logical axes; stacked layers lead with None. First match.
LOGICAL_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"layers/[qkv]/kernel", (None, "embed", "heads")),
    (r"layers/[qkv]/bias", (None, "heads")),
    (r"layers/o/kernel", (None, "heads", "embed")),
    (r"layers/(gate|up|fc1)/kernel", (None, "embed", "mlp")),
    (r"layers/fc1/bias", (None, "mlp")),
    (r"layers/(down|fc2)/kernel", (None, "mlp", "embed")),
    (r"layers/(q|k|v|gate|up|fc1)/lora_a", (None, "embed", None)),
    (r"layers/o/lora_a", (None, "heads", None)),
    (r"layers/(down|fc2)/lora_a", (None, "mlp", None)),
    (r"layers/[qkv]/lora_b", (None, None, "heads")),
    (r"layers/(gate|up|fc1)/lora_b", (None, None, "mlp")),
    (r"layers/(o|down|fc2)/lora_b", (None, None, "embed")),
    (r"connector/lora_b", (None, "embed")),
    (r"text/embedding/embedding|text/head", ("vocab", "embed")),
    (r"position_embedding/embedding|patch_embedding/kernel|connector/kernel", (None, "embed")),
)


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over all devices.

    Args:
        data: replicas of the weights; -1 takes what the other axes leave.
        fsdp: devices that share one copy of weights and optimizer.
        tensor: devices that share each matmul.
        devices: to use; None takes all there are.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if data == -1:
        data = max(len(devices) // (fsdp * tensor), 1)
    if data * fsdp * tensor != len(devices):
        raise ValueError(
            f"a mesh of data={data} x fsdp={fsdp} x tensor={tensor} does not use the "
            f"{len(devices)} devices there are: choose sizes that multiply to that"
        )
    types = (AxisType.Auto,) * 3
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=types, devices=devices)


def _path(keys: Any) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


def _spec(mesh: Mesh, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    axes = next((a for pattern, a in LOGICAL_AXES if re.search(pattern, path)), ())
    if len(axes) != len(shape):
        return PartitionSpec()  # norms, scalars
    spec = []
    for logical, size in zip(axes, shape, strict=True):
        name = RULES.get(logical) if logical else None
        parts = int(np.prod([mesh.shape[n] for n in np.atleast_1d(name)])) if name else 1
        if size % parts:
            logging.info("%s: %d is not a multiple of %s=%d, not split", path, size, name, parts)
        spec.append(name if size % parts == 0 and parts > 1 else None)
    return PartitionSpec(*spec)


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Shardings of a train state (or any tree that holds weights under their usual paths).

    Optimizer moments have the paths of their weights inside, and so the same shardings.

    Args:
        mesh: from `make_mesh`.
        state: arrays or their shapes.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(mesh, _spec(mesh, _path(path), x.shape)), state
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose leading axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, in order.

    Raises:
        ValueError: the batch does not divide over the devices.
    """
    try:
        parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    except ValueError as error:
        raise ValueError(
            f"{batch_size} rows, of a batch or of what `accumulate` leaves of it, do not divide "
            f"over the mesh {dict(sharding.mesh.shape)}"
        ) from error
    spans = sorted({index[0].indices(batch_size)[:2] for index in parts if index})
    return np.concatenate([np.arange(*span) for span in spans])


def to_devices(batch: Any, sharding: NamedSharding, batch_size: int) -> Any:
    """The global batch whose `local_rows` are `batch`, a tree of NumPy arrays."""

    def place(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, x, (batch_size, *x.shape[1:]))

    return jax.tree.map(place, batch)


def check_same_on_all_hosts(text: str, what: str) -> None:
    """Raises where hosts disagree, before they wait for each other forever."""
    if jax.process_count() > 1:
        data = np.frombuffer(text.encode(), np.uint8)
        multihost_utils.assert_equal(data, f"the hosts do not see the same {what}")


def abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def gather(tree: Any) -> Any:
    """The arrays, whole on every host."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(tree, tiled=True)
