# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL computes what `transformers` computes, from the same weights, with no download."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image
from qwen_shape import qwen_tokenizer, write_shape
from safetensors.numpy import load_file, save_file
from tiny_qwen import (
    END,
    IMAGE,
    PIXELS,
    SMALLEST,
    START,
    VIDEO,
    Oracle,
    assert_adapter_is_merged,
    assert_agree,
    assert_asks_and_answers,
    assert_exports,
    assert_rewards,
    assert_split,
    assert_step_is_built,
    count_parameters,
    hf_model,
)

from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.hub.weights import FILE
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.qwen2_5_vl.config import QwenConfig, QwenVisionConfig
from cropvlm_jax.readers.vlm import VLMReader

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# (patch, merge, window in tiles, full layers), (heads, kv heads, head dim), sections, tied,
# (rows, columns) of the pictures of two rows.
TINY = {
    "gqa2": ((4, 2, 4, (1,)), (4, 2, 8), (1, 1, 2), False, [[(4, 8)], [(3, 9)]]),
    "mha-tied-thin": ((4, 2, 2, (0, 2)), (2, 2, 16), (2, 3, 3), True, [[(1, 11)], [(11, 1)]]),
    "gqa3-two-pictures": (
        (6, 2, 3, ()),
        (6, 2, 8),
        (2, 1, 1),
        False,
        [[(7, 5), (2, 2)], [(1, 1), (5, 7)]],
    ),
    "gqa4-all-full-tied": (
        (4, 3, 2, (0, 1, 2)),
        (4, 1, 12),
        (2, 2, 2),
        True,
        [[(3, 3), (5, 2)], [(4, 4), (1, 6)]],
    ),
    "single-tile-windows": ((14, 2, 1, (2,)), (4, 4, 8), (0, 2, 2), False, [[(5, 6)], [(6, 6)]]),
}


def tiny_config(name: str) -> QwenConfig:
    (patch, merge, window, full), (heads, kv_heads, channels), sections, tied, _ = TINY[name]
    width = heads * channels
    text = LlamaConfig(
        101,
        width,
        72,
        3,
        heads,
        kv_heads,
        channels,
        rope_theta=1e4,
        tie_word_embeddings=tied,
        qkv_bias=True,
        mrope_section=sections,
    )
    vision = QwenVisionConfig(3, 24, 40, 2, width, patch, merge, window * patch * merge, full)
    return QwenConfig(vision, text, IMAGE, VIDEO, START, END)


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_agree(name, tmp_path):
    assert_agree(tiny_config(name), TINY[name][-1], tmp_path, bound=2e-5)


