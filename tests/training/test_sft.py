# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx

from cropvlm_jax import geometry
from cropvlm_jax.data import batching
from cropvlm_jax.models import lora
from cropvlm_jax.pixels import host
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training import sft

EXAMPLES = tiny.make_examples(3)
BOXES = ((12, 5, 40, 33), (0, 0, 100, 100), (3, 14, 15, 92))
OPTIMIZER = optax.adam(1e-2)
GRAPHDEF, PARAMS = tiny.make_model(0)
KEY = jax.random.key(0)  # of the dropout of adapters, which there are not


def conversations():
    for example, box in zip(EXAMPLES, BOXES, strict=True):
        tiles, _ = host.tile(example["image"], tiny.SIDE, tiny.SIDE)
        yield tiles, tiny.CONVERSATIONS.crop(example["question"], box_text=geometry.to_text(box))


def make_batch() -> batching.SupervisedBatch:
    rows = [
        batching.supervised_row(prompt, tiles, prompt_tokens=48, completion_tokens=24)
        for tiles, prompt in conversations()
    ]
    return batching.stack(rows)


@pytest.fixture(scope="module")
def step():
    return jax.jit(sft.SFTStep(GRAPHDEF, OPTIMIZER), donate_argnums=0)


def fresh() -> TrainState:
    return TrainState.create(jax.tree.map(jnp.copy, PARAMS), OPTIMIZER)  # steps donate it


def test_the_loss_is_that_of_each_conversation_by_itself(step):
    @jax.jit
    def logits(params, ids, tiles):
        model = nnx.merge(GRAPHDEF, params)
        return model(ids[None], jnp.ones((1, ids.size), bool), tiles[None])[0]

    losses, lengths = [], set()
    for tiles, prompt in conversations():
        log_probs = np.asarray(jax.nn.log_softmax(logits(PARAMS, prompt.ids, tiles)))
        span = range(prompt.completion.start, prompt.completion.stop)
        losses += [-log_probs[t - 1, prompt.ids[t]] for t in span]
        lengths |= {(prompt.completion.start, len(span))}
    assert len(lengths) == 3  # padded differently
    _, metrics = step(fresh(), make_batch(), KEY)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    assert metrics["tokens"] == len(losses)


def test_padding_is_never_seen(step):
    batch = make_batch()
    noise = np.random.default_rng(0).integers(3, 259, (2, 3, 48))
    spoilt = batch._replace(
        prompt=np.where(batch.prompt_valid, batch.prompt, noise[0]),
        completion=np.where(batch.completion_valid, batch.completion, noise[1, :, :24]),
    )
    assert (spoilt.prompt != batch.prompt).any() and (spoilt.completion != batch.completion).any()
    spoilt = jax.tree.map(lambda new, old: new.astype(old.dtype), spoilt, batch)
    results = [step(fresh(), b, KEY) for b in (batch, spoilt)]
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_only_completions_are_learnt(step):
    batch = make_batch()
    # An example without a completion counts for nothing, whatever it shows.
    none = batch.completion_valid.copy()
    none[1] = False
    results = []
    for picture in (0, 255):
        pictures = batch.images.copy()
        pictures[1] = picture
        results.append(step(fresh(), batch._replace(completion_valid=none, images=pictures), KEY))
    assert results[0][1]["tokens"] == none.sum()
    assert results[0][1]["loss"] == results[1][1]["loss"]
    for a, b in zip(*(jax.tree.leaves(state.params) for state, _ in results), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_steps_lower_the_loss(step):
    state, batch, losses = fresh(), make_batch(), []
    for _ in range(30):
        state, metrics = step(state, batch, KEY)
        losses.append(float(metrics["loss"]))
    assert losses[1] < losses[0] and losses[-1] < losses[0] / 2
    assert state.step == 30 and np.isfinite(metrics["grad_norm"])
    assert step._cache_size() == 1


def test_microbatches_add_up(step):
    batch = make_batch()
    assert len(set(batch.completion_valid.sum(-1))) > 1  # a mean of means would be another one
    split = jax.jit(sft.SFTStep(GRAPHDEF, OPTIMIZER, gradient_accumulation_steps=3))
    results = [step_(fresh(), batch, KEY) for step_ in (step, split)]
    (whole, expected), (parts, actual) = results
    assert actual["tokens"] == expected["tokens"] and parts.step == 1
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5)
    for a, b in zip(*(jax.tree.leaves(s.opt_state[0].mu) for s in (parts, whole)), strict=True):
        # Keys' biases have no gradient but rounding.
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * abs(b).max() + 1e-9)
    with pytest.raises(
        ValueError, match="gradient_accumulation_steps=2 does not divide the 3 rows"
    ):
        jax.eval_shape(sft.SFTStep(GRAPHDEF, OPTIMIZER, 2), fresh(), batch, KEY)


def test_adapters_learn_under_dropout_and_the_rest_stays():
    settings = lora.LoRAConfig(rank=2, alpha=4, dropout=0.5)
    adapted = lora.add(nnx.merge(GRAPHDEF, PARAMS), settings, nnx.Rngs(0))
    graphdef, params, frozen = nnx.split(adapted, lora.LoRAParam, ...)
    params = jax.tree.map(lambda x: x + 0.1, params)  # a fresh adapter's second half is zero
    step = jax.jit(sft.SFTStep(graphdef, OPTIMIZER))
    state, batch, losses = TrainState.create(params, OPTIMIZER, frozen=(frozen,)), make_batch(), []
    dropped = {float(step(state, batch, jax.random.key(seed))[1]["loss"]) for seed in range(3)}
    assert len(dropped) == 3  # each key drops something else
    for i in range(30):
        state, metrics = step(state, batch, jax.random.fold_in(KEY, i))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    jax.tree.map(np.testing.assert_array_equal, state.frozen, (frozen,))
