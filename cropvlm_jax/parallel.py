# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Meshes, shardings and processes: the only file that names mesh axes.

A table of each architecture says what the axes of its weights mean (`models.logical_axes`), and
the axes of an activation are named where it is constrained. One table here, `RULES`, says which
mesh axis each meaning is split over. An axis that the mesh does not divide stays whole, and a head
is never split.
"""

import contextlib
import functools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped

Tree = Any  # of arrays
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

AXES = ("data", "fsdp", "tensor")
REPLICAS = "data"  # the axis whose devices hold the same weights

# JAX sets both for the whole run when processes join, so they are to outlast the first step's
# compilation, during which a busy host may be silent, and the start of the slowest host.
HEARTBEAT_SECONDS = 1200  # a process that has been silent for so long is dead
INITIALIZATION_SECONDS = 900  # a process that has not joined by then is missing

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
    initialization_timeout_seconds: int = INITIALIZATION_SECONDS,
    heartbeat_timeout_seconds: int = HEARTBEAT_SECONDS,
    explain: Callable[[BaseException], str] = lambda error: "",
) -> Iterator[None]:
    """Makes this process one of several that run the same program; if one fails, all end.

    To be entered before anything else uses jax. Arguments that the environment gives, as on Cloud
    TPU and under Slurm, may be left out. Only process 0 logs more than warnings.

    Args:
        coordinator_address: Host and port of process 0, "host:port".
        num_processes: Number of processes on all hosts together.
        process_id: Number of this process, from 0 on.
        initialization_timeout_seconds: How long to wait until all processes have joined.
        heartbeat_timeout_seconds: How long a process may be silent before it counts as dead.
        explain: What to log of an error in one line; "" logs its traceback.

    Raises:
        ValueError: The environment does not give what was left out.
    """
    if not process_id:
        logging.info(
            "joining the other processes at %s: all of them must come within %d s",
            coordinator_address or "the place that the environment names",
            initialization_timeout_seconds,
        )
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=initialization_timeout_seconds,
            heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        )
    except ValueError as error:
        raise ValueError(
            f"nothing here says which processes there are ({error}): on TPU pods and under Slurm "
            "the environment does, elsewhere give --coordinator_address"
        ) from error
    if jax.process_index():
        logging.set_verbosity(logging.WARNING)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        # An ordinary exit would wait for the other processes, which wait for this one.
        name = f"process {jax.process_index()} of {jax.process_count()} ends"
        line = explain(error)
        logging.error("%s: %s", name, line or repr(error), exc_info=not line)
        logging.flush()
        os._exit(1)


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over all devices; slices of a TPU pod, which the slower network joins, split `data`.

    Args:
        data: How many replicas of the weights there are; -1 takes what the other axes leave.
        fsdp: How many devices share one copy of weights and optimizer.
        tensor: How many devices share each matmul.
        devices: The devices to use; None takes all there are.

    Raises:
        ValueError: The sizes do not multiply to the number of devices, or `data` is not a multiple
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
    """How the rules split an array.

    Args:
        mesh: The mesh that the array is split over.
        axes: The meaning of each axis of the array, None where it is never split.
        shape: The array's shape.
        units: How many indivisible parts an axis of a meaning has, where that is not its size.
    """
    spec: list[Any] = []
    for logical, size in zip(axes, shape, strict=True):
        names = np.atleast_1d(RULES[logical]).tolist() if logical else []
        name = tuple(n for n in names if n not in mesh.manual_axes)
        parts = math.prod(mesh.shape[n] for n in name)
        whole = units.get(logical or "", size)
        if whole % parts:
            _log_once(f"{logical} stay whole: {whole} do not divide over {'x'.join(name)}={parts}")
        spec.append(name if parts > 1 and whole % parts == 0 else None)
    return PartitionSpec(*spec)


@functools.cache
def _log_once(text: str) -> None:
    """Logs a text the first time."""
    logging.info("%s", text)


def state_shardings(
    mesh: Mesh | AbstractMesh,
    state: Tree,
    heads: Mapping[str, int],
    logical_axes: Sequence[tuple[str, tuple[str | None, ...]]],
) -> Tree:
    """Shardings of a train state (or any tree that holds weights under their usual paths).

    Optimizer moments have the paths of their weights inside, and so the same shardings.

    Args:
        mesh: The mesh that the state is spread over.
        state: Arrays of one model, or their shapes.
        heads: Attention heads of each part of that model that may be split, `config.heads`.
        logical_axes: Patterns of weights' paths and the meanings of those weights' axes, of that
            model's architecture; the first pattern found in a path counts.
    """

    def sharding(keys: Any, leaf: Any) -> NamedSharding:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        axes = next((axes for pattern, axes in logical_axes if re.search(pattern, path)), ())
        if len(axes) != len(leaf.shape):
            return NamedSharding(mesh, PartitionSpec())  # norms, scalars
        tower = next((tower for tower in heads if f"{tower}/" in path), None)
        units = {"heads": heads[tower]} if tower else {}
        return NamedSharding(mesh, _spec(mesh, axes, leaf.shape, units))

    return jax.tree_util.tree_map_with_path(sharding, state)


def on_mesh(mesh: Mesh, function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """`function`, to be jitted with shardings of `mesh`, with the `constrain`s inside in force."""

    @functools.wraps(function)
    def traced(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **kwargs)

    return traced


def constrain(x: Shaped[Array, "..."], *axes: str | None) -> Shaped[Array, "..."]:
    """Says how an activation is split under `on_mesh`; elsewhere it changes nothing.

    Args:
        x: The activation.
        *axes: The meanings of its first axes, None for one that stays whole; the others stay whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = _spec(mesh, axes + (None,) * (x.ndim - len(axes)), x.shape, {})
    return jax.lax.with_sharding_constraint(x, spec)


