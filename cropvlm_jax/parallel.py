# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Meshes, shardings and processes: the only file that names mesh axes.

A table of an architecture says what the axes of its weights mean (`models.logical_axes`), an
activation's axes are named where it is constrained; one table here says which mesh axis each
meaning is split over (`RULES`).
An axis that the mesh does not divide stays whole, and heads stay whole in any case.
"""

import contextlib
import functools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

HEARTBEAT_SECONDS = 30  # a process that has been silent for so long is dead

RULES: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "rank": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


@contextlib.contextmanager
def joined(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """Makes this process one of several that run the same program; if one fails, all end.

    To be entered before anything else uses jax. Arguments that the environment tells, as Cloud TPU
    and Slurm do, may be left out. Only process 0 logs more than warnings.

    Args:
        coordinator_address: host:port of process 0.
        num_processes: of all hosts together.
        process_id: from 0 on.
    """
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
    if jax.process_index():
        logging.set_verbosity(logging.WARNING)
    try:
        yield
    except (Exception, KeyboardInterrupt):
        # An ordinary exit would wait for the other processes, which wait for this one.
        logging.exception("process %d of %d ends", jax.process_index(), jax.process_count())
        logging.flush()
        os._exit(1)


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over all devices; slices of a TPU pod, which the slower network joins, split `data`.

    Args:
        data: replicas of the weights; -1 takes what the other axes leave.
        fsdp: devices that share one copy of weights and optimizer.
        tensor: devices that share each matmul.
        devices: to use; None takes all there are.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or `data` is not a multiple
            of the number of slices.
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
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=types, devices=devices)
    if data % slices:
        raise ValueError(f"data={data} is not a multiple of the {slices} slices there are")
    within, across = (data // slices, fsdp, tensor), (slices, 1, 1)
    grid = mesh_utils.create_hybrid_device_mesh(within, across, devices)
    return Mesh(grid, AXES, axis_types=types)


def _spec(
    mesh: Mesh | AbstractMesh,
    axes: Sequence[str | None],
    shape: tuple[int, ...],
    units: Mapping[str, int],
) -> PartitionSpec:
    """What the rules make of an array of `shape`.

    Args:
        mesh: has the sizes.
        axes: logical axes, as many as `shape` has.
        shape: of the array.
        units: how many indivisible parts a logical axis has, where that is not its size.
    """
    spec = []
    for logical, size in zip(axes, shape, strict=True):
        name = RULES[logical] if logical else ()
        parts = math.prod(mesh.shape[n] for n in np.atleast_1d(name))
        whole = units.get(logical or "", size)
        if whole % parts:
            _say(f"{logical} stay whole: {whole} do not divide over {name}={parts}")
        spec.append(name if parts > 1 and whole % parts == 0 else None)
    return PartitionSpec(*spec)


@functools.cache
def _say(text: str) -> None:
    """Logs the same text only once."""
    logging.info("%s", text)


def state_shardings(
    mesh: Mesh | AbstractMesh,
    state: Any,
    heads: Mapping[str, int],
    logical_axes: Sequence[tuple[str, tuple[str | None, ...]]],
) -> Any:
    """Shardings of a train state (or any tree that holds weights under their usual paths).

    Optimizer moments have the paths of their weights inside, and so the same shardings.

    Args:
        mesh: from `make_mesh`.
        state: arrays or their shapes, of one model.
        heads: attention heads of each part of that model that may be split, `config.heads`.
        logical_axes: patterns of weights' paths and the meanings of those weights' axes, of that
            model's architecture; the first pattern found in a path counts.
    """

    def sharding(keys: Any, x: Any) -> NamedSharding:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        axes = next((axes for pattern, axes in logical_axes if re.search(pattern, path)), ())
        if len(axes) != len(x.shape):
            return NamedSharding(mesh, PartitionSpec())  # norms, scalars
        tower = next((tower for tower in heads if f"{tower}/" in path), None)
        units = {"heads": heads[tower]} if tower else {}
        return NamedSharding(mesh, _spec(mesh, axes, x.shape, units))

    return jax.tree_util.tree_map_with_path(sharding, state)


def on_mesh(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, to be jitted with shardings of `mesh`, with the `constrain`s inside in force."""

    @functools.wraps(function)
    def traced(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Says how an activation is split under `on_mesh`; elsewhere it changes nothing.

    Args:
        x: the activation.
        *axes: logical axes of its first axes; the others stay whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = _spec(mesh, axes + (None,) * (x.ndim - len(axes)), x.shape, {})
    return jax.lax.with_sharding_constraint(x, spec)


def split(
    function: Callable[..., Any], axes: Sequence[str | None], units: Mapping[str, int]
) -> Callable[..., Any]:
    """`function`, which the partitioner cannot split, run by each device on its part of the arrays.

    Args:
        function: of arrays of one shape, and to such.
        axes: logical axes of that shape.
        units: how many indivisible parts a logical axis has, where that is not its size.

    Returns:
        `function` of whole arrays under `on_mesh`; elsewhere the same as `function`.
    """

    def call(*arrays: jax.Array) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return function(*arrays)
        spec = _spec(mesh, axes, arrays[0].shape, units)
        split_up = jax.shard_map(
            function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
        )
        return split_up(*arrays)

    return call


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose leading axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """A batch on the devices, split by its rows where they divide over the mesh, else whole."""
    rows = len(jax.tree.leaves(batch)[0])
    return jax.device_put(batch, NamedSharding(mesh, _spec(mesh, ("batch",), (rows,), {})))


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
            f"{batch_size} rows, of a batch or of what `gradient_accumulation_steps` leaves of "
            f"it, do not divide over the mesh {dict(sharding.mesh.shape)}"
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


def on_all_hosts(ok: bool) -> bool:
    """Whether `ok` holds on every host."""
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(ok).all())


def gather(tree: Any) -> Any:
    """The arrays, whole on every host."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(tree, tiled=True)
