# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights and model folders: every mistake is named, and a save is complete or absent."""

import dataclasses
import json
import pathlib

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

from cropvlm_jax.hub import export as export_lib
from cropvlm_jax.hub.export import export, write_processor_files
from cropvlm_jax.hub.pretrained import Pretrained, resolve
from cropvlm_jax.hub.tokenizer import train_tokenizer
from cropvlm_jax.hub.weights import FILE, INDEX, load_weights, save_weights
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.smolvlm.config import SiglipConfig, SmolVLMConfig
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.models.smolvlm.weights import WEIGHTS

QUERY = "model.text_model.layers.1.self_attn.q_proj.weight"
PATCHES = "model.vision_model.embeddings.patch_embedding.weight"


def make_params(*, tied: bool, dtype=np.float32):
    """Random weights of a tiny model as `nnx.State`, and the same without values."""
    config = SmolVLMConfig(
        vision=SiglipConfig(32, 8, 8, 12, 2, 2),
        text=LlamaConfig(20, 16, 24, 2, 2, 1, 8, tie_word_embeddings=tied),
        scale_factor=2,
        image_token_id=7,
    )
    model = nnx.eval_shape(lambda: SmolVLM(config, rngs=nnx.Rngs(0), param_dtype=dtype))
    abstract = nnx.state(model, nnx.Param)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), abstract)
    return params, abstract


@pytest.fixture
def saved(tmp_path):
    """A folder with an untied model: (folder, params, abstract params)."""
    params, abstract = make_params(tied=False)
    save_weights(params, WEIGHTS, tmp_path)
    return tmp_path, params, abstract


def edit(folder: pathlib.Path, change) -> None:
    weights = load_file(folder / FILE)
    change(weights)
    save_file(weights, folder / FILE)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_round_trip(saved):
    folder, params, abstract = saved
    assert_same(load_weights(folder, abstract, WEIGHTS), params)
    pure = load_weights(folder, nnx.to_pure_dict(abstract), WEIGHTS)
    assert_same(pure, nnx.to_pure_dict(params))


def test_layouts(saved):
    folder, params, _ = saved
    stored, params = load_file(folder / FILE), nnx.to_pure_dict(params)
    np.testing.assert_array_equal(stored[QUERY], params["text"]["layers"]["q"]["kernel"][1].T)
    kernel = params["vision"]["patch_embedding"]["kernel"]
    image = np.random.default_rng(0).normal(size=(8, 8, 3))
    np.testing.assert_allclose(
        np.einsum("dcyx,yxc->d", stored[PATCHES], image), image.reshape(-1) @ kernel, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(QUERY), f"missing weight {QUERY}"),
        (lambda w: w.update(extra=np.zeros(2)), "unused weight extra"),
        (
            lambda w: w.update({QUERY: np.zeros((4, 16), np.float32)}),
            rf"{QUERY} has shape \(4, 16\), not \(16, 16\)",
        ),
        (
            lambda w: w.update({PATCHES: np.zeros((192, 8), np.float32)}),
            rf"{PATCHES} has shape \(192, 8\), not \(8, 3, 8, 8\)",
        ),
    ],
    ids=["missing", "unused", "misshaped", "misshaped-conv"],
)
def test_wrong_weight_is_named(saved, change, message):
    folder, _, abstract = saved
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        load_weights(folder, abstract, WEIGHTS)


def test_another_depth_is_named(saved):
    folder, _, abstract = saved
    edit(folder, lambda w: w.update({QUERY.replace("1", "2"): w[QUERY]}))
    with pytest.raises(ValueError, match=r"unused weight model.text_model.layers.2.self_attn"):
        load_weights(folder, abstract, WEIGHTS)


