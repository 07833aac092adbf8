# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The GRPO stage whose target is a reader outside of the graph, such as an OCR engine or an API."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.extend.core import ClosedJaxpr
from jax.sharding import Mesh

from cropvlm_jax import parallel
from cropvlm_jax.data import batching
from cropvlm_jax.data.batching import Batch, Preparer
from cropvlm_jax.grpo.black_box import BlackBoxStep
from cropvlm_jax.grpo.step import GRPOStep
from cropvlm_jax.microbatching import Sums
from cropvlm_jax.pixels import host
from cropvlm_jax.readers import asking
from cropvlm_jax.readers.base import Reader, ReaderUnavailable, Reply, require_likelihoods
from cropvlm_jax.readers.registry import open_reader
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training import costs
from cropvlm_jax.training.config import TrainConfig
from cropvlm_jax.training.schedule import make_optimizer
from cropvlm_jax.training.stages.base import CropperModel
from cropvlm_jax.training.stages.grpo import PHASES, init_grpo, rollout_bytes, rollout_work
from cropvlm_jax.training.stages.jitting import state_shardings
from cropvlm_jax.training.stages.look import SHOWN, Look
from cropvlm_jax.training.stages.program import BlackBoxProgram, Program

CONTAINS = ("contains", "nearly_contains")  # metrics that look for the answer in the reply


@dataclasses.dataclass
class Unopened:
    """Stands for a reader in a run that is only planned, and answers nothing.

    Attributes:
        name: of the reader.
    """

    name: str

    def answer(
        self, images: Sequence[Sequence[np.ndarray]], questions: Sequence[str]
    ) -> list[Reply]:
        """Refuses."""
        raise ReaderUnavailable(f"{self.name} was not opened: this run is only planned")

    def image_tokens(self, images: Sequence[Sequence[np.ndarray]]) -> int:
        """Refuses; that it is here lets a step be planned in which crops have a price."""
        raise ReaderUnavailable(f"{self.name} was not opened: this run is only planned")


@dataclasses.dataclass(frozen=True)
class BlackBoxStage:
    """Learns from what a reader on the host makes of the crops; see `Stage` for the attributes."""

    config: TrainConfig
    trained: CropperModel
    reader: Reader
    prepare: Preparer
    weights: dict[str, Any]
    target: None = None

    @classmethod
    def open(cls, config: TrainConfig, abstract: bool, in_step: bool) -> "BlackBoxStage":
        """Opens cropper and reader; of an `abstract` run neither weights nor reader.

        Args:
            config: settings of the run.
            abstract: read no weights.
            in_step: whether the step cuts the cropper's tiles.
        """
        grpo, data = config.grpo, config.data
        if jax.process_count() > 1:
            raise ValueError(
                f"target={config.target!r} gives its reward to one process, and there are "
                f"{jax.process_count()}: train in one, on all devices of its host"
            )
        if grpo.official_span:
            raise ValueError(
                f"grpo.official_span=True counts tokens that target={config.target!r}, outside of "
                "the graph, does not tell: set it to False"
            )
        reader = Unopened(config.target) if abstract else _open_reader(config)
        cropper, weights = CropperModel.open(config, abstract, in_step)
        prepare = Preparer(
            cropper_input=cropper.input,
            target_conversations=None,
            canvases=data.canvases,
            answer_tokens=data.answer_tokens,
        )
        return cls(config, cropper, reader, prepare, weights)

    def step(self) -> GRPOStep:
        """The parts of the step that are in the graph."""
        return GRPOStep(
            policy=self.trained.policy,
            grammar=self.trained.grammar,
            optimizer=make_optimizer(self.config),
            config=self.config.grpo,
            base=self.trained.base,
            longest_edge=self.trained.longest_edge,
            second_grammar=self.trained.second_grammar,
        )

    def init(self, weights: dict[str, Any], steps: int) -> TrainState:
        """A fresh train state."""
        return init_grpo(self.config, self.trained, weights, steps)

    def compile(self, mesh: Mesh, steps: int) -> Program:
        """Step and evaluation for a mesh; both take batches of NumPy arrays."""
        shardings, batched = state_shardings(self, mesh, steps), parallel.batch_sharding(mesh)

        def put(tree: Any) -> Any:
            return parallel.to_devices(tree, batched, len(jax.tree.leaves(tree)[0]))

        def jit(function: Callable[..., Any], **options: Any) -> Any:
            return jax.jit(parallel.on_mesh(mesh, function), **options)

        step = BlackBoxStep(self.step(), self.reader, put=put, jit=jit, state_shardings=shardings)

        def create(weights: dict[str, Any]) -> TrainState:
            return self.init(weights, steps)

        return BlackBoxProgram(
            mesh=mesh,
            shardings=shardings,
            create=jax.jit(create, out_shardings=shardings),
            step=step,
            evaluate=step.evaluate,
            look=functools.partial(look, step),
        )

    def evaluate(self, state: TrainState, batch: Batch) -> Sums:
        """Reward, its parts and area of the likeliest boxes; `batch` are NumPy arrays."""
        return BlackBoxStep(self.step(), self.reader).evaluate(state, batch)

    def look(self, state: TrainState, batch: Batch) -> Look:
        """The likeliest boxes, what they are worth, and what the reader says of the first ones."""
        return look(BlackBoxStep(self.step(), self.reader), state, batch)

    def words(self, replies: list[str]) -> list[str]:
        """The replies, which are texts."""
        return replies

    def cost(self, program: ClosedJaxpr) -> dict[str, float]:
        """Operations of a step by phase; the reader's are not known."""
        return costs.count_flops(program, PHASES, backward="update")

    def decoding(self, batch: Batch) -> dict[str, float]:
        """Bytes that the rollouts read, for the batch of one chip."""
        return {"rollout": rollout_bytes(self.config, self.trained, batch)}

    def work(self, batch: Batch) -> dict[str, int]:
        """Prompts, rollouts and the cropper's tiles."""
        return rollout_work(self.config.grpo, batch)


