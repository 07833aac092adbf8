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
from tiny_peft import adapt

from cropvlm_jax.hub.adapter_export import export_adapter
from cropvlm_jax.hub.adapters import (
    BASE,
    CONFIG,
    PICKLED,
    PREFIX,
    WEIGHTS,
    Adapter,
    bare_name,
    is_adapter,
)
from cropvlm_jax.hub.weights import load_weights
from cropvlm_jax.models import lora
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.llava.weights import WEIGHTS as LLAVA
from cropvlm_jax.models.qwen2_5_vl.weights import WEIGHTS as QWEN
from cropvlm_jax.models.qwen3_vl.weights import WEIGHTS as QWEN3
from cropvlm_jax.models.smolvlm.config import SiglipConfig, SmolVLMConfig
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.models.smolvlm.weights import WEIGHTS as SMOLVLM

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


def hf_model(config: SmolVLMConfig, folder: pathlib.Path):
    """A random torch model with activations of a natural size, opened from `folder`."""
    hf_config = transformers.AutoConfig.for_model(**config.to_hf())
    model = transformers.AutoModelForImageTextToText.from_config(hf_config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, (p.numel() / p.shape[0]) ** -0.5, generator=generator)
    model.save_pretrained(folder)
    return transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()


def abstract(config: SmolVLMConfig) -> SmolVLM:
    return nnx.eval_shape(lambda: SmolVLM(config, rngs=nnx.Rngs(0)))


def load(folder: pathlib.Path, config: SmolVLMConfig, adapter: Adapter | None = None) -> SmolVLM:
    graphdef, params = nnx.split(abstract(config))
    return nnx.merge(graphdef, load_weights(folder, params, SMOLVLM, adapter))


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
    theirs = hf_model(config, tmp_path / "base")
    return theirs, load(tmp_path / "base", config)


def shapes_of(model: SmolVLM) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's weights by Hugging Face's names."""
    leaves = {".".join(map(str, path)): x for path, x in nnx.to_flat_state(nnx.state(model))}
    shapes = {}
    for row in (row for row in SMOLVLM if row.ours in leaves):
        leaf = leaves[row.ours].get_value()
        parts = jax.eval_shape(row.parts, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
        shapes |= zip(row.names(leaf), (part.shape for part in parts), strict=True)
    return shapes


@pytest.fixture
def saved(tmp_path):
    """An adapter that we wrote, with its model, and the shapes of the base's weights."""
    model = abstract(make_config("idefics3"))
    adapted = make_adapted(model, lora.LoRAConfig(rank=4, alpha=6))
    export_adapter(tmp_path, adapted, "some/model")
    return tmp_path, adapted, shapes_of(model)


def change_config(folder: pathlib.Path, **changes) -> None:
    """Changes an adapter's config; None takes a key out."""
    config = json.loads((folder / CONFIG).read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / CONFIG).write_text(json.dumps(kept))


