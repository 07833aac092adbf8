# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Adapters cross to PEFT and back with the same logits, and every mistake is named."""

import json
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from cropvlm_jax.hub.adapters import CONFIG, WEIGHTS, export_adapter, load_adapter
from cropvlm_jax.hub.weights import load_weights
from cropvlm_jax.models import lora
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.smolvlm.config import SiglipConfig, SmolVLMConfig
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.models.smolvlm.weights import WEIGHTS as TABLE

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

IMAGE = 7  # the <image> id
# The names in the paper's scripts; PEFT adapts every module whose name ends so.
PAPER_NAMES = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj fc1 fc2 proj".split()
QUERY = "base_model.model.model.text_model.layers.1.self_attn.q_proj"


def make_config(model_type: str) -> SmolVLMConfig:
    return SmolVLMConfig(
        vision=SiglipConfig(32, 8, 24, 40, 3, 2),
        text=LlamaConfig(50, 32, 48, 2, 4, 2, 8, tie_word_embeddings=model_type == "smolvlm"),
        scale_factor=2,
        image_token_id=IMAGE,
        model_type=model_type,
    )


def hf_model(config: SmolVLMConfig):
    """A random torch model with activations of a natural size."""
    hf_config = transformers.AutoConfig.for_model(**config.to_hf())
    model = transformers.AutoModelForImageTextToText.from_config(hf_config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, (p.numel() / p.shape[0]) ** -0.5, generator=generator)
    return model.eval()


def adapt(model, **kwargs):
    """Adapts a torch model as PEFT does, with random weights."""
    model = peft.get_peft_model(model, peft.LoraConfig(**kwargs))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.3, generator=generator)
    return model.eval()


def abstract(config: SmolVLMConfig) -> SmolVLM:
    return nnx.eval_shape(lambda: SmolVLM(config, rngs=nnx.Rngs(0)))


def make_base(folder: pathlib.Path, config: SmolVLMConfig) -> SmolVLM:
    graphdef, params = nnx.split(abstract(config))
    return nnx.merge(graphdef, load_weights(folder, params, TABLE))


def make_adapted(model: SmolVLM, config: lora.LoRAConfig) -> SmolVLM:
    """Adapts our model, with random weights."""
    adapted = nnx.eval_shape(lambda model: lora.add(model, config, nnx.Rngs(0)), model)
    graphdef, params, _ = nnx.split(adapted, lora.LoRAParam, ...)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), params)
    return nnx.merge(graphdef, params, nnx.state(model))


def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = np.array([[8, 9, *[IMAGE] * 4, *rng.integers(8, 50, 5)] for _ in range(2)])
    return ids, rng.uniform(-1, 1, (2, 1, 32, 32, 3)).astype(np.float32)


def hf_logits(model) -> np.ndarray:
    ids, images = batch()
    pixels = torch.tensor(images).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), pixel_values=pixels).logits.numpy()


def our_logits(model: SmolVLM) -> np.ndarray:
    ids, images = map(jnp.asarray, batch())
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state: nnx.merge(graphdef, state)(ids, jnp.ones(ids.shape, bool), images))
    return np.asarray(run(state))


def assert_logits_agree(ours: SmolVLM, theirs) -> None:
    expected = hf_logits(theirs)
    np.testing.assert_allclose(our_logits(ours), expected, rtol=0, atol=1e-4)
    with theirs.disable_adapter():
        assert np.abs(expected - hf_logits(theirs)).max() > 0.1


@pytest.fixture(params=["idefics3", "smolvlm"])
def pair(request, tmp_path):
    """A torch model, and ours of the same weights."""
    config = make_config(request.param)
    theirs = hf_model(config)
    theirs.save_pretrained(tmp_path / "base")
    return theirs, make_base(tmp_path / "base", config)


@pytest.fixture
def saved(tmp_path):
    """An adapter that we wrote, with its model, and the model without it."""
    model = abstract(make_config("idefics3"))
    adapted = make_adapted(model, lora.LoRAConfig(rank=4, alpha=6))
    export_adapter(tmp_path, adapted, "some/model")
    return tmp_path, adapted, model


def test_from_peft(pair, tmp_path):
    theirs, base = pair
    settings = dict(r=4, lora_alpha=6, lora_dropout=0.1, target_modules=PAPER_NAMES)
    theirs = adapt(theirs, **settings)
    theirs.save_pretrained(tmp_path / "adapter")
    adapted = load_adapter(tmp_path / "adapter", base)
    assert_logits_agree(adapted, theirs)
    # Those names select what our default does: no output projection of the tower.
    expected = lora.add(base, lora.LoRAConfig(), nnx.Rngs(0))
    assert lora.adapters(adapted).keys() == lora.adapters(expected).keys()
    config = adapted.connector.config
    assert (config.rank, config.alpha, config.dropout) == (4, 6, 0.1)
    assert sum(x.size for x in jax.tree.leaves(nnx.state(adapted, lora.LoRAParam))) == sum(
        p.numel() for name, p in theirs.named_parameters() if "lora_" in name
    )


