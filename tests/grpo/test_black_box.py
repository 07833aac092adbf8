# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The step in two halves against the fused one: one target, inside and outside of the graph."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx

from cropvlm_jax import geometry, scoring
from cropvlm_jax.data import batching
from cropvlm_jax.grpo.black_box import BlackBoxStep, ask, without_host_parts
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.step import GRPOStep
from cropvlm_jax.hub.export import export, write_processor_files
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.readers.base import ReaderUnavailable, Reply
from cropvlm_jax.readers.vlm import VLMReader
from cropvlm_jax.scoring import in_graph
from cropvlm_jax.train_state import TrainState

GRAPHDEF, POLICY = tiny.make_model(0)
UNDECIDED = tiny.make_model(11)[1]  # about whether and how often to look
TARGET = tiny.make_model(2)[1]
GOLD = (["th th"], ["iefWhich", "Which"], ["this this"], ["ief help", "11 this"])  # or nearly
EXAMPLES = [
    example | {"answers": gold} for example, gold in zip(tiny.make_examples(4), GOLD, strict=True)
]
KEY = jax.random.key(7)
CONFIG = GRPOConfig(
    num_generations=4,
    temperature=0.8,
    beta=0.1,
    likelihood_weight=0.0,
    accuracy_weight=2.0,
    accuracy="anls",
    answer_tokens=4,
    area_weight=0.3,
)
SECOND_GRAMMAR = geometry.Grammar.from_tokenizer(tiny.TOKENIZER, abstain=True)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))


def make_state(config: GRPOConfig = CONFIG) -> TrainState:
    policy = UNDECIDED if config.varies or config.looks > 1 else POLICY
    policy, reference, target = jax.tree.map(jnp.copy, (policy, policy, TARGET))
    coef = jnp.float32(0.1) if config.entropy_target else None
    return TrainState.create(
        policy, OPTIMIZER, reference=reference, target=target, entropy_coef=coef
    )


def make_batches(in_step: bool = False, looks: int = 1) -> tuple[batching.Batch, batching.Batch]:
    """The same examples for a target in the graph and for one outside."""
    inside = tiny.make_batch(EXAMPLES, in_step=in_step, looks=looks)
    gold = [scoring.encode_gold(answers, "anls", 3, 40) for answers in GOLD]
    inside = inside._replace(gold=jax.tree.map(lambda *x: np.stack(x), *gold))
    prepare = dataclasses.replace(
        tiny.PREPARE,
        cropper_input=tiny.make_cropper_input(tiny.SIDE, in_step, looks),
        target_conversations=None,
    )
    outside = batching.stack([prepare(example, i) for i, example in enumerate(EXAMPLES)])
    return inside, outside


@pytest.fixture(scope="module")
def vlm(tmp_path_factory) -> VLMReader:
    """The target of the graph as users open it."""
    folder = tmp_path_factory.mktemp("target")
    write_processor_files(folder, tiny.CONFIG, tiny.TOKENIZER, longest_edge=tiny.SIDE)
    export(folder, nnx.merge(GRAPHDEF, TARGET), Pretrained.open(folder))
    reader = VLMReader.from_pretrained(folder)
    answer = reader.answer
    reader.answer = lambda images, questions: answer(images, questions, CONFIG.answer_tokens)
    return reader


def ask_one(reader, config, batch, boxes):
    """Asks about replies of one box each, `[B, G, 4]`."""
    return ask(reader, config, batch, boxes[:, :, None], np.ones(boxes.shape[:2], int))


def make_step(config, **target):
    tokenizer = tiny.SEVERAL if config.max_boxes > 1 else tiny.TOKENIZER
    return GRPOStep(
        policy=GRAPHDEF,
        grammar=geometry.Grammar.from_tokenizer(tokenizer, config.max_boxes, config.abstain),
        optimizer=OPTIMIZER,
        config=config,
        longest_edge=tiny.SIDE,
        second_grammar=SECOND_GRAMMAR if config.looks > 1 else None,
        **target,
    )


LIKELY = {
    "likelihood_weight": 0.1,
    "gain": True,
    "likelihood": "mean",
    "verification_weight": 0.2,
    "multi_objective_aggregation": "normalize_then_sum",
    "scale_rewards": "batch",
    "min_reward_std": 0.05,
    "entropy_target": 2.4,
}


BOXES = {
    "max_boxes": 3,
    "abstain": True,
    "token_price": 5.0,
    "likelihood_weight": 0.1,
    "verification_weight": 0.2,
    "reward_chunk": 2,
}
LOOKS = {"looks": 2, "likelihood_weight": 0.1, "area_weight": 10.0, "beta": 0.0}


