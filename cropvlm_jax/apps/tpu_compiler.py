# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The TPU compiler, which needs no TPU, and the slices that it compiles for."""

import importlib.util
import os
import re
from typing import Any

import jax
from absl import app
from jax.experimental import topologies


def use() -> None:
    """Makes the TPU compiler usable in this process; to be called before anything else uses jax.

    Raises:
        UsageError: it is not installed.
    """
    if not importlib.util.find_spec("libtpu"):
        raise app.UsageError("the TPU compiler is missing: pip install libtpu")
    # The compiler needs no chip, and is not to look for one, nor for the cloud's metadata.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # other compilers may be at work
    jax.config.update("jax_platforms", "cpu")


def slice_devices(topology: str) -> list[Any]:
    """The devices of a slice that is not there.

    Args:
        topology: its name, such as v5e-8 or v5e:2x4.

    Raises:
        ValueError: no such slice.
    """
    name = shape_name(topology)
    # A host of 2 x 2 chips, the default of some versions, has none for a single one.
    options = {"chips_per_host_bounds": (1, 1, 1)} if name.endswith(":1x1") else {}
    try:
        return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology={topology!r} is no slice: {error}") from error


def shape_name(topology: str) -> str:
    """The compiler's name of a slice: "v5e-8" is "v5e:2x4".

    Numbers are chips of v5e and v6e, which lie in a plane, and cores of v5p, two a chip, in space.

    Raises:
        ValueError: no such slice.
    """
    if ":" in topology:
        return topology
    found = re.fullmatch(r"(v5e|v6e|v5p)-(\d+)", topology)
    if not found:
        raise ValueError(f"topology={topology!r} is neither like v5e-8, v6e-8, v5p-8 nor v5e:2x4")
    kind, chips, axes = found[1], int(found[2]), 2
    if kind == "v5p":
        chips, axes = chips // 2, 3
    power = chips.bit_length() - 1
    if chips != 2**power or chips == 0:
        raise ValueError(f"topology={topology!r} does not have a power of two of chips")
    sides = [2 ** ((power + i) // axes) for i in range(axes)]
    return f"{kind}:" + "x".join(map(str, reversed(sides) if 1 in sides else sides))