def look(step: BlackBoxStep, state: TrainState, batch: Batch) -> Look:
    """The boxes of the first examples of a batch, their worth, and what the reader says.

    A chat endpoint has told the worth before, in the evaluation, so that it costs nothing.

    Args:
        step: has the reader.
        state: of the run.
        batch: NumPy arrays.
    """
    proposed = step.propose(state, batch)
    few, proposed = jax.tree.map(lambda x: x[:SHOWN], (batch, proposed))
    scores = jax.tree.map(jnp.asarray, step.score(few, proposed))
    worth = step.weigh(few, proposed, scores)
    boxes, count = np.asarray(proposed.boxes[:, 0]), np.asarray(proposed.count[:, 0])
    images, questions = [], []
    for i, (canvas, size) in enumerate(zip(few.canvas, few.size, strict=True)):
        picture = canvas[: size[0], : size[1]]
        images.append([picture, *(host.cut(picture, box) for box in boxes[i, : count[i]])])
        questions.append(batching.read_spoken(few.spoken[i])[0])
    replies = asking.ask(step.reader, images, questions)
    texts = [reply.text or f"({reply.failure})" for reply in replies]
    return Look(boxes, count, texts, worth.total[:, 0])


def _open_reader(config: TrainConfig) -> Reader:
    """The reader, once it is known to tell what the reward is made of."""
    grpo, processor = config.grpo, dataclasses.asdict(config.target_processor)
    reader = open_reader(config.target, processor=processor)
    if grpo.likelihood_weight or grpo.verification_weight:
        try:
            require_likelihoods(reader)
        except ValueError as error:
            raise ValueError(
                f"target={config.target!r}: {error}; set grpo.likelihood_weight=0, "
                "grpo.verification_weight=0 and grpo.accuracy_weight=1"
            ) from error
    most = getattr(reader, "most_pictures", None)
    if most is not None and most < 1 + grpo.max_boxes:
        raise ValueError(
            f"grpo.max_boxes={grpo.max_boxes}: target={config.target!r} takes at most {most} "
            f"pictures, and a picture and its crops are {1 + grpo.max_boxes}"
        )
    priced = grpo.token_price or config.data.budgets
    if priced and not (grpo.crop_tokens or hasattr(reader, "image_tokens")):
        raise ValueError(
            f"target={config.target!r} does not tell how many image tokens a crop takes, and "
            "grpo.token_price or data.budgets gives them a price: set grpo.crop_tokens"
        )
    if getattr(reader, "transcribes", False) and grpo.accuracy not in CONTAINS:
        logging.warning(
            "target=%r says all the text that it sees, which is hardly ever just the answer: "
            "grpo.accuracy=%r will be near 0, set one of %s",
            config.target,
            grpo.accuracy,
            ", ".join(CONTAINS),
        )
    return reader