@pytest.mark.parametrize(
    "accumulate, updates, rewards",
    [(1, 1, {}), (2, 2, {}), (1, 1, LIKELY), (1, 1, BOXES), (1, 1, LOOKS)],
    ids=["accuracy", "microbatches", "likelihoods", "boxes", "looks"],
)
def test_the_halves_do_what_the_fused_step_does(vlm, accumulate, updates, rewards):
    config = dataclasses.replace(
        CONFIG, gradient_accumulation_steps=accumulate, num_iterations=updates, **rewards
    )
    in_step = accumulate > 1  # the devices cut the tiles
    inside, outside = make_batches(in_step, config.looks)
    inner = make_step(
        config,
        target=GRAPHDEF,
        template=tiny.TEMPLATE,
        vocabulary=in_graph.Vocabulary.from_tokenizer(tiny.TOKENIZER),
        same_picture=in_step,
    )
    fused = jax.jit(inner)
    want, want_metrics = fused(make_state(config), inside, KEY)
    step = BlackBoxStep(make_step(config), vlm)
    state = make_state(config)
    got, metrics = step(state, outside, KEY)

    assert metrics.keys() == want_metrics.keys()
    assert metrics["reward_std"] > 0.1 and metrics["unscored"] == 0
    for name in metrics:
        np.testing.assert_allclose(metrics[name], want_metrics[name], 1e-5, 1e-6, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6),
        (got.params, got.opt_state),
        (want.params, want.opt_state),
    )
    assert got.step == want.step == 1 and got.entropy_coef == want.entropy_coef
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))  # donated

    # Again, with other weights and nothing compiled anew.
    got, metrics = step(got, outside, jax.random.key(8))
    want, want_metrics = fused(want, inside, jax.random.key(8))
    np.testing.assert_allclose(metrics["loss"], want_metrics["loss"], 0, 1e-4)

    sums = step.evaluate(got, outside)
    want_sums = jax.jit(inner.evaluate)(got, inside)
    assert sums.keys() == want_sums.keys()
    # Summed log-likelihoods are told one by one here; a gain is a small difference of two of them.
    atol = 2e-5 if config.abstain else 1e-6
    for name in sums:
        np.testing.assert_allclose(sums[name], want_sums[name], 1e-5, atol, err_msg=name)


class Ruler:
    """Answers with the width of the crop, and can fail."""

    name = "ruler"

    def __init__(self, fails=lambda width: ""):
        self.fails, self.asked, self.lock = fails, [], threading.Lock()

    def answer(self, images, questions):
        replies = []
        for (picture, crop), question in zip(images, questions, strict=True):
            assert picture.dtype == crop.dtype == np.uint8
            with self.lock:
                self.asked.append((picture.shape, crop, question))
            failure = self.fails(crop.shape[1])
            replies.append(Reply("" if failure else str(crop.shape[1]), failure))
        return replies


