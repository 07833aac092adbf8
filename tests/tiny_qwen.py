# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the tests of Qwen's models share: tiny random ones in `transformers`, and comparisons."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from qwen_shape import qwen_tokenizer, write_shape
from safetensors.numpy import load_file
from tiny_peft import adapt

from cropvlm_jax import geometry, parallel
from cropvlm_jax.data import batching
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.reading import AnswerTemplate
from cropvlm_jax.grpo.step import GRPOStep
from cropvlm_jax.hub.adapters import Adapter
from cropvlm_jax.hub.export import export
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.hub.weights import load_weights
from cropvlm_jax.models import vlm
from cropvlm_jax.models.conversations import SHORT_ANSWER_INSTRUCTION
from cropvlm_jax.models.decode import greedy_decode, read_prompt
from cropvlm_jax.models.qwen2_5_vl.config import QwenConfig
from cropvlm_jax.models.qwen2_5_vl.image_processing import TiledImages
from cropvlm_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from cropvlm_jax.models.registry import ARCHITECTURES, architecture_of
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.vlm import VLMReader
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training import config as config_lib
from cropvlm_jax.training.stages import open_stage

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

START, IMAGE, VIDEO, END = 5, 6, 7, 8  # ids of the tiny models
PIXELS = 24 * 64  # of a picture, whose tokens are 8 x 8 px
SMALLEST = 256  # pixels of a picture
Grids = list[list[tuple[int, int]]]  # rows and columns of each picture of each row of a batch


def hf_model(config: QwenConfig) -> Any:
    """A random torch model whose every weight matters, biases and norms included."""
    hf_config = transformers.AutoConfig.for_model(**config.to_hf())
    hf_config.text_config.bos_token_id = hf_config.text_config.eos_token_id = None
    model = transformers.AutoModelForImageTextToText.from_config(hf_config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                scale = ("norm" in name or "ln_q" in name) and name.endswith("weight")
                p.normal_(0, 0.1, generator=generator).add_(float(scale))
            elif "embed" in name and "patch" not in name:
                p.normal_(0, 1, generator=generator)
            else:
                p.normal_(0, (p.numel() / p.shape[0]) ** -0.5, generator=generator)
    model.generation_config.eos_token_id = None
    return model.eval()


def load(folder: pathlib.Path, adapter: Adapter | None = None) -> Qwen2_5_VL:
    """Our model of a folder that need not have a tokenizer."""
    stored = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[stored["model_type"]]
    config = architecture.config.from_hf(stored)
    shape = nnx.eval_shape(lambda: architecture.model(config, rngs=nnx.Rngs(0)))
    graphdef, abstract = nnx.split(shape)
    return nnx.merge(graphdef, load_weights(folder, abstract, architecture.weights, adapter))


def patches(tiles: np.ndarray, config: QwenConfig) -> np.ndarray:
    """Tiles `[I, S, S, 3]` in the layout of transformers' `pixel_values`."""
    merge, patch = config.vision.spatial_merge_size, config.vision.patch_size
    x = tiles.reshape(-1, merge, patch, merge, patch, 3).transpose(0, 1, 3, 5, 2, 4)
    x = np.repeat(x[:, :, :, :, None], 2, axis=4)
    return x.reshape(len(tiles) * merge**2, -1)


def make_batch(config: QwenConfig, grids: Grids, spare: int = 3) -> tuple[Any, dict, np.ndarray]:
    """Rows with pictures of `grids`, for us and for transformers, and which of our tokens count."""
    rng = np.random.default_rng(1)
    room = max(rows * columns for row in grids for rows, columns in row) + spare
    side = config.vision.tile_size
    tiles = rng.normal(0, 1, (len(grids), len(grids[0]), room, side, side, 3)).astype(np.float32)
    rows, pixels = [], []
    for i, row in enumerate(grids):
        ids = [*rng.integers(9, config.text.vocab_size, 4 + 3 * i)]
        real = [True] * len(ids)
        for j, (high, wide) in enumerate(row):
            ids += [START, *[IMAGE] * room, END, *rng.integers(9, config.text.vocab_size, 3)]
            real += [True, *(np.arange(room) < high * wide), *[True] * 4]
            pixels.append(patches(tiles[i, j, : high * wide], config))
        rows.append((np.array(ids), np.array(real)))

    def padded(sequences, dtype):
        length = max(map(len, sequences))
        return np.stack([np.pad(s.astype(dtype), (length - len(s), 0)) for s in sequences])

    ours = (
        padded([ids for ids, _ in rows], np.int32),
        padded([np.ones(len(ids)) for ids, _ in rows], bool),
        TiledImages(tiles, np.array(grids, np.int32)),
    )
    compact = padded([ids[real] for ids, real in rows], np.int64)
    merge = config.vision.spatial_merge_size
    thw = [(1, high * merge, wide * merge) for row in grids for high, wide in row]
    theirs = {
        "input_ids": torch.tensor(compact),
        "attention_mask": torch.tensor(padded([np.ones(r.sum()) for _, r in rows], np.int64)),
        "mm_token_type_ids": torch.tensor((compact == IMAGE).astype(np.int32)),
        "pixel_values": torch.tensor(np.concatenate(pixels)),
        "image_grid_thw": torch.tensor(thw),
    }
    return ours, theirs, padded([real for _, real in rows], bool)


def our_logits(model: Qwen2_5_VL, batch: Any) -> np.ndarray:
    graphdef, params = nnx.split(model)
    return np.asarray(jax.jit(lambda p, *batch: nnx.merge(graphdef, p)(*batch))(params, *batch))


def assert_agree(config: QwenConfig, grids: Grids, folder: pathlib.Path, bound: float) -> None:
    """Logits to `bound` of their deviation, positions and 32 greedy tokens equal transformers'."""
    theirs = hf_model(config)
    theirs.save_pretrained(folder)
    model = load(folder)
    assert model.config == config
    ours, inputs, real = make_batch(config, grids)

    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()[inputs["attention_mask"].bool().numpy()]
    actual = our_logits(model, ours)[real]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound * expected.std())

    graphdef, params = nnx.split(model)

    @jax.jit
    def places_and_reply(params, ids, valid, images):
        model = nnx.merge(graphdef, params)
        pictures = model.encode_images(images)
        known, places = model.places(ids[:, None], valid[:, None], vlm.one_row(pictures))
        prefix = read_prompt(model, pictures, ids, valid)
        reply = greedy_decode(model, prefix, ids[:, -1:], end_token=-1, max_tokens=32)
        return known, places.positions(0), places.advance.sum(-1), reply.tokens[:, 0]

    valid, place, advance, reply = map(np.asarray, places_and_reply(params, *ours))
    np.testing.assert_array_equal(valid[:, 0], real)
    positions, deltas = theirs.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    expected = positions.numpy()[:, inputs["attention_mask"].bool().numpy()]
    np.testing.assert_array_equal(place[:, valid], expected)
    np.testing.assert_array_equal(advance[:, 0] - real.sum(-1), deltas[:, 0].numpy())

    generated = theirs.generate(**inputs, do_sample=False, max_new_tokens=32, pad_token_id=0)
    expected = generated[:, inputs["input_ids"].shape[1] :].numpy()
    np.testing.assert_array_equal(reply, expected)


