# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files of model folders that are not what they claim: refused, with the file and the key."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny_folder
from safetensors.numpy import load_file, save_file

from cropvlm_jax.hub.files import read_json
from cropvlm_jax.hub.pretrained import JSON_FILES, Pretrained
from cropvlm_jax.hub.weights import FILE, INDEX

QUERY = "model.text_model.layers.1.self_attn.q_proj.weight"
BROKEN = {
    "empty": b"",
    "blank": b" \n",
    "cut": b'{"model_type": "idefics3", "text_config": {',
    "byte-order-mark": b"\xef\xbb\xbf{}",
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "latin-1": '{"a": "é"}'.encode("latin-1"),
    "list": b"[]",
    "text": b'"{}"',
    "null": b"null",
    "number": b"5",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n",
    "page": b"<!DOCTYPE html><html></html>",
    "two": b"{}{}",
    "comma": b'{"a": 1,}',
    "deep": b"[" * 100_000,
    "zeros": bytes(100),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder.make_folder(tmp_path_factory.mktemp("model") / "model", seed=0)


@pytest.fixture
def folder(model, tmp_path):
    """A copy to break."""
    return shutil.copytree(model, tmp_path / "copy")


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named(content, folder):
    for name in (*JSON_FILES, "tokenizer.json"):
        intact = (folder / name).read_bytes() if (folder / name).is_file() else None
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError) as error:
            Pretrained.open(folder)
        message = str(error.value)
        assert message.startswith(str(folder / name)) and len(message) < 500, message
        (folder / name).unlink()
        if intact is not None:
            (folder / name).write_bytes(intact)
    Pretrained.open(folder)


def test_json_is_read_strictly(tmp_path):
    assert read_json(tmp_path / "absent.json") == {}
    (tmp_path / "a.json").write_bytes(b' {"a": "\xc3\xa9"}\n')
    assert read_json(tmp_path / "a.json") == {"a": "é"}


def change(folder, file, part, values):
    content = json.loads((folder / file).read_text())
    (content[part] if part else content).update(values)
    (folder / file).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("part", "values"),
    [
        # What changes the maths, and our decoder does not have.
        ("text_config", {"rope_interleaved": True}),
        ("text_config", {"qk_layer_norms": True}),
        ("text_config", {"use_resampler": True}),
        ("text_config", {"partial_rotary_factor": 0.5}),
        ("text_config", {"attention_bias": True}),
        ("text_config", {"mlp_bias": True}),
        ("text_config", {"hidden_act": "gelu"}),
        ("text_config", {"sliding_window": 4096}),
        ("text_config", {"use_sliding_window": True}),
        ("text_config", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("text_config", {"no_rope_layers": [1, 1, 0]}),
        ("text_config", {"num_local_experts": 8}),
        ("text_config", {"final_logit_softcapping": 30.0}),
        ("text_config", {"residual_multiplier": 0.22}),
        ("text_config", {"model_type": "mistral"}),
        ("vision_config", {"hidden_act": "gelu"}),
        ("vision_config", {"num_channels": 1}),
        ("vision_config", {"qk_layer_norms": True}),
        ("", {"use_resampler": True}),
        ("", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}),
        ("text_config", {"quantization_config": {"quant_method": "fp8"}}),
        ("", {"compression_config": {"quant_method": "compressed-tensors"}}),
        ("", {"quantization": {"group_size": 64, "bits": 4}}),
        ("text_config", {"is_causal": False}),
        # What is no shape.
        ("text_config", {"hidden_size": "32"}),
        ("text_config", {"hidden_size": 32.0}),
        ("text_config", {"hidden_size": None}),
        ("text_config", {"num_hidden_layers": 0}),
        ("text_config", {"num_attention_heads": -4}),
        ("text_config", {"num_key_value_heads": [2]}),
        ("text_config", {"vocab_size": True}),
        ("text_config", {"rms_norm_eps": float("nan")}),
        ("text_config", {"rms_norm_eps": "1e-5"}),
        ("text_config", {"head_dim": 7}),
        ("vision_config", {"image_size": [32, 32]}),
        ("vision_config", {"patch_size": 0}),
        ("vision_config", {"layer_norm_eps": None}),
        ("", {"scale_factor": 3}),
        ("", {"scale_factor": "2"}),
        ("", {"image_token_id": None}),
        ("", {"tie_word_embeddings": "false"}),
        ("", {"text_config": [1]}),
        ("", {"vision_config": "siglip"}),
        ("", {"model_type": "llama"}),
        ("", {"model_type": None}),
        ("", {"model_type": ["idefics3"]}),
    ],
    ids=str,
)
def test_a_config_that_is_not_ours_is_refused_by_file_and_key(part, values, folder):
    change(folder, "config.json", part, values)
    with pytest.raises(ValueError) as error:
        Pretrained.open(folder)
    message = str(error.value)
    assert message.startswith(f"{folder / 'config.json'}: "), message
    assert next(iter(values)) in message and "\n" not in message