def test_old_rotary_buffers_are_ignored(saved):
    folder, params, abstract = saved
    name = "model.text_model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(folder, lambda w: w.update({name: np.zeros(4, np.float32)}))
    assert_same(load_weights(folder, abstract, WEIGHTS), params)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_weights_that_are_not_finite_are_not_written(tmp_path, value, dtype):
    params, _ = make_params(tied=False, dtype=dtype)
    kernel = params["text"]["layers"]["q"]["kernel"]
    kernel.set_value(kernel[...].at[1, 2, 3].set(value))
    with pytest.raises(ValueError, match="text.layers.q.kernel has NaN or infinity"):
        save_weights(params, WEIGHTS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_head_of_a_tied_model(tmp_path):
    params, abstract = make_params(tied=True)
    save_weights(params, WEIGHTS, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / FILE)
    embedding = load_file(tmp_path / FILE)["model.text_model.embed_tokens.weight"]
    edit(tmp_path, lambda w: w.update({"lm_head.weight": embedding}))
    assert_same(load_weights(tmp_path, abstract, WEIGHTS), params)
    edit(tmp_path, lambda w: w.update({"lm_head.weight": embedding + 1}))
    with pytest.raises(ValueError, match=r"ties lm_head\.weight .* differ"):
        load_weights(tmp_path, abstract, WEIGHTS)


def test_head_of_an_untied_model_is_needed(saved):
    folder, _, abstract = saved
    edit(folder, lambda w: w.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"missing weight lm_head\.weight"):
        load_weights(folder, abstract, WEIGHTS)


def test_parameter_outside_the_table_is_named(tmp_path):
    params = nnx.to_pure_dict(make_params(tied=True)[0])
    params["text"]["adapter"] = jnp.zeros(3)
    with pytest.raises(ValueError, match=r"text\.adapter"):
        save_weights(params, WEIGHTS, tmp_path)


def test_shards(tmp_path):
    params, abstract = make_params(tied=True)
    save_weights(params, WEIGHTS, tmp_path, max_shard_bytes=20_000)
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    assert {file.name for file in files} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    for file in files:
        stored = load_file(file)
        assert sum(x.nbytes for x in stored.values()) <= 20_000
        assert all(index["weight_map"][name] == file.name for name in stored)
    assert_same(load_weights(tmp_path, abstract, WEIGHTS), params)

    save_file(load_file(files[1]) | {QUERY: np.zeros(1)}, files[1])
    save_file(load_file(files[0]) | {QUERY: np.zeros(1)}, files[0])
    with pytest.raises(ValueError, match=f"duplicate weight {QUERY}"):
        load_weights(tmp_path, abstract, WEIGHTS)


def test_bfloat16(tmp_path):
    params, abstract = make_params(tied=False, dtype=jnp.bfloat16)
    save_weights(params, WEIGHTS, tmp_path)
    loaded = load_weights(tmp_path, abstract, WEIGHTS)
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {jnp.dtype(jnp.bfloat16)}
    assert_same(loaded, params)
    wide = load_weights(tmp_path, make_params(tied=False)[1], WEIGHTS)
    assert_same(wide, jax.tree.map(lambda x: x.astype(jnp.float32), params))


def test_weights_are_placed_where_asked(saved):
    folder, _, abstract = saved
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract
    )
    loaded = load_weights(folder, wanted, WEIGHTS)
    assert {x.sharding for x in jax.tree.leaves(loaded)} == {sharding}


def test_unreadable_folders_say_what_to_do(tmp_path):
    _, abstract = make_params(tied=True)
    with pytest.raises(ValueError, match="neither"):
        load_weights(tmp_path, abstract, WEIGHTS)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"Convert them: .*save_pretrained"):
        load_weights(tmp_path, abstract, WEIGHTS)
    (tmp_path / FILE).write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"model\.safetensors is not .* git-lfs"):
        load_weights(tmp_path, abstract, WEIGHTS)


@pytest.fixture
def source(tmp_path):
    """A self-made model folder without weights, and random weights for it."""
    folder = tmp_path / "source"
    folder.mkdir()
    tokenizer = train_tokenizer(["What digit is it?"], 400)
    config = SmolVLMConfig(
        vision=SiglipConfig(32, 8, 8, 12, 2, 2),
        text=LlamaConfig(tokenizer.get_vocab_size(), 16, 24, 2, 2, 1, 8),
        scale_factor=2,
        image_token_id=tokenizer.token_to_id("<image>"),
    )
    write_processor_files(folder, config, tokenizer, longest_edge=64)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: SmolVLM(config, rngs=nnx.Rngs(0))))
    params = jax.tree.map(lambda x: jnp.full(x.shape, 0.5, x.dtype), abstract)
    return Pretrained.open(folder), nnx.merge(graphdef, params)


def test_open(source):
    opened, _ = source
    assert (opened.longest_edge, opened.tile_size) == (64, 32)
    assert opened.tokenizer.id_to_token(opened.end_token_id) == "<end_of_utterance>"
    preprocessor = opened.folder / "preprocessor_config.json"
    nested = {"image_processor": json.loads(preprocessor.read_text())}
    preprocessor.unlink()
    assert Pretrained.open(opened.folder).longest_edge == 128  # the default, four tiles
    (opened.folder / "processor_config.json").write_text(json.dumps(nested))
    assert Pretrained.open(opened.folder).longest_edge == 64


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"image_token_id": 5}, "image_token_id=5"),
        ("preprocessor_config.json", {"max_image_size": {"longest_edge": 48}}, "tiles of 48 px"),
        ("config.json", {"model_type": "blip-2"}, "blip-2"),
    ],
)
def test_contradictions_are_refused(source, file, change, message):
    folder = source[0].folder
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Pretrained.open(folder)


def test_absent_files_are_named(source):
    folder = source[0].folder
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        Pretrained.open(folder)