# The released chat template, without videos and numbered pictures.
CHAT_TEMPLATE = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}\
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'image' %}\
<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\
<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model as transformers saves it, and with it what the Hub has beside the weights."""
    folder = tmp_path_factory.mktemp("qwen")
    tokenizer = qwen_tokenizer((*tiny.QUESTIONS, *tiny.ANSWERS))
    text = dataclasses.replace(
        tiny_config("gqa2").text,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=512,
    )
    vision = dataclasses.replace(tiny_config("gqa2").vision, fullatt_block_indexes=(0, 2))
    hf_model(write_shape(folder, QwenConfig(vision, text), tokenizer)).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    settings = {"patch_size": 4, "merge_size": 2, "min_pixels": SMALLEST, "max_pixels": 1_003_520}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def oracle(folder):
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    size = {"shortest_edge": SMALLEST, "longest_edge": PIXELS}
    processor = module.Qwen2VLImageProcessorPil(size=size, patch_size=4, merge_size=2)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), chat_template=CHAT_TEMPLATE
    )

    def process(pictures, messages, add_generation_prompt):
        seen = processor([Image.fromarray(p) for p in pictures], return_tensors="pt")
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        before, *after = text.split("<|image_pad|>")
        tokens = (seen["image_grid_thw"].prod(-1) // 4).tolist()
        text = before + "".join(
            "<|image_pad|>" * n + rest for n, rest in zip(tokens, after, strict=True)
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        types = (ids["input_ids"] == image).int()
        return {**seen, "input_ids": ids["input_ids"], "mm_token_type_ids": types}

    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    return Oracle(folder, model, process)


def test_a_target_asks_and_answers_as_transformers(oracle):
    assert_asks_and_answers(oracle)


def test_a_prompt_that_is_too_long_names_a_setting_that_there_is(folder):
    target = VLMReader.from_pretrained(folder, processor={"max_pixels": PIXELS})
    picture = np.zeros((30, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="over the model's 512 positions.* smaller max_pixels"):
        target.answer([[picture]], ["What? " * 512])


def test_the_reward_in_the_step_is_what_transformers_says_of_the_crops(oracle):
    assert_rewards(oracle)


def test_transformers_loads_an_export(folder, tmp_path, caplog):
    assert Pretrained.open(folder).config.limits.max_pixels == 448**2  # not the folder's
    assert_exports(folder, tmp_path / "export", caplog)


@pytest.mark.parametrize(
    "targets",
    [
        ["qkv", "q_proj"],  # the first is a fused layer, whose parts are three of ours
        r".*visual.*\.(proj|gate_proj|mlp\.0|mlp\.2)",
        "all-linear",
    ],
)
def test_an_adapter_of_peft_is_merged(targets, tmp_path):
    assert_adapter_is_merged(tiny_config("gqa2"), TINY["gqa2"][-1], targets, tmp_path)


def test_names_of_the_modules_and_broken_fused_weights(folder, tmp_path):
    source = Pretrained.open(folder)
    weights = load_file(folder / "model.safetensors")

    def moved(name: str) -> str:
        name = name.replace("visual.", "model.visual.")
        return name if "visual" in name else name.replace("model.", "model.language_model.")

    other = dataclasses.replace(source, folder=tmp_path)
    save_file({moved(name): weight for name, weight in weights.items()}, tmp_path / FILE)
    for one, two in zip(
        *(jax.tree.leaves(nnx.state(s.load())) for s in (source, other)), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    fused = "visual.blocks.1.attn.qkv.weight"
    save_file(weights | {fused: weights[fused][:-24]}, tmp_path / FILE)
    with pytest.raises(ValueError, match=rf"{fused} has shape \(48, 24\), not \(72, 24\)"):
        other.load()


# The keys that matter of the Hub's config.json of the 7B.
HUB = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}


def test_released_configs():
    config = QwenConfig.qwen2_5_vl_7b()
    assert QwenConfig.from_hf(HUB) == config
    small = HUB | dict(hidden_size=2048, intermediate_size=11008, num_attention_heads=16)
    small |= dict(num_hidden_layers=36, num_key_value_heads=2, vocab_size=151936)
    small |= dict(tie_word_embeddings=True)
    small["vision_config"] = HUB["vision_config"] | {"out_hidden_size": 2048}
    assert QwenConfig.from_hf(small) == QwenConfig.qwen2_5_vl_3b()
    for shape, parameters in ((config, 8_292_166_656), (QwenConfig.from_hf(small), 3_754_622_976)):
        assert QwenConfig.from_hf(shape.to_hf()) == shape
        assert count_parameters(shape) == parameters


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_type='yarn'"),
        ({"vision_config": HUB["vision_config"] | {"hidden_act": "gelu"}}, "hidden_act='gelu'"),
        ({"vision_config": HUB["vision_config"] | {"window_size": 100}}, "window_size=100"),
        ({"vision_config": HUB["vision_config"] | {"out_hidden_size": 9}}, "out_hidden_size=9"),
        ({"model_type": "qwen2_vl"}, "qwen2_vl"),
    ],
)
def test_what_is_not_supported_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        QwenConfig.from_hf(HUB | change)


def test_7b_weights_are_split_over_fsdp_and_tensor():
    assert_split(QwenConfig.qwen2_5_vl_7b())


def test_the_step_with_a_7b_target_is_built_without_weights(tmp_path):
    assert_step_is_built(QwenConfig.qwen2_5_vl_7b(), tmp_path)
