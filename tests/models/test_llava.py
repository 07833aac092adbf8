# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""LLaVA-1.5 computes what `transformers` computes, as a model, as a target, and as a reward."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import tiny_llava
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file
from tiny_peft import adapt

from cropvlm_jax import geometry, parallel, scoring
from cropvlm_jax.api import CropVLM
from cropvlm_jax.data import batching
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.reading import AnswerTemplate
from cropvlm_jax.grpo.step import GRPOStep
from cropvlm_jax.hub.export import export
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.models.conversations import SHORT_ANSWER_INSTRUCTION
from cropvlm_jax.models.decode import greedy_decode, read_prompt
from cropvlm_jax.models.llava.config import FILL, LlavaConfig
from cropvlm_jax.models.llava.model import Llava
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.vlm import VLMReader
from cropvlm_jax.scoring import in_graph
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training import costs
from cropvlm_jax.training.config import default_config, load_config
from cropvlm_jax.training.stages import open_stage

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FAST_COMPILE = {"xla_backend_optimization_level": 0}
SHAPES = {
    "grid4-mha": {},
    "grid6-gqa2-last-layer": dict(side=48, layers=2, feature_layers=2, heads=(4, 2, 16), patch=8),
    "grid3-gqa3-tied": dict(
        side=48, patch=16, layers=4, feature_layers=3, heads=(3, 1, 8), tied=True
    ),
    "grid5-cut-edge-first-layer": dict(side=37, patch=7, layers=3, feature_layers=1),
}


def logits_of(model: Llava, *batch: np.ndarray) -> np.ndarray:
    graphdef, params = nnx.split(model)
    return np.asarray(jax.jit(lambda p, *batch: nnx.merge(graphdef, p)(*batch))(params, *batch))


def random_inputs(config: LlavaConfig, counts: tuple[int, ...]):
    """Rows with `counts` pictures each, padded on the left, and the same for transformers."""
    rng = np.random.default_rng(0)
    low = config.image_token_id - 100  # no special tokens
    rows = []
    for count in counts:
        row = [1, *rng.integers(low, config.image_token_id, 3)]
        for _ in range(count):
            row += [config.image_token_id] * config.image_seq_len
            row += rng.integers(low, config.image_token_id, 4).tolist()
        rows.append(np.array(row, np.int32))
    length, side = max(map(len, rows)), config.vision.image_size
    padded = [batching.pad(row, length, "left") for row in rows]
    ids, valid = np.stack([row for row, _ in padded]), np.stack([real for _, real in padded])
    pictures = rng.normal(0, 1, (len(rows), max(counts), side, side, 3)).astype(np.float32)
    real = np.concatenate([p[:n] for p, n in zip(pictures, counts, strict=True)])
    theirs = {
        "input_ids": torch.tensor(ids).long(),
        "attention_mask": torch.tensor(valid).long(),
        "pixel_values": torch.tensor(real).permute(0, 3, 1, 2),
    }
    return (ids, valid, pictures), theirs


@pytest.mark.parametrize("name", SHAPES)
def test_logits_tokens_and_export_agree(name, tmp_path):
    config = tiny_llava.make_config(**SHAPES[name])
    theirs = tiny_llava.write_folder(tmp_path / "theirs", config)
    source = Pretrained.open(tmp_path / "theirs")
    assert source.config == config
    ours = source.load()
    batch, hf = random_inputs(config, (2, 1))
    with torch.no_grad():
        expected = theirs(**hf).logits.numpy()
    actual = logits_of(ours, *batch)
    # Tight enough to tell the exact GELU from its tanh form.
    np.testing.assert_allclose(actual[batch[1]], expected[batch[1]], rtol=0, atol=2e-5)

    # 32 greedy tokens, through the batches of `VLMReader`.
    generated = theirs.generate(**hf, do_sample=False, max_new_tokens=32, pad_token_id=0)
    graphdef, params = nnx.split(ours)
    ids, valid, pictures = batch
    asked = batching.SupervisedBatch(pictures, ids, valid, ids, valid)
    answers = jax.jit(_answers, static_argnums=0)(graphdef, params, asked)
    np.testing.assert_array_equal(answers, generated[:, ids.shape[1] :].numpy())

    export(tmp_path / "ours", ours, source)
    auto = transformers.AutoModelForImageTextToText
    again, info = auto.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        np.testing.assert_allclose(again(**hf).logits.numpy(), expected, rtol=0, atol=1e-6)
    transformers.AutoProcessor.from_pretrained(tmp_path / "ours", backend="pil")
    np.testing.assert_array_equal(
        logits_of(Pretrained.open(tmp_path / "ours").load(), *batch), actual
    )


