# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every architecture keeps what `models.architecture` promises."""

import functools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
import tiny_llava
from flax import nnx

from cropvlm_jax import geometry, parallel
from cropvlm_jax.models.config import LlamaConfig, VLMConfig
from cropvlm_jax.models.qwen2_5_vl.config import QwenConfig, QwenVisionConfig
from cropvlm_jax.models.qwen3_vl.config import Qwen3Config, Qwen3VisionConfig
from cropvlm_jax.models.registry import ARCHITECTURES, architecture_named, architecture_of

QWEN = QwenConfig(
    QwenVisionConfig(2, 24, 40, 2, 32, 4, 2, 16, (1,)),
    LlamaConfig(64, 32, 72, 2, 4, 2, 8, qkv_bias=True, mrope_section=(1, 1, 2)),
    image_token_id=7,
    limits=geometry.PixelLimits(max_pixels=64 * 40, min_pixels=64 * 2, factor=8),
)
QWEN3 = Qwen3Config(
    Qwen3VisionConfig(2, 24, 40, 2, 32, 4, 2, 25, (0,)),
    LlamaConfig(64, 32, 72, 2, 4, 2, 16, qk_norm=True, mrope_section=(1,) * 8, rms_norm_eps=1e-6),
    image_token_id=7,
    limits=QWEN.limits,
)
SHAPES = {
    "idefics3": tiny.CONFIG,
    "llava": tiny_llava.make_config(),
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN3,
}
SIZES = ((40, 40), (40, 90), (128, 33))
LONGEST = 2 * tiny.SIDE


def test_every_architecture_is_tried_here():
    assert {id(architecture_of(config)) for config in SHAPES.values()} == {
        id(architecture) for architecture in ARCHITECTURES.values()
    }


def test_a_box_frame_is_one_that_geometry_knows():
    frames = {name: architecture_of(config).box_frame for name, config in SHAPES.items()}
    assert (frames["qwen2_5_vl"], frames["qwen3_vl"]) == ("smart_resized", "thousandths")
    assert set(frames.values()) <= {None, *geometry.FRAMES}


@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl"),
        ("openai:qwen2.5vl:7b", "qwen2_5_vl"),
        ("Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl"),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "qwen3_vl"),
        ("llava-hf/llava-1.5-7b-hf", "llava"),
        ("gpt-4.1-nano", None),
        ("qwen-vl-max", None),
        ("Qwen/Qwen2-VL-7B-Instruct", None),
    ],
)
def test_a_served_model_s_name_tells_its_architecture(name, model_type):
    assert architecture_named(name) is ARCHITECTURES.get(model_type)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_the_config_is_read_as_it_is_written(config):
    assert isinstance(config, VLMConfig)
    stored = config.to_hf()
    assert stored["model_type"] == config.model_type
    again = architecture_of(config).config.from_hf(stored)
    assert (again.vision, again.text) == (config.vision, config.text)


@pytest.mark.parametrize(
    ("edge", "cheaper"),
    [
        (32, None),
        (33, 32),  # five tiles instead of one
        (34, None),  # 32 px are over 5% smaller
        (64, None),
        (65, 64),  # 10 tiles instead of 5
        (67, 64),
        (70, None),
        (96, None),
        (97, 96),
        (100, 96),
        (129, 128),
        (161, None),  # 37 tiles instead of 26: not far fewer
    ],
)
def test_an_edge_just_above_whole_tiles_is_told(edge, cheaper):
    architecture = architecture_of(tiny.CONFIG)
    assert architecture.cheaper_edge(tiny.CONFIG, edge) == cheaper
    for name in ("llava", "qwen2_5_vl", "qwen3_vl"):
        assert architecture_of(SHAPES[name]).cheaper_edge(SHAPES[name], edge) is None


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_sizes_alone_tell_grid_and_tokens(config):
    """`grid` and `image_tokens` agree with what `see` makes and the model encodes."""
    architecture = architecture_of(config)
    model = nnx.eval_shape(lambda: architecture.model(config, rngs=nnx.Rngs(0)))
    graphdef, weights = nnx.split(model)
    for height, width in SIZES:
        picture = np.zeros((height, width, 3), np.uint8)
        images, grid = architecture.see(config, picture, LONGEST)
        assert grid == architecture.grid(config, height, width, LONGEST)
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), images)
        encode = jax.eval_shape(
            lambda weights, batch: nnx.merge(graphdef, weights).encode_images(batch), weights, batch
        )
        _, pictures, tokens = jax.tree.leaves(encode)[0].shape[:3]
        counted = architecture.image_tokens(config, height, width, LONGEST)
        if grid and not architecture.splits_pictures:  # the rest is room for larger pictures
            assert counted == grid[0] * grid[1] <= pictures * tokens
        else:
            assert counted == pictures * tokens


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_tables_fit_the_model(config):
    """Weights have a row each, large ones are shared by devices, `tower` names parts."""
    architecture = architecture_of(config)
    model = nnx.eval_shape(lambda: architecture.model(config, rngs=nnx.Rngs(0)))
    weights = nnx.state(model, nnx.Param)
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(weights))
    paths = {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves}
    ours = {row.ours for row in architecture.weights}
    assert paths <= ours and all(
        row.tied_to for row in architecture.weights if row.ours not in paths
    )
    assert set(architecture.tower) < set(weights)
    mesh = jax.sharding.AbstractMesh((1, 2, 1), parallel.AXES)
    shardings = parallel.state_shardings(mesh, weights, config.heads, architecture.logical_axes)
    for (path, weight), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        if weight.ndim > 1 and path[-1].key in ("kernel", "embedding", "head"):
            assert "fsdp" in sharding.spec, path


WORKER = """
import pickle, sys
sys.modules["jax"] = sys.modules["flax"] = None
for name, (see, grid_of, picture) in pickle.load(open(sys.argv[1], "rb")).items():
    images, grid = see(picture)
    assert grid == grid_of(*picture.shape[:2]), name
"""


def test_a_process_without_jax_sees_pictures(tmp_path):
    jobs = {}
    for name, config in SHAPES.items():
        architecture = architecture_of(config)
        see = functools.partial(architecture.see, config, longest_edge=LONGEST)
        grid = functools.partial(architecture.grid, config, longest_edge=LONGEST)
        jobs[name] = (see, grid, np.zeros((40, 90, 3), np.uint8))
    (tmp_path / "jobs").write_bytes(pickle.dumps(jobs))
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    command = [sys.executable, "-c", WORKER, str(tmp_path / "jobs")]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path})
