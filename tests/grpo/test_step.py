# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The fused step against the same algorithm written naively, one rollout and one token at a time.

The naive version shares the models' whole-sequence forward, the prompts and the host's image
processing with the package, and nothing else: no cache, no shared prefix, no left padding, no
grammar tables, no device crop.
"""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from PIL import Image

from cropvlm_jax import boxes as box_lib
from cropvlm_jax.data import images, pipeline
from cropvlm_jax.grpo import rewards, rollout
from cropvlm_jax.grpo.step import GRPOConfig, make_step
from cropvlm_jax.models.smolvlm import SmolVLM
from cropvlm_jax.training.state import TrainState

GROUP, TEMPERATURE = 4, 0.8
KEY = jax.random.key(7)
EXAMPLES = tiny.make_examples(4)
BATCH = tiny.make_batch(EXAMPLES)
GRAPHDEF, POLICY = tiny.make_model(0)
REFERENCE = jax.tree.map(lambda a, b: 0.8 * a + 0.2 * b, POLICY, tiny.make_model(1)[1])
TARGET = tiny.make_model(2)[1]
# Of the same shape, but told apart.
TARGET_CONFIG = dataclasses.replace(tiny.CONFIG, model_type="smolvlm")
TARGET_GRAPHDEF = nnx.graphdef(nnx.eval_shape(lambda: SmolVLM(TARGET_CONFIG, rngs=nnx.Rngs(0))))
CONFIG = GRPOConfig(group=GROUP, temperature=TEMPERATURE, beta=0.1)
FAST_COMPILE = {"xla_backend_optimization_level": 0}

# Each combination of advantage and beta; microbatches and reward chunks change along.
CONFIGS = {
    "std": dataclasses.replace(CONFIG, beta=0.0, reward_chunk=1, accumulate=2),
    "std-kl": dataclasses.replace(CONFIG, format_weight=0.5),
    "dr_grpo": dataclasses.replace(CONFIG, advantage="dr_grpo", beta=0.0, accumulate=4),
    "dr_grpo-kl": dataclasses.replace(
        CONFIG, advantage="dr_grpo", reward_chunk=2, likelihood="mean"
    ),
}


# The fused step -----------------------------------------------------------------------------------

# Updates like SGD and keeps the gradient, exactly, as its state.
KEEP_GRADIENT = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, _, params: (jax.tree.map(jnp.negative, grads), grads),
)


@dataclasses.dataclass
class Result:
    """What one step did.

    `pictures` uint8 `[B, 1 + G, S, S, 3]` are what the target saw: the whole and the crops.
    """

    boxes: np.ndarray
    pictures: np.ndarray
    likelihood: np.ndarray
    loss: float
    kl: float
    gradient: Any


def make_state(config: GRPOConfig) -> TrainState:
    # Copies, because steps donate their state.
    policy, reference, target = jax.tree.map(jnp.copy, (POLICY, REFERENCE, TARGET))
    return TrainState.create(
        policy, KEEP_GRADIENT, reference=reference if config.beta else None, target=target
    )


def jitted(step: Any, **options: Any):
    return jax.jit(step, compiler_options=FAST_COMPILE, **options)


def build(config: GRPOConfig):
    return make_step(GRAPHDEF, TARGET_GRAPHDEF, tiny.GRAMMAR, tiny.TEMPLATE, KEEP_GRADIENT, config)


def fused(config: GRPOConfig, spoil: np.ndarray | None = None) -> tuple[Result, TrainState, dict]:
    """Runs one fused step and listens in; rollouts in `spoil`, bool `[B, G]`, get a NaN reward."""
    sample, log_likelihood, encode = (
        rollout.sample,
        rewards.log_likelihood,
        SmolVLM.encode_images,
    )
    boxes, likelihoods, pictures = [], [], []

    def note(values: jax.Array, where: list[np.ndarray]):
        jax.debug.callback(lambda x: where.append(np.asarray(x)), values, ordered=True)

    def listening_sample(*args: Any):
        rollouts = sample(*args)
        note(rollouts.boxes, boxes)
        return rollouts

    def listening_likelihood(*args: Any):
        likelihood = log_likelihood(*args)
        if spoil is not None:
            likelihood = jnp.where(spoil, jnp.nan, likelihood)
        note(likelihood, likelihoods)
        return likelihood

    def listening_encode(model: SmolVLM, seen: jax.Array):
        if model.config == TARGET_CONFIG:
            note(seen, pictures)
        return encode(model, seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "sample", listening_sample)
        patch.setattr(rewards, "log_likelihood", listening_likelihood)
        patch.setattr(SmolVLM, "encode_images", listening_encode)
        state, metrics = jitted(build(config))(make_state(config), BATCH, KEY)
        jax.effects_barrier()

    def in_order(parts: list[np.ndarray]) -> np.ndarray:
        return np.stack(parts, 1).reshape(len(EXAMPLES), *parts[0].shape[1:])

    reads = len(pictures) // config.accumulate  # of the target in a microbatch
    pictures = [np.concatenate(pictures[i : i + reads], 1) for i in range(0, len(pictures), reads)]
    result = Result(
        in_order(boxes),
        in_order(pictures),
        in_order(likelihoods),
        metrics["loss"],
        metrics["kl"],
        state.opt_state,
    )
    return result, state, metrics


# The naive version --------------------------------------------------------------------------------

LENGTH = 64  # of every sequence; what follows its end is never seen by a causal model


@jax.jit
def naive_logits(params: nnx.State, ids: jax.Array, pictures: jax.Array) -> jax.Array:
    """Logits fp32 `[T, V]` of one whole sequence, without a mask."""
    model = nnx.merge(GRAPHDEF, params)
    return model(ids[None], jnp.ones((1, ids.size), bool), pictures[None])[0]


def extended(ids: Any) -> np.ndarray:
    assert len(ids) <= LENGTH
    return np.pad(np.array(ids, np.int32), (0, LENGTH - len(ids)))


def written(box: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, box)) + (", " if len(box) < 4 else "].")


def values(box: tuple[int, ...]) -> range:
    """What may come after the first coordinates `box`."""
    return range(100) if len(box) < 2 else range(box[len(box) - 2] + 1, 101)


def next_characters(prefix: str) -> str:
    """Characters that may follow `prefix` in the text of a valid box, by looking at all boxes."""
    found, partial = set(), [()]
    while partial:
        box = partial.pop()
        for value in values(box):
            text = written((*box, value))
            if text.startswith(prefix) and len(text) > len(prefix):
                found.add(text[len(prefix)])
            elif prefix.startswith(text) and len(box) < 3:
                partial.append((*box, value))
    return "".join(sorted(found))


def a_text(prefix: str, box: tuple[int, ...] = ()) -> str | None:
    """The text of some valid box that begins with `prefix`."""
    for value in values(box):
        text = written((*box, value))
        if text.startswith(prefix) or prefix.startswith(text):
            text = text if len(box) == 3 else a_text(prefix, (*box, value))
            if text is not None and text.startswith(prefix):
                return text
    return None


@dataclasses.dataclass
class NaiveRollout:
    """One sampled reply.

    `choices` maps the index of each chosen token of `ids` to the tokens it was chosen from.
    """

    box: tuple[int, ...]
    ids: list[int]
    choices: dict[int, list[int]]


def naive_rollout(params: nnx.State, prompt: Any, tiles: np.ndarray, noise: Any) -> NaiveRollout:
    """Writes a box token by token; `noise(i)` is the Gumbel noise `[12]` of the i-th action."""

    def encode(text: str):
        return tiny.TOKENIZER.encode(f" {text}<end_of_utterance>", add_special_tokens=False)

    prompt, text, choices, action = list(prompt), "", {}, 0
    while options := next_characters(text):
        if not re.search("[0-9]", options):
            text += options  # forced
            assert len(options) == 1
            continue
        candidates = {}
        for character in options:
            encoding = encode(a_text(text + character))
            index = [start for start, _ in encoding.offsets].index(1 + len(text))
            candidates[character] = encoding.ids[index]
            ids = prompt + encoding.ids[:index]
        tokens = list(candidates.values())
        logits = naive_logits(params, extended(ids), tiles)[len(ids) - 1]
        scores = np.asarray(logits, np.float64)[tokens] / TEMPERATURE
        scores += np.asarray(noise(action))[["0123456789,]".index(c) for c in options]]
        if len(options) > 1:
            choices[len(ids)] = tokens
        text += options[int(np.argmax(scores))]
        action += 1
    box = tuple(int(number) for number in re.findall("[0-9]+", text))
    return NaiveRollout(box, prompt + encode(text).ids, choices)


@functools.cache
def naive_rollouts(accumulate: int) -> list[list[NaiveRollout]]:
    """All rollouts; microbatch j of n takes examples j, j + n, ... and the j-th of n keys."""
    batch = len(EXAMPLES) // accumulate
    keys = jax.random.split(KEY, accumulate) if accumulate > 1 else [KEY]

    @functools.cache
    def gumbel(microbatch: int, action: int) -> np.ndarray:
        key = jax.random.fold_in(keys[microbatch], action)
        return np.asarray(jax.random.gumbel(key, (batch, GROUP, 12)))

    rollouts = []
    for b, example in enumerate(EXAMPLES):
        prompt = tiny.PROMPTS.crop(example["question"]).ids
        tiles, _ = images.tile(example["image"], tiny.SIDE, tiny.SIDE)

        def noise(action: int, b: int = b, g: int = 0) -> np.ndarray:
            return gumbel(b % accumulate, action)[b // accumulate, g]

        rollouts.append(
            [
                naive_rollout(POLICY, prompt, tiles, functools.partial(noise, g=g))
                for g in range(GROUP)
            ]
        )
    return rollouts


def naive_pictures(example: dict[str, Any], box: tuple[int, ...]) -> np.ndarray:
    """The whole picture and its crop by PIL, as the target sees them: uint8 `[2, S, S, 3]`."""
    height, width = example["image"].shape[:2]
    left, top, right, bottom = (
        round(percent * side / 100) for percent, side in zip(box, (width, height) * 2, strict=True)
    )
    left, top = min(left, width - 1), min(top, height - 1)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    crop = Image.fromarray(example["image"]).crop((left, top, right, bottom))
    pictures = [
        images.tile(picture, tiny.SIDE, tiny.SIDE)[0]
        for picture in (example["image"], np.asarray(crop))
    ]
    return np.concatenate(pictures)


def naive_likelihood(example: dict[str, Any], pictures: np.ndarray, reduction: str) -> float:
    """Asks with both pictures, and reads the answer off the whole conversation."""
    prompt = tiny.PROMPTS.answer(example["question"], 2, example["answers"][0])
    logits = naive_logits(TARGET, extended(prompt.ids), pictures)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    span = range(prompt.completion.start, prompt.completion.stop)
    answer = [log_probs[t - 1, prompt.ids[t]] for t in span]
    return float(np.mean(answer) if reduction == "mean" else np.sum(answer))


def chosen_log_probs(params: nnx.State, ids: jax.Array, tiles: jax.Array, allowed: jax.Array):
    """Log-probabilities `[T - 1]` of tokens 1.. among the tokens `allowed`, bool `[T - 1, V]`."""
    logits = naive_logits(params, ids, tiles)[:-1] / TEMPERATURE
    logits = jnp.where(allowed, logits, -jnp.inf)
    return jax.nn.log_softmax(logits)[jnp.arange(ids.size - 1), ids[1:]]


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def naive_reply(
    params, reference, ids, tiles, allowed, chosen, reply, advantage, beta, length, format_weight
):
    """Loss of one reply, its sum of KL terms, and the gradient."""
    log_probs = chosen_log_probs(params, ids, tiles, allowed)
    ratio = jnp.exp(log_probs - jax.lax.stop_gradient(log_probs))
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    difference = chosen_log_probs(reference, ids, tiles, allowed) - log_probs
    kl = jnp.exp(difference) - difference - 1
    loss = jnp.where(chosen, beta * kl - gain, 0).sum() / length
    # What decoding without the grammar does: any of the allowed tokens is as good.
    probabilities = jax.nn.softmax(naive_logits(params, ids, tiles)[:-1])
    good = jnp.where(chosen[:, None], allowed, ids[1:, None] == jnp.arange(allowed.shape[1]))
    malformed = -jnp.log((probabilities * good).sum(-1))
    loss += format_weight * jnp.where(reply, malformed, 0).sum() / reply.sum()
    return loss, jnp.where(chosen, kl, 0).sum()


def naive(config: GRPOConfig, seen: np.ndarray, spoil: np.ndarray | None = None) -> Result:
    """One step; where the pictures are `seen` but for a grey level, the target gets those.

    A grey level moves a random target's likelihoods by more than the rest may.
    """
    rollouts = naive_rollouts(config.accumulate)
    pictures = np.array(
        [
            [naive_pictures(example, r.box) for r in group]
            for example, group in zip(EXAMPLES, rollouts, strict=True)
        ]
    )
    seen = np.stack([np.broadcast_to(seen[:, :1], seen[:, 1:].shape), seen[:, 1:]], 2)
    difference = np.abs(seen.astype(int) - pictures)
    print("pixels off", (difference > 0).mean(), "by two", (difference > 1).mean())
    assert (difference > 1).mean() < 1e-3 and (difference > 0).mean() < 1e-2
    assert difference.max() <= 3
    likelihood = np.array(
        [
            [naive_likelihood(example, p, config.likelihood) for p in group]
            for example, group in zip(EXAMPLES, seen, strict=True)
        ]
    )
    if spoil is not None:
        likelihood[spoil] = np.nan
    loss = kl = replies = tokens = 0
    gradient = jax.tree.map(jnp.zeros_like, POLICY)
    for example, group, row in zip(EXAMPLES, rollouts, likelihood, strict=True):
        tiles, _ = images.tile(example["image"], tiny.SIDE, tiny.SIDE)
        scored = row[np.isfinite(row)] + config.validity_weight
        for r, reward in zip(group, row + config.validity_weight, strict=True):
            if np.isnan(reward):
                continue
            advantage = reward - scored.mean()
            if config.advantage == "std":
                advantage /= scored.std(ddof=1) + 1e-4 if len(scored) > 1 else 1
            allowed = np.ones((LENGTH, tiny.CONFIG.text.vocab_size), bool)
            chosen = np.zeros(LENGTH, bool)
            for position, candidates in r.choices.items():
                allowed[position] = np.isin(np.arange(allowed.shape[1]), candidates)
                chosen[position] = True
            positions = np.arange(LENGTH)
            prompt = len(tiny.PROMPTS.crop(example["question"]).ids)
            reply = (positions >= prompt) & (positions < len(r.ids))
            length = len(r.choices) if config.advantage == "std" else 10
            (part, divergence), grads = naive_reply(
                POLICY,
                REFERENCE,
                extended(r.ids),
                tiles,
                allowed[1:],
                chosen[1:],
                reply[1:],
                np.float32(advantage),
                np.float32(config.beta),
                np.float32(length),
                np.float32(config.format_weight),
            )
            loss, kl = loss + float(part), kl + float(divergence) * bool(config.beta)
            replies, tokens = replies + 1, tokens + len(r.choices)
            gradient = jax.tree.map(jnp.add, gradient, grads)
    boxes = np.array([[r.box for r in group] for group in rollouts])
    gradient = jax.tree.map(lambda g: g / replies, gradient)
    return Result(boxes, pictures, likelihood, loss / replies, kl / tokens, gradient)


def assert_gradients_close(got: Any, want: Any, tolerance: float):
    differences = {
        jax.tree_util.keystr(path): float(jnp.abs(a - b).max() / jnp.abs(b).max())
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
        )
        if jnp.abs(b).max() > 1e-6  # keys' biases have no gradient but rounding
    }
    assert len(differences) > 20
    worst = max(differences, key=differences.get)
    print("gradient", worst, differences[worst])
    assert differences[worst] < tolerance, worst


def assert_same(got: Result, want: Result):
    np.testing.assert_array_equal(got.boxes, want.boxes)
    print("likelihood", np.nanmax(np.abs(got.likelihood - want.likelihood)))
    print("loss", got.loss, want.loss, "kl", got.kl, want.kl)
    np.testing.assert_allclose(got.likelihood, want.likelihood, rtol=0, atol=2e-5)
    np.testing.assert_allclose(got.loss, want.loss, rtol=0, atol=1e-5)
    np.testing.assert_allclose(got.kl, want.kl, rtol=1e-4, atol=1e-6)
    assert_gradients_close(got.gradient, want.gradient, 1e-4)


# Tests --------------------------------------------------------------------------------------------


def test_the_examples_put_the_step_to_the_test():
    lengths = BATCH.crop_prompt_valid.sum(-1)
    assert len(set(lengths)) >= 3 and len(set(BATCH.question_valid.sum(-1))) >= 3
    assert len({tuple(size) for size in BATCH.size}) == 4
    rollouts = [r for n in (1, 2, 4) for group in naive_rollouts(n) for r in group]
    assert len({r.box for r in rollouts}) > 20
    for r in rollouts:
        assert box_lib.is_valid(np.array(r.box))
    likelihood = [
        naive_likelihood(EXAMPLES[0], naive_pictures(EXAMPLES[0], r.box), "sum")
        for r in naive_rollouts(1)[0]
    ]
    assert np.std(likelihood) > 0.02


def test_what_follows_a_sequence_is_never_seen():
    ids = tiny.PROMPTS.crop(EXAMPLES[0]["question"]).ids
    tiles, _ = images.tile(EXAMPLES[0]["image"], tiny.SIDE, tiny.SIDE)
    alone = naive_logits(POLICY, ids, tiles)
    np.testing.assert_allclose(
        alone, naive_logits(POLICY, extended(ids), tiles)[: len(ids)], atol=1e-4
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_fused_equals_naive(name):
    config = CONFIGS[name]
    got, state, metrics = fused(config)
    assert_same(got, naive(config, got.pictures))
    assert (state.reference is None) == (config.beta == 0)
    assert metrics["sampler_gap"] < 1e-4
    assert metrics["unscored"] == 0 and metrics["valid"] == 1
    np.testing.assert_allclose(metrics["area"], box_lib.area(got.boxes).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["log_likelihood"], got.likelihood.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["reward"], got.likelihood.mean() + 1, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(got.gradient), rtol=1e-5)


def test_rewards_that_are_no_number_are_left_out():
    config = dataclasses.replace(CONFIG, beta=0.0)
    spoil = np.zeros((len(EXAMPLES), GROUP), bool)
    spoil[0, 1] = spoil[2] = True  # one rollout and a whole group
    spoil[3, 1:] = True  # all but one, which has nothing to be compared with
    got, state, metrics = fused(config, spoil)
    assert_same(got, naive(config, got.pictures, spoil))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state.params))
    assert all(jnp.isfinite(x) for x in metrics.values())
    assert metrics["unscored"] == spoil.mean()


TRACES = []


@pytest.fixture(scope="module")
def step():
    """One jitted step for the tests below; every trace of it is noted."""
    inner = build(CONFIG)

    def traced(*args: Any):
        TRACES.append(1)
        return inner(*args)

    return jitted(traced, donate_argnums=0)


def test_compiles_once_and_never_waits_for_the_host(step):
    batches = [jax.device_put(tiny.make_batch(tiny.make_examples(4, seed))) for seed in (0, 1)]
    keys = list(jax.random.split(KEY, 20))
    state = make_state(CONFIG)
    state, _ = step(state, batches[0], KEY)  # traces; constants go to the device once
    history = []
    with jax.transfer_guard("disallow"):
        for i, key in enumerate(keys):
            state, metrics = step(state, batches[i % 2], key)
            history.append(metrics)
        with pytest.raises(Exception, match="[Dd]isallowed"):  # the guard does guard
            jnp.sin(np.float32(0))
    assert len(TRACES) == 1 and step._cache_size() == 1
    assert state.step == 21
    history = jax.device_get(history)
    for metrics in history:
        assert all(np.isfinite(x) for x in metrics.values())
        assert metrics["sampler_gap"] < 1e-4
        assert 8 <= metrics["decode_iterations"] <= tiny.GRAMMAR.max_choices
    plain = tiny.GRAMMAR.encode(np.array([12, 34, 56, 78])).valid.sum()
    print(plain, np.mean([m["decode_iterations"] for m in history]))
    print("gap", max(m["sampler_gap"] for m in history))


def test_no_divergence_from_oneself(step):
    state = make_state(CONFIG)
    _, metrics = step(state._replace(reference=jax.tree.map(jnp.copy, POLICY)), BATCH, KEY)
    assert metrics["kl"] == 0


def test_a_target_gone_bad_changes_nothing(step):
    state = make_state(CONFIG)
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), TARGET)
    state, metrics = step(state._replace(target=bad), BATCH, KEY)
    assert metrics["unscored"] == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, POLICY)


def test_true_boxes_cannot_enter(step):
    assert not [name for name in pipeline.Batch._fields if "box" in name]
    results = []
    for box in ((10, 20, 30, 40), (0, 0, 1, 1)):
        source = [{**example, "box": box} for example in EXAMPLES]
        batch = next(pipeline.training_batches(source, tiny.PREPARE, 4, seed=0))
        results.append((batch, *step(make_state(CONFIG), batch, KEY)))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_reward_chunks_change_nothing():
    boxes = np.array([[r.box for r in group] for group in naive_rollouts(1)])

    @functools.partial(jitted, static_argnums=0)
    def score(chunk: int):
        target = nnx.merge(GRAPHDEF, TARGET)
        batch = jax.tree.map(jnp.asarray, BATCH)
        picture = rewards.read_picture(target, tiny.TEMPLATE, batch.canvas, batch.size)
        return rewards.answer_log_probs(target, tiny.TEMPLATE, picture, batch, boxes, chunk)

    results = [score(chunk) for chunk in (1, 2, 4)]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=0, atol=1e-5)
    assert not results[0][~np.broadcast_to(BATCH.answer_valid[:, None], results[0].shape)].any()
    total, mean = (
        rewards.log_likelihood(results[0], BATCH.answer_valid, kind) for kind in ("sum", "mean")
    )
    np.testing.assert_allclose(total, mean * BATCH.answer_valid.sum(-1)[:, None], rtol=1e-5)
    with pytest.raises(ValueError, match="reward_chunk=3"):
        score(3)


def test_settings_that_cannot_work_are_refused():
    for change in (
        {"group": 1},
        {"temperature": 0},
        {"reward_chunk": 3},
        {"advantage": "none"},
        {"likelihood": "max"},
    ):
        with pytest.raises(ValueError, match=next(iter(change))):
            dataclasses.replace(CONFIG, **change)
