# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A training run: what it is made of, the loop over its steps, and its result."""

import contextlib
import functools
import json
import pathlib
import time
from collections.abc import Generator, Iterator
from typing import Any

import jax
import ml_collections
from absl import logging

from cropvlm_jax import parallel
from cropvlm_jax.data.batching import canvas_facts
from cropvlm_jax.models import kernel_trial
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training.actions import (
    Action,
    Evaluate,
    Export,
    Moment,
    Save,
    export_trained,
    saved_parts,
)
from cropvlm_jax.training.checkpoints import Checkpoints, Preemption
from cropvlm_jax.training.config import TrainConfig, as_config_dict, load_config
from cropvlm_jax.training.feed import Fed, one_ahead
from cropvlm_jax.training.pictures import HeldOutPictures
from cropvlm_jax.training.reporting import Reporter, StepTracer
from cropvlm_jax.training.stages import open_stage
from cropvlm_jax.training.stages.program import Step
from cropvlm_jax.training.training_data import TrainingData
from cropvlm_jax.training.workdir import check_claim, claim, held


def run(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    resume: bool = True,
    profile: int | None = None,
) -> bool:
    """Trains a model and writes it to `workdir/cropper` or `reader` as a Hugging Face folder.

    Args:
        config: as `training.config.default_config` makes it.
        workdir: gets metrics, checkpoints, the trained model and `summary.json`.
        resume: go on with the run that `workdir` holds, if it holds one.
        profile: step that process 0 traces into `workdir/profile`, counted from 1 where this call
            starts; None traces none.

    Returns:
        Whether the run is complete; False where it was told to stop, after saving.

    Raises:
        ValueError: a setting is wrong, `workdir` holds a run of other settings or data, or another
            process is at work there.
    """
    checked = load_config(config)
    with held(workdir):
        return Trainer(checked, workdir, resume, profile).run()