def test_to_peft(pair, tmp_path):
    theirs, base = pair
    adapted = make_adapted(base, lora.LoRAConfig(rank=4, alpha=6, dropout=0.1))
    export_adapter(tmp_path / "adapter", adapted, str(tmp_path / "base"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of missing or unexpected weights
        theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    assert_logits_agree(adapted, theirs)
    config = theirs.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 6, 0.1)
    assert config.base_model_name_or_path == str(tmp_path / "base")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [CONFIG, WEIGHTS]


def test_rank_stabilised_and_other_targets(tmp_path):
    config = make_config("idefics3")
    theirs = hf_model(config)
    theirs.save_pretrained(tmp_path / "base")
    base = make_base(tmp_path / "base", config)
    targets = r".*(vision_model.*\.(out_proj|fc2)|text_model.*\.(v_proj|down_proj))"
    settings = dict(r=3, lora_alpha=2, use_rslora=True, init_lora_weights="gaussian")
    theirs = adapt(theirs, target_modules=targets, **settings)
    theirs.save_pretrained(tmp_path / "adapter")
    adapted = load_adapter(tmp_path / "adapter", base)
    assert_logits_agree(adapted, theirs)
    paths = {"vision.layers.o", "vision.layers.fc2", "text.layers.v", "text.layers.down"}
    assert lora.adapters(adapted).keys() == paths
    # What we write selects these modules and no others.
    export_adapter(tmp_path / "again", adapted, "some/model")
    again = peft.PeftModel.from_pretrained(hf_model(config), tmp_path / "again").eval()
    assert_logits_agree(adapted, again)
    names = [{n for n, _ in m.named_parameters() if "lora_" in n} for m in (theirs, again)]
    assert names[0] == names[1]


def test_round_trip(saved):
    folder, adapted, model = saved
    again = load_adapter(folder, model)
    expected, actual = (nnx.state(m, lora.LoRAParam) for m in (adapted, again))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert isinstance(again.connector.kernel.get_value(), jax.ShapeDtypeStruct)  # still abstract
    # An export replaces an older one.
    smaller = make_adapted(model, lora.LoRAConfig(rank=2, targets="connector"))
    export_adapter(folder, smaller, "some/model")
    assert lora.adapters(load_adapter(folder, model)).keys() == {"connector"}


def test_bfloat16_adapter_is_read_as_fp32(saved):
    folder, adapted, model = saved
    half = {name: x.astype(jnp.bfloat16) for name, x in load_file(folder / WEIGHTS).items()}
    save_file(half, folder / WEIGHTS)
    b = load_adapter(folder, model).text.layers.q.lora_b[...]
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(b, adapted.text.layers.q.lora_b[...], rtol=2**-8)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 8}),
        ("layers_to_transform", [0]),
        ("init_lora_weights", "pissa"),
        ("peft_type", "LOHA"),
        ("a_feature_of_the_future", {"depth": 2}),
    ],
)
def test_unsupported_features_are_refused_by_name(saved, key, value):
    folder, _, model = saved
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {key: value}))
    with pytest.raises(ValueError, match=f"{key}=.* is not supported. Merge"):
        load_adapter(folder, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(f"{QUERY}.lora_B.weight"), f"missing weight {QUERY}.lora_B.weight"),
        (lambda w: w.update(extra=np.zeros(2)), "unused weight extra"),
        (
            lambda w: w.update({f"{QUERY}.lora_A.weight": np.zeros((5, 32), np.float32)}),
            rf"{QUERY}.lora_A.weight has shape \(5, 32\), not \(4, 32\)",
        ),
        (
            lambda w: [w.pop(name) for name in list(w) if QUERY in name],
            f"missing weight {QUERY}.lora_A.weight\nmissing weight {QUERY}.lora_B.weight",
        ),
        (
            lambda w: [w.update({f"x.{name}": w.pop(name)}) for name in list(w)],
            "adapts no linear layer of a idefics3, but: x.base_model",
        ),
    ],
    ids=["missing", "unused", "misshaped", "one layer not adapted", "other model"],
)
def test_wrong_weight_is_named(saved, change, message):
    folder, _, model = saved
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        load_adapter(folder, model)


def test_unreadable_folders_are_refused(saved):
    folder, _, model = saved
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is not .* git-lfs"):
        load_adapter(folder, model)
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors"):
        load_adapter(folder, model)


def test_what_peft_cannot_hold_is_refused(tmp_path):
    model = abstract(make_config("idefics3"))
    with pytest.raises(ValueError, match="no adapters"):
        export_adapter(tmp_path, model, "some/model")
    adapted = make_adapted(model, lora.LoRAConfig(rank=4, targets=".*"))
    with pytest.raises(ValueError, match=r"vision\.patch_embedding: merge"):
        export_adapter(tmp_path, adapted, "some/model")