@pytest.mark.parametrize(
    ("key", "rope"),
    [
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "yarn", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.25}),
        ("rope_parameters", {"rope_theta": "10000"}),
        ("rope_parameters", {"rope_theta": float("inf")}),
        ("rope_parameters", "default"),
    ],
)
def test_other_rotations_are_refused(key, rope, folder):
    change(folder, "config.json", "text_config", {key: rope})
    with pytest.raises(ValueError, match=r"config\.json: .*(rope_|rotary)"):
        Pretrained.open(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"rope_interleaved": False, "qk_layer_norms": False, "use_resampler": False},
        {"partial_rotary_factor": 1.0, "rope_scaling": None},
        {"partial_rotary_factor": None, "sliding_window": None, "layer_types": None},
        {"layer_types": ["full_attention"] * 2, "quantization_config": None},
        {"num_key_value_heads": 2, "head_dim": 8, "pretraining_tp": 1, "use_cache": False},
        {"rope_scaling": {"rope_type": "default"}, "attention_dropout": 0.0, "is_decoder": False},
        {"perceiver_config": {"qk_layer_norms_perceiver": False}, "pixel_shuffle_factor": 2},
    ],
    ids=str,
)
def test_what_changes_nothing_is_harmless(values, folder):
    expected = Pretrained.open(folder).config
    change(folder, "config.json", "text_config", values)
    change(folder, "config.json", "", {"quantization_config": None, "unheard_of": 1})
    assert Pretrained.open(folder).config == expected


def test_a_tokenizer_that_does_not_fit_is_named(folder):
    vocabulary = Pretrained.open(folder).config.text.vocab_size
    change(folder, "config.json", "text_config", {"vocab_size": vocabulary - 1})
    with pytest.raises(ValueError, match=rf"tokenizer\.json: .*vocab_size={vocabulary - 1}"):
        Pretrained.open(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        Pretrained.open(folder)


def test_absent_tokens_are_named(folder):
    text = (folder / "tokenizer.json").read_text()
    for token in ("<image>", "<end_of_utterance>"):
        (folder / "tokenizer.json").write_text(text.replace(token, "<other>"))
        with pytest.raises(ValueError, match=rf"tokenizer\.json: .*{token}"):
            Pretrained.open(folder)


def rewrite(folder, values):
    save_file(load_file(folder / FILE) | values, folder / FILE)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "bool", "float8_e4m3fn", "float8_e5m2"])
def test_quantised_weights_are_named(kind, folder):
    weight = load_file(folder / FILE)[QUERY].astype(jax.numpy.dtype(kind))
    rewrite(folder, {QUERY: weight})
    with pytest.raises(ValueError, match=f"{QUERY} in {FILE} is quantised"):
        Pretrained.open(folder).load()


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [QUERY, "model.connector.modality_projection.proj.weight"])
def test_weights_that_are_not_finite_are_named(name, kind, value, folder):
    weight = load_file(folder / FILE)[name].astype(jax.numpy.dtype(kind))
    weight[-1, 2] = value
    rewrite(folder, {name: weight})
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(ValueError, match=f"NaN or infinity, as {dtype}, in {name}:") as error:
            Pretrained.open(folder).load(dtype=dtype)
        assert str(error.value).startswith(str(folder / FILE))


def test_weights_too_large_for_their_type_are_named(folder):
    weight = load_file(folder / FILE)[QUERY].astype(np.float64)
    weight[0, 0] = 1e39
    rewrite(folder, {QUERY: weight})
    with pytest.raises(ValueError, match=f"as float32, in {QUERY}"):
        Pretrained.open(folder).load()
    weight[0, 0] = -3e38
    rewrite(folder, {QUERY: weight})
    loaded = Pretrained.open(folder).load()
    assert loaded.text.layers.q.kernel[...].min() == np.float32(-3e38)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "weight_map=None names no files"),
        ({"weight_map": {}}, "weight_map={} names no files"),
        ({"weight_map": ["a"]}, "weight_map=.* names no files"),
        ({"weight_map": {QUERY: "model-00002-of-00002.safetensors"}}, "not there: model-00002"),
        ({"weight_map": {QUERY: 5}}, "not there: 5"),
    ],
)
def test_an_index_that_does_not_fit_is_named(index, message, folder):
    (folder / FILE).unlink()
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message) as error:
        Pretrained.open(folder).load()
    assert str(error.value).startswith(str(folder / INDEX))
