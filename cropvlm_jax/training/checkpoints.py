# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that never lie: whole or not there, and a resumed run is bitwise the unbroken one."""

import json
import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from cropvlm_jax import parallel

CONFIG = "config.json"
# What may change between the runs of one folder: nothing that changes what is computed.
FREE = ("mesh.", "checkpoint.", "export_every.", "data.workers.")


class Checkpoints:
    """The checkpoints of a run's folder: train state and place in the data in one atomic save."""

    def __init__(self, workdir: str | os.PathLike, keep: int, best: str = ""):
        """Opens the folder; what an interrupted save left behind is cleared away.

        Args:
            workdir: of the run.
            keep: how many of the latest checkpoints stay.
            best: metric of which the checkpoint with the highest value stays too; none if empty.
        """
        policies: list[Any] = [LatestN(keep)]

        def rank(metrics: Mapping[str, float]) -> float:
            value = metrics.get(best, math.nan)
            return -math.inf if math.isnan(value) else value

        if best:
            policies.append(BestN(n=1, get_metric_fn=rank, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            best_fn=rank if best else None,  # or the metrics are not stored
        )
        self._folder = Path(workdir).absolute() / "checkpoints"
        self._best = best
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(
        self, step: int, state: Any, place: Mapping[str, Any], metrics: Mapping[str, float]
    ) -> None:
        """Begins to save step `step`; waits for the save before it, not for this one.

        Args:
            step: steps done.
            state: pytree of arrays.
            place: where the data stands; JSON.
            metrics: of the last evaluation; where it has `best`, the checkpoint may be kept for it.
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_flat(state)), place=ocp.args.JsonSave(dict(place))
        )
        ranked = {self._best: float(metrics[self._best])} if self._best in metrics else None
        self._manager.save(step, args=items, metrics=ranked)

    def restore(self, abstract: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The latest checkpoint that can be read, or None where there is none.

        Args:
            abstract: shapes, dtypes and the shardings to restore to, in the state's structure.

        Returns:
            Its step, the state and the place in the data.

        Raises:
            ValueError: there are checkpoints, but none can be read.
        """
        unreadable: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            items = ocp.args.Composite(
                state=ocp.args.StandardRestore(_flat(abstract)), place=ocp.args.JsonRestore()
            )
            restored: Any = None
            try:
                restored = self._manager.restore(step, args=items)
            except Exception as error:  # whatever a damaged file makes the libraries raise
                logging.error("checkpoint %d cannot be read: %s", step, error)
            if not parallel.on_all_hosts(restored is not None):
                unreadable.append(step)
                continue
            self._set_aside(unreadable)
            leaves = [restored.state[name] for name in _flat(abstract)]
            state = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
            return step, state, restored.place
        if unreadable:
            raise ValueError(
                f"none of the checkpoints {unreadable} in {self._folder} can be read; see the log"
            )
        return None

    def _set_aside(self, steps: list[int]) -> None:
        """Renames unreadable checkpoints that are later than a readable one."""
        for step in steps if jax.process_index() == 0 else ():
            broken = self._folder / str(step)
            broken.rename(broken.with_name(f"broken.{step}.{os.getpid()}"))
        if steps:
            parallel.on_all_hosts(True)  # waits for the renaming
            self._manager.reload()

    def close(self) -> None:
        """Waits until all is saved."""
        self._manager.wait_until_finished()
        self._manager.close()


def _flat(state: Any) -> dict[str, Any]:
    """Leaves by path: names that stay when the containers around them change."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def check_claim(workdir: str | os.PathLike, config: Mapping[str, Any], resume: bool) -> None:
    """Checks that `workdir` holds no run, or the one that `config` describes.

    Args:
        workdir: of the run; a local path.
        config: nested settings; JSON.
        resume: whether to go on with a run that is there already.

    Raises:
        ValueError: the folder holds a run of other settings, which are named; or one that was not
            to be resumed.
    """
    if "://" in str(workdir):
        raise ValueError(f"{workdir}: runs are kept in local folders; mount the bucket")
    file = Path(workdir) / CONFIG
    if not file.is_file():
        return
    if not resume:
        raise ValueError(f"{workdir} holds a run already: resume it, or take another folder")
    saved = _settings(json.loads(file.read_text(encoding="utf-8")))
    wanted = _settings(
        json.loads(json.dumps(config, allow_nan=False))
    )  # as it would be read: tuples are lists
    differing = [
        f"{key}: {saved.get(key)!r} there, {wanted.get(key)!r} now"
        for key in sorted(saved.keys() | wanted.keys())
        if saved.get(key) != wanted.get(key) and not f"{key}.".startswith(FREE)
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds a run of other settings; take another folder, or set them back:\n"
            + "\n".join(differing)
        )


def claim(workdir: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Makes `workdir` the folder of the run that `config` describes; an older claim stays."""
    file = Path(workdir) / CONFIG
    if jax.process_index() == 0 and not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        temporary.rename(file)


def _settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, Mapping) and value
        found |= _settings(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


class Preemption:
    """Notices that the run has to stop: SIGTERM, Ctrl-C; on several hosts what JAX announces."""

    def __enter__(self) -> "Preemption":
        self._signalled = False
        self._previous: dict[int, Any] = {}
        # With several hosts JAX's own service listens, and makes all agree on a step.
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _notice(self, number: int, _: Any) -> None:
        logging.warning("%s: saving, then stopping", signal.Signals(number).name)
        self._signalled = True
        # A second one stops at once.
        signal.signal(number, self._previous[number])

    def requested(self, step: int) -> bool:
        """Whether to save and stop after step `step`; all hosts get the same answer."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signalled
