# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The fused step against the same algorithm written naively (`oracles/naive_grpo.py`)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from oracles import naive_grpo
from oracles.naive_grpo import (
    BATCH,
    CONFIG,
    ENTROPY_COEF,
    EXAMPLES,
    GRAPHDEF,
    KEY,
    LEARNING_RATE,
    POLICY,
    TARGET,
    TARGET_GRAPHDEF,
    Case,
    Result,
    jitted,
    naive_rollouts,
)

from cropvlm_jax import geometry
from cropvlm_jax.data import batching, order
from cropvlm_jax.grpo import reading, rewards
from cropvlm_jax.grpo.step import GRPOStep
from cropvlm_jax.models import lora
from cropvlm_jax.pixels import host, tile_crops
from cropvlm_jax.scoring import in_graph
from cropvlm_jax.train_state import TrainState

SAMPLER_GAP = 0.25  # by which a decoding would be wrong about its log-probabilities

# Each has several features; microbatches and reward chunks change along.
CASES = {
    "grpo-group-gain": Case(
        dataclasses.replace(
            CONFIG,
            beta=0.0,
            gain=True,
            area_weight=0.7,
            reward_chunk=1,
            gradient_accumulation_steps=2,
        )
    ),
    "dr_grpo-none-official": Case(
        dataclasses.replace(
            CONFIG,
            loss_type="dr_grpo",
            scale_rewards="none",
            normaliser=32,
            temperature_in_log_probs=False,
            kl_loss_type="k3",
            official_span=True,
            reward_chunk=2,
        )
    ),
    "token-batch-accuracy-nan": Case(
        dataclasses.replace(
            CONFIG,
            loss_type="dapo",
            scale_rewards="batch",
            gain=True,
            format_weight=0.5,
            likelihood="mean",
            accuracy_weight=2.0,
            accuracy="anls",
            answer_tokens=4,
        ),
        spoilt=((0, 0), (2, 0), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 3)),
    ),
    "token-group-updates-adapters-tiles": Case(
        dataclasses.replace(
            CONFIG,
            loss_type="dapo",
            num_iterations=2,
            gradient_accumulation_steps=2,
            epsilon_high=0.3,
        ),
        adapters=True,
        grid=(2, 2),
    ),
    "grpo-none-normalised-verification-spread-entropy": Case(
        dataclasses.replace(
            CONFIG,
            scale_rewards="none",
            multi_objective_aggregation="normalize_then_sum",
            verification_weight=0.5,
            area_weight=0.7,
            min_reward_std=1.0,
            entropy_target=2.4,
            gradient_accumulation_steps=2,
        )
    ),
    "dr_grpo-group-boxes-abstain": Case(
        dataclasses.replace(
            CONFIG,
            max_boxes=3,
            abstain=True,
            token_price=5.0,
            verification_weight=0.5,
            accuracy_weight=2.0,
            accuracy="anls",
            answer_tokens=4,
            area_weight=0.7,
            loss_type="dr_grpo",
            format_weight=0.5,
            reward_chunk=2,
        ),
        gold=(("th th",), ("that",), ("this this",), ("t%",)),
    ),
    "grpo-group-boxes-budgets": Case(
        dataclasses.replace(CONFIG, max_boxes=3, abstain=True, beta=0.0),
        prices=(0.0, 3.0, 1.0, 7.0),
    ),
    "dr_grpo-group-looks-abstain-updates-tiles": Case(
        dataclasses.replace(
            CONFIG,
            looks=2,
            abstain=True,
            token_price=5.0,
            area_weight=0.7,
            loss_type="dr_grpo",
            format_weight=0.5,
            num_iterations=2,
            gradient_accumulation_steps=2,
            epsilon_high=0.3,
        ),
        grid=(2, 2),
    ),
}