def test_resolve(tmp_path, monkeypatch):
    assert resolve(tmp_path) == tmp_path

    with_weights = []

    def offline(name, allow_patterns):
        with_weights.append("*.safetensors" in allow_patterns)
        raise LocalEntryNotFoundError(name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    for weights in (True, False):
        with pytest.raises(FileNotFoundError, match=r"'some/model' is neither .* nor .* Hub"):
            resolve("some/model", weights)
    assert with_weights == [True, False]
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="neither"):
        resolve(tmp_path / "absent")


@pytest.mark.parametrize(
    "name",
    ["{}/croper", "./croper", "~/no/croper", "runs/croper", "a/b/c/d", "zoom_digits/croper"],
)
def test_a_mistyped_path_is_no_matter_of_the_hub(name, tmp_path, monkeypatch):
    def offline(name, allow_patterns):
        raise LocalEntryNotFoundError(name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "cropper").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="there is no folder") as error:
        resolve(name.format(tmp_path))
    assert "Hub" not in str(error.value)
    if name.startswith("runs"):
        assert str(error.value).endswith("'runs' has cropper")
    if name.startswith("zoom_digits"):
        assert str(error.value).endswith(" has cropper, target")


def test_a_file_is_no_model(tmp_path):
    (tmp_path / FILE).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"is a file: give the folder"):
        resolve(tmp_path / FILE)


def test_export(source, tmp_path):
    opened, model = source
    (opened.folder / "vocab.json").write_text("{}")
    (opened.folder / "model.bin").write_text("not copied")
    (opened.folder / "generation_config.json").write_text('{"eos_token_id": 2, "top_k": 3}')
    half = json.loads((opened.folder / "config.json").read_text())
    half["torch_dtype"] = half["text_config"]["torch_dtype"] = "float16"
    (opened.folder / "config.json").write_text(json.dumps(half))
    target = tmp_path / "target"
    export(target, model, opened, dtype=jnp.bfloat16)

    names = {file.name for file in target.iterdir()}
    assert names == {f.name for f in opened.folder.iterdir()} - {"model.bin"} | {FILE, "README.md"}
    processor = json.loads((target / "processor_config.json").read_text())
    images = json.loads((target / "preprocessor_config.json").read_text())
    assert processor.pop("image_processor") | {"processor_class": "Idefics3Processor"} == images
    assert processor == json.loads((opened.folder / "processor_config.json").read_text())
    written = {"README.md", "config.json", "generation_config.json", "processor_config.json", FILE}
    for name in names - written:
        assert (target / name).read_bytes() == (opened.folder / name).read_bytes()
    config = json.loads((target / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["torch_dtype"] == "bfloat16"  # which version 4 of transformers reads
    assert "torch_dtype" not in config["text_config"]
    generation = json.loads((target / "generation_config.json").read_text())
    assert generation == {"eos_token_id": opened.end_token_id, "top_k": 3}
    again = Pretrained.open(target)
    assert dataclasses.replace(again, folder=opened.folder, tokenizer=opened.tokenizer) == opened
    assert_same(nnx.state(again.load()), nnx.state(model))
    assert again.load(dtype=jnp.bfloat16).text.head.dtype == jnp.bfloat16
    export(target, again.load(), again)  # onto itself
    assert_same(nnx.state(Pretrained.open(target).load()), nnx.state(model))
    export(target, again.load(), Pretrained.open(target), longest_edge=96)
    assert Pretrained.open(target).longest_edge == 96
    (target / "processor_config.json").unlink()
    assert Pretrained.open(target).longest_edge == 96  # the flat file says the same
    assert sorted(f.name for f in tmp_path.iterdir()) == ["source", "target"]


def test_export_fails_without_a_trace(source, tmp_path, monkeypatch):
    opened, model = source
    target = tmp_path / "target"
    export(target, model, opened)

    def full_disk(*args):
        raise OSError("no space left")

    rename = pathlib.Path.rename
    for owner, name, broken in [
        (export_lib, "save_weights", full_disk),
        (pathlib.Path, "rename", lambda a, b: full_disk() if ".new" in a.name else rename(a, b)),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            with pytest.raises(OSError, match="no space"):
                export(target, model, opened)
    assert_same(nnx.state(Pretrained.open(target).load()), nnx.state(model))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["source", "target"]


def test_export_overwrites_only_models(source, tmp_path):
    opened, model = source
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "precious.txt").write_text("")
    with pytest.raises(FileExistsError, match="notes is not a model folder"):
        export(tmp_path / "notes", model, opened)
    config = dataclasses.replace(opened.config, model_type="smolvlm")
    other = dataclasses.replace(opened, config=config)
    with pytest.raises(ValueError, match="config"):
        export(tmp_path / "target", model, other)
