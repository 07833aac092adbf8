# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A folder with an adapter works wherever a model's folder does; a wrong base is named."""

import json
import os
import pathlib
import shutil

import jax
import ml_collections
import numpy as np
import pytest
import several_boxes
from flax import nnx
from tokenizers import Tokenizer

from cropvlm_jax import CropVLM
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.hub.adapter_export import export_adapter
from cropvlm_jax.hub.adapters import BASE, CONFIG, WEIGHTS
from cropvlm_jax.hub.export import export, export_processor
from cropvlm_jax.hub.pretrained import BUNDLED, Pretrained
from cropvlm_jax.models import lora
from cropvlm_jax.readers.vlm import VLMReader
from cropvlm_jax.training import loop
from cropvlm_jax.training.config import default_config, load_config, source
from cropvlm_jax.training.stages import open_stage

NAME = "zoom_digits/cropper"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An adapter of the bundled cropper, and the folder of the merged model."""
    folder = tmp_path_factory.mktemp("adapters")
    base = Pretrained.open(NAME)
    model = lora.add(base.load(), lora.LoRAConfig(rank=4), nnx.Rngs(0))
    graphdef, trained, frozen = nnx.split(model, lora.LoRAParam, ...)
    rng = np.random.default_rng(0)
    trained = jax.tree.map(lambda x: rng.normal(0, 0.05, x.shape).astype(np.float32), trained)
    model = nnx.merge(graphdef, trained, frozen)
    export_adapter(folder / "adapter", model, NAME)
    export(folder / "merged", lora.merge(model), base)
    return folder


@pytest.fixture
def adapter(made, tmp_path):
    """A copy of the adapter."""
    return pathlib.Path(shutil.copytree(made / "adapter", tmp_path / "adapter"))


def set_base(folder: pathlib.Path, base: object) -> None:
    """Changes the base model that an adapter names."""
    config = json.loads((folder / CONFIG).read_text()) | {BASE: base}
    (folder / CONFIG).write_text(json.dumps(config))


def assert_same_weights(one, other, atol=1e-6):
    one, other = nnx.state(one), nnx.state(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), one, other)


def test_it_is_merged_into_its_base(made):
    opened, merged = Pretrained.open(made / "adapter"), Pretrained.open(made / "merged")
    assert opened.folder == BUNDLED / NAME and opened.config == merged.config
    assert_same_weights(opened.load(), merged.load())
    plain = Pretrained.open(NAME).load().text.layers.q.kernel[...]
    assert np.abs(plain - merged.load().text.layers.q.kernel[...]).max() > 1e-2


def test_merging_rounds_once(made):
    """In bfloat16 the sum is rounded, not its parts."""
    rounded = Pretrained.open(made / "adapter").load(dtype=jax.numpy.bfloat16)
    expected = Pretrained.open(made / "merged").load(dtype=jax.numpy.bfloat16)
    assert_same_weights(rounded, expected, atol=2**-8)
    values, equal = 0, 0
    for one, other in zip(*map(jax.tree.leaves, map(nnx.state, (rounded, expected))), strict=True):
        values, equal = values + one.size, equal + int((one == other).sum())
    assert equal > 0.999 * values


def test_as_a_cropper_and_as_a_reader(made):
    scenes = [ZoomDigits("test", 4)[i] for i in range(4)]
    pictures, questions = [s["image"] for s in scenes], [s["question"] for s in scenes]
    boxes = [CropVLM.from_pretrained(made / x).propose(pictures, questions) for x in PAIR]
    np.testing.assert_array_equal(*boxes)
    one, other = (
        VLMReader.from_pretrained(made / x).log_likelihood(
            [[p] for p in pictures], questions, [*"1234"]
        )
        for x in PAIR
    )
    np.testing.assert_allclose(one, other, rtol=1e-4)


PAIR = ("adapter", "merged")


def test_an_adapter_says_how_many_boxes_there_may_be(adapter, tmp_path):
    source = several_boxes.source()
    export_processor(adapter, source, source.longest_edge, "cropper")
    opened = CropVLM.from_pretrained(adapter)
    assert opened.source.replies == source.replies and opened.grammar.max_boxes == 3
    opened.save_pretrained(tmp_path / "whole")
    asked = several_boxes.scenes(4)
    whole = CropVLM.from_pretrained(tmp_path / "whole").replies(*asked)
    assert [reply.boxes for reply in whole] == [reply.boxes for reply in opened.replies(*asked)]


def test_an_export_is_a_whole_model(made, tmp_path):
    opened = Pretrained.open(made / "adapter")
    export(tmp_path / "out", opened.load(), opened)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {file.name for file in (made / "merged").iterdir()}
    assert_same_weights(Pretrained.open(tmp_path / "out").load(), opened.load(), atol=0)


@pytest.mark.parametrize("nested", [False, True])
def test_pictures_are_prepared_as_the_adapter_says(adapter, tmp_path, nested):
    base = Pretrained.open(NAME)
    export_processor(adapter, base, 2 * base.longest_edge)
    assert not (adapter / "config.json").exists()
    if nested:  # as transformers 5 saves it
        settings = json.loads((adapter / "preprocessor_config.json").read_text())
        (adapter / "preprocessor_config.json").unlink()
        file = adapter / "processor_config.json"
        content = json.loads(file.read_text()) | {"image_processor": settings}
        file.write_text(json.dumps(content))
    opened = Pretrained.open(adapter)
    assert opened.longest_edge == 2 * base.longest_edge
    export(tmp_path / "out", opened.load(), opened)
    assert Pretrained.open(tmp_path / "out").longest_edge == 2 * base.longest_edge


@pytest.mark.parametrize(
    "name", ["processor_config.json", "tokenizer_config.json", "tokenizer.json", "config.json"]
)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xef\xbb\xbf{}"])
def test_broken_files_beside_an_adapter_are_named(adapter, name, content):
    (adapter / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{adapter}.{name}"):
        Pretrained.open(adapter)


def test_tokens_that_the_base_lacks_are_named(adapter):
    base = Pretrained.open(NAME)
    more = Tokenizer.from_str(base.tokenizer.to_str())
    more.add_tokens([f"<more {i}>" for i in range(base.config.text.vocab_size)])
    more.save(str(adapter / "tokenizer.json"))
    with pytest.raises(ValueError, match=rf"{adapter}.tokenizer.json: .* vocab_size="):
        Pretrained.open(adapter)


BASES = ["absolute", "beside", "above", "nested", "working directory", "home", "dot"]


@pytest.mark.parametrize("where", BASES)
def test_a_base_is_found(where, adapter, tmp_path, monkeypatch):
    parents = {"nested": adapter, "working directory": tmp_path / "work", "home": tmp_path / "home"}
    folder = parents.get(where, tmp_path) / "base"
    shutil.copytree(BUNDLED / NAME, folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "work")
    names = {"absolute": str(folder), "nested": "base", "working directory": "base"}
    names |= {"beside": "../base", "above": "../../adapter/../base/", "home": "~/base"}
    names["above"] = os.path.relpath(folder, adapter) + "/"
    names["dot"] = "./../base"
    set_base(adapter, names[where])
    opened = Pretrained.open(adapter)
    assert os.path.samefile(opened.folder, folder)
    assert Pretrained.open(os.path.relpath(adapter)).folder.samefile(folder)


@pytest.mark.parametrize(
    "base", ["/moved/away", "runs/old/cropper", "no/such-model", "~/x", "~no-one/x", "a b"]
)
def test_a_base_that_is_not_there_is_named(adapter, base):
    set_base(adapter, base)
    with pytest.raises(FileNotFoundError) as caught:
        Pretrained.open(adapter)
    message = str(caught.value)
    assert f"{adapter / CONFIG}: {BASE}={base!r} is not there: write there" in message
    assert "\n" not in message


def test_a_base_that_is_no_model_is_named(adapter, tmp_path):
    (tmp_path / "empty").mkdir()
    set_base(adapter, str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=rf"empty has no config.*{adapter}.*{BASE}"):
        Pretrained.open(adapter)


@pytest.mark.parametrize("base", ["self", "other"])
def test_a_base_that_is_an_adapter_is_refused(adapter, made, base):
    set_base(adapter, str(adapter if base == "self" else made / "adapter"))
    with pytest.raises(ValueError, match=rf"{adapter}.{CONFIG}: {BASE}=.* is an adapter itself"):
        Pretrained.open(adapter)


def test_a_base_of_another_shape_is_named(adapter):
    set_base(adapter, "zoom_digits/target")
    with pytest.raises(
        ValueError, match=rf"{adapter}.{WEIGHTS}: .* Is {BASE}='zoom_digits/target'"
    ):
        Pretrained.open(adapter).load()


def test_a_folder_with_a_model_and_an_adapter_is_refused(adapter):
    shutil.copytree(BUNDLED / NAME, adapter, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=rf"{adapter} holds a model .* and an adapter"):
        Pretrained.open(adapter)
    (adapter / "model.safetensors").unlink()  # what is left is an adapter with a copied config
    assert Pretrained.open(adapter).adapter is not None


def test_the_folder_above_an_adapter_is_refused_with_a_hint(adapter):
    with pytest.raises(FileNotFoundError, match=r"no config.json: not a model .* in it: adapter$"):
        Pretrained.open(adapter.parent)


def test_half_written_folders_are_refused(adapter):
    for name in (WEIGHTS, CONFIG):
        content = (adapter / name).read_bytes()
        (adapter / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{adapter} .*no {name}"):
            Pretrained.open(adapter)
        (adapter / name).write_bytes(content)


@pytest.mark.parametrize("revision", [None, "main", "0123abc"])
def test_adapter_and_base_may_be_on_the_hub(adapter, monkeypatch, revision):
    asked = []

    def download(name, **options):
        asked.append((name, options.get("revision"), "*.safetensors" in options["allow_patterns"]))
        return str({"some/adapter": adapter, "some/model": BUNDLED / NAME}[name])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    set_base(adapter, "some/model")
    config = json.loads((adapter / CONFIG).read_text()) | {"revision": revision}
    (adapter / CONFIG).write_text(json.dumps(config))
    for weights in (True, False):
        opened = Pretrained.open("some/adapter", weights=weights)
        assert opened.folder == BUNDLED / NAME and opened.adapter.folder == adapter
        assert asked == [("some/adapter", None, weights), ("some/model", revision, weights)]
        asked.clear()


def settings(cropper: pathlib.Path, **changes: object) -> ml_collections.ConfigDict:
    """Two steps of SFT."""
    config = default_config()
    config.stage, config.cropper, config.steps, config.batch_size = "sft", str(cropper), 2, 2
    config.learning_rate = 1e-2
    config.data.update(longest_edge=64, canvas=(512, 512), question_tokens=16)
    config.data.sources.zoom_digits = source()
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize("rank", [0, 2])
def test_training_starts_from_the_merged_model(made, rank):
    configs = [load_config(settings(made / name, **{"lora.rank": rank})) for name in PAIR]
    stages = [open_stage(config) for config in configs]
    one, other = (stage.trained.plain(stage.weights) for stage in stages)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), one, other)
    abstract = open_stage(configs[0], abstract=True)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), abstract.trained.shapes)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), stages[0].trained.shapes)


def test_adapters_trained_on_an_adapter_belong_to_the_same_base(made, tmp_path):
    config = settings(made / "adapter", **{"lora.rank": 2, "data.longest_edge": 128})
    assert loop.run(config, tmp_path)
    adapter, cropper = (Pretrained.open(tmp_path / name) for name in ("adapter", "cropper"))
    assert adapter.folder == BUNDLED / NAME and adapter.adapter.rank == 4 + 2
    assert adapter.longest_edge == cropper.longest_edge == 128
    trained = cropper.load()
    assert_same_weights(adapter.load(), trained, atol=1e-5)
    start = Pretrained.open(made / "adapter").load().text.layers.q.kernel[...]
    assert np.abs(trained.text.layers.q.kernel[...] - start).max() > 1e-3