@dataclasses.dataclass(frozen=True)
class Oracle:
    """A folder as transformers reads it.

    Attributes:
        folder: the model.
        model: its weights.
        process: pictures, messages and whether a reply is to follow, to the model's inputs.
    """

    folder: pathlib.Path
    model: Any
    process: Callable[[Any, list, bool], Any]

    def inputs(self, pictures: Any, question: str, answer: str | None = None) -> dict[str, Any]:
        """The inputs that transformers makes of a question and maybe its answer."""
        asked = [{"type": "text", "text": f"{question}\n{SHORT_ANSWER_INSTRUCTION}"}]
        messages = [{"role": "user", "content": [{"type": "image"}] * len(pictures) + asked}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return dict(self.process(pictures, messages, answer is None))

    def log_likelihood(self, pictures: Any, question: str, answer: str) -> float:
        """Of the answer and the token that ends it."""
        inputs = self.inputs(pictures, question, answer)
        asked = self.inputs(pictures, question)["input_ids"].shape[1]
        with torch.no_grad():
            logits = self.model(**inputs).logits[0]
        chosen = inputs["input_ids"][0, asked:-1]  # a newline follows
        log_probs = logits[asked - 1 : -2].log_softmax(-1)
        return log_probs.gather(-1, chosen[:, None]).sum().item()


def assert_asks_and_answers(oracle: Oracle) -> None:
    """Token ids, greedy answers and likelihoods of a reader equal transformers'."""
    target = VLMReader.from_pretrained(oracle.folder, processor={"max_pixels": PIXELS})
    examples = tiny.make_examples(3)
    images = [[e["image"]] for e in examples] + [
        [e["image"], e["image"][5:60, 10:50]] for e in examples
    ]
    questions, answers = [e["question"] for e in examples] * 2, [e["answers"][0] for e in examples]
    real = []
    for pictures, question in zip(images, questions, strict=True):
        prompt = target.conversations.answer(question, len(pictures))
        grids = [target.source.see(p, 0)[1] for p in pictures]
        room = target.source.config.image_seq_len
        kept = np.concatenate([np.arange(room) < rows * columns for rows, columns in grids])
        mask = np.ones(len(prompt.ids), bool)
        mask[prompt.ids == target.source.config.image_token_id] = kept
        real.append(prompt.ids[mask])
        assert target.image_tokens([pictures]) == kept.sum()
    oracle.model.generation_config.eos_token_id = target.source.end_token_id
    expected, likely = [], []
    decode = target.source.tokenizer.decode
    for ids, pictures, question, answer in zip(real, images, questions, answers * 2, strict=True):
        inputs = oracle.inputs(pictures, question)
        np.testing.assert_array_equal(ids, inputs["input_ids"][0])
        reply = oracle.model.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=0)
        reply = reply[0, inputs["input_ids"].shape[1] :].tolist()
        expected.append(decode([t for t in reply if t != target.source.end_token_id]).strip())
        likely.append(oracle.log_likelihood(pictures, question, answer))
    replies = target.answer(images, questions, max_tokens=12)
    assert [reply.text for reply in replies] == expected
    got = target.log_likelihood(images, questions, answers * 2)
    np.testing.assert_allclose(got, likely, rtol=1e-5)


