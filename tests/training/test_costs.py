# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The formulas against what the steps' own matmuls cost, and against what XLA counts."""

import collections
import dataclasses

import jax
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval

from cropvlm_jax import scoring
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
from cropvlm_jax.training.sft import SFTStep

PAPER = lora.LoRAConfig(rank=3)
TEXT = dataclasses.replace(PAPER, targets=r"text\..*")
CONNECTOR = dataclasses.replace(PAPER, targets="connector")
CONFIG = GRPOConfig(num_generations=3)
EXAMPLES = tiny.make_examples(2)
BATCH = tiny.make_batch(EXAMPLES, 2 * tiny.SIDE)
OPTIMIZER = optax.sgd(0.1)
KEY = jax.random.key(0)


def matmuls(step, state, batch, iterations):
    """Operations of all matmuls of a step, by the scope of phase that they stand in.

    Args:
        step: the function.
        state: its state, shapes.
        batch: its batch.
        iterations: of loops whose number of iterations is found at run time, by phase.
    """
    total = collections.Counter()
    phases = "prefix", "rollout", "reward", "reference", "update"

    def count(jaxpr, scope, times):
        for equation in jaxpr.eqns:
            name = f"{scope}/{equation.source_info.name_stack}"
            phase = min((p for p in phases if p in name), key=name.find, default="")
            phase = "update" if "transpose" in name else phase
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                left, out = equation.invars[0].aval, equation.outvars[0].aval
                terms = np.prod([left.shape[i] for i in contracted])
                total[phase] += times * 2.0 * out.size * terms
            repeated = times
            if equation.primitive.name == "scan":
                repeated *= equation.params["length"]
            elif equation.primitive.name == "while":
                repeated *= iterations[phase]
            for inner in jaxprs_in_params(equation.params):
                count(inner, name, repeated)

    closed = jax.make_jaxpr(step)(state, batch, KEY)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    count(jaxpr, "", 1)
    return total


def causal(config, *tokens):
    """What the passes of a decoder over so many tokens multiply and their mask throws away."""
    width = config.num_attention_heads * config.head_dim * config.num_hidden_layers
    return sum(4 * width * t * (t - 1) / 2 for t in tokens)


def logits_again(text_tokens, prefix=0, tiles=0):
    """Attention logits of a sequence and of tiles: backward passes do not find them kept."""
    text, vision = tiny.CONFIG.text, tiny.CONFIG.vision
    width = text.num_attention_heads * text.head_dim * text.num_hidden_layers
    of_tile = 2 * vision.hidden_size * vision.num_hidden_layers * vision.grid**4
    return 2 * width * text_tokens * (text_tokens + prefix) + tiles * of_tile


def abstract(config, adapters):
    """The graph of a policy, its train state's weights, and the plain graph under adapters."""
    model = plain = nnx.eval_shape(lambda: SmolVLM(config, rngs=nnx.Rngs(0)))
    if not adapters:
        return *nnx.split(plain), (), None
    model = nnx.eval_shape(lambda: lora.add(plain, adapters, nnx.Rngs(0)))
    policy, params, *frozen = nnx.split(model, lora.LoRAParam, ...)
    return policy, params, tuple(frozen), nnx.graphdef(plain)


@pytest.mark.parametrize("size", ["256m", "500m", "2_2b"])
def test_forward_is_twice_the_weights_and_attention(size):
    config = getattr(SmolVLMConfig, f"smolvlm_{size}")()
    model = nnx.eval_shape(lambda: SmolVLM(config, rngs=nnx.Rngs(0)))

    def weights(part):
        linears = [m for _, m in nnx.iter_modules(part) if isinstance(m, nnx.Linear)]
        return sum(linear.kernel.size for linear in linears)

    text, vision, patches = config.text, config.vision, config.vision.grid**2
    keys = 7 * 100 + 7 * 8 / 2  # that 7 tokens after 100 attend to
    decoder = 7 * 2 * weights(model.text) + 4 * text.hidden_size * text.num_hidden_layers * keys
    assert costs.decoder_flops(text, 7, 100) == costs.Flops(decoder, 2 * decoder)
    head = 2 * text.vocab_size * text.hidden_size
    assert costs.logits_flops(text, text.vocab_size) == costs.Flops(head, 2 * head)
    attention = 4 * patches**2 * vision.hidden_size * vision.num_hidden_layers
    tower = 2 * weights(model.vision) * patches + attention
    connector = 2 * model.connector.kernel.size * config.image_seq_len
    assert costs.image_flops(config).forward == tower + connector


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
            gradient_accumulation_steps=2,
        ),
        CONNECTOR,
    ),
}