def split(
    function: Callable[..., Result], axes: Sequence[str | None], units: Mapping[str, int]
) -> Callable[..., Result]:
    """Lets each device run a function, which the partitioner cannot split, on its part of arrays.

    Args:
        function: Takes arrays of one shape and returns arrays of that shape.
        axes: The meanings of that shape's axes, None for one that stays whole.
        units: How many indivisible parts an axis of a meaning has, where that is not its size.

    Returns:
        The function of whole arrays, to be called under `on_mesh`; elsewhere it is `function`.
    """

    def call(*arrays: Shaped[Array, "..."]) -> Result:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return function(*arrays)
        spec = _spec(mesh, axes, arrays[0].shape, units)
        split_up = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=spec,
            out_specs=spec,
            axis_names=set(AXES) - set(mesh.manual_axes),
            check_vma=False,
        )
        # Unchecked, its results count as equal on all replicas, which those of `replicas_apart` are
        # not.
        vary = functools.partial(jax.lax.pcast, axis_name=tuple(mesh.manual_axes), to="varying")
        return jax.tree.map(vary, split_up(*arrays))

    return call


def replicas_apart(
    function: Callable[[Tree, Tree], Tree], dtype: Any
) -> Callable[[Tree, Tree], Tree]:
    """Lets each replica of the weights run a function on its own rows of a batch.

    The partitioner adds up the gradients of weights over replicas as soon as they are there: in a
    loop, in each iteration. Here each replica adds up its own, and they are exchanged once. Weights
    that `fsdp` splits are gathered for each use and their gradients scattered after it, anyway.

    Args:
        function: Of weights and a tree of arrays `[B, ...]`, to a tree of arrays `[B, ...]`.
        dtype: That gradients have while they are exchanged.

    Returns:
        The function, to be called under `on_mesh`; elsewhere, where `fsdp` splits the weights, and
        where the rows do not divide over the replicas, it is `function`. So it is where there are
        random keys among the weights: rows of different replicas are not to draw the same.
    """

    def call(weights: Tree, batch: Tree) -> Tree:
        mesh = jax.sharding.get_abstract_mesh()
        replicas = 1 if mesh.empty or REPLICAS in mesh.manual_axes else mesh.shape[REPLICAS]
        rows = len(jax.tree.leaves(batch)[0])
        draws = any(
            jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(weights)
        )
        if replicas == 1 or mesh.shape["fsdp"] > 1 or rows % replicas or draws:
            return function(weights, batch)

        def on_own_rows(weights: Tree, rows: Tree) -> Tree:
            own = jax.tree.map(lambda weight: _exchanged_once(weight, dtype), weights)
            return function(own, rows)

        apart = jax.shard_map(
            on_own_rows,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(REPLICAS)),
            out_specs=PartitionSpec(REPLICAS),
            axis_names={REPLICAS},
        )
        return apart(weights, batch)

    return call


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _exchanged_once(weight: jax.Array, dtype: Any) -> jax.Array:
    """A replica's own view of a weight: its gradient is added up over replicas here."""
    del dtype
    return jax.lax.pcast(weight, REPLICAS, to="varying")


