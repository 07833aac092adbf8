# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""GRPO with a reward from outside of the graph: an OCR reader, an API, any `readers.base.Reader`.

The methods of `GRPOStep` in two jitted halves with a host call between them. Weights, keys and sums
are the fused step's: nothing is stale. The backward pass needs what the forward pass kept (the
pullback is a tree of arrays like any other), so nothing is computed twice. With several
microbatches the two sides overlap: while the host scores one, the device learns from the one before
and rolls out the one after.

Shape letters: B prompts, G rollouts a prompt.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from cropvlm_jax import scoring
from cropvlm_jax.data import batching
from cropvlm_jax.data.batching import Batch
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.experience import Experience, Gradients, ReadPrompts
from cropvlm_jax.grpo.metrics import evaluation_sums
from cropvlm_jax.grpo.rewards import Rewards, counts_tokens, less_alone, weigh
from cropvlm_jax.grpo.rollout import Rollouts
from cropvlm_jax.grpo.step import GRPOStep
from cropvlm_jax.microbatching import Sums, check_divides
from cropvlm_jax.pixels import host
from cropvlm_jax.pixels.plans import PlannedTiles
from cropvlm_jax.readers import asking
from cropvlm_jax.readers.base import REFUSAL, LikelihoodReader, Reader, ReaderUnavailable
from cropvlm_jax.train_state import TrainState

MANY = 16  # questions; a reader that refuses them all is set up wrongly


class View(NamedTuple):
    """What the reader is shown of a prompt for one reply.

    Attributes:
        row: the prompt.
        columns: its rollouts with this reply; none of a view of the picture alone.
        pictures: the whole one and the crops, uint8 RGB.
        question: the question.
        answers: the gold answers.
    """

    row: int
    columns: np.ndarray
    pictures: list[np.ndarray]
    question: str
    answers: list[str]


def ask(
    reader: Reader, config: GRPOConfig, batch: Batch, boxes: np.ndarray, count: np.ndarray
) -> dict[str, np.ndarray]:
    """Shows the reader the picture and the crops of each reply.

    Args:
        reader: answers; a `LikelihoodReader` where the reward has a likelihood.
        config: which parts of the reward have a weight, and the metric of "accuracy".
        batch: the prompts, NumPy arrays, with `spoken`.
        boxes: percent boxes `[B, G, K, 4]`; each different reply is asked about once.
        count: int `[B, G]`, how many of its K boxes a reply has.

    Returns:
        fp32 `[B, G]` by name, as `told_names` lists them: parts as `Rewards.parts`, "likelihood"
        and "verification" (nats) of the gold answer and "accuracy" (0..1) of the reader's own; and
        "crop_tokens". NaN where something kept the reader from telling.

    Raises:
        ReaderUnavailable: it refused to answer every one of many questions.
        ValueError: crops have a price, and the reader does not tell how many tokens they take.
    """
    names = told_names(reader, config, batch)
    whole = list(_pictures_alone(batch))
    views = list(_views(whole, boxes, count))
    parts, alone = {}, {}
    for name in dict.fromkeys([*config.asked, *config.asked_alone]):
        with_crops = views if name in config.asked else []
        without = whole if name in config.asked_alone else []
        told = _tell(reader, config, name, [*with_crops, *without])
        parts[name] = np.full(count.shape, np.nan)
        for view, value in zip(with_crops, told[: len(with_crops)], strict=True):
            parts[name][view.row, view.columns] = value
        alone[name] = np.array(told[len(with_crops) :])[:, None]
    gains = less_alone(config, count, {name: parts[name] for name in config.asked}, alone)
    if "crop_tokens" in names:
        gains["crop_tokens"] = _crop_tokens(reader, config, views, count)
    return {name: value.astype(np.float32) for name, value in gains.items()}


def told_names(reader: Reader, config: GRPOConfig, batch: Batch) -> list[str]:
    """The names of what `ask` returns.

    Raises:
        ValueError: crops have a price, and the reader does not tell how many tokens they take.
    """
    if not counts_tokens(config, batch):
        return config.asked
    if config.crop_tokens or hasattr(reader, "image_tokens"):
        return [*config.asked, "crop_tokens"]
    if config.token_price or batch.price is not None:
        raise ValueError(
            f"{reader.name} does not tell how many image tokens a crop takes, and crops have a "
            "price: set grpo.crop_tokens"
        )
    return config.asked


def _views(whole: Sequence[View], boxes: np.ndarray, count: np.ndarray) -> Iterator[View]:
    """What the reader is shown of replies with boxes, in the order of the prompts.

    Args:
        whole: the pictures alone, which the views of a prompt share.
        boxes: percent boxes `[B, G, K, 4]`.
        count: int `[B, G]`.
    """
    for alone, of_prompt, counts in zip(whole, boxes, count, strict=True):
        replies = np.concatenate([of_prompt.reshape(len(counts), -1), counts[:, None]], -1)
        different, which = np.unique(replies, axis=0, return_inverse=True)
        for number, reply in enumerate(different):
            named = reply[:-1].reshape(-1, 4)[: int(reply[-1])]
            if not len(named):
                continue
            crops = [host.cut(alone.pictures[0], box) for box in named]
            columns = np.flatnonzero(which.reshape(-1) == number)
            yield alone._replace(columns=columns, pictures=[*alone.pictures, *crops])


