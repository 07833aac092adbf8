# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Operations counted in programs, against formulas, and against what XLA counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from jax.sharding import AbstractMesh, AxisType
from oracles import smolvlm_flops as oracle

from cropvlm_jax import parallel, scoring
from cropvlm_jax.data import batching
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.step import GRPOStep
from cropvlm_jax.models import lora
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.llama import KVCache
from cropvlm_jax.models.smolvlm.config import SiglipConfig, SmolVLMConfig
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.scoring.in_graph import Vocabulary
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training import costs
from cropvlm_jax.training.config import default_config, load_config
from cropvlm_jax.training.sft import SFTStep
from cropvlm_jax.training.stages import open_stage
from cropvlm_jax.training.stages.grpo import PHASES, count

PAPER = lora.LoRAConfig(rank=3)
TEXT = dataclasses.replace(PAPER, targets=r"text\..*")
CONNECTOR = dataclasses.replace(PAPER, targets="connector")
CONFIG = GRPOConfig(num_generations=3)
EXAMPLES = tiny.make_examples(2)
BATCH = tiny.make_batch(EXAMPLES, 2 * tiny.SIDE)
OPTIMIZER = optax.sgd(0.1)
KEY = jax.random.key(0)


# The count itself --------------------------------------------------------------------------------


def counted(function, *args, phases=("here", "there"), backward="there"):
    return costs.count_flops(jax.make_jaxpr(function)(*args), phases, backward)


SQUARE = jnp.ones((4, 4))
ONE = 2 * 4**3  # operations of a product of two


def test_products_count_by_scope_and_as_often_as_loops_run():
    def function(x):
        with jax.named_scope("here"):
            x, _ = jax.lax.scan(lambda x, _: (x @ SQUARE, None), x, length=5)
            with jax.named_scope("there"):  # the outer scope is the phase
                x = x @ x
        with jax.named_scope("there"):
            _, x = jax.lax.while_loop(
                lambda c: (c[0] < 7) & (c[1].sum() > 0), lambda c: (c[0] + 1, c[1] @ c[1]), (0, x)
            )
        unused = x @ x
        del unused
        return x @ x  # of no phase

    assert counted(function, SQUARE) == {"here": 6 * ONE, "there": 7 * ONE}


def test_what_devices_do_on_their_own_rows_counts_on_all_of_them():
    mesh = AbstractMesh((4, 1, 2), parallel.AXES, (AxisType.Auto,) * 3)

    def function(x):
        with jax.named_scope("here"), jax.sharding.use_abstract_mesh(mesh):
            return parallel.by_rows(lambda x: jax.lax.map(lambda x: x @ x, x))(x)

    rows = jnp.stack([SQUARE] * 8)
    assert counted(function, rows) == {"here": 8 * ONE, "there": 0}


def test_a_loop_without_a_bound_is_refused():
    def function(x):
        return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="no constant that bounds"):
        counted(function, SQUARE)


def test_what_a_backward_pass_computes_again_does_not_count():
    def loss(x):
        with jax.named_scope("here"):
            return jnp.sin(jnp.sin(x @ x) @ SQUARE).sum()

    once = counted(jax.value_and_grad(loss), SQUARE)
    assert once == {"here": 2 * ONE, "there": 3 * ONE}
    assert counted(jax.value_and_grad(jax.checkpoint(loss)), SQUARE) == once


def test_choices_and_marks():
    def digits(x, count):
        with jax.named_scope(f"useful_1_of_{count}"):
            return sum(x @ x for _ in range(count))

    def function(x, flag):
        with jax.named_scope("here"):
            x = jax.lax.platform_dependent(
                x,
                cpu=lambda x: jax.lax.fori_loop(0, flag + 1, lambda _, x: digits(x, 2), x),
                default=lambda x: digits(x, 3),
            )
            x = jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x)
        with jax.named_scope("there"), jax.named_scope("last_branch_1_of_4"):
            return jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x, x)

    found = counted(function, SQUARE, True)
    assert found == pytest.approx({"here": 3 * ONE, "there": 2 * ONE / 4})


# Steps -------------------------------------------------------------------------------------------


def abstract(config, adapters):
    """The graph of a policy, its train state's weights, and the plain graph under adapters."""
    model = plain = nnx.eval_shape(lambda: SmolVLM(config, rngs=nnx.Rngs(0)))
    if not adapters:
        return *nnx.split(plain), (), None
    model = nnx.eval_shape(lambda: lora.add(plain, adapters, nnx.Rngs(0)))
    policy, params, *frozen = nnx.split(model, lora.LoRAParam, ...)
    return policy, params, tuple(frozen), nnx.graphdef(plain)


GRPO = {
    "all": (CONFIG, None),
    "adapters": (dataclasses.replace(CONFIG, format_weight=0.1, num_iterations=3), PAPER),
    "text-gain": (dataclasses.replace(CONFIG, gain=True, accuracy_weight=1.0), TEXT),
    "text-shared": (CONFIG, TEXT),
    "adapters-shared": (CONFIG, PAPER),
    "connector-accuracy": (
        dataclasses.replace(
            CONFIG,
            beta=0.0,
            likelihood_weight=0.0,
            accuracy_weight=1.0,
            reward_chunk=1,
            gradient_accumulation_steps=2,
        ),
        CONNECTOR,
    ),
}


