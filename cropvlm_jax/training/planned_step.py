# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A run's step or evaluation before the run: no weights are read, no devices need be there."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging

from cropvlm_jax import geometry, parallel
from cropvlm_jax.models import kernels
from cropvlm_jax.models.vlm import RESAMPLING
from cropvlm_jax.pixels.canvas import empty
from cropvlm_jax.training import feed
from cropvlm_jax.training.config import TrainConfig
from cropvlm_jax.training.costs import CHIPS, Chip, count_flops, count_scope
from cropvlm_jax.training.stages import open_stage
from cropvlm_jax.training.stages.program import EVALUATION, BlackBoxProgram

GIB = 2**30
STEPS = 1000  # of the schedule where the config leaves it to the data: no program depends on it
Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True)
class StepWork:
    """What a step has to do at least, by phase.

    Attributes:
        chips: how many share the work.
        flops: operations of its matmuls, over all chips.
        decoding_bytes: what decoding token by token reads from a chip's memory.
        resampling: operations of cutting crops and tiles; part of the phases, where each exact
            product counts once, and here each of its digits.
    """

    chips: int
    flops: dict[str, float]
    decoding_bytes: dict[str, float]
    resampling: float = 0.0

    def at_least(self, chip: Chip) -> dict[str, float]:
        """Seconds of each phase at the peak rates of a chip: arithmetic or reading bounds it."""
        return {
            phase: max(
                count / self.chips / chip.flops, self.decoding_bytes.get(phase, 0) / chip.hbm
            )
            for phase, count in self.flops.items()
        }