# Updates like SGD and keeps the gradient, exactly, as its state.
KEEP_GRADIENT = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, _, params: (jax.tree.map(lambda g: -LEARNING_RATE * g, grads), grads),
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FlawedStep(GRPOStep):
    """A step whose sampler errs about its log-probabilities, and some of whose rewards are NaN."""

    spoil: np.ndarray | None = None  # bool `[B, G]`

    def sample(self, *args: Any):
        rollouts = super().sample(*args)
        return rollouts._replace(log_probs=rollouts.log_probs + SAMPLER_GAP)

    def reward(self, *args: Any):
        prompts, found = super().reward(*args)
        if self.spoil is not None:
            found = jax.tree.map(lambda x: jnp.where(self.spoil, jnp.nan, x), found)
        return prompts, found


def make_state(case: Case) -> TrainState:
    # Copies, because steps donate their state.
    _, policy, frozen = case.model
    reference = case.reference if case.config.beta and not case.adapters else None
    policy, frozen, reference, target = jax.tree.map(jnp.copy, (policy, frozen, reference, TARGET))
    entropy_coef = jnp.float32(ENTROPY_COEF) if case.config.entropy_target else None
    return TrainState.create(
        policy,
        KEEP_GRADIENT,
        frozen=frozen,
        reference=reference,
        target=target,
        entropy_coef=entropy_coef,
    )


def build(case: Case, kind: Any = GRPOStep, **options: Any) -> GRPOStep:
    return kind(
        policy=case.model[0],
        grammar=case.grammar,
        optimizer=KEEP_GRADIENT,
        config=case.config,
        base=GRAPHDEF if case.adapters else None,
        target=TARGET_GRAPHDEF,
        template=tiny.TEMPLATE,
        vocabulary=in_graph.Vocabulary.from_tokenizer(tiny.TOKENIZER),
        longest_edge=case.longest_edge,
        second_grammar=case.second_grammar,
        **options,
    )


@functools.partial(jitted, static_argnums=3)
def cut(canvas: jax.Array, size: jax.Array, boxes: jax.Array, side: int) -> jax.Array:
    """What the target sees: uint8 `[B, 1 + G * K, S, S, 3]` of boxes `[B, G, K, 4]`."""
    whole = jnp.broadcast_to(jnp.array(geometry.FULL), (len(boxes), 1, 4))
    every = jnp.concatenate([whole, boxes.reshape(len(boxes), -1, 4)], 1)
    return tile_crops.crops(canvas, size, every, side)


@functools.cache
def jitted_run(case: Case) -> Any:
    """A step that returns its experience too."""
    return jitted(build(case, FlawedStep, spoil=case.spoil if case.spoilt else None).run)


def fused(case: Case) -> tuple[Result, TrainState]:
    """Runs one fused step."""
    state, metrics, experience = jitted_run(case)(make_state(case), case.batch, KEY)
    count = case.config.gradient_accumulation_steps

    def in_order(parts: jax.Array) -> np.ndarray:
        """Microbatch i holds every `count`-th row."""
        if count == 1:
            return np.asarray(parts)
        return np.asarray(parts).swapaxes(0, 1).reshape(len(EXAMPLES), *parts.shape[2:])

    boxes, number = in_order(experience.boxes), in_order(experience.count)
    there = (np.arange(boxes.shape[2]) < number[..., None])[..., None]
    result = Result(
        np.where(there, np.round(np.float64(boxes), 2), 0),
        number,
        np.asarray(cut(case.batch.canvas, case.batch.size, boxes, tiny.SIDE)),
        in_order(experience.rewards.parts["likelihood"]),
        metrics,
        state.opt_state,
        state.params,
        None if experience.turns is None else in_order(experience.turns.tiles),
    )
    return result, state


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