def test_the_target_sees_the_original_pixels_of_each_different_box_once():
    _, batch = make_batches()
    boxes = np.array([[[0, 0, 50, 100], [10, 20, 60, 70], [0, 0, 50, 100]]] * 4)
    ruler = Ruler()
    config = dataclasses.replace(CONFIG, accuracy="contains")
    scores = ask_one(ruler, config, batch, boxes)["accuracy"]
    assert scores.shape == (4, 3) and len(ruler.asked) == 8
    for i, (shape, crop, question) in enumerate(ruler.asked):
        image = EXAMPLES[i // 2]["image"]
        assert shape == image.shape and question == EXAMPLES[i // 2]["question"]
        box = geometry.to_pixels(boxes[0, i % 2], np.array(image.shape[:2]))
        np.testing.assert_array_equal(crop, image[box[1] : box[3], box[0] : box[2]])


def test_each_different_reply_is_asked_about_once_and_the_picture_alone_once():
    class Counter(Ruler):
        def answer(self, images, questions):
            self.asked += [len(pictures) for pictures in images]
            return [Reply(str(len(pictures))) for pictures in images]

        def image_tokens(self, images):
            return 10 * sum(len(pictures) for pictures in images)

    _, batch = make_batches()
    one, other, whole = [10, 20, 60, 70], [20, 20, 60, 70], [0, 0, 100, 100]
    boxes = np.array([[[one, other], [one, whole], [whole, whole], [one, other]]] * 4)
    count = np.array([[2, 1, 0, 2]] * 4)
    spoken = np.stack([batching.write_spoken("How many?", ["3"])] * 4)
    config = dataclasses.replace(
        CONFIG, accuracy="contains", max_boxes=2, abstain=True, token_price=1.0
    )
    counter = Counter()
    scores = ask(counter, config, batch._replace(spoken=spoken), boxes, count)
    assert sorted(counter.asked) == [1] * 4 + [2] * 4 + [3] * 4
    np.testing.assert_array_equal(scores["accuracy"], [[1, 0, 0, 1]] * 4)
    np.testing.assert_array_equal(scores["crop_tokens"], 10 * count)
    told = dataclasses.replace(config, crop_tokens=7)
    scores = ask(Counter(), told, batch, boxes, count)
    np.testing.assert_array_equal(scores["crop_tokens"], 7 * count)
    with pytest.raises(ValueError, match="ruler does not tell how many image tokens"):
        ask(Ruler(), config, batch, boxes[:, :1, :1], count[:, :1] - 1)


def test_what_kept_the_target_from_answering_teaches_nothing():
    _, batch = make_batches()
    boxes = np.array([[[0, 0, 25, 100], [10, 20, 50, 70], [0, 0, 100, 100]]] * 4)
    full = {example["image"].shape[1] for example in EXAMPLES}
    ruler = Ruler(lambda width: "timeout: no answer" if width in full else "refusal: no")
    config = dataclasses.replace(CONFIG, accuracy="contains")
    scores = ask_one(ruler, config, batch, boxes)["accuracy"]
    np.testing.assert_array_equal(np.isnan(scores), [[False, False, True]] * 4)
    np.testing.assert_array_equal(scores[:, :2], 0)  # a refusal is an answer, and a bad one

    step = make_step(config)
    roll_out = jax.jit(BlackBoxStep(step, ruler).roll_out)
    rollouts = roll_out(make_state(), without_host_parts(batch), KEY)[1].boxes[:, :, 0]
    widths = geometry.to_pixels(np.asarray(rollouts[0]), batch.size[0])[:, 2]
    widths -= geometry.to_pixels(np.asarray(rollouts[0]), batch.size[0])[:, 0]
    failing = Ruler(lambda width: "HTTP 500: no" if width == widths[0] else "")
    _, metrics = BlackBoxStep(step, failing)(make_state(), batch, KEY)
    assert 0 < metrics["unscored"] < 1 and np.isfinite(metrics["grad_norm"])
    silent = Ruler(lambda width: "HTTP 503: no")
    assert np.isnan(ask_one(silent, config, batch, boxes)["accuracy"]).all()
    with pytest.raises(ReaderUnavailable, match="ruler answered no question"):
        BlackBoxStep(step, silent)(make_state(), batch, KEY)


def test_a_question_that_the_target_refuses_earns_nothing_and_many_end_the_run():
    class Choosy(Ruler):
        def answer(self, images, questions):
            if any(crop.shape[1] in refused for _, crop in images):
                raise ValueError("too wide")
            return super().answer(images, questions)

    _, batch = make_batches()
    halves = np.array([[i, 0, 50 + i, 100] for i in range(4)])
    boxes = np.stack([np.concatenate([halves, [[0, 0, 100, 100]]])] * 4)
    refused = {example["image"].shape[1] for example in EXAMPLES}
    config = dataclasses.replace(CONFIG, accuracy="contains")
    assert (ask_one(Choosy(), config, batch, boxes)["accuracy"][:, 4] == 0).all()
    refused = range(10_000)
    with pytest.raises(ReaderUnavailable, match="ruler refused all 20 questions.*: too wide"):
        ask_one(Choosy(), config, batch, boxes)


def test_the_next_rollouts_are_made_while_the_host_scores():
    config = dataclasses.replace(CONFIG, accuracy="contains", gradient_accumulation_steps=4)
    order = []
    rolled_2 = threading.Event()

    class Slow(Ruler):
        def answer(self, images, questions):
            order.append("score")
            if order.count("score") == 1:
                # Were the two sides to take turns, the second rollouts would never come.
                assert rolled_2.wait(60), order
            return super().answer(images, questions)

    def jit(function, **options):
        jitted = jax.jit(function, **options)

        def call(*inputs):
            order.append(getattr(function, "__name__", ""))
            if order.count("roll_out") == 2:
                rolled_2.set()
            return jitted(*inputs)

        return call

    _, batch = make_batches()
    BlackBoxStep(make_step(config), Slow(), jit=jit)(make_state(), batch, KEY)
    calls = " ".join(name for name in order if name != "score")
    made = calls.replace("see roll_out", "roll_out")  # the tiles are cut before
    assert made == "roll_out roll_out learn roll_out learn roll_out learn learn update", calls
