# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""GRPO with a reward from outside of the graph: an OCR reader, an API, any `readers.base.Reader`.

The step of `step.py` in two jitted halves with a host call between them. Weights, keys and sums are
the fused step's: nothing is stale. The backward pass needs what the forward pass kept (the pullback
is an array tree like any other), so nothing is computed twice. With several microbatches the
two sides overlap: while the host scores one, the device learns from the one before and rolls out
the one after.

Shape letters: B prompts, G rollouts a prompt.
"""

import collections
import concurrent.futures
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from cropvlm_jax import scoring
from cropvlm_jax.data import batching
from cropvlm_jax.data.batching import Batch
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.step import Halves, evaluation_sums, rate
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.base import Reader
from cropvlm_jax.train_state import TrainState


def ask(target: Reader, config: GRPOConfig, batch: Batch, boxes: np.ndarray) -> np.ndarray:
    """Shows the target the picture and each crop of it, and scores what it says.

    Args:
        target: answers.
        config: `accuracy` is the metric.
        batch: the prompts, NumPy arrays, with `spoken`.
        boxes: int `[B, G, 4]`; each different one is asked about once.

    Returns:
        fp32 `[B, G]`, 0..1; NaN where something kept the target from answering.
    """
    images, questions, golds, places = [], [], [], []
    for row, (canvas, size, spoken) in enumerate(
        zip(batch.canvas, batch.size, batch.spoken, strict=True)
    ):
        question, answers = batching.read_spoken(spoken)
        picture = canvas[: size[0], : size[1]]
        different, which = np.unique(boxes[row], axis=0, return_inverse=True)
        for number, box in enumerate(different):
            images.append([picture, host.cut(picture, box)])
            questions.append(question)
            golds.append(answers)
            places.append((row, np.flatnonzero(which.reshape(-1) == number)))
    replies = target.answer(images, questions)
    scores = np.full(boxes.shape[:2], np.nan, np.float32)
    for reply, answers, (row, columns) in zip(replies, golds, places, strict=True):
        if not reply.unanswered:
            scores[row, columns] = scoring.score(reply.text, answers, config.accuracy)
    if np.isnan(scores).all():
        logging.warning(
            "%s answered none of %d questions, the last: %s",
            *(target.name, len(replies), replies[-1].failure),
        )
    return scores


def seen_by_cropper(batch: Batch) -> Batch:
    """The batch without what the host alone uses, so that it does not travel."""
    return batch._replace(canvas=None, spoken=None)


def make_black_box_step(
    halves: Halves,
    target: Reader,
    config: GRPOConfig,
    put: Callable[[Any], Any] = lambda tree: jax.tree.map(jnp.asarray, tree),
    jit: Callable[..., Any] = jax.jit,
    shardings: Any = None,
):
    """Builds the step, which jits its halves.

    Args:
        halves: of the step.
        target: gives the reward.
        config: settings.
        put: puts a tree of NumPy arrays `[B, ...]` on the devices.
        jit: as `jax.jit`.
        shardings: of the state that comes out.

    Returns:
        `(state, batch, key) -> (state, metrics)` of a batch of NumPy arrays; the state is donated.
    """

    def learn(state: TrainState, batch: Batch, attempt: Any, scores: jax.Array, total: Any):
        reward, parts = rate(config, attempt.rollouts.boxes, {"accuracy": scores})
        sums, seen = halves.learn(state, batch, attempt, reward, parts)
        return sums if total is None else jax.tree.map(jnp.add, total, sums), seen

    first_half, second_half = jit(halves.roll_out), jit(learn)
    update = jit(halves.update, donate_argnums=0, out_shardings=(shardings, None))
    n = config.gradient_accumulation_steps

    def score(batch: Batch, boxes: jax.Array) -> np.ndarray:
        return ask(target, config, batch, np.asarray(boxes))

    def step(state: TrainState, batch: Batch, key: jax.Array):
        if batch.size.shape[0] % n:
            raise ValueError(
                f"gradient_accumulation_steps={n} does not divide {batch.size.shape[0]} prompts"
            )
        keys = jax.random.split(key, n) if n > 1 else key[None]
        total: Any = None
        answered, learned = False, []
        waiting: collections.deque[Any] = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(1) as host:
            for i in range(n + 1):
                if i < n:
                    micro = jax.tree.map(lambda x, i=i: x[i::n], batch)
                    on_devices = put(seen_by_cropper(micro))
                    attempt = first_half(state, on_devices, keys[i])
                    scores = host.submit(score, micro, attempt.rollouts.boxes)
                    waiting.append((on_devices, attempt, scores))
                # The device has the next rollouts to do while this waits for the host.
                if i == n or len(waiting) > 1:
                    on_devices, attempt, scores = waiting.popleft()
                    known = scores.result()
                    answered |= bool(np.isfinite(known).any())
                    total, seen = second_half(state, on_devices, attempt, put(known), total)
                    if config.num_iterations > 1:
                        learned.append((on_devices, seen))
                    del attempt, scores  # or a third prefix stays on the device
        if not answered:
            raise RuntimeError(f"{target.name} answered no question of this batch: see the log")
        once_more = None, None
        if config.num_iterations > 1:
            once_more = jax.tree.map(lambda *x: jnp.stack(x), *learned) if n > 1 else learned[0]
        return update(state, *total, *once_more)

    return step


def make_black_box_evaluation(
    greedy: Callable[[TrainState, Batch], jax.Array],
    target: Reader,
    config: GRPOConfig,
    put: Callable[[Any], Any] = lambda tree: jax.tree.map(jnp.asarray, tree),
):
    """As `step.make_evaluation`; `greedy` is that of `step.make_greedy`, jitted."""

    def evaluate(state: TrainState, batch: Batch):
        boxes = greedy(state, put(seen_by_cropper(batch)))
        scores = put(ask(target, config, batch, np.asarray(boxes)))
        reward, parts = rate(config, boxes, {"accuracy": scores})
        return evaluation_sums(boxes, reward, parts)

    return evaluate
