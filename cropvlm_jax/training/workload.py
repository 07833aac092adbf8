# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How much there is to do in a run, counted before it: examples, steps, evaluations, requests."""

import dataclasses
import math
from collections.abc import Mapping

from cropvlm_jax.data import order, sources
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.readers.registry import is_black_box
from cropvlm_jax.training.config import SourceConfig, TrainConfig
from cropvlm_jax.training.stages.look import SHOWN
from cropvlm_jax.training.training_data import steps_of


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of a run's sources, as far as they can be counted here.

    Attributes:
        count: how many there are; None where that is not known.
        missing: what is not here, a sentence for each source.
    """

    count: int | None
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, section: str, given: Mapping[str, SourceConfig], seed: int) -> "Examples":
        """Counts the examples of sources; of a data set that is not here those it is known to have.

        Args:
            section: the name of the settings, such as "data.sources", for messages.
            given: the sources by name.
            seed: of the run.

        Raises:
            ValueError: the data are here and cannot be used.
        """
        counts: list[int | None] = []
        missing = []
        for name, source in given.items():
            try:
                counts.append(len(order.open_mixture({name: source}, seed)))
            except FileNotFoundError as error:
                counts.append(_published(name, source))
                known = f"{counts[-1]:,} examples are counted, as published" if counts[-1] else ""
                missing.append(f"{section}.{name}: {error}" + (f"; {known}" if known else ""))
        known_counts = [count for count in counts if count is not None]
        total = sum(known_counts) if len(known_counts) == len(counts) else None
        return cls(total, tuple(missing))


@dataclasses.dataclass(frozen=True)
class Workload:
    """What there is to do in a run.

    Attributes:
        examples: to train on.
        held_out: to evaluate on.
        steps: of the run; None where that is not known.
        evaluations: while it trains; None where that is not known.
        evaluated: held-out examples of each evaluation, at most.
        requests_a_step: to a reader outside of the step, at most: equal boxes of a prompt are asked
            about once.
        requests_an_evaluation: to that reader, at most: those for the pictures in TensorBoard are
            among them, which a chat endpoint has answered before.
    """

    examples: Examples
    held_out: Examples
    steps: int | None
    evaluations: int | None
    evaluated: int
    requests_a_step: int
    requests_an_evaluation: int

    @classmethod
    def of(cls, config: TrainConfig) -> "Workload":
        """Counts what a run with these settings has to do.

        Raises:
            ValueError: there are no sources, or the data are here and cannot be used.
        """
        if not config.data.sources:
            raise ValueError("data.sources is empty: say what data to train on")
        size, every = config.batch_size, config.eval.every
        examples = Examples.of("data.sources", config.data.sources, config.seed)
        steps = config.steps or None
        if steps is None and examples.count is not None:
            steps = steps_of(config, examples.count)
        held_out = Examples(0)
        if every:
            held_out = Examples.of("eval.sources", config.eval.sources, config.seed)
        evaluated = config.eval.examples if every else 0
        if held_out.count is not None:
            evaluated = min(evaluated, held_out.count)
        if every and evaluated < size:
            raise ValueError(
                f"{evaluated} held-out examples fill no batch of batch_size={size}: see "
                "eval.examples and eval.sources"
            )
        evaluated -= evaluated % size
        asks = config.stage == "grpo" and is_black_box(config.target)
        drawn = min(SHOWN, size) if evaluated else 0  # asked for the worth, and once more for words
        return cls(
            examples=examples,
            held_out=held_out,
            steps=steps,
            evaluations=_evaluations(steps, every),
            evaluated=evaluated,
            requests_a_step=_requests(config.grpo, size, config.grpo.num_generations) * asks,
            requests_an_evaluation=(_requests(config.grpo, evaluated + drawn, 1) + drawn) * asks,
        )

    @property
    def requests(self) -> int | None:
        """Requests of the whole run, at most; None where that is not known."""
        if not self.requests_a_step:
            return 0
        if self.steps is None or self.evaluations is None:
            return None
        return self.steps * self.requests_a_step + self.evaluations * self.requests_an_evaluation

    def batches(self, batch_size: int) -> int | None:
        """Batches of the whole run, those of evaluations among them; None where not known."""
        if self.steps is None or self.evaluations is None:
            return None
        return self.steps + self.evaluations * (self.evaluated // batch_size)


def _requests(config: GRPOConfig, prompts: int, boxes: int) -> int:
    """Requests about so many boxes of each prompt, at most.

    A likelihood, and so a verification, takes a small request besides, which finds the answer's
    tokens, and what is compared with the picture alone one about that.
    """
    of_prompt = len({"likelihood", "verification"} & set(config.asked)) + len(config.asked_alone)
    return prompts * (boxes * len(config.asked) + of_prompt)


def _evaluations(steps: int | None, every: int) -> int | None:
    """Evaluations of a run: one every so many steps, and one after the last step."""
    if not every:
        return 0
    return None if steps is None else math.ceil(steps / every)


def _published(name: str, source: SourceConfig) -> int | None:
    """How many examples a source's part of a known data set has; None where it is not known."""
    count = sources.PUBLISHED.get((source.kind or name, source.split))
    if count is None:
        return None
    start, stop = source.part
    return round(stop * count) - round(start * count)