def _pictures_alone(batch: Batch) -> Iterator[View]:
    """What the reader is shown of each prompt without a crop."""
    for row, (canvas, size, spoken) in enumerate(
        zip(batch.canvas, batch.size, batch.spoken, strict=True)
    ):
        question, answers = batching.read_spoken(spoken)
        yield View(row, np.array([], int), [canvas[: size[0], : size[1]]], question, answers)


def _tell(reader: Reader, config: GRPOConfig, name: str, views: Sequence[View]) -> Sequence[float]:
    """A part of the reward of each view."""
    if name == "accuracy":
        return _accuracies(reader, config, views)
    if name == "verification":  # the crops without the picture
        views = [view._replace(pictures=view.pictures[1:]) for view in views]
    return _ask_likelihoods(cast(LikelihoodReader, reader), config, views)


def _crop_tokens(
    reader: Any, config: GRPOConfig, views: Sequence[View], count: np.ndarray
) -> np.ndarray:
    """Image tokens that the crops of each reply take, fp64 `[B, G]`."""
    if config.crop_tokens:
        return count * float(config.crop_tokens)
    tokens = np.zeros(count.shape)
    for view in views:
        tokens[view.row, view.columns] = reader.image_tokens([view.pictures[1:]])
    return tokens


def _ask_likelihoods(
    reader: LikelihoodReader, config: GRPOConfig, views: Sequence[View]
) -> list[float]:
    """Log-likelihoods of the gold answer given all the pictures of each view."""
    told = asking.ask_likelihoods(
        reader,
        [view.pictures for view in views],
        [view.question for view in views],
        [batching.gold_answer(view.answers) for view in views],
    )
    _warn_if_silent(reader, [likelihood.failure for likelihood in told])
    return [each.nats if config.likelihood == "sum" else each.nats_a_token for each in told]


def _accuracies(reader: Reader, config: GRPOConfig, views: Sequence[View]) -> Sequence[float]:
    """Scores of what the reader answers."""
    replies = asking.ask(
        reader, [view.pictures for view in views], [view.question for view in views]
    )
    if len(replies) >= MANY and all(reply.kind == REFUSAL for reply in replies):
        raise ReaderUnavailable(
            f"{reader.name} refused all {len(replies)} questions, the last: {replies[-1].failure}"
        )
    _warn_if_silent(reader, [reply.failure if reply.unanswered else "" for reply in replies])
    return [
        np.nan if reply.unanswered else scoring.score(reply.text, view.answers, config.accuracy)
        for reply, view in zip(replies, views, strict=True)
    ]


def _warn_if_silent(reader: Reader, failures: Sequence[str]) -> None:
    """Warns where something kept the reader from telling anything."""
    if all(failures):
        logging.warning(
            "%s answered none of %d questions, the last: %s",
            reader.name,
            len(failures),
            failures[-1],
        )


def without_host_parts(batch: Batch) -> Batch:
    """The batch without what the host alone uses, so that it does not travel."""
    # The devices cut the cropper's tiles from the canvas, or the crops of a second look.
    if isinstance(batch.tiles, PlannedTiles) or batch.second_prompt is not None:
        return batch._replace(spoken=None)
    return batch._replace(canvas=None, spoken=None)


def to_default_device(tree: Any) -> Any:
    """A tree of NumPy arrays on the default device."""
    return jax.tree.map(jnp.asarray, tree)


class _Attempt(NamedTuple):
    """A microbatch whose boxes the host is scoring.

    Attributes:
        batch: on the devices.
        prompts: as the policy has read them, of each look.
        rollouts: what it proposed.
        scores: what `ask` returns, once the host has it.
    """

    batch: Batch
    prompts: tuple[ReadPrompts, ...]
    rollouts: Rollouts
    scores: concurrent.futures.Future[dict[str, np.ndarray]]