def grpo_program(config, adapters, shared, batch):
    policy, params, frozen, base = abstract(tiny.CONFIG, adapters)
    target_graph, target, *_ = abstract(tiny.CONFIG, None)
    step = GRPOStep(
        policy=policy,
        grammar=tiny.GRAMMAR,
        optimizer=OPTIMIZER,
        config=config,
        base=base,
        target=target_graph,
        template=tiny.TEMPLATE,
        vocabulary=Vocabulary.from_tokenizer(tiny.TOKENIZER),
        shared_tower=shared,
    )
    reference = params if config.beta and not adapters else None
    weights = dict(params=params, frozen=frozen, reference=reference, target=target)
    state = jax.eval_shape(lambda w: TrainState.create(optimizer=OPTIMIZER, **w), weights)
    return jax.make_jaxpr(step)(state, batch, KEY)


@pytest.mark.parametrize("case", GRPO)
def test_a_grpo_step_costs_what_its_shapes_say(case):
    (config, adapters), shared = GRPO[case], case.endswith("shared")
    gold = [scoring.encode_gold(example["answers"], config.accuracy, 1, 20) for example in EXAMPLES]
    batch = tiny.make_batch(EXAMPLES) if shared else BATCH
    batch = batch._replace(gold=jax.tree.map(lambda *x: np.stack(x), *gold))
    program = grpo_program(config, adapters, shared, batch)
    got = costs.count_flops(program, PHASES, backward="update")
    want = oracle.grpo(tiny.CONFIG, config, tiny.GRAMMAR, tiny.TEMPLATE, batch, adapters, shared)
    assert got == pytest.approx(want, rel=1e-9)
    assert list(got) == list(PHASES)


def supervised(longest_edge=2 * tiny.SIDE):
    cropper_input = tiny.make_cropper_input(longest_edge)
    prepare = batching.BoxPreparer(cropper_input, tiny.GRAMMAR.max_length)
    examples = [example | {"box": (1, 2, 30, 40)} for example in EXAMPLES]
    return batching.stack([prepare(example, i) for i, example in enumerate(examples)])


def supervised_flops(config, batch, adapters):
    policy, params, frozen, _ = abstract(config, adapters)
    state = jax.eval_shape(lambda p: TrainState.create(p, OPTIMIZER, frozen=frozen), params)
    step = SFTStep(policy, OPTIMIZER)
    program = jax.make_jaxpr(step)(state, batch, KEY)
    return step, state, costs.count_flops(program, ("loss",), backward="loss")["loss"]


@pytest.mark.parametrize("adapters", [None, PAPER, TEXT, CONNECTOR])
def test_a_supervised_step_costs_what_its_shapes_say(adapters):
    batch = supervised()
    *_, got = supervised_flops(tiny.CONFIG, batch, adapters)
    assert got == pytest.approx(oracle.supervised(tiny.CONFIG, batch, adapters), rel=1e-9)


def test_remat_changes_nothing():
    batch, config = supervised(), tiny.CONFIG
    model = nnx.eval_shape(lambda: SmolVLM(config, rngs=nnx.Rngs(0), remat=True))
    policy, params = nnx.split(model)
    state = jax.eval_shape(lambda p: TrainState.create(p, OPTIMIZER), params)
    program = jax.make_jaxpr(SFTStep(policy, OPTIMIZER))(state, batch, KEY)
    got = costs.count_flops(program, ("loss",), backward="loss")["loss"]
    assert got == pytest.approx(oracle.supervised(config, batch, None), rel=1e-9)


def test_xla_counts_the_same():
    # One layer and tile, as XLA counts a loop's body once; wide, as it counts elementwise work too.
    config = SmolVLMConfig(
        SiglipConfig(tiny.SIDE, 8, 256, 1024, 1, 4),
        LlamaConfig(tiny.CONFIG.text.vocab_size, 384, 1024, 1, 6, 2, 64),
        scale_factor=2,
        image_token_id=tiny.CONFIG.image_token_id,
    )
    batch = supervised(tiny.SIDE)
    step, state, got = supervised_flops(config, batch, None)
    lowered = jax.jit(step).lower(state, batch, KEY)
    assert got == pytest.approx(lowered.cost_analysis()["flops"], rel=0.05)


def test_decoding_reads_weights_and_caches():
    config = default_config()
    config.cropper = config.target = "zoom_digits/target"
    config.data.longest_edge, config.data.canvas = 64, (128, 128)
    config.gradient_accumulation_steps = 2
    config.grpo.update(num_generations=3, accuracy_weight=1.0, reward_chunk=1)
    stage = open_stage(load_config(config), abstract=True)
    picture = np.zeros((128, 128, 3), np.uint8)
    example = {"image": picture, "question": "What?", "answers": ["3"]}
    batch = batching.stack([stage.prepare(example, i) for i in range(2)])
    text, grammar = stage.trained.pretrained.config.text, stage.trained.grammar
    layers = count(stage.frozen_target.shapes["text"]["layers"])

    def cache(*shape):
        empty = jax.eval_shape(lambda: KVCache.empty(text, shape, "float32"))
        return empty.keys.size + empty.values.size

    passes = grammar.iterations
    keys = cache(2, 1, batch.crop_prompt.shape[1] - 1) + cache(2, 3, passes * grammar.chunk)
    weights = layers + 12 * text.hidden_size
    rollout = 4 * passes * (2 * weights + keys)
    template, passes = stage.frozen_target.template, config.grpo.answer_tokens
    asked = len(template.crop) + batch.question.shape[1] - 1
    keys = cache(2, 1, len(template.first)) + cache(2, 3, asked + passes)
    weights = layers + text.vocab_size * text.hidden_size
    reward = 4 * passes * (2 * 3 * weights + keys)
    assert stage.decoding(batch) == {"rollout": rollout, "reward": reward}