def assert_rewards(oracle: Oracle) -> None:
    """Rewards in a step are transformers' likelihoods of the crops, and the step learns."""
    source = Pretrained.open(oracle.folder, processor={"max_pixels": PIXELS})
    reader, weights = nnx.split(source.load())
    prompts = source.conversations()
    template = AnswerTemplate.from_conversations(prompts, 2)
    examples = tiny.make_examples(2)
    prepare = dataclasses.replace(tiny.PREPARE, target_conversations=prompts)
    batch = batching.stack([prepare(example, i) for i, example in enumerate(examples)])
    whole, wide = (0, 0, 100, 100), (5, 60, 95, 70)
    replies = [[(whole, (20, 30, 55, 90)), ((20, 30, 55, 90),)], [((1, 1, 40, 40), wide), (wide,)]]
    boxes = np.array([[(*reply, whole)[:2] for reply in group] for group in replies])
    count = np.array([[len(reply) for reply in group] for group in replies])

    class OfBoxes(GRPOStep):
        """A step whose rollouts are these replies."""

        def sample(self, *args: Any) -> Any:
            return (
                super().sample(*args)._replace(boxes=jnp.asarray(boxes), count=jnp.asarray(count))
            )

    policy, params = tiny.make_model(0)
    optimizer = optax.sgd(1e-2)
    step = OfBoxes(
        policy=policy,
        target=reader,
        grammar=geometry.Grammar.from_tokenizer(tiny.SEVERAL, 2),
        template=template,
        optimizer=optimizer,
        config=GRPOConfig(
            num_generations=2, gain=True, verification_weight=1.0, beta=0.0, max_boxes=2
        ),
    )
    state = TrainState.create(params=params, optimizer=optimizer, target=weights)
    batch = jax.tree.map(jnp.asarray, batch)
    _, metrics, experience = jax.jit(step.run)(state, batch, jax.random.key(0))
    assert metrics["unscored"] == 0 and np.isfinite(metrics["reward/likelihood"])
    assert metrics["grad_norm"] > 0
    told = [np.asarray(experience.rewards.parts[name]) for name in ("likelihood", "verification")]
    for example, group, values in zip(examples, replies, np.stack(told, -1), strict=True):
        picture = example["image"]
        asked = example["question"], example["answers"][0]
        alone = oracle.log_likelihood([picture], *asked)
        for reply, (gain, of_crops) in zip(group, values, strict=True):
            crops = [host.cut(picture, np.array(box)) for box in reply]
            expected = oracle.log_likelihood([picture, *crops], *asked) - alone
            # A grey level here or there.
            assert abs(gain - expected) < 0.02, (reply, gain, expected)
            expected = oracle.log_likelihood(crops, *asked)
            assert abs(of_crops - expected) < 0.02, (reply, of_crops, expected)
    tokens = np.asarray(experience.rewards.crop_tokens)
    assert (tokens > 0).all() and tokens[0, 0] > tokens[0, 1]


