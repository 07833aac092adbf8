# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The batches of a run, planned before its first step."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from cropvlm_jax import parallel
from cropvlm_jax.data import order
from cropvlm_jax.data.buckets import bucket_examples, describe
from cropvlm_jax.training.config import TrainConfig
from cropvlm_jax.training.stages.base import Stage


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The examples of every batch of a run, for training and for held-out evaluation.

    Attributes:
        planned: this host's rows of the batches to train on.
        examples: int64 `[steps, rows]`, the example that was planned for each of these rows.
        held_out: this host's rows of the held-out batches; None where none are evaluated.
        workers: processes that prepare batches.
        rows: int64 `[rows]`, which rows of a batch this host has.
    """

    planned: order.PlannedBatches
    examples: np.ndarray
    held_out: order.PlannedBatches | None
    workers: int
    rows: np.ndarray

    @classmethod
    def open(cls, config: TrainConfig, stage: Stage, rows: np.ndarray) -> "TrainingData":
        """Opens the sources and plans the batches.

        Args:
            config: settings of the run.
            stage: how examples become rows of batches.
            rows: of each batch that this host prepares.

        Raises:
            ValueError: the examples fill no batch, or the hosts do not see the same ones.
        """
        source = order.open_mixture(config.data.sources, config.seed)
        size = config.batch_size
        steps = steps_of(config, len(source))
        canvases = stage.prepare.canvases
        buckets = bucket_examples(source, stage.trained.input, canvases, size)
        plan = order.plan_batches(source.order(config.seed), buckets, size, steps, canvases)
        planned = order.PlannedBatches(source, stage.prepare, plan, rows)
        logging.info("%d steps over %d examples; %s", steps, len(source), plan.left_out())
        if stage.trained.input is not None:
            logging.info("%s", describe(buckets, stage.trained.input, canvases))
        parallel.check_same_on_all_hosts(planned.fingerprint, "examples")
        held_out = _open_held_out(config, stage, rows) if config.eval.every else None
        return cls(planned, plan.batches[:, rows], held_out, config.data.workers, rows)

    @property
    def steps(self) -> int:
        """Batches of the run."""
        return len(self.examples)

    def fingerprint(self, steps: int) -> str:
        """Tells runs of `steps` batches apart that are on other examples, or in another order."""
        return self.planned.fingerprint_of(steps)

    def batches(self, start: int) -> Iterator[Any]:
        """The batches to train on, after the first `start` ones."""
        return order.iterate(self.planned, start, self.workers)

    def held_out_batches(self) -> Iterator[Any]:
        """The held-out batches."""
        assert self.held_out is not None
        for number, batch in enumerate(order.iterate(self.held_out, workers=self.workers), 1):
            logging.log_every_n_seconds(
                logging.INFO, "held-out batch %d of %d", 10, number, len(self.held_out)
            )
            yield batch

    def held_out_example(self, index: int) -> Any:
        """The held-out example of an index, as `example_id` of a batch has it."""
        assert self.held_out is not None
        return self.held_out.example(index)

    def replaced(self, step: int, batch: Any) -> int:
        """How many rows of the batch of a step show another example than planned."""
        return int((batch.example_id != self.examples[step - 1]).sum())


def steps_of(config: TrainConfig, examples: int) -> int:
    """How many batches a run on so many examples trains on.

    Raises:
        ValueError: the examples fill no batch.
    """
    steps = config.steps or round(config.epochs * examples) // config.batch_size
    if steps < 1:
        raise ValueError(
            f"{config.epochs} epochs of {examples} examples fill no batch of {config.batch_size}"
        )
    return steps


def _open_held_out(config: TrainConfig, stage: Stage, rows: np.ndarray) -> order.PlannedBatches:
    """The batches that the run is evaluated on."""
    source = order.open_mixture(config.eval.sources, config.seed)
    canvases, size = stage.prepare.canvases, config.batch_size
    buckets = bucket_examples(
        source, stage.trained.input, canvases, size, first=config.eval.examples
    )
    plan = order.plan_batches(range(len(buckets)), buckets, size, canvases=canvases)
    logging.info("held out: %s", plan.left_out())
    return order.PlannedBatches(source, stage.prepare, plan, rows)