class BlackBoxStep:
    """A GRPO step whose reward comes from a reader on the host; takes batches of NumPy arrays."""

    def __init__(
        self,
        step: GRPOStep,
        reader: Reader,
        *,
        put: Callable[[Any], Any] = to_default_device,
        jit: Callable[..., Any] = jax.jit,
        state_shardings: Any = None,
    ):
        """Jits the halves; nothing is compiled yet.

        Args:
            step: the step, without a target.
            reader: gives the reward.
            put: puts a tree of NumPy arrays `[B, ...]` on the devices.
            jit: as `jax.jit`.
            state_shardings: of the state that comes out; None leaves them to `jit`.
        """
        self.step, self.reader, self.put = step, reader, put
        self._see = jit(self.see)
        self._roll_out, self._learn = jit(self.roll_out), jit(self.learn)
        self._update = jit(step.update, donate_argnums=0, out_shardings=(state_shardings, None))
        self._propose = jit(step.propose)

    def __call__(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step: the new state, in place of the old one, and its metrics.

        Raises:
            ReaderUnavailable: the reader answered no question of the batch.
            ValueError: the microbatches do not divide the batch.
        """
        config = self.step.config
        count = config.gradient_accumulation_steps
        check_divides(count, batch.size.shape[0])
        keys = jax.random.split(key, count) if count > 1 else key[None]
        total: Gradients | None = None
        answered, learned = False, []
        waiting: collections.deque[_Attempt] = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(1) as host_thread:
            for i in range(count + 1):
                if i < count:
                    part = jax.tree.map(lambda x, i=i: x[i::count], batch)
                    waiting.append(self.begin(state, part, keys[i], host_thread))
                # The device has the next rollouts to do while this waits for the host.
                if i == count or len(waiting) > 1:
                    attempt = waiting.popleft()
                    scores = attempt.scores.result()
                    answered |= bool(np.isfinite(sum(scores.values())).any())
                    total, experience = self._learn(
                        state,
                        attempt.batch,
                        attempt.prompts,
                        attempt.rollouts,
                        self.put(scores),
                        total,
                    )
                    if config.num_iterations > 1:
                        learned.append((attempt.batch, experience))
                    del attempt  # or a third prefix stays on the device
        if not answered:
            raise ReaderUnavailable(
                f"{self.reader.name} answered no question of this batch: see the log"
            )
        return self._update(state, total, *_stacked(learned))

    def begin(
        self,
        state: TrainState,
        batch: Batch,
        key: jax.Array,
        host_thread: concurrent.futures.Executor,
    ) -> _Attempt:
        """Rolls out a microbatch and has the host score it."""
        on_devices = self._see(state, self.put(without_host_parts(batch)))
        prompts, rollouts = self._roll_out(state, on_devices, key)
        scores = host_thread.submit(self.score, batch, rollouts)
        return _Attempt(on_devices._replace(canvas=None), prompts, rollouts, scores)

    def see(self, state: TrainState, batch: Batch) -> Batch:
        """The batch with the cropper's tiles, without canvases that nothing more is cut from."""
        seen = self.step.see(state, batch)
        return seen if batch.second_prompt is not None else seen._replace(canvas=None)

    def roll_out(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[tuple[ReadPrompts, ...], Rollouts]:
        """The first half, on the devices: the policy reads the prompts and samples replies."""
        return self.step.roll_out(state, batch, key)

    def score(self, batch: Batch, rollouts: Rollouts) -> dict[str, np.ndarray]:
        """What happens between the halves, on the host: the reader answers."""
        boxes, count = np.asarray(rollouts.boxes), np.asarray(rollouts.count)
        return ask(self.reader, self.step.config, batch, boxes, count)

    def no_scores(self, batch: Batch, nothing: Any) -> dict[str, Any]:
        """What `score` returns, with `nothing` for each array: a shape, or zeros `[B, G]`."""
        return dict.fromkeys(told_names(self.reader, self.step.config, batch), nothing)

    def weigh(self, batch: Batch, rollouts: Rollouts, scores: dict[str, jax.Array]) -> Rewards:
        """The rewards of rollouts, from what `score` returned."""
        parts = {name: scores[name] for name in self.step.config.asked}
        tokens = scores.get("crop_tokens")
        return weigh(self.step.config, batch, rollouts.boxes, rollouts.count, parts, tokens)

    def learn(
        self,
        state: TrainState,
        batch: Batch,
        prompts: tuple[ReadPrompts, ...],
        rollouts: Rollouts,
        scores: dict[str, jax.Array],
        total: Gradients | None,
    ) -> tuple[Gradients, Experience]:
        """The second half, on the devices: gradients, added to those of earlier microbatches."""
        rollouts = rollouts._replace(count=self.step.counted(rollouts.count))
        rewards = self.weigh(batch, rollouts, scores)
        gradients, experience = self.step.learn(state, batch, prompts, rollouts, rewards)
        if total is not None:
            gradients = jax.tree.map(jnp.add, total, gradients)
        return gradients, experience

    def propose(self, state: TrainState, batch: Batch) -> Rollouts:
        """The policy's likeliest reply to each prompt, G = 1."""
        return self._propose(state, self.put(without_host_parts(batch)))

    def evaluate(self, state: TrainState, batch: Batch) -> Sums:
        """Sums and counts of reward, its parts and area of the policy's likeliest replies."""
        replies = self.propose(state, batch)
        scores = self.put(self.score(batch, replies))
        return evaluation_sums(self.step.config, replies, self.weigh(batch, replies, scores))


def _stacked(learned: list[tuple[Batch, Experience]]) -> tuple[Batch | None, Experience | None]:
    """Batches and experience of all microbatches, as `GRPOStep.update` takes them."""
    if not learned:
        return None, None
    return learned[0] if len(learned) == 1 else jax.tree.map(lambda *x: jnp.stack(x), *learned)