@pytest.mark.parametrize("case", GRPO)
def test_a_grpo_step_costs_its_matmuls(case):
    (config, adapters), shared = GRPO[case], case.endswith("shared")
    policy, params, frozen, base = abstract(tiny.CONFIG, adapters)
    target_graph, target, *_ = abstract(tiny.CONFIG, None)
    gold = [scoring.encode_gold(example["answers"], config.accuracy, 1, 20) for example in EXAMPLES]
    batch = tiny.make_batch(EXAMPLES) if shared else BATCH
    batch = batch._replace(gold=jax.tree.map(lambda *x: np.stack(x), *gold))
    vocabulary = Vocabulary.from_tokenizer(tiny.TOKENIZER)
    asked = tiny.GRAMMAR, tiny.TEMPLATE
    step = GRPOStep(
        policy=policy,
        target=target_graph,
        grammar=tiny.GRAMMAR,
        template=tiny.TEMPLATE,
        optimizer=OPTIMIZER,
        config=config,
        base=base,
        vocabulary=vocabulary,
        shared_tower=shared,
    )
    reference = params if config.beta and not adapters else None
    weights = dict(params=params, frozen=frozen, reference=reference, target=target)
    state = jax.eval_shape(lambda w: TrainState.create(optimizer=OPTIMIZER, **w), weights)
    counted = matmuls(step, state, batch, {"reward": config.answer_tokens})

    got = costs.grpo_flops(tiny.CONFIG, tiny.CONFIG, config, *asked, batch, adapters, shared)
    # What stands there beyond what counts: masked keys, and resampling in two digits and in three.
    prompts, replies = len(EXAMPLES), len(EXAMPLES) * config.num_generations
    text, prefix = tiny.CONFIG.text, batch.crop_prompt.shape[1] - 1
    read = prompts * causal(text, prefix)
    written = replies * causal(text, tiny.GRAMMAR.max_length)
    first, crop = len(tiny.TEMPLATE.first), len(tiny.TEMPLATE.crop) + batch.question.shape[1]
    answered = batch.answer.shape[1] - 1
    heard = []
    if config.likelihood_weight:
        heard.append(crop + answered)
    if config.accuracy_weight:
        heard.append(crop + config.answer_tokens - 1)
    reward = prompts * causal(text, first) + replies * causal(text, *heard)
    if config.gain:
        reward += prompts * causal(text, batch.question.shape[1] + answered)
    crops = replies + prompts * (not shared)
    tower_trained = adapters in (None, PAPER)
    again = prompts * logits_again(prefix, tiles=batch.tiles.shape[1] * tower_trained)
    again += replies * logits_again(tiny.GRAMMAR.max_length, prefix)
    want = {
        "prefix": counted["prefix"] - read,
        "rollout": counted["rollout"]
        - replies * causal(text, tiny.GRAMMAR.iterations * tiny.GRAMMAR.chunk),
        "reward": counted["reward"] - reward - crops * 4 * costs.crop_flops(tiny.CANVAS, tiny.SIDE),
        "reference": counted["reference"] - bool(config.beta) * (read + written),
        "update": counted["update"]
        - config.num_iterations * (2 * read + 3 * written + again)
        - (config.num_iterations - 1) * read,
    }
    assert got == pytest.approx(want, rel=1e-12)


def supervised(longest_edge=2 * tiny.SIDE):
    seen = dataclasses.replace(tiny.SEEN, longest_edge=longest_edge)
    prepare = batching.BoxPreparer(seen, tiny.GRAMMAR.max_length)
    examples = [example | {"box": (1, 2, 30, 40)} for example in EXAMPLES]
    return batching.stack([prepare(example, i) for i, example in enumerate(examples)])


