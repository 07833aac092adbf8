# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that never lie: whole and as they were written, or not read.

A resumed run is bitwise the unbroken one.
"""

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN
from orbax.checkpoint.path import atomicity

from cropvlm_jax import parallel
from cropvlm_jax.training import digests

LONGEST_WAIT = 120  # seconds


class Checkpoints:
    """The checkpoints of a run's folder: train state and place in the data in one atomic save."""

    def __init__(self, workdir: str | os.PathLike, keep: int, best: str = ""):
        """Opens the folder; what an interrupted save left behind is cleared away.

        The latest checkpoint is compared with the digests of its files. If it is damaged, it is set
        aside, and so on until one is intact. Of those before it only the small files are compared.

        Args:
            workdir: of the run.
            keep: how many of the latest checkpoints stay. An old one is removed once the new one is
                complete with its digests.
            best: metric of which the checkpoint with the highest value stays too; none if empty.

        Raises:
            ValueError: all checkpoints are damaged; each is named, with what is wrong.
        """
        policies: list[Any] = [LatestN(keep)]

        def rank(metrics: Mapping[str, float]) -> float:
            value = metrics.get(best, math.nan)
            return -math.inf if math.isnan(value) else value

        if best:
            policies.append(BestN(n=1, get_metric_fn=rank, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            best_fn=rank if best else None,  # or the metrics are not stored
            temporary_path_class=digests.DigestedPath,
        )
        self._folder = Path(workdir).absolute() / "checkpoints"
        self._best = best
        # Before there is a manager, which reads the metrics of all checkpoints.
        self._clear_up()
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
        value = float(metrics.get(self._best, math.nan))
        ranked = {self._best: value} if math.isfinite(value) else None  # orbax would write NaN
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
                if unreadable:  # the latest was compared when the folder was opened
                    self._compare(step)
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

    def _compare(self, step: int) -> None:
        """Raises a ValueError on all hosts where a checkpoint is not as it was written."""
        damage = None
        if jax.process_index() == 0:
            damage = digests.find_damage(self._folder / str(step))
        if not parallel.on_all_hosts(damage is None):
            raise ValueError(damage or "it is damaged, as process 0 says")

    def _clear_up(self) -> None:
        """Removes what killed runs left behind, and sets damaged checkpoints aside."""
        refused = ""
        if jax.process_index() == 0:
            for unfinished in self._folder.glob(f"*{atomicity.TMP_DIR_SUFFIX}"):
                shutil.rmtree(unfinished)
            damage, intact = _damage(self._folder)
            reasons = "; ".join(f"{step}: {found}" for step, found in damage.items())
            if damage and intact is None:
                refused = (
                    f"all checkpoints in {self._folder} are damaged ({reasons}): restore one from "
                    "a copy, or begin again in another folder"
                )
            else:
                self._refuse(damage, intact or 0)
        if not parallel.on_all_hosts(not refused):
            raise ValueError(refused or f"all checkpoints in {self._folder} are damaged")

    def _refuse(self, damage: Mapping[int, digests.Damage], intact: int) -> None:
        """Sets damaged checkpoints aside; `intact` is the one that will be restored."""
        for step, found in damage.items():
            if step < intact and found.reason == digests.MISSING:
                logging.info("removing checkpoint %d, of which a killed run removed a part", step)
                shutil.rmtree(self._folder / str(step))
            else:
                logging.error("checkpoint %d in %s is damaged: %s", step, self._folder, found)
                self._rename([step])

    def _set_aside(self, steps: list[int]) -> None:
        """Renames unreadable checkpoints that are later than a readable one."""
        if jax.process_index() == 0:
            self._rename(steps)
        if steps:
            parallel.on_all_hosts(True)  # waits for the renaming
            self._manager.reload()

    def _rename(self, steps: list[int]) -> None:
        """Renames checkpoints to `broken...`, which nothing reads and nothing removes."""
        for step in steps:
            broken = self._folder / f"broken.{step}.{time.time_ns()}"
            (self._folder / str(step)).rename(broken)
            logging.warning("checkpoint %d is set aside as %s", step, broken)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        """Completes a save that is under way, also where an error ends the run.

        Where one of several processes has died, a save can never be completed: after an error they
        wait for `LONGEST_WAIT` seconds.
        """
        if error is None or jax.process_count() == 1:
            return self.close()
        closing = threading.Thread(target=self.close, daemon=True)
        closing.start()
        closing.join(LONGEST_WAIT)
        if closing.is_alive():
            logging.error("a save was not completed within %d s, and is lost", LONGEST_WAIT)

    def close(self) -> None:
        """Waits until all is saved; Ctrl-C does not end the wait before the second time."""
        try:
            self._manager.wait_until_finished()
        finally:
            self._manager.close()  # which waits too, where the first wait was interrupted


def _damage(folder: Path) -> tuple[dict[int, digests.Damage], int | None]:
    """What is wrong with checkpoints, by step, and the latest that is intact."""
    found: dict[int, digests.Damage] = {}
    intact: int | None = None
    names = (path.name for path in folder.glob("*") if path.is_dir() and path.name.isdigit())
    for step in sorted(map(int, names), reverse=True):
        largest = None if intact is None else digests.SMALL
        damage = digests.find_damage(folder / str(step), largest)
        if damage:
            found[step] = damage
        elif intact is None:
            intact = step
    return found, intact


def _flat(state: Any) -> dict[str, Any]:
    """Leaves by path: names that stay when the containers around them change."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


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