@pytest.mark.parametrize(
    "targets",
    [
        r".*language_model.*\.(q_proj|down_proj)",
        r".*vision_tower.*\.(out_proj|fc1)",
        ["linear_1", "linear_2", "o_proj"],
    ],
)
def test_an_adapter_of_peft_is_merged(targets, tmp_path):
    config = tiny_llava.make_config()
    tiny_llava.write_folder(tmp_path / "base", config)
    base = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    theirs = adapt(base, r=2, target_modules=targets)
    theirs.save_pretrained(tmp_path / "adapter")
    batch, hf = random_inputs(config, (2, 1))
    with torch.no_grad():
        expected = theirs(**hf).logits.numpy()
        with theirs.disable_adapter():
            assert np.abs(theirs(**hf).logits.numpy() - expected).max() > 0.01
    actual = logits_of(Pretrained.open(tmp_path / "adapter").load(), *batch)
    np.testing.assert_allclose(actual[batch[1]], expected[batch[1]], rtol=0, atol=1e-4)


def _answers(graphdef: nnx.GraphDef, params: nnx.State, batch: batching.SupervisedBatch):
    model = nnx.merge(graphdef, params)
    pictures = model.encode_images(batch.images)
    prefix = read_prompt(model, pictures, batch.prompt, batch.prompt_valid)
    replies = greedy_decode(model, prefix, batch.prompt[:, -1:], end_token=-1, max_tokens=32)
    return replies.tokens[:, 0]


@pytest.fixture(scope="module", params=[False, True], ids=["centre", "pad"])
def pair(request, tmp_path_factory):
    """A folder, the torch model and the processor of the same."""
    folder = tmp_path_factory.mktemp("llava")
    config = tiny_llava.make_config()
    model = tiny_llava.write_folder(folder, config, request.param)
    return folder, model, tiny_llava.hf_processor(config, request.param)


def hf_log_likelihood(model, processor, pictures, question: str, answer: str) -> float:
    """Summed log-probability of an answer and its end token, by transformers alone."""
    content = [{"type": "image"}] * len(pictures)
    content.append({"type": "text", "text": f"{question}\n{SHORT_ANSWER_INSTRUCTION}"})
    messages = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    pictures = [Image.fromarray(picture) for picture in pictures]
    asked = processor(text=prompt, images=pictures, return_tensors="pt")["input_ids"].shape[1]
    inputs = processor(text=f"{prompt} {answer}</s>", images=pictures, return_tensors="pt")
    with torch.no_grad():
        log_probs = model(**inputs).logits[0].log_softmax(-1)
    ids = inputs["input_ids"][0, asked:]
    return log_probs[asked - 1 : -1].gather(-1, ids[:, None]).sum().item()