@pytest.mark.parametrize("adapters", [None, PAPER, TEXT, CONNECTOR])
def test_a_supervised_step_costs_its_matmuls(adapters):
    policy, params, frozen, _ = abstract(tiny.CONFIG, adapters)
    state = jax.eval_shape(lambda p: TrainState.create(p, OPTIMIZER, frozen=frozen), params)
    batch = supervised()
    counted = matmuls(SFTStep(policy, OPTIMIZER), state, batch, {})
    read = batch.prompt.shape[1] + batch.completion.shape[1] - 1
    masked = causal(tiny.CONFIG.text, read)
    tiles = batch.images.shape[1] * (adapters in (None, PAPER))
    again = logits_again(read, tiles=tiles)
    got = costs.sft_flops(tiny.CONFIG, batch, adapters)
    want = sum(counted.values()) - len(EXAMPLES) * (3 * masked + again)
    assert got == pytest.approx({"loss": want}, rel=1e-12)


def test_xla_counts_the_same():
    # One layer and tile, as XLA counts a loop's body once; wide, as it counts elementwise work too.
    config = SmolVLMConfig(
        SiglipConfig(tiny.SIDE, 8, 256, 1024, 1, 4),
        LlamaConfig(tiny.CONFIG.text.vocab_size, 384, 1024, 1, 6, 2, 64),
        scale_factor=2,
        image_token_id=tiny.CONFIG.image_token_id,
    )
    policy, params, *_ = abstract(config, None)
    state = jax.eval_shape(lambda p: TrainState.create(p, OPTIMIZER), params)
    batch = supervised(tiny.SIDE)
    lowered = jax.jit(SFTStep(policy, OPTIMIZER)).lower(state, batch, KEY)
    (got,) = costs.sft_flops(config, batch).values()
    assert got == pytest.approx(lowered.cost_analysis()["flops"], rel=0.05)


def test_decoding_reads_weights_and_caches():
    config = dataclasses.replace(
        CONFIG, accuracy_weight=1.0, reward_chunk=1, gradient_accumulation_steps=2
    )
    asked = tiny.CONFIG, tiny.CONFIG, config, tiny.GRAMMAR, tiny.TEMPLATE
    model = nnx.eval_shape(lambda: SmolVLM(tiny.CONFIG, rngs=nnx.Rngs(0)))
    kernels = nnx.state(model.text.layers, lambda path, _: "kernel" in path)
    layers = sum(x.size for x in jax.tree.leaves(kernels))

    def cache(*shape):
        empty = jax.eval_shape(lambda: KVCache.empty(tiny.CONFIG.text, shape, "float32"))
        return empty.keys.size + empty.values.size

    prompts, group, passes = len(EXAMPLES), config.num_generations, tiny.GRAMMAR.iterations
    keys = cache(prompts, 1, BATCH.crop_prompt.shape[1] - 1)
    keys += cache(prompts, group, passes * tiny.GRAMMAR.chunk)
    weights = layers + 12 * tiny.CONFIG.text.hidden_size
    rollout = 4 * passes * (2 * weights + keys)
    passes = config.answer_tokens
    keys = cache(prompts, 1, len(tiny.TEMPLATE.first))
    keys += cache(prompts, group, len(tiny.TEMPLATE.crop) + BATCH.question.shape[1] - 1 + passes)
    weights = layers + model.text.head.size
    reward = 4 * passes * (2 * group * weights + keys)
    got = costs.decode_bytes(*asked, BATCH, itemsize=4)
    assert got == {"rollout": rollout, "reward": reward}


def test_growth():
    def total(batch, **settings):
        config = dataclasses.replace(CONFIG, **settings)
        asked = tiny.CONFIG, tiny.CONFIG, config, tiny.GRAMMAR, tiny.TEMPLATE
        return sum(costs.grpo_flops(*asked, batch).values())

    twice = jax.tree.map(lambda x: np.concatenate([x, x]), BATCH)
    assert total(twice) == pytest.approx(2 * total(BATCH))
    assert total(BATCH) < total(BATCH, num_generations=6) < 2 * total(BATCH)
    assert total(BATCH, gradient_accumulation_steps=2, reward_chunk=1) == total(BATCH)