def assert_same(got: Result, want: Result, gain: bool):
    np.testing.assert_array_equal(got.count, want.count)
    np.testing.assert_array_equal(got.boxes, want.boxes)
    np.testing.assert_allclose(got.likelihood, want.likelihood, rtol=0, atol=2e-5)
    tolerances = {"loss": (0, 1e-5), "kl": (1e-4, 1e-6), "kl_k3": (1e-4, 1e-6)}
    if gain:  # a difference of likelihoods, and small: as exact as they are
        names = "reward", "reward/likelihood", "reward/verification"
        tolerances |= dict.fromkeys(names, (0, 2e-5))
    for name in want.metrics:
        rtol, atol = tolerances.get(name, (1e-5, 1e-6))
        np.testing.assert_allclose(
            got.metrics[name], want.metrics[name], rtol=rtol, atol=atol, err_msg=name
        )
    assert_gradients_close(got.gradient, want.gradient, 1e-4)


# Tests --------------------------------------------------------------------------------------------


def test_the_examples_put_the_step_to_the_test():
    lengths = BATCH.crop_prompt_valid.sum(-1)
    assert len(set(lengths)) >= 3 and len(set(BATCH.question_valid.sum(-1))) >= 3
    assert len({tuple(size) for size in BATCH.size}) == 4
    rollouts = [r for n in (1, 2) for group in naive_rollouts(n) for r in group]
    assert len({r.boxes for r in rollouts}) > 20
    for r in rollouts:
        assert geometry.is_valid(np.array(r.boxes)).all()
    likelihood = [
        naive_grpo.naive_likelihood(EXAMPLES[0], naive_grpo.naive_pictures(EXAMPLES[0], *r.boxes))
        for r in naive_rollouts(1)[0]
    ]
    assert np.std(likelihood) > 0.02


def test_what_follows_a_sequence_is_never_seen():
    ids = tiny.CONVERSATIONS.crop(EXAMPLES[0]["question"]).ids
    tiles, _ = host.tile(EXAMPLES[0]["image"], tiny.SIDE, tiny.SIDE)
    alone = naive_grpo.naive_logits(POLICY, ids, tiles)
    np.testing.assert_allclose(
        alone,
        naive_grpo.naive_logits(POLICY, naive_grpo.extended(ids), tiles)[: len(ids)],
        atol=1e-4,
    )


@pytest.mark.parametrize("name", CASES)
def test_fused_equals_naive(name):
    case = CASES[name]
    got, state = fused(case)
    want = naive_grpo.naive(case, got.pictures, got.tiles)
    assert_same(got, want, bool(case.config.compared))
    # The decoding's own log-probabilities have no part in the naive version.
    assert got.metrics.keys() == want.metrics.keys() | {"sampler_gap"}
    exact = case.config.kl_loss_type == "exact"
    assert ("kl" in got.metrics) == (case.config.beta > 0 and exact)
    assert ("kl_k3" in got.metrics) == (case.config.beta > 0 and not exact)
    np.testing.assert_allclose(got.metrics["sampler_gap"], SAMPLER_GAP, atol=1e-4)
    if not case.config.abstain:  # one rollout that is left has nothing to be compared with
        assert got.metrics["zero_variance_groups"] == ((~case.spoil).sum(-1) < 2).mean()
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((got.params, got.metrics)))
    assert state.step == 1
    if case.config.entropy_target:
        change = 0.005 if want.metrics["entropy"] <= case.config.entropy_target else -0.005
        np.testing.assert_allclose(state.entropy_coef, ENTROPY_COEF + change)
    if case.config.looks > 1:
        assert 0 < got.metrics["no_crop"] < 1
        assert 0 < got.metrics["second_look"] < 1 - got.metrics["no_crop"]  # and some stop
    if case.config.num_iterations > 1:
        assert_gradients_close(
            jax.tree.map(jnp.subtract, got.params, case.model[1]),
            jax.tree.map(jnp.subtract, want.params, case.model[1]),
            1e-3,  # differences of rounded weights
        )
        assert got.metrics["clip_low_fraction"] > 0 and got.metrics["clip_high_fraction"] > 0


