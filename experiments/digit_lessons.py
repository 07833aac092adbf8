# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the scripts that make start weights share: noisy boxes, batches, training."""

import pathlib
import time
from collections.abc import Callable, Iterator
from concurrent import futures

import jax
import numpy as np
import optax
from absl import logging
from flax import nnx

from cropvlm_jax import geometry
from cropvlm_jax.data import batching
from cropvlm_jax.models.conversations import Conversation
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training import sft


def noisy_box(
    rng: np.random.Generator, box: np.ndarray, expansion: tuple[float, float], jitter: float
) -> np.ndarray:
    """A larger box near a true one.

    Args:
        rng: What is drawn from.
        box: True percent box int `[4]`.
        expansion: The least and the most area of the result, in areas of `box`; log-uniform.
        jitter: How far the centre moves, in sides of the result.
    """
    factor = np.exp(rng.uniform(*np.log(expansion)))
    box = geometry.expand(box, factor)
    side = box[2:] - box[:2]
    shift = np.rint(rng.uniform(-jitter, jitter, 2) * side).astype(int)
    shift = np.clip(shift, -box[:2], 100 - box[2:])
    return box + np.tile(shift, 2)


def misplaced(rng: np.random.Generator, box: np.ndarray) -> np.ndarray:
    """A box of the same size at a random place, int `[4]`."""
    side = box[2:] - box[:2]
    low = rng.integers(0, 101 - side)
    return np.concatenate([low, low + side])


def supervised_batch(
    pictures: list[np.ndarray],
    conversations: list[Conversation],
    prompt_length: int,
    reply_length: int,
) -> batching.SupervisedBatch:
    """B conversations and their pictures `[N, S, S, 3]` as one batch."""
    rows = [
        batching.supervised_row(
            conversation,
            images=images,
            prompt_tokens=prompt_length,
            completion_tokens=reply_length,
        )
        for conversation, images in zip(conversations, pictures, strict=True)
    ]
    return batching.stack(rows)


def prepared_ahead(
    prepare: Callable[[int], batching.SupervisedBatch], start: int, steps: int
) -> Iterator[batching.SupervisedBatch]:
    """Batches from number `start` to `steps`, prepared one ahead in a thread."""
    with futures.ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(prepare, start)
        for step in range(start + 1, steps):
            ready, ahead = ahead, pool.submit(prepare, step)
            yield ready.result()
        yield ahead.result()


def train(
    model: SmolVLM,
    prepare: Callable[[int], batching.SupervisedBatch],
    steps: int,
    peak: float,
    evaluate: Callable[[SmolVLM], dict[str, float]],
    checkpoint: pathlib.Path | None = None,
) -> tuple[SmolVLM, dict[str, float]]:
    """Trains through a course under one warm-up and cosine decay of the learning rate.

    Args:
        model: What is trained.
        prepare: The batch of a step, a function of its number alone.
        steps: Steps of the course.
        peak: The highest learning rate.
        evaluate: Scores of the trained model.
        checkpoint: A file that the state is kept in, every 50 steps; a course that was cut off goes
            on from it. None keeps nothing.

    Returns:
        The trained model and its scores.
    """
    schedule = optax.warmup_cosine_decay_schedule(0, peak, min(50, steps // 2), steps, peak / 20)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01)
    )
    graphdef, params = nnx.split(model)
    state = TrainState.create(params, optimizer)
    if checkpoint is not None and checkpoint.is_file():
        state = restored(checkpoint, state)
    step = jax.jit(sft.SFTStep(graphdef, optimizer), donate_argnums=0)
    unused = jax.random.key(0)  # there are no adapters, whose dropout it is for
    first, start, losses = int(state.step), time.time(), []
    if first < steps:
        for i, batch in enumerate(prepared_ahead(prepare, first, steps), start=first + 1):
            state, metrics = step(state, batch, unused)
            losses.append(metrics["loss"])
            if i % 50 == 0 or i == steps:
                loss, losses = float(np.mean(jax.device_get(losses))), []
                rate = (time.time() - start) / (i - first)
                logging.info("%d/%d loss %.4f (%.2f s/step)", i, steps, loss, rate)
                if checkpoint is not None:
                    save(checkpoint, state)
    trained = nnx.merge(graphdef, state.params)
    scores = evaluate(trained)
    logging.info(" ".join(f"{name} {score:.3f}" for name, score in scores.items()))
    return trained, scores


def save(path: pathlib.Path, state: TrainState) -> None:
    """Keeps a state in a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, *jax.device_get(jax.tree.leaves(state)))
    temporary.replace(path)


def restored(path: pathlib.Path, state: TrainState) -> TrainState:
    """The state in a file; `state` is one of its structure."""
    with np.load(path) as kept:
        leaves = [jax.numpy.asarray(kept[name]) for name in kept.files]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)