class PlannedStep:
    """The step of a run, to be compiled.

    Attributes:
        config: settings of the run.
        platform: of the devices, such as "tpu".
        chips: how many there are.
        chip: the kind; None where its peak rates are not known.
        mesh: of the chips, as the config asks for.
        stage: the run, without weights.
        split: chips among which a batch is split.
        multiple: what batches are multiples of, microbatches times `split`.
    """

    def __init__(self, config: TrainConfig, devices: Sequence[Any]):
        """Builds the run.

        Args:
            config: of the run.
            devices: that it is to be compiled for.

        Raises:
            FileNotFoundError: a model is not there.
            ValueError: a setting is wrong.
        """
        self.config, self.platform = config, devices[0].platform
        self.chips, self.chip = len(devices), CHIPS.get(devices[0].device_kind)
        self.mesh = parallel.make_mesh(**dataclasses.asdict(config.mesh), devices=devices)
        self.split = parallel.parts_of_a_batch(self.mesh)
        self.multiple = self.split * config.gradient_accumulation_steps
        if config.batch_size % self.multiple:
            raise ValueError(
                f"batch_size={config.batch_size} is not a multiple of {self.multiple}, the "
                f"microbatches times the chips that split them, on {dict(self.mesh.shape)}: change "
                "batch_size, gradient_accumulation_steps or mesh"
            )
        kernels.allow(config.attention != "xla")  # of devices that need not be there to be asked
        self.stage = open_stage(config, abstract=True, mesh=self.mesh)
        self._program = self.stage.compile(self.mesh, config.steps or STEPS)
        state = jax.eval_shape(self._program.create, self.stage.weights)
        self._state = jax.tree.map(_placed, state, self._program.shardings)
        key = jax.eval_shape(lambda: jax.random.key(0))
        self._key = _placed(key, parallel.replicated(self.mesh))

    def batch(self, rows: int) -> Any:
        """Shapes of a batch of square pictures, which are split into the most tiles.

        They are on the largest canvas that a batch of the run may have.
        """
        side = self.config.data.longest_edge
        image = np.zeros((side, side, 3), np.uint8)
        example = {"image": image, "question": "?", "answers": ["0"], "box": geometry.FULL}
        canvases = self.stage.prepare.canvases
        largest = max(canvases, key=lambda canvas: canvas.height * canvas.width, default=None)
        row = self.stage.prepare(example, 0, largest and empty(1, largest)[0])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype), row)

    def work(self) -> StepWork:
        """What a step on a whole batch has to do."""
        rows = self.config.batch_size
        program = self._program.trace(self._state, self.batch(rows), self._key)
        decoding = self.stage.decoding(self.batch(rows // self.split))
        resampling = count_scope(program, RESAMPLING)
        return StepWork(self.chips, self.stage.cost(program), decoding, resampling)

    def lower(self, rows: int) -> jax.stages.Lowered:
        """The program for batches of `rows`, to be compiled."""
        return self._program.step.lower(self._state, self.batch(rows), self._key)

    def compile(self, rows: int, dump: str | None = None) -> Any:
        """The program compiled for batches of `rows`, or what the compiler says if they do not fit.

        Args:
            rows: of a batch.
            dump: folder where the compiler writes the module as it understands it: jaxlib does not
                read all that newer compilers make, three-part asynchronous operations for one.
        """
        options: Any = {"xla_dump_to": dump, "xla_dump_hlo_as_text": True} if dump else None
        return _or_why_not(rows, lambda: self.lower(rows).compile(options))

    def fits(self, rows: int) -> bool:
        """Whether the program fits the chips' memory with batches of `rows`."""
        compiled = self.compile(rows)
        if isinstance(compiled, str):
            return False
        return self.has_room(compiled.memory_analysis().peak_memory_in_bytes, rows)

    def has_room(self, peak: float, rows: int) -> bool:
        """Whether the next batches lie beside a program that takes `peak` bytes of a chip."""
        return self.chip is None or peak + self.next_batches(rows) <= self.chip.hbm_gib * GIB

    def next_batches(self, rows: int) -> int:
        """Bytes on a chip of the batches of `rows` that wait there while a step runs."""
        if isinstance(self._program, BlackBoxProgram):  # where they wait on the host
            return 0
        of_chip = jax.tree.leaves(self.batch(rows // self.split))
        return feed.WAITING * sum(x.size * x.dtype.itemsize for x in of_chip)

    def peak_memory(self) -> int | str:
        """Bytes that a step takes on a device at most, or what the compiler says if it cannot."""
        rows = self.config.batch_size
        batched = parallel.batch_sharding(self.mesh)
        batch = jax.tree.map(lambda x: _placed(x, batched), self.batch(rows))
        return _or_why_not(
            rows, lambda: self._program.peak_memory(self._state, batch, self._key, self.platform)
        )


class PlannedEvaluation(PlannedStep):
    """The evaluation of held-out batches while a run trains, in no microbatches.

    In GRPO the cropper proposes one box a prompt, which is shown to the target.
    """

    def __init__(self, config: TrainConfig, devices: Sequence[Any]):
        """Builds the run; see `PlannedStep`."""
        whole = dataclasses.replace(config.grpo, gradient_accumulation_steps=1)
        super().__init__(
            dataclasses.replace(config, gradient_accumulation_steps=1, grpo=whole), devices
        )
        self._evaluate: Any = self._program.evaluate  # jitted

    def work(self) -> StepWork:
        """Matmuls of a whole batch, as one phase; what decoding reads is not counted."""
        batch = self.batch(self.config.batch_size)
        program = self._evaluate.trace(self._state, batch).jaxpr
        return StepWork(self.chips, count_flops(program, (EVALUATION,), backward=EVALUATION), {})

    def lower(self, rows: int) -> jax.stages.Lowered:
        """The program for batches of `rows`, to be compiled."""
        return self._evaluate.lower(self._state, self.batch(rows))


def _placed(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    """The shape of an array with the devices that hold it."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _or_why_not(rows: int, compiled: Callable[[], Found]) -> Found | str:
    """What `compiled` returns, or the compiler's message where the memory is too small."""
    logging.info("compiling for a batch of %d: this may take minutes", rows)
    try:
        return compiled()
    except jax.errors.JaxRuntimeError as error:
        if not re.search("RESOURCE_EXHAUSTED.*HBM", str(error), re.IGNORECASE | re.DOTALL):
            raise
        logging.info("a batch of %d does not fit", rows)
        return str(error)