def test_one_program_whatever_is_sampled_and_nothing_earns_exactly_nothing():
    case = CASES["dr_grpo-group-boxes-abstain"]
    run, counts = jitted_run(case), set()
    for number in range(3):
        _, metrics, experience = run(make_state(case), case.batch, jax.random.key(number))
        count, total = np.asarray(experience.count), np.asarray(experience.rewards.total)
        counts |= set(count.ravel().tolist())
        assert (total[count == 0] == 0).all() and (total[count > 0] != 0).all()
        assert metrics["no_crop"] == (count == 0).mean() and metrics["boxes"] == count.mean()
    assert counts == {0, 1, 2, 3} and run._cache_size() == 1


def test_slots_beyond_the_count_change_nothing():
    """Of three slots one is used: the target says what it says where there is one slot."""
    config = dataclasses.replace(CONFIG, max_boxes=3, gain=True, accuracy_weight=1.0)
    gold = CASES["token-batch-accuracy-nan"].batch.gold
    batch = jax.tree.map(jnp.asarray, BATCH._replace(gold=gold))
    boxes = np.random.default_rng(0).integers(0, 50, (4, 2, 3, 4))
    boxes[..., 2:] += 50

    @functools.partial(jitted, static_argnums=0)
    def worth(config: Any, boxes: jax.Array, count: jax.Array):
        ask = rewards.TargetRewards(
            template=tiny.TEMPLATE,
            config=config,
            vocabulary=in_graph.Vocabulary.from_tokenizer(tiny.TOKENIZER),
        )
        return ask(nnx.merge(GRAPHDEF, TARGET), batch, boxes, count).parts

    one = np.ones((4, 2), int)
    want = worth(dataclasses.replace(config, max_boxes=1), boxes[:, :, :1], one)
    for filling in (boxes[:, :, 1:], np.broadcast_to(geometry.FULL, (4, 2, 2, 4))):
        got = worth(config, np.concatenate([boxes[:, :, :1], filling], 2), one)
        for name, part in want.items():
            np.testing.assert_allclose(got[name], part, rtol=0, atol=2e-5, err_msg=name)


TRACES = []


@pytest.fixture(scope="module")
def step():
    """One jitted step for the tests below; every trace of it is noted."""
    inner = build(Case(CONFIG))

    def traced(*args: Any):
        TRACES.append(1)
        return inner(*args)

    return jitted(traced, donate_argnums=0)


def test_compiles_once_and_never_waits_for_the_host(step):
    batches = [jax.device_put(tiny.make_batch(tiny.make_examples(4, seed))) for seed in (0, 1)]
    keys = list(jax.random.split(KEY, 20))
    state = make_state(Case(CONFIG))
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
    box = np.array([[12, 34, 56, 78]])
    shortest = tiny.GRAMMAR.encode(box, np.array(1)).valid.sum()
    assert 2 * tiny.GRAMMAR.iterations <= shortest


def test_no_divergence_from_oneself(step):
    state = make_state(Case(CONFIG))
    _, metrics = step(state._replace(reference=jax.tree.map(jnp.copy, POLICY)), BATCH, KEY)
    assert metrics["kl"] == 0


def test_a_target_gone_bad_changes_nothing(step):
    state = make_state(Case(CONFIG))
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), TARGET)
    state, metrics = step(state._replace(target=bad), BATCH, KEY)
    assert metrics["unscored"] == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, POLICY)


def test_true_boxes_cannot_enter(step):
    assert not [name for name in batching.Batch._fields if "box" in name]
    results = []
    for box in ((10, 20, 30, 40), (0, 0, 1, 1)):
        source = [{**example, "box": box} for example in EXAMPLES]
        plan = order.plan_batches(range(4), np.zeros(4, int), 4)
        batch = order.PlannedBatches(source, tiny.PREPARE, plan)[0]
        results.append((batch, *step(make_state(Case(CONFIG)), batch, KEY)))
    jax.tree.map(np.testing.assert_array_equal, *results)