def _exchanged_once_forward(weight: jax.Array, dtype: Any) -> tuple[jax.Array, None]:
    return _exchanged_once(weight, dtype), None


def _exchanged_once_backward(dtype: Any, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    def exchange(gradient: jax.Array) -> jax.Array:
        return jax.lax.psum(gradient.astype(dtype), REPLICAS).astype(gradient.dtype)

    def as_it_is(gradient: jax.Array) -> jax.Array:  # bf16 sums end XLA's CPU compiler
        return jax.lax.psum(gradient, REPLICAS)

    return (jax.lax.platform_dependent(gradient, cpu=as_it_is, default=exchange),)


_exchanged_once.defvjp(_exchanged_once_forward, _exchanged_once_backward)


def by_rows(function: Callable[[Tree], Result]) -> Callable[[Tree], Result]:
    """Lets each device run a function, which takes row after row, on its rows of a batch.

    Args:
        function: Takes a tree of arrays `[B, ...]` and returns such a tree.

    Returns:
        The function of whole batches, to be called under `on_mesh`; elsewhere it is `function`.
    """

    def call(batch: Tree) -> Result:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1 or mesh.manual_axes:
            return function(batch)
        spec = _spec(mesh, ("batch",), jax.tree.leaves(batch)[0].shape[:1], {})
        split_up = jax.shard_map(
            function, mesh=mesh, in_specs=(spec,), out_specs=spec, check_vma=False
        )
        return split_up(batch)

    return call


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose leading axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def parts_of_a_batch(mesh: Mesh) -> int:
    """Among how many devices the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def put_batch(mesh: Mesh, batch: Tree) -> Tree:
    """A batch on the devices, split by its rows where they divide over the mesh, else whole."""
    rows = len(jax.tree.leaves(batch)[0])
    return jax.device_put(batch, NamedSharding(mesh, _spec(mesh, ("batch",), (rows,), {})))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def local_rows(sharding: NamedSharding, batch_size: int) -> Int[np.ndarray, " rows"]:
    """The rows of a global batch that this process's devices hold, in order.

    Raises:
        ValueError: The batch does not divide over the devices.
    """
    try:
        parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    except ValueError as error:
        raise ValueError(
            f"{batch_size} rows, of a batch or of what `gradient_accumulation_steps` leaves of "
            f"it, do not divide over the mesh {dict(sharding.mesh.shape)}"
        ) from error
    spans = sorted({index[0].indices(batch_size)[:2] for index in parts if index})
    return np.concatenate([np.arange(start, stop) for start, stop in spans])


def to_devices(batch: Tree, sharding: NamedSharding, batch_size: int) -> Tree:
    """The global batch whose `local_rows` are `batch`, a tree of NumPy arrays."""

    def place(rows: Shaped[np.ndarray, "rows ..."]) -> Shaped[Array, "batch ..."]:
        shape = (batch_size, *rows.shape[1:])
        return jax.make_array_from_process_local_data(sharding, rows, shape)

    return jax.tree.map(place, batch)


def check_same_on_all_hosts(text: str, what: str) -> None:
    """Raises where hosts disagree about a text, before they wait for each other forever.

    Args:
        text: What has to be the same.
        what: What it describes, for the message: "the hosts do not see the same {what}".
    """
    if jax.process_count() > 1:
        data = np.frombuffer(text.encode(), np.uint8)
        multihost_utils.assert_equal(data, f"the hosts do not see the same {what}")


def abstract(x: Shaped[Array, "..."]) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def on_all_hosts(ok: bool) -> bool:
    """Whether `ok` holds on every host."""
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(ok).all())


def gather(tree: Tree) -> Tree:
    """The arrays of a tree, whole on every host."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(tree, tiled=True)