def test_from_peft(pair, tmp_path):
    theirs, _ = pair
    settings = dict(r=4, lora_alpha=6, lora_dropout=0.1, target_modules=PAPER_NAMES)
    theirs = adapt(theirs, **settings)
    theirs.save_pretrained(tmp_path / "adapter")
    adapter = Adapter.open(tmp_path / "adapter")
    merged = load(tmp_path / "base", make_config(theirs.config.model_type), adapter)
    assert_logits_agree(merged, theirs)
    factors = adapter.read().values()
    assert sum(x.a.size + x.b.size for x in factors) == sum(
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
    merged = load(tmp_path / "base", base.config, Adapter.open(tmp_path / "adapter"))
    np.testing.assert_allclose(our_logits(merged), our_logits(adapted), rtol=0, atol=1e-4)


ATTENTION = ["q_proj", "v_proj"]
PEFT_SETTINGS = {
    "rank-stabilised": dict(r=3, lora_alpha=2, use_rslora=True, init_lora_weights="gaussian"),
    "defaults": dict(target_modules=ATTENTION),
    "output projections": dict(target_modules=["out_proj", "o_proj"]),
    "one layer": dict(r=2, target_modules=ATTENTION, layers_to_transform=[1]),
    "ranks": dict(r=2, target_modules=ATTENTION, rank_pattern={"q_proj": 5}),
    "alphas": dict(r=2, target_modules=ATTENTION, alpha_pattern={"text_model.*v_proj": 11}),
    "ranks and alphas": dict(
        r=4,
        target_modules=PAPER_NAMES,
        rank_pattern={"layers.0.self_attn.q_proj": 3, "q_proj": 2},
        alpha_pattern={"^model.connector.modality_projection.proj": 3},
    ),
    "all linear": dict(r=2, lora_alpha=5, target_modules="all-linear"),
    "orthogonal": dict(r=4, target_modules=ATTENTION, init_lora_weights="orthogonal"),
    "convolution": dict(r=2, target_modules=["patch_embedding", "proj"]),
    "excluded": dict(r=2, target_modules=ATTENTION, exclude_modules=r".*vision.*"),
}


@pytest.mark.parametrize("settings", PEFT_SETTINGS.values(), ids=PEFT_SETTINGS)
def test_whatever_linear_layers_peft_adapts_are_merged(settings, tmp_path):
    config = make_config("idefics3")
    theirs = hf_model(config, tmp_path / "base")
    targets = r".*(vision_model.*\.(out_proj|fc2)|text_model.*\.(v_proj|down_proj))"
    theirs = adapt(theirs, **{"target_modules": targets} | settings)
    theirs.save_pretrained(tmp_path / "adapter")
    merged = load(tmp_path / "base", config, Adapter.open(tmp_path / "adapter"))
    assert_logits_agree(merged, theirs)


def test_an_adapter_on_top_of_an_adapter_is_written_as_one_of_the_base(tmp_path):
    """What is trained from base and adapter is one adapter of the same base, of both ranks."""
    config = make_config("idefics3")
    theirs = hf_model(config, tmp_path / "base")
    targets = ["out_proj", "v_proj", "patch_embedding"]
    first = adapt(theirs, r=3, target_modules=targets, rank_pattern={"v_proj": 2})
    first.save_pretrained(tmp_path / "first")
    start = Adapter.open(tmp_path / "first")
    trained = make_adapted(
        load(tmp_path / "base", config, start),
        lora.LoRAConfig(rank=4, alpha=6, targets=r"text\.layers\.(q|v)|connector"),
    )
    export_adapter(tmp_path / "both", trained, str(tmp_path / "base"), start)
    assert json.loads((tmp_path / "both" / CONFIG).read_text())["r"] == 3 + 4
    both = load(tmp_path / "base", config, Adapter.open(tmp_path / "both"))
    np.testing.assert_allclose(our_logits(both), our_logits(trained), rtol=0, atol=1e-4)
    plain = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "both").eval()
    assert_logits_agree(trained, loaded)
    adapted = {n.split(".lora_")[0] for n, _ in loaded.named_parameters() if "lora_" in n}
    assert len(adapted) == 2 * 2 + 2 * 3 + 2  # two layers in the decoder, three in the tower


def test_round_trip(saved):
    folder, adapted, shapes = saved
    found = Adapter.open(folder).fit(shapes)
    for i in range(2):
        name = f"model.text_model.layers.{i}.mlp.down_proj.weight"
        layer = adapted.text.layers.down
        np.testing.assert_array_equal(found[name].a, layer.lora_a[...][i].T)
        np.testing.assert_array_equal(found[name].b, layer.lora_b[...][i].T)
        assert found[name].scale == 6 / 4


def test_adapters_of_one_layer_alone(saved):
    folder, _, shapes = saved
    model = abstract(make_config("idefics3"))
    smaller = make_adapted(model, lora.LoRAConfig(rank=2, targets="connector"))
    export_adapter(folder, smaller, "some/model")
    (name,) = Adapter.open(folder).fit(shapes)
    assert name == "model.connector.modality_projection.proj.weight"


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
def test_weights_of_other_precisions_are_read_as_fp32(saved, dtype):
    folder, _, shapes = saved
    stored = load_file(folder / WEIGHTS)
    save_file({name: x.astype(dtype) for name, x in stored.items()}, folder / WEIGHTS)
    found = Adapter.open(folder).fit(shapes)[f"{MODULE}.weight"]
    assert found.a.dtype == found.b.dtype == np.float32
    np.testing.assert_allclose(found.b, stored[f"{QUERY}.lora_B.weight"], rtol=2**-8)


@pytest.mark.parametrize(
    ("keys", "scale"),
    [
        (("lora_alpha",), 8 / 4),
        (("lora_dropout",), 6 / 4),
        (("lora_alpha", "lora_dropout", "inference_mode", "target_modules", "bias"), 8 / 4),
    ],
)
def test_absent_settings_have_pefts_defaults(saved, keys, scale):
    folder, _, shapes = saved
    change_config(folder, **dict.fromkeys(keys))
    assert Adapter.open(folder).fit(shapes)[f"{MODULE}.weight"].scale == scale


def test_an_absent_rank_is_8(tmp_path):
    model = abstract(make_config("idefics3"))
    export_adapter(tmp_path, make_adapted(model, lora.LoRAConfig(rank=8)), "some/model")
    change_config(tmp_path, r=None, lora_alpha=None, lora_dropout=None)
    found = Adapter.open(tmp_path).fit(shapes_of(model))
    assert {(len(x.a), x.scale) for x in found.values()} == {(8, 1.0)}


