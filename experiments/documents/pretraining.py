# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the small SmolVLMs of this folder share when they learn from nothing: start, loop, export.

A vision transformer with random weights takes hundreds of thousands of pictures before it sees
letters at all. Three things shorten that: its first layer begins with the principal components of
real patches, whitened; its position embeddings begin as waves, so that neighbours are alike; and it
first learns to say what stands at each place of a picture, before it learns to answer.
"""

import collections
import dataclasses
import functools
import itertools
import math
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import nnx
from tokenizers import Tokenizer

from cropvlm_jax.hub.export import export, write_processor_files
from cropvlm_jax.hub.model_card import Role, Run
from cropvlm_jax.hub.pretrained import CARD, Pretrained
from cropvlm_jax.hub.tokenizer import train_tokenizer
from cropvlm_jax.models.smolvlm.conversations import ANSWER_INSTRUCTION, CROP_INSTRUCTION
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.models.vit import patchify
from cropvlm_jax.progress import Progress
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training.checkpoints import Checkpoints

_AHEAD = 6  # batches that the worker prepares
_NOTED = 50  # steps whose mean metrics the log shows


def begin(model: SmolVLM, pictures: np.ndarray) -> None:
    """Gives a random model's tower a start from which it learns to see sooner.

    Args:
        model: is changed.
        pictures: examples of what it will see, uint8 `[N, S, S, 3]`, of equal channels.
    """
    config = model.config.vision
    patches = np.asarray(patchify(pictures.astype(np.float32) / 127.5 - 1, config.patch_size))
    kernel, bias = _whitening(
        patches[..., ::3].reshape(-1, config.patch_size**2), config.hidden_size
    )
    model.vision.patch_embedding.kernel[...] = jnp.asarray(np.repeat(kernel / 3, 3, axis=0))
    model.vision.patch_embedding.bias[...] = jnp.asarray(bias)
    model.vision.position_embedding.embedding[...] = jnp.asarray(
        _waves(config.grid, config.hidden_size)
    )
    text = model.text.embedding
    text.embedding[...] *= 0.3 * text.features**0.5


def _whitening(patches: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Kernel `[P, width]` and bias of the first principal components of grey patches `[N, P]`."""
    mean = patches.mean(0)
    variances, components = np.linalg.eigh(np.cov((patches - mean).T))
    order = np.argsort(variances)[::-1][:width]
    # 0.05 keeps noise from becoming as large as strokes.
    kernel = components[:, order] / np.sqrt(variances[order] + 0.05)
    return kernel.astype(np.float32), (-mean @ kernel).astype(np.float32)


