# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL computes what `transformers` computes, from the same weights, with no download."""

import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from cropvlm_jax.grpo import rollout
from cropvlm_jax.hub.weights import QWEN2_5_VL, load_weights
from cropvlm_jax.models.generate import greedy
from cropvlm_jax.models.llama import LlamaConfig
from cropvlm_jax.models.qwen2_5_vl import Pictures, Qwen2_5_VL, QwenConfig, QwenVisionConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

START, IMAGE, VIDEO, END = 5, 6, 7, 8  # ids of the tiny models
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


def hf_model(config: QwenConfig):
    """A random torch model whose every weight matters, biases and norms included."""
    hf_config = transformers.AutoConfig.for_model(**config.to_hf())
    hf_config.text_config.bos_token_id = hf_config.text_config.eos_token_id = None
    model = transformers.AutoModelForImageTextToText.from_config(hf_config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                scale = "norm" in name or "ln_q" in name
                p.normal_(0, 0.1, generator=generator).add_(float(scale))
            elif "embed_tokens" in name:
                p.normal_(0, 1, generator=generator)
            else:
                p.normal_(0, (p.numel() / p.shape[0]) ** -0.5, generator=generator)
    model.generation_config.eos_token_id = None
    return model.eval()


def load(folder: pathlib.Path) -> Qwen2_5_VL:
    config = QwenConfig.from_hf(json.loads((folder / "config.json").read_text()))
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Qwen2_5_VL(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, load_weights(folder, abstract, QWEN2_5_VL))


def patches(tiles: np.ndarray, config: QwenConfig) -> np.ndarray:
    """Tiles `[I, S, S, 3]` in the layout of transformers' `pixel_values`."""
    merge, patch = config.vision.spatial_merge_size, config.vision.patch_size
    x = tiles.reshape(-1, merge, patch, merge, patch, 3).transpose(0, 1, 3, 5, 2, 4)
    x = np.repeat(x[:, :, :, :, None], 2, axis=4)
    return x.reshape(len(tiles) * merge**2, -1)


def make_batch(config: QwenConfig, grids: list[list[tuple[int, int]]], spare: int = 3):
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
        Pictures(tiles, np.array(grids, np.int32)),
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


def our_logits(model: Qwen2_5_VL, batch) -> np.ndarray:
    graphdef, params = nnx.split(model)
    return np.asarray(jax.jit(lambda p, *batch: nnx.merge(graphdef, p)(*batch))(params, *batch))


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_agree(name, tmp_path):
    config = tiny_config(name)
    theirs = hf_model(config)
    theirs.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.config == config
    ours, inputs, real = make_batch(config, TINY[name][-1])

    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()[inputs["attention_mask"].bool().numpy()]
    actual = our_logits(model, ours)[real]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * expected.std())

    graphdef, params = nnx.split(model)
    encode = jax.jit(lambda p, images: nnx.merge(graphdef, p).encode_images(images))
    pictures = encode(params, ours[2])
    order = np.cumsum(ours[0] == IMAGE, -1) - 1
    flat = jax.tree.map(lambda x: x.reshape(len(x), 1, -1, *x.shape[3:]), pictures)
    assert order.max() + 1 == flat.features.shape[2]
    valid, places = model.places(ours[0][:, None], ours[1][:, None], flat)
    np.testing.assert_array_equal(valid[:, 0], real)
    positions, deltas = theirs.model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    expected = positions.numpy()[:, inputs["attention_mask"].bool().numpy()]
    np.testing.assert_array_equal(np.asarray(places.positions(0))[:, valid], expected)
    taken = places.advance.sum(-1)[:, 0] - real.sum(-1)
    np.testing.assert_array_equal(taken, deltas[:, 0].numpy())

    generated = theirs.generate(**inputs, do_sample=False, max_new_tokens=32, pad_token_id=0)
    expected = generated[:, inputs["input_ids"].shape[1] :].numpy()

    @jax.jit
    def reply(params, ids, valid, images):
        model = nnx.merge(graphdef, params)
        prefix = rollout.read_prompt(model, model.encode_images(images), ids, valid)
        return greedy(model, prefix, ids[:, -1], end_token=-1, max_tokens=32)

    np.testing.assert_array_equal(reply(params, *ours), expected)
