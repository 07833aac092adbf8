# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run does between its steps, every so many of them: evaluate, save, export."""

import dataclasses
import functools
import math
import pathlib
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from cropvlm_jax import parallel
from cropvlm_jax.hub.adapter_export import export_adapter
from cropvlm_jax.hub.export import export, export_processor
from cropvlm_jax.models import lora
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training import card
from cropvlm_jax.training.checkpoints import Checkpoints
from cropvlm_jax.training.config import CheckpointConfig
from cropvlm_jax.training.feed import one_ahead
from cropvlm_jax.training.pictures import HeldOutPictures
from cropvlm_jax.training.reporting import REMEDY, Reporter
from cropvlm_jax.training.stages.base import Stage
from cropvlm_jax.training.stages.program import Program
from cropvlm_jax.training.training_data import TrainingData


@dataclasses.dataclass
class Moment:
    """Where a run stands after a step.

    Attributes:
        step: number of the step, from 1 on.
        steps: of the run.
        stopping: whether the run was told to stop.
        held_out: metrics of the evaluation after this step; empty where there was none.
    """

    step: int
    steps: int
    stopping: bool
    held_out: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def is_last(self) -> bool:
        """Whether no step follows."""
        return self.step == self.steps

    def comes_every(self, steps: int) -> bool:
        """Whether something that is done every `steps` steps, and after the last one, is due."""
        return steps > 0 and (self.is_last or self.step % steps == 0)


class Action(Protocol):
    """Something that a run does between steps."""

    def due(self, moment: Moment) -> bool:
        """Whether it is to be done after this step."""
        ...

    def __call__(self, moment: Moment, state: TrainState) -> None:
        """Does it, with the train state after the step; may add to `moment.held_out`."""
        ...


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluates held-out batches.

    Attributes:
        every: steps between evaluations; 0 never evaluates.
        program: has the evaluation.
        data: has the batches.
        batch_size: rows of a batch, of all hosts together.
        reporter: gets the metrics.
        pictures: draws some of the examples.
    """

    every: int
    program: Program
    data: TrainingData
    batch_size: int
    reporter: Reporter
    pictures: HeldOutPictures

    def due(self, moment: Moment) -> bool:
        """Every `every` steps."""
        return moment.comes_every(self.every)

    def __call__(self, moment: Moment, state: TrainState) -> None:
        """Means over all held-out batches, named "eval/..."."""
        totals: Any = None
        put = functools.partial(self.program.put, batch_size=self.batch_size)
        for batch, on_devices in one_ahead(self.data.held_out_batches(), put):
            sums = jax.device_get(self.program.evaluate(state, on_devices))
            if totals is None:
                self.pictures.draw(moment.step, state, batch, on_devices)
            totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
        for name, (total, count) in totals.items():
            moment.held_out[f"eval/{name}"] = float(total / count) if count else math.nan
        values = "  ".join(
            f"{name} {value:.3f}" if math.isfinite(value) else f"{name} of nothing"
            for name, value in moment.held_out.items()
        )
        logging.info("after step %d: %s", moment.step, values)
        self.reporter.write_held_out(moment.step, moment.held_out)


@dataclasses.dataclass(frozen=True)
class Save:
    """Saves checkpoints.

    Attributes:
        config: says when.
        eval_every: steps between evaluations, after which a checkpoint may be the best one.
        checkpoints: where they go.
        key: the run's random key, which is saved too.
        place: the fingerprint of the run's data, by which a resumed run knows that it is the same.
    """

    config: CheckpointConfig
    eval_every: int
    checkpoints: Checkpoints
    key: jax.Array
    place: dict[str, str]

    def due(self, moment: Moment) -> bool:
        """After every `every` steps, the last one, and one that was evaluated for `best`."""
        evaluated = bool(self.config.best) and moment.comes_every(self.eval_every)
        regular = moment.is_last or moment.comes_every(self.config.every)
        return moment.stopping or regular or evaluated

    def __call__(self, moment: Moment, state: TrainState) -> None:
        """Begins to save, and does not wait until that is done.

        Raises:
            FloatingPointError: a weight is not finite; what was saved before stays.
            ValueError: there is no metric `best`.
        """
        check_finite(state.params, state.opt_state)
        best = self.config.best
        if best and moment.held_out and best not in moment.held_out:
            raise ValueError(
                f"checkpoint.best={best!r} is no metric of the evaluation; there are: "
                f"{', '.join(sorted(moment.held_out))}"
            )
        contents = saved_parts(state, self.key)
        self.checkpoints.save(moment.step, contents, self.place, moment.held_out)


def check_finite(*trees: Any) -> None:
    """Refuses weights, or the optimizer's moments, that are not finite.

    Raises:
        FloatingPointError: one is not.
    """
    found = jax.tree_util.tree_leaves_with_path(jax.device_get(_finite(trees)))
    broken = [path for path, is_finite in found if not is_finite]
    if broken:
        first = jax.tree_util.keystr(broken[0][1:], simple=True, separator=".")
        raise FloatingPointError(
            f"{len(broken)} of {len(found)} arrays of weights are not finite, the first is {first}:"
            f" they are not saved or exported; what was saved before stays. {REMEDY}"
        )


@jax.jit
def _finite(trees: Any) -> Any:
    """Whether all numbers of each array are finite; computed where the arrays are."""
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), trees)


def saved_parts(state: TrainState, key: jax.Array) -> dict[str, Any]:
    """What a checkpoint holds: all that training changes, and the key of the run."""
    parts = {
        "step": state.step,
        "params": state.params,
        "opt_state": state.opt_state,
        "key": jax.random.key_data(key),
    }
    adapted = {"entropy_coef": state.entropy_coef}
    return parts | (adapted if state.entropy_coef is not None else {})


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes the model as a Hugging Face folder such as `cropper-N` while the run goes on.

    Attributes:
        every: steps between exports; 0 exports none.
        stage: has the model.
        workdir: of the run.
    """

    every: int
    stage: Stage
    workdir: pathlib.Path

    def due(self, moment: Moment) -> bool:
        """Every `every` steps; the last export, which all runs make, is not one of them."""
        return moment.comes_every(self.every) and not (moment.is_last or moment.stopping)

    def __call__(self, moment: Moment, state: TrainState) -> None:
        """Writes the folder."""
        export_trained(self.stage, state, self.workdir, f"-{moment.step}")


def export_trained(
    stage: Stage, state: TrainState, workdir: pathlib.Path, suffix: str = ""
) -> None:
    """Writes the trained model as a Hugging Face folder.

    Args:
        stage: has the folder that the model was made from.
        state: has the weights.
        workdir: gets the folder `cropper` or `reader`, and the folder `adapter` where adapters
            were trained. Where the run itself began from an adapter, it holds both, and has the
            same base.
        suffix: of the folders' names.

    Raises:
        FloatingPointError: a weight is not finite; nothing is written.
    """
    check_finite(state.params)
    weights = parallel.gather(state.params), *parallel.gather(state.frozen)
    trained, name = stage.trained, getattr(stage.config, stage.trained.setting)
    model = nnx.merge(trained.policy, *weights)
    if jax.process_index():
        return
    source, edge, role = trained.pretrained, trained.longest_edge, trained.role
    run = card.describe(stage.config, int(state.step), workdir)
    folder = workdir / f"{role}{suffix}"
    export(folder, lora.merge(model), source, longest_edge=edge, role=role, run=run)
    if lora.adapters(model):
        folder, start = workdir / f"adapter{suffix}", source.adapter
        export_processor(folder, source, edge, role, run)
        export_adapter(folder, model, start.base if start else name, start)