def test_target_answers_as_transformers(pair):
    folder, model, processor = pair
    target = VLMReader.from_pretrained(folder)
    tokens = target.image_tokens([[np.zeros((9, 50, 3), np.uint8)]] * 2)
    assert tokens == 2 * target.source.config.image_seq_len
    examples = tiny.make_examples(3)
    pictures = [[e["image"], e["image"][10:50, 20:34]] for e in examples]
    pictures[1] = pictures[1][:1]
    questions = [e["question"] for e in examples]
    answers = [e["answers"][0] for e in examples]
    got = target.log_likelihood(pictures, questions, answers)
    want = [
        hf_log_likelihood(model, processor, *case)
        for case in zip(pictures, questions, answers, strict=True)
    ]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)

    replies = [r.text for r in target.answer(pictures, questions, max_tokens=8)]
    for shown, question, reply in zip(pictures, questions, replies, strict=True):
        prompt = target.conversations.answer(question, len(shown)).ids
        seen = processor.image_processor([Image.fromarray(p) for p in shown], return_tensors="pt")
        generated = model.generate(
            input_ids=torch.tensor(prompt[None]).long(),
            attention_mask=torch.ones(1, len(prompt)).long(),
            pixel_values=seen["pixel_values"],
            do_sample=False,
            max_new_tokens=8,
            eos_token_id=2,
            pad_token_id=2,
        )
        assert reply == tiny_llava.TOKENIZER.decode(generated[0, len(prompt) :].tolist()).strip()


@pytest.mark.parametrize("pair", [True], indirect=True, ids=["pad"])
def test_step_rewards_what_transformers_says(pair):
    """A whole GRPO step: tiny SmolVLM cropper, LLaVA target."""
    folder, model, processor = pair
    source = Pretrained.open(folder)
    reader, weights = nnx.split(source.load())
    prompts = source.conversations()
    metric, examples = "evalai", tiny.make_examples(2)
    vocabulary = in_graph.Vocabulary.from_tokenizer(source.tokenizer)

    def gold(answers):
        return scoring.encode_gold(answers, metric, 3, 40)

    prepare = batching.Preparer(tiny.CROPPER_INPUT, prompts, (tiny.CANVAS,), 20, gold)
    batch = batching.stack([prepare(example, i) for i, example in enumerate(examples)])
    policy, params = tiny.make_model(0)
    settings = GRPOConfig(
        num_generations=3,
        beta=0.0,
        accuracy_weight=1.0,
        accuracy=metric,
        answer_tokens=4,
        reward_chunk=1,
    )
    optimizer = optax.sgd(1.0)
    template = AnswerTemplate.from_conversations(prompts)
    step = GRPOStep(
        policy=policy,
        target=reader,
        grammar=tiny.GRAMMAR,
        template=template,
        optimizer=optimizer,
        config=settings,
        vocabulary=vocabulary,
    )
    state = TrainState.create(params, optimizer, target=weights)
    run = jax.jit(step.run, compiler_options=FAST_COMPILE)
    _, metrics, experience = run(state, batch, jax.random.key(3))

    target, likelihoods, scores = VLMReader.from_pretrained(folder), [], []
    for example, boxes in zip(examples, np.asarray(experience.boxes[:, :, 0]), strict=True):
        picture, question, answer = example["image"], example["question"], example["answers"][0]
        for box in boxes:
            left, top, right, bottom = geometry.to_pixels(box, np.array(picture.shape[:2]))
            shown = [picture, picture[top:bottom, left:right]]
            likelihoods.append(hf_log_likelihood(model, processor, shown, question, answer))
            (reply,) = target.answer([shown], [question], max_tokens=4)
            scores.append(scoring.score(reply.text, example["answers"], metric))
    # Pixels may differ by a grey level.
    np.testing.assert_allclose(metrics["reward/likelihood"], np.mean(likelihoods), rtol=2e-3)
    np.testing.assert_allclose(metrics["reward/accuracy"], np.mean(scores), atol=1e-6)
    assert np.std(likelihoods) > 0.01 and metrics["grad_norm"] > 0