@functools.cache
def adapted_step() -> Any:
    """The step of adapters everywhere, three towers in use, that several tests compare with."""
    return jitted(build(Case(CONFIG, adapters=True)))


def test_a_tower_that_is_not_trained_is_used_once():
    """Adapters of the decoder alone, the tower shared by policy, reference and target, against
    adapters everywhere whose vision half is zero, three towers in use."""
    everywhere = Case(CONFIG, adapters=True)
    _, trained, frozen = everywhere.model
    untouched = {"vision", "connector"}
    trained = nnx.State(
        {k: jax.tree.map(jnp.zeros_like, v) if k in untouched else v for k, v in trained.items()}
    )
    text = lora.LoRAConfig(rank=2, alpha=4, dropout=0.0, targets=r"text\.layers\..*")
    decoder_only = lora.add(nnx.merge(GRAPHDEF, POLICY), text, nnx.Rngs(0))
    text_graphdef, _, *rest = nnx.split(decoder_only, lora.LoRAParam, ...)
    text_trained = nnx.State({"text": trained["text"]})
    target = nnx.State({k: POLICY[k] if k in untouched else v for k, v in TARGET.items()})

    def run(step: Any, params: Any, frozen: Any):
        params, frozen, own = jax.tree.map(jnp.copy, (params, frozen, target))
        state = TrainState.create(params, KEEP_GRADIENT, frozen=frozen, target=own)
        return step(state, BATCH, KEY)

    shared = dataclasses.replace(build(everywhere), policy=text_graphdef, shared_tower=True)
    got, got_metrics = run(jitted(shared), text_trained, tuple(rest))
    want, want_metrics = run(adapted_step(), trained, frozen)
    for name in ("kl", "area", "entropy", "sampler_gap"):
        np.testing.assert_allclose(got_metrics[name], want_metrics[name], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        got_metrics["reward/likelihood"], want_metrics["reward/likelihood"], rtol=1e-5
    )
    pairs = zip(
        jax.tree.leaves(got.opt_state), jax.tree.leaves(want.opt_state["text"]), strict=True
    )
    for mine, other in pairs:
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)


def test_reference_and_target_share_a_tower_that_the_policy_trains():
    _, trained, frozen = Case(CONFIG, adapters=True).model
    alike = {"vision", "connector"}
    target = nnx.State({k: POLICY[k] if k in alike else v for k, v in TARGET.items()})

    def run(step: Any):
        params, held, own = jax.tree.map(jnp.copy, (trained, frozen, target))
        state = TrainState.create(params, KEEP_GRADIENT, frozen=held, target=own)
        return step(state, BATCH, KEY)

    shared = dataclasses.replace(build(Case(CONFIG, adapters=True)), shared_tower=True)
    got, want = run(jitted(shared)), run(adapted_step())
    assert want[1]["kl"] > 0
    # The tile was resized on the host, the picture on the device: a grey level may differ.
    for mine, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapters", [True, False])
def test_a_target_without_a_tower_has_that_of_the_reference(adapters, step):
    case = Case(CONFIG, adapters=adapters)
    state = make_state(case)
    reference = state.frozen[0] if adapters else state.reference
    text = nnx.State({"text": state.target["text"]})
    tower = nnx.State({part: reference[part] for part in ("vision", "connector")})
    whole = jax.tree.map(jnp.copy, state._replace(target=nnx.merge_state(text, tower)))
    got, got_metrics = jitted(build(case))(state._replace(target=text), BATCH, KEY)
    want, want_metrics = (adapted_step() if adapters else step)(whole, BATCH, KEY)
    own = got.params, got.opt_state, got_metrics
    jax.tree.map(np.testing.assert_array_equal, own, (want.params, want.opt_state, want_metrics))


