# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Folders of random models as users open them, and pictures of several sizes for them."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from flax import nnx
from PIL import Image

from cropvlm_jax.hub.export import export, write_processor_files
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.models.smolvlm.config import SmolVLMConfig
from cropvlm_jax.models.smolvlm.conversations import END
from cropvlm_jax.models.smolvlm.model import SmolVLM

LIMIT = 512  # positions of the models
SIZES = [(96, 128), (60, 128), (130, 40), (33, 31), (100, 97), (5, 64)]  # height, width
SPLIT = 2 * tiny.SIDE  # a longest edge that cuts these into 2 x 2, 1 x 2 and 2 x 1 tiles


def make_folder(
    folder: pathlib.Path,
    seed: int,
    config: SmolVLMConfig | None = None,
    longest_edge: int = SPLIT,
) -> pathlib.Path:
    """A random model whose replies depend on what it sees, and end at different lengths."""
    if config is None:
        text = dataclasses.replace(tiny.CONFIG.text, max_position_embeddings=LIMIT)
        config = dataclasses.replace(tiny.CONFIG, text=text)
    model = nnx.eval_shape(lambda: SmolVLM(config, rngs=nnx.Rngs(0)))
    graphdef, abstract = nnx.split(model)
    rng = np.random.default_rng(seed)

    def random(path, weight):
        values = rng.normal(size=weight.shape)
        if path[-2].key == "kernel":
            values *= 2 * weight.shape[-2] ** -0.5
        elif path[-2].key in ("scale", "bias"):
            values = 0.1 * values + (path[-2].key == "scale")
        return jnp.asarray(values, jnp.float32)

    model = nnx.merge(graphdef, jax.tree.map_with_path(random, abstract))
    end = tiny.TOKENIZER.token_to_id(END)
    model.text.head[...] = model.text.head[...].at[end].multiply(2.0)
    folder.mkdir()
    write_processor_files(folder, config, tiny.TOKENIZER, longest_edge=longest_edge)
    export(folder, model, Pretrained.open(folder))
    return folder


def make_pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)) for _ in SIZES]
    return [s.resize(size[::-1], 2) for s, size in zip(small, SIZES, strict=True)]


PICTURES = make_pictures()