@pytest.mark.parametrize(
    ("module", "weight"),
    [  # of LLaVA and Qwen2.5-VL, in transformers 4.51, 4.57 and 5, and the Hub's files
        ("language_model.model.layers.1.mlp.up_proj", "language_model.model.layers.1.mlp.up_proj"),
        ("model.language_model.layers.1.mlp.up_proj", "language_model.model.layers.1.mlp.up_proj"),
        ("lm_head", "language_model.lm_head"),
        ("model.multi_modal_projector.linear_1", "multi_modal_projector.linear_1"),
        (
            "model.vision_tower.encoder.layers.2.mlp.fc1",
            "vision_tower.vision_model.encoder.layers.2.mlp.fc1",
        ),
        ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
        ("model.language_model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
        ("model.visual.blocks.3.attn.qkv", "visual.blocks.3.attn.qkv"),
        ("visual.merger.mlp.0", "visual.merger.mlp.0"),
    ],
)
def test_modules_and_weights_of_all_versions_meet(module, weight):
    assert bare_name(PREFIX + module) == bare_name(module) == bare_name(weight)


@pytest.mark.parametrize("table", [SMOLVLM, LLAVA, QWEN, QWEN3])
def test_no_two_weights_meet(table):
    names = {row.hf.removesuffix(".weight") for row in table}
    assert len({bare_name(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("base_model.model.model.text_model.", "base_model.model.text_model."),
        ("base_model.model.", ""),  # as transformers saves without PEFT's format
    ],
)
def test_names_of_other_versions_are_understood(saved, theirs, ours):
    folder, _, shapes = saved
    stored = load_file(folder / WEIGHTS)
    save_file({name.replace(theirs, ours): x for name, x in stored.items()}, folder / WEIGHTS)
    assert len(Adapter.open(folder).fit(shapes)) == len(stored) // 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("fan_in_fan_out", True),
        ("lora_bias", True),
        ("trainable_token_indices", [3]),
        ("target_parameters", ["weight"]),
        ("layer_replication", [[0, 1]]),
        ("init_lora_weights", "pissa"),
        ("peft_type", "LOHA"),
        ("a_feature_of_the_future", {"depth": 2}),
    ],
)
def test_unsupported_features_are_refused_by_name(saved, key, value):
    folder = saved[0]
    change_config(folder, **{key: value})
    with pytest.raises(ValueError, match=f"{CONFIG}: {key}=.* is not supported. Merge"):
        Adapter.open(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("r", value) for value in (0, -1, 4.0, "4", True, [4], float("nan"))),
        *(
            ("lora_alpha", value)
            for value in (0, -1, 10**400, "6", True, float("nan"), float("inf"), {})
        ),
        *(("lora_dropout", value) for value in (-0.1, "0", float("nan"), [])),
        ("revision", 3),
        ("use_rslora", "false"),
        ("use_rslora", 1),
        ("rank_pattern", ["q_proj"]),
        ("alpha_pattern", "q_proj"),
        *((BASE, value) for value in ("", 3, ["a"], False)),
    ],
)
def test_settings_of_wrong_type_or_range_are_refused_by_name(saved, key, value):
    folder = saved[0]
    change_config(folder, **{key: value})
    with pytest.raises(ValueError, match=rf"{CONFIG}: {key}="):
        Adapter.open(folder)


@pytest.mark.parametrize(
    ("pattern", "value"),
    [("rank_pattern", 0), ("rank_pattern", "2"), ("alpha_pattern", 0), ("alpha_pattern", None)],
)
def test_entries_of_patterns_are_checked(saved, pattern, value):
    folder = saved[0]
    change_config(folder, **{pattern: {"q_proj": value}})
    with pytest.raises(ValueError, match=rf"{CONFIG}: {pattern}.q_proj="):
        Adapter.open(folder)
    change_config(folder, **{pattern: {"(q_proj": 2}})
    with pytest.raises(ValueError, match=rf"{CONFIG}: {pattern}.\(q_proj is no regular"):
        Adapter.open(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" \n",
        b"\xef\xbb\xbf{}",
        b'{"r": 4',
        b"[]",
        b"null",
        b'"LORA"',
        b"\xff\xfe{}",
        b"r: 4",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        b"\x00" * 100,
        b"{}",
    ],
)
def test_a_config_that_is_none_is_refused_by_name(saved, content):
    folder = saved[0]
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{folder}.{CONFIG}") as caught:
        Adapter.open(folder)
    assert "\n" not in str(caught.value)


MODULE = QUERY.removeprefix("base_model.model.")
A, B = f"{QUERY}.lora_A.weight", f"{QUERY}.lora_B.weight"