class Trainer:
    """A run; `Trainer(config, workdir).run()` does it, while `workdir.held` keeps others out."""

    def __init__(
        self,
        config: TrainConfig,
        workdir: str | pathlib.Path,
        resume: bool = True,
        profile: int | None = None,
    ):
        """Opens models and data, and makes the train state or reads it from a checkpoint.

        Args:
            config: settings of the run.
            workdir: gets metrics, checkpoints, the trained model and `summary.json`.
            resume: go on with the run that `workdir` holds, if it holds one.
            profile: step to trace, counted from 1 where this call starts; None traces none.
        """
        self.began = time.monotonic()
        self.config, self.workdir = config, pathlib.Path(workdir)
        self.settings = as_config_dict(config).to_dict()
        if not config.data.sources:
            raise ValueError("data.sources is empty: say what data to train on")
        check_claim(workdir, self.settings, resume)
        self.mesh = parallel.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        batched = parallel.batch_sharding(self.mesh)
        rows = parallel.local_rows(batched, config.batch_size)
        # A microbatch has to divide over the devices as well.
        parallel.local_rows(batched, config.batch_size // config.gradient_accumulation_steps)
        kernel_trial.decide(config.attention)
        self.stage = open_stage(config, mesh=self.mesh)
        self.data = TrainingData.open(config, self.stage, rows)
        self.steps = self.data.steps

        self.program = self.stage.compile(self.mesh, self.steps)
        self.state: TrainState = self.program.create(self.stage.weights)
        self.stage.weights.clear()  # or they stay on the device beside the state's
        trained = sum(x.size for x in jax.tree.leaves(self.state.params))
        logging.info("training %s weights on %s", f"{trained:,}", self.mesh)
        # Jitted: several processes cannot put a key on all of their devices by `device_put`.
        on_all = parallel.replicated(self.mesh)
        self.key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=on_all)()
        self.fold_in = jax.jit(jax.random.fold_in, out_shardings=on_all)

        self.checkpoints = Checkpoints(workdir, config.checkpoint.keep, config.checkpoint.best)
        self.place = {
            "data": self.data.fingerprint(self.steps),
            "steps": self.steps,
            "schedule": self.state.schedule.as_numbers(),
        }
        self.start = self.restore()
        self.reporter = Reporter(self.workdir, self.steps, self.start)
        self.tracer = StepTracer(self.step_to_trace(profile), self.workdir, self.reporter)
        self.actions = self.make_actions()
        self.compiled: dict[Any, tuple[Step, dict[str, float]]] = {}

    def make_actions(self) -> list[Action]:
        """What is done between steps, in this order."""
        config = self.config
        return [
            Evaluate(
                every=config.eval.every,
                program=self.program,
                data=self.data,
                batch_size=config.batch_size,
                reporter=self.reporter,
                pictures=HeldOutPictures(self.stage, self.program, self.data, self.reporter),
            ),
            Save(config.checkpoint, config.eval.every, self.checkpoints, self.key, self.place),
            Export(config.export_every, self.stage, self.workdir),
        ]

    def restore(self) -> int:
        """Reads the latest checkpoint, if there is one; returns how many steps are done."""
        found = self.checkpoints.restore(
            jax.tree.map(parallel.abstract, saved_parts(self.state, self.key))
        )
        if not found:
            return 0
        start, restored, place = found
        self.check_same_run(start, int(restored["opt_state"][-1].count), place)
        self.key = jax.random.wrap_key_data(restored.pop("key"))
        self.state = self.state._replace(**restored)
        logging.info("going on after step %d", start)
        return start

    def check_same_run(self, step: int, updates: int, place: dict[str, Any]) -> None:
        """Checks that a checkpoint is one that this run would have come to.

        A longer run comes to it too where the learning rates up to there are the same.

        Args:
            step: of the checkpoint.
            updates: of the optimizer until then.
            place: `self.place` of the run that saved it.

        Raises:
            ValueError: it is of other data, of a longer run, or of other learning rates.
        """
        planned = place["steps"]
        if planned > self.steps:
            raise ValueError(
                f"{self.workdir} holds a run of {planned} steps, which cannot be made shorter: set "
                "steps back and stop it when you like, or take another folder"
            )
        if place["data"] != self.data.fingerprint(planned):
            raise ValueError(
                f"{self.workdir} was trained on other data, or in another order: restore the "
                "examples that were there, or take another folder"
            )
        if not self.state.schedule.agrees(place["schedule"], updates):
            raise ValueError(
                f"{self.workdir} holds a run of {planned} steps. With the settings given now the "
                f"{step} steps that are done would have had other learning rates: "
                + self.how_to_go_on(place["schedule"]["warmup"], updates // step)
            )

    def how_to_go_on(self, warmup: int, updates: int) -> str:
        """What to do where a run cannot be made longer with these settings.

        Args:
            warmup: updates of the warm-up of the run as it was.
            updates: of the optimizer in each step.
        """
        if self.config.lr_scheduler_type == "constant":
            share = warmup / (self.steps * updates)
            return f"set warmup={share:.6g}, so that {warmup} updates are warm-up, as before"
        trained = self.stage.trained
        return (
            "a cosine cannot be made longer. Set steps, epochs and warmup back; or take another "
            "folder and train what this run ends with: "
            f"--config.{trained.setting}={self.workdir / trained.role}"
        )

    def step_to_trace(self, profile: int | None) -> int | None:
        """The number of the step to trace, which `profile` counts from where the run goes on."""
        if profile is None:
            return None
        left = self.steps - self.start
        if profile > left:
            logging.warning("step %d is not there to be traced: %d are left", profile, left)
        return self.start + profile

    def run(self) -> bool:
        """Trains until the end, or until told to stop; returns whether the run is complete.

        Whatever ends it, a save that is under way is completed.
        """
        with (
            Preemption() as preemption,
            self.checkpoints,
            contextlib.closing(self.reporter),
        ):
            moment = self.train(preemption)
        return self.finish(moment)

    def train(self, preemption: Preemption) -> Moment:
        """Takes the steps, with all that is done between them; returns where the run then is."""
        with contextlib.closing(self.feed()) as batches:
            return self.train_on(batches, preemption)

    def feed(self) -> Generator[Fed]:
        """The batches of the steps that are left, each on the devices before its step begins."""
        put = functools.partial(self.program.put, batch_size=self.config.batch_size)
        return one_ahead(self.data.batches(self.start), put)

    def train_on(self, batches: Iterator[Fed], preemption: Preemption) -> Moment:
        """Takes the steps on these batches; see `train`."""
        moment = Moment(self.start, self.steps, stopping=False)
        while not (moment.is_last or moment.stopping):
            number = moment.step + 1
            with self.reporter.throughput.waiting():
                fed = next(batches)
            replaced = {"replaced_examples": self.data.replaced(number, fed.batch)}
            told = canvas_facts(fed.batch) | replaced
            batch, key = fed.on_devices, self.fold_in(self.key, number)
            del fed  # or the host would keep its pixels until the next one
            step, work = self.compile(number, batch, key)
            with self.tracer.around(number):
                self.state, metrics = step(self.state, batch, key)
                self.reporter.add(number, metrics | told, work)
            if number == self.start + 1:
                self.reporter.report()
                claim(self.workdir, self.settings)  # not before a step has been done

            moment = Moment(number, self.steps, preemption.requested(number))
            due = [action for action in self.actions if action.due(moment)]
            self.reporter.report(behind=0 if due else 1)
            for action in due:
                action(moment, self.state)
            if due:  # which is no part of the next step
                self.reporter.throughput.restart()
        return moment

    def compile(self, number: int, batch: Any, key: jax.Array) -> tuple[Step, dict[str, float]]:
        """The step for the shapes of a batch, compiled when they are first seen, and its work."""
        shapes = tuple(x.shape for x in jax.tree.leaves(batch))
        if shapes not in self.compiled:
            self.reporter.report()
            flops = self.stage.cost(self.program.trace(self.state, batch, key))
            work = {"flops": sum(flops.values()), **self.stage.work(batch)}
            self.compiled[shapes] = self.program.compile(self.state, batch, key), work
            self.reporter.begin_again(number - 1)
        return self.compiled[shapes]

    def finish(self, moment: Moment) -> bool:
        """Writes the result of a complete run; returns whether it is complete."""
        if not moment.is_last:
            logging.warning(
                "stopped after step %d of %d, which is saved", moment.step, moment.steps
            )
            return False
        export_trained(self.stage, self.state, self.workdir)
        if jax.process_index() == 0:
            seconds = round(time.monotonic() - self.began, 1)
            summary = {"steps": self.steps, "train_seconds": seconds}
            (self.workdir / "summary.json").write_text(
                json.dumps(summary, allow_nan=False) + "\n", encoding="utf-8"
            )
        return True