def _waves(grid: int, width: int) -> np.ndarray:
    """Sines and cosines of rows, then of columns: `[grid * grid, width]`."""
    frequencies = 1.5 / (2.5 * grid) ** (np.arange(width // 4) / (width // 4))
    angles = np.arange(grid)[:, None] * frequencies
    waves = 0.7 * np.concatenate([np.sin(angles), np.cos(angles)], 1)
    rows, columns = np.repeat(waves[:, None], grid, 1), np.repeat(waves[None], grid, 0)
    return np.concatenate([rows, columns], -1).reshape(grid * grid, width).astype(np.float32)


def with_grid(params: nnx.State, grid: int) -> nnx.State:
    """A model's weights for pictures of `grid * grid` patches: its positions, interpolated."""
    positions = params["vision"]["position_embedding"]["embedding"]
    side = math.isqrt(len(positions[...]))
    places = positions[...].reshape(side, side, -1)
    larger = jax.image.resize(places, (grid, grid, places.shape[-1]), "linear")
    changed = jax.tree.map(lambda weight: weight, params)  # other containers
    changed["vision"]["position_embedding"]["embedding"] = positions.replace(
        larger.reshape(grid * grid, -1)
    )
    return changed


def optimizer(steps: int, matrices: float, others: float) -> optax.GradientTransformation:
    """Muon for matrices, Adam for the rest; both warm up and decay to a thirtieth.

    Args:
        steps: of the phase.
        matrices: Muon's learning rate.
        others: Adam's.
    """

    def schedule(peak: float) -> optax.Schedule:
        warmup = min(60, steps // 10)
        return optax.warmup_cosine_decay_schedule(0, peak, warmup, steps, peak / 30)

    muon = optax.contrib.muon(
        schedule(matrices),
        adam_learning_rate=schedule(others),
        adam_b2=0.98,
        weight_decay=0.01,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=_matrices,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def _matrices(params: Any) -> Any:
    """For each weight, which axes Muon takes as a matrix; None for what Adam learns."""

    def axes(path: Any, weight: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path)
        if "kernel" not in name or "patch" in name:
            return None
        return optax.contrib.MuonDimensionNumbers(weight.ndim - 2, weight.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


Loss = Callable[[Any, Any], tuple[jax.Array, dict[str, jax.Array]]]


class Batches(Protocol):
    """The batches of a phase."""

    steps: int

    def __call__(self, step: int) -> Any:
        """The batch of a step, whatever came before."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a pretraining.

    Attributes:
        name: of its folder.
        batches: makes the batch of each of its `steps`; it is pickled, and called in another
            process.
        loss: of weights and a batch: the loss, and metrics by name.
        matrices: learning rate of matrices, under Muon.
        others: learning rate of all other weights, under Adam.
        evaluate: of weights: metrics by name, for the log; None without.
    """

    name: str
    batches: Batches
    loss: Loss
    matrices: float
    others: float
    evaluate: Callable[[Any], Mapping[str, float]] | None = None

    def train(self, workdir: str | os.PathLike, params: Any, every: int = 250) -> Any:
        """Trains, or goes on from the latest checkpoint.

        Args:
            workdir: of the pretraining.
            params: the weights to start from, without a checkpoint.
            every: steps from one checkpoint and evaluation to the next.

        Returns:
            The weights after the last step.
        """
        steps = self.batches.steps
        update = optimizer(steps, self.matrices, self.others)
        # A copy, as steps donate the state.
        state = TrainState.create(jax.tree.map(jnp.copy, params), update)

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
            grads, metrics = jax.grad(self.loss, has_aux=True)(state.params, batch)
            return state.apply_gradients(grads, update), metrics

        with Checkpoints(os.path.join(workdir, self.name), keep=1) as checkpoints:
            restored = checkpoints.restore(state)
            start, state = (restored[0], restored[1]) if restored else (0, state)
            progress, recent, note = Progress(steps, start, every_seconds=30), [], ""
            for done, batch in enumerate(_ahead(self.batches, start, steps), start + 1):
                state, metrics = step(state, batch)
                jax.block_until_ready(metrics)  # else steps wait in line, with their batches
                recent.append(metrics)
                if done % _NOTED == 0 or done == steps:
                    note, recent = _means(recent), []
                progress.update(done, note)
                if done % every == 0 or done == steps:
                    checkpoints.save(done, state, {}, {})
                    found = self.evaluate(state.params) if self.evaluate else {}
                    logging.info("%s, step %d: %s", self.name, done, dict(found))
        return state.params


def _means(recent: list[dict[str, jax.Array]]) -> str:
    """The means of some steps' metrics, for the log."""
    means = jax.tree.map(lambda *values: float(np.mean(values)), *jax.device_get(recent))
    return " ".join(f"{name} {value:.3f}" for name, value in means.items())


def _ahead(batches: Batches, start: int, stop: int) -> Iterator[Any]:
    """The batches of steps `start` to `stop`, which another process makes."""
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(1, context, _receive, (batches,)) as worker:
        steps = iter(range(start, stop))
        waiting = collections.deque(
            worker.submit(_make, step) for step in itertools.islice(steps, _AHEAD)
        )
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(worker.submit(_make, step) for step in itertools.islice(steps, 1))


_received: Batches  # in the worker


def _receive(batches: Batches) -> None:
    global _received
    _received = batches


def _make(step: int) -> Any:
    return _received(step)


def make_tokenizer(questions: Iterable[str]) -> Tokenizer:
    """A tokenizer in which these questions are short, and other text is letter by letter."""
    instructions = (ANSWER_INSTRUCTION, CROP_INSTRUCTION)
    texts = [f"User:{q}\n{i}\nAssistant: [12, 5, 40, 33]." for q in questions for i in instructions]
    return train_tokenizer(texts, 640)


def from_scratch(
    script: str, steps: int, seed: int, data: str, meaning: str, metrics: dict[str, float]
) -> Run:
    """What the model card of a finished model says of its making.

    Args:
        script: of this folder, that trained it.
        steps: of all phases.
        seed: of weights and data.
        data: what it learned from.
        meaning: of the metrics.
        metrics: after the last step, by name.
    """
    return Run(
        title=f"From scratch, {steps:,} steps",
        facts={
            "made by": f"`experiments/documents/{script}`",
            "seed": str(seed),
            "data": data,
            "metrics": meaning,
        },
        metrics=metrics,
        measured_after=steps,
        licence="apache-2.0",
    )


def save(folder: pathlib.Path, model: SmolVLM, tokenizer: Tokenizer, role: Role, run: Run) -> None:
    """Writes a model that sees its pictures as one tile as a Hugging Face folder, in bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)  # or the new one tells of the same training twice
    write_processor_files(folder, model.config, tokenizer, model.config.vision.image_size)
    export(folder, model, Pretrained.open(folder), dtype=jnp.bfloat16, role=role, run=run)
    logging.info("the %s is in %s", role, folder)