def put(name, array):
    """A change of stored weights: this one is replaced, or added."""
    return lambda stored: stored.update({name: np.asarray(array)})


WRONG_WEIGHTS = {
    "missing": (lambda w: w.pop(B), f"{MODULE}.lora_B.weight is missing"),
    "unused": (put("extra", np.zeros(2)), r"extra \[2\] is no factor"),
    "a whole layer": (put("base_model.model.lm_head.weight", np.ones((5, 3))), "lm_head.* is"),
    "embedding": (put("x.lora_embedding_A", np.zeros((4, 9))), "x.lora_embedding_A .* is no"),
    "magnitudes": (put(f"{QUERY}.lora_magnitude_vector", np.ones(32)), "magnitude_vector"),
    "convolution": (put(A, np.ones((4, 3, 8, 8))), r"for a weight \[32, 3, 8, 8\], .*32, 32\]"),
    "rank": (
        lambda w: w.update({A: np.ones((5, 32), np.float32), B: np.ones((32, 5), np.float32)}),
        rf"{MODULE} has factors of ranks .*5.*5.*, but {CONFIG} says 4",
    ),
    "ranks": (put(A, np.ones((5, 32))), f"{MODULE} has factors of ranks"),
    "inputs": (put(A, np.ones((4, 33))), rf"{MODULE} is for a weight \[32, 33\], .* \[32, 32\]"),
    "outputs": (put(B, np.ones((16, 4))), rf"{MODULE} is for a weight \[16, 32\]"),
    "nan": (put(A, np.full((4, 32), np.nan)), f"{A} is not finite"),
    "inf": (put(B, np.full((32, 4), np.inf)), f"{B} is not finite"),
    "too large": (put(B, np.full((32, 4), 1e300)), f"{B} is not finite"),
    "product too large": (
        lambda w: w.update({A: w[A] + np.float32(1e20), B: w[B] + np.float32(1e20)}),
        f"{MODULE} has values that are too large",
    ),
    "twice": (put(f"{MODULE}.lora_A.weight", np.ones((4, 32))), "is there under two names"),
    "twice, of two versions": (
        lambda w: [put(x.replace("model.text_m", "text_m"), w[x])(w) for x in (A, B)],
        "text_model.* is there under two names",
    ),
    "int8": (put(A, np.ones((4, 32), np.int8)), f"{A} is of type I8"),
    "uint8": (put(A, np.ones((4, 32), np.uint8)), f"{A} is of type U8"),
    "fp8": (put(A, np.ones((4, 32), jnp.float8_e4m3fn)), f"{A} is of type F8_E4M3"),
    "other model": (
        lambda w: [w.update({name.replace("text_m", "x"): w.pop(name)}) for name in list(w)],
        "the base model has no layer .*xodel.* more",
    ),
    "empty": (lambda w: w.clear(), "holds no weights"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_wrong_weight_is_named(saved, change, message):
    folder, _, shapes = saved
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(ValueError, match=message) as caught:
        Adapter.open(folder).fit(shapes)
    assert str(folder / WEIGHTS) in str(caught.value) and "\n" not in str(caught.value)


def test_folders_without_readable_weights_are_refused(saved):
    folder, _, shapes = saved
    adapter, whole = Adapter.open(folder), (folder / WEIGHTS).read_bytes()
    lfs = b"version https://git-lfs.github.com/spec/v1"
    for content in (b"", lfs, whole[:4], whole[:100], whole[:-1], b"\0" * 1000, b"PK\3\4" * 99):
        (folder / WEIGHTS).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{folder}.{WEIGHTS} is not .* git-lfs"):
            adapter.fit(shapes)
    (folder / WEIGHTS).unlink()
    for do in (lambda: adapter.fit(shapes), lambda: Adapter.open(folder)):
        (folder / PICKLED).unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError, match=rf"{folder} has no {WEIGHTS}: save"):
            do()
        (folder / PICKLED).touch()
        with pytest.raises(FileNotFoundError, match=rf"no {WEIGHTS} but {PICKLED}: save"):
            do()
    assert Adapter.open(folder, weights=False) == adapter
    assert is_adapter(folder)
    (folder / CONFIG).unlink()
    assert is_adapter(folder)
    with pytest.raises(FileNotFoundError, match=f"{folder} .* no {CONFIG}"):
        Adapter.open(folder)


def test_what_peft_cannot_hold_is_refused(tmp_path):
    model = abstract(make_config("idefics3"))
    with pytest.raises(ValueError, match="no adapters"):
        export_adapter(tmp_path, model, "some/model")
    adapted = make_adapted(model, lora.LoRAConfig(rank=4, targets=".*"))
    with pytest.raises(ValueError, match=r"vision\.patch_embedding: merge"):
        export_adapter(tmp_path, adapted, "some/model")