def test_both_spellings_of_the_tower_are_read(pair, tmp_path):
    """The released files have "vision_model." in its names, those of transformers 5 do not."""
    source = Pretrained.open(pair[0])
    model = source.load()
    export(tmp_path / "released", model, source)
    shutil.copytree(tmp_path / "released", tmp_path / "short")
    released = load_file(tmp_path / "released/model.safetensors")
    short = {name.replace(".vision_model.", "."): array for name, array in released.items()}
    assert len(short) == len(released) and short.keys() != released.keys()
    save_file(short, tmp_path / "short/model.safetensors")
    for spelling in ("released", "short"):
        read = Pretrained.open(tmp_path / spelling).load()
        jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(read))


def test_pad_is_what_the_processor_or_the_caller_says(tmp_path):
    config = tiny_llava.make_config()
    tiny_llava.write_folder(tmp_path, config)
    opened = Pretrained.open(tmp_path)
    padded = Pretrained.open(tmp_path, processor={"do_pad": True, "max_pixels": None})
    assert (opened.config.pad, padded.config.pad) == (False, True)
    picture = tiny.make_examples(1)[0]["image"]
    for source, fill in ((opened, None), (padded, FILL)):
        (seen,), grid = source.see(picture, source.longest_edge)
        np.testing.assert_array_equal(seen, host.bicubic_square(picture, 32, fill))
        assert grid is None
    with pytest.raises(ValueError, match="llava has no processor setting.*max_pixels"):
        Pretrained.open(tmp_path, processor={"max_pixels": 100})
    with pytest.raises(ValueError, match="longest_edge=64: a llava does not split"):
        VLMReader.from_pretrained(tmp_path, longest_edge=64)
    with pytest.raises(ValueError, match="a llava may not be a cropper"):
        CropVLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy='full'"),
        ("", {"vision_feature_layer": [-2, -1]}, "vision_feature_layer="),
        ("", {"vision_feature_layer": -5}, "-1 layers of a tower of 3"),
        ("", {"multimodal_projector_bias": False}, "multimodal_projector_bias=False"),
        ("vision_config", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("vision_config", {"model_type": "siglip_vision_model"}, "siglip_vision_model"),
        ("text_config", {"model_type": "mistral"}, "mistral"),
    ],
)
def test_what_is_not_supported_is_refused(part, change, message):
    stored = tiny_llava.make_config().to_hf()
    (stored[part] if part else stored).update(change)
    with pytest.raises(ValueError) as error:
        LlavaConfig.from_hf(stored)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "change",
    [{"crop_size": {"height": 32, "width": 40}}, {"do_center_crop": False}, {"resample": 2}],
)
def test_other_processors_are_refused(change, tmp_path):
    config = tiny_llava.make_config()
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    tiny_llava.TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    stored = {"size": 32, "crop_size": 32}  # as old versions wrote it
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    assert Pretrained.open(tmp_path).config == config
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored | change))
    with pytest.raises(ValueError, match=next(iter(change))):
        Pretrained.open(tmp_path)


def test_released_config():
    """That of llava-hf/llava-1.5-7b-hf says little of the decoder, which has Llama's defaults."""
    vision = dict(image_size=336, patch_size=14, hidden_size=1024, intermediate_size=4096)
    vision |= dict(num_hidden_layers=24, num_attention_heads=16, projection_dim=768)
    text = dict(max_position_embeddings=4096, rms_norm_eps=1e-5, vocab_size=32064)
    stored = dict(
        model_type="llava",
        image_token_index=32000,
        vision_feature_layer=-2,
        vision_config=vision | dict(model_type="clip_vision_model", vocab_size=32000),
        text_config=text | dict(model_type="llama"),
    )
    config = LlavaConfig.from_hf(stored)
    assert config == LlavaConfig.llava_7b() == LlavaConfig.from_hf(config.to_hf())
    assert config.image_seq_len == 576
    model = nnx.eval_shape(lambda: Llava(config, rngs=nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model))) == 7_063_427_072