def test_reward_chunks_change_nothing():
    boxes = np.array([[r.boxes for r in group] for group in naive_rollouts(1)])
    count = np.ones(boxes.shape[:2], int)

    @functools.partial(jitted, static_argnums=0)
    def score(chunk: int):
        target = nnx.merge(GRAPHDEF, TARGET)
        batch = jax.tree.map(jnp.asarray, BATCH)
        whole = reading.encode_whole(target, batch.canvas, batch.size)
        picture = reading.read_picture(target, tiny.TEMPLATE, whole)

        def ask(replies: tuple[jax.Array, jax.Array]) -> Any:
            crops = reading.Crops.of(target, batch, *replies)
            gold = reading.answer_log_probs(target, tiny.TEMPLATE, batch, crops, picture)
            return gold, reading.own_answers(target, tiny.TEMPLATE, picture, batch, crops, 5)

        return rewards.in_chunks(ask, (jnp.asarray(boxes), jnp.asarray(count)), chunk)

    results = [score(chunk) for chunk in (1, 4)]
    for log_probs, own in results[1:]:
        np.testing.assert_allclose(log_probs, results[0][0], rtol=0, atol=1e-5)
        jax.tree.map(np.testing.assert_array_equal, own, results[0][1])
    span = jnp.asarray(BATCH.answer_valid)
    total, mean = (reading.log_likelihood(results[0][0], span, kind) for kind in ("sum", "mean"))
    np.testing.assert_allclose(total, mean * BATCH.answer_valid.sum(-1)[:, None], rtol=1e-5)
    with pytest.raises(ValueError, match="reward_chunk=3"):
        score(3)


def test_invalid_boxes_are_worth_the_official_corner():
    """The target reads the 2 x 2 px corner, which some valid box is as well."""
    examples = [{**EXAMPLES[0], "image": EXAMPLES[i]["image"]} for i in (1, 2)]
    corners = [(0, 0, 2, 3), (0, 0, 3, 2)]  # of 73 x 111 px and of 96 x 64 px
    invalid = [(40, 30, 20, 90), (40, 30, 60, 30)]
    boxes = np.array([[corner, *invalid] for corner in corners])[:, :, None]

    @jitted
    def worth(batch: batching.Batch, boxes: jax.Array):
        target = nnx.merge(GRAPHDEF, TARGET)
        ask = rewards.TargetRewards(template=tiny.TEMPLATE, config=CONFIG)
        return ask(target, batch, boxes, jnp.ones((2, 3), int))

    likelihood = np.asarray(worth(tiny.make_batch(examples), boxes).parts["likelihood"])
    np.testing.assert_allclose(likelihood, np.broadcast_to(likelihood[:, :1], (2, 3)), rtol=1e-6)


def test_accuracy_needs_gold_answers():
    case = CASES["token-batch-accuracy-nan"]
    with pytest.raises(ValueError, match="batches with `gold` answers"):
        jax.eval_shape(build(case), make_state(case), BATCH, KEY)


def test_settings_that_cannot_work_are_refused():
    for change in (
        {"num_generations": 1},
        {"temperature": 0},
        {"reward_chunk": 3},
        {"loss_type": "sum"},
        {"scale_rewards": "std"},
        {"scale_rewards": "batch", "gradient_accumulation_steps": 2},
        {"num_iterations": 0},
        {"answer_tokens": 0},
        {"normaliser": 32},
        {"likelihood_weight": 0},
        {"likelihood": "max"},
        {"gain": True, "likelihood_weight": 0, "accuracy_weight": 1},
        {"verification_weight": -1},
        {"multi_objective_aggregation": "sum"},
        {"min_reward_std": -0.1},
        {"entropy_target": 3.0},
        {"looks": 3},
        {"looks": 2, "max_boxes": 2},
    ):
        with pytest.raises(ValueError, match=next(iter(change))):
            dataclasses.replace(CONFIG, **change)