def assert_exports(folder: pathlib.Path, out: pathlib.Path, caplog: Any) -> None:
    """transformers loads an export without a warning, and its weights are those of the folder."""
    source = Pretrained.open(folder)
    model = source.load()
    export(out, model, source)
    transformers.logging.enable_propagation()
    theirs, info = transformers.AutoModelForImageTextToText.from_pretrained(
        out, output_loading_info=True
    )
    assert not any(info.values()), info
    assert not [record for record in caplog.records if "weights" in record.getMessage()]
    assert theirs.generation_config.eos_token_id == source.end_token_id
    original = load_file(folder / "model.safetensors")
    exported = load_file(out / "model.safetensors")
    assert exported.keys() == original.keys()
    for name, weight in original.items():
        np.testing.assert_array_equal(exported[name], weight, err_msg=name)


def assert_adapter_is_merged(
    config: QwenConfig, grids: Grids, targets: list[str] | str, folder: pathlib.Path
) -> None:
    """An adapter of peft, read with its base model, gives the logits that peft gives."""
    hf_model(config).save_pretrained(folder / "base")
    base = transformers.AutoModelForImageTextToText.from_pretrained(folder / "base")
    theirs = adapt(base, r=2, target_modules=targets)
    theirs.save_pretrained(folder / "adapter")
    ours, inputs, real = make_batch(config, grids)
    kept = inputs["attention_mask"].bool().numpy()
    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()[kept]
        with theirs.disable_adapter():
            assert np.abs(theirs(**inputs).logits.numpy()[kept] - expected).max() > 0.01
    merged = load(folder / "base", Adapter.open(folder / "adapter"))
    np.testing.assert_allclose(our_logits(merged, ours)[real], expected, rtol=0, atol=1e-4)


def count_parameters(config: QwenConfig) -> int:
    """Of a released shape."""
    model = nnx.eval_shape(lambda: architecture_of(config).model(config, rngs=nnx.Rngs(0)))
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def assert_split(config: QwenConfig) -> None:
    """Eight devices hold little more than an eighth each: all but norms and biases is split."""
    architecture = architecture_of(config)
    model = nnx.eval_shape(lambda: architecture.model(config, rngs=nnx.Rngs(0)))
    params = nnx.state(model, nnx.Param)
    mesh = jax.sharding.AbstractMesh((1, 2, 4), parallel.AXES)
    shardings = parallel.state_shardings(mesh, params, config.heads, architecture.logical_axes)
    local = [
        math.prod(s.shard_shape(x.shape))
        for s, x in zip(jax.tree.leaves(shardings), jax.tree.leaves(params), strict=True)
    ]
    assert sum(local) < 1.01 * sum(x.size for x in jax.tree.leaves(params)) / 8


def assert_step_is_built(config: QwenConfig, folder: pathlib.Path) -> None:
    """The step with a target of a released shape, and its cost, without weights."""
    write_shape(folder, config, qwen_tokenizer())
    settings = config_lib.default_config()
    settings.cropper, settings.target = "zoom_digits/cropper", str(folder)
    settings.dtype, settings.data.longest_edge = "bfloat16", 64
    settings.data.canvas, settings.grpo.num_generations = (512, 512), 2
    built = open_stage(config_lib.load_config(settings), abstract=True)
    assert built.target.config.image_seq_len == 256
    assert {x.dtype for x in jax.tree.leaves(built.weights["target"])} == {jnp.dtype("bfloat16")}
    row = built.prepare(tiny.make_examples(1)[0], 0)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), row)
    state = jax.eval_shape(lambda weights: built.init(weights, 1), built.weights)
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = built.step()
    program, (after, _) = jax.make_jaxpr(step, return_shape=True)(state, batch, key)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    # Two operations a weight and token of the decoder at least: the picture, then two crops.
    decoder = sum(x.size for x in jax.tree.leaves(built.weights["target"]["text"]["layers"]))
    flops = built.cost(program)
    assert 1 < flops["reward"] / (2 * 3 * 256 * 2 * decoder) < 2

    settings.target_processor.max_pixels = 1024 * config.limits.factor**2
    built = open_stage(config_lib.load_config(settings), abstract=True)
    assert built.target.config.image_seq_len == 1024