def test_a_picture_costs_its_matmuls():
    config = LlavaConfig.llava_7b()
    model = nnx.eval_shape(lambda: Llava(config, rngs=nnx.Rngs(0)))

    def weights(part):
        linears = [m for _, m in nnx.iter_modules(part) if isinstance(m, nnx.Linear)]
        return sum(linear.kernel.size for linear in linears)

    layers = weights(model.vision.layers) / 24 * 23 * 577 + 2 * 577**2 * 1024 * 23
    others = (model.vision.patch_embedding.kernel.size + weights(model.projector)) * 576
    passes = 336 * 700 * 700 * 3 + 336 * 336 * 700 * 3  # over a canvas whose longer side is 700 px
    graph, weights_ = nnx.split(model)

    def encode(weights_, canvas, size, boxes):
        with jax.named_scope("here"):
            return nnx.merge(graph, weights_).encode_crops(canvas, size, boxes)

    canvas, size = np.zeros((1, 400, 700, 3), np.uint8), np.array([[400, 700]])
    program = jax.make_jaxpr(encode)(weights_, canvas, size, np.zeros((1, 1, 4), int))
    found = costs.count_flops(program, ("here",), backward="here")["here"]
    assert found == pytest.approx(2 * (layers + others + passes), rel=1e-9)


LOAD = """
import sys, jax, numpy as np
from flax import nnx
from cropvlm_jax import parallel
from cropvlm_jax.hub.pretrained import Pretrained
source, mesh = Pretrained.open(sys.argv[1]), parallel.make_mesh(data=1, fsdp=4, tensor=2)
whole, split = (nnx.state(source.load(**options)) for options in ({}, {"mesh": mesh}))
wanted = source.state_shardings(mesh, split)
jax.tree.map(np.testing.assert_array_equal, whole, split)
assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding == s, split, wanted)))
kernel = split["text"]["layers"]["gate"]["kernel"][...]
assert 8 * kernel.addressable_shards[0].data.size == kernel.size, kernel.sharding
"""


def test_weights_are_loaded_where_they_belong(pair):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-c", LOAD, str(pair[0])], check=True, env=environment)


def test_7b_is_split_over_eight_chips(tmp_path):
    """The step of a run with the 7B shape, without weights: an eighth of each large one a chip."""
    tokenizer = tiny_llava.TOKENIZER
    config = dataclasses.replace(
        LlavaConfig.llava_7b(), image_token_id=tokenizer.token_to_id("<image>")
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    run = default_config()
    run.cropper, run.target, run.dtype = "zoom_digits/cropper", str(tmp_path), "bfloat16"
    run.target_processor.do_pad = True
    run.data.longest_edge, run.data.canvas = 64, (336, 336)
    stage = open_stage(load_config(run), abstract=True)
    assert stage.target.config.pad
    weights = stage.weights["target"]
    mesh = jax.sharding.AbstractMesh((1, 2, 4), parallel.AXES)
    shardings = stage.target.state_shardings(mesh, weights)

    def a_chip(x, sharding):
        return np.prod(sharding.shard_shape(x.shape), dtype=int) * x.dtype.itemsize

    sizes = jax.tree.leaves(jax.tree.map(a_chip, weights, shardings))
    whole = [x.size * x.dtype.itemsize for x in jax.tree.leaves(weights)]
    assert sum(whole) > 14e9 and sum(sizes) < sum(whole) / 8 + 4e6
    assert max(b for a, b in zip(sizes, whole, strict=True) if a == b) < 1e6
    picture = np.zeros((100, 100, 3), np.uint8)
    row = stage.prepare({"image": picture, "question": "What?", "answers": ["3"]}, 0)
    state = jax.eval_shape(lambda weights: stage.init(weights, 1), stage.weights)
    step, key = stage.step(), jax.eval_shape(lambda: jax.random.key(0))
    phases = stage.cost(jax.make_jaxpr(step)(state, batching.stack([row]), key))
    assert phases["reward"] > 8 * 2 * 6.7e9 * 600
    assert jnp.dtype(jax.tree.leaves(weights)[0].dtype) == jnp.bfloat16
