# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What scanned layers keep for their backward pass."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from cropvlm_jax.models.smolvlm.config import SiglipConfig
from cropvlm_jax.models.smolvlm.vision import Siglip

CONFIG = SiglipConfig(
    image_size=40,
    patch_size=8,
    hidden_size=24,
    intermediate_size=56,
    num_hidden_layers=3,
    num_attention_heads=2,
)


@pytest.mark.parametrize(
    "remat, widths",
    [(True, [24] * 2), (False, [24] * 6 + [56])],  # input, attention / and q, k, v, sum; the MLP's
)
def test_layers_keep_what_they_mark_and_their_input(remat, widths):
    graphdef, weights = nnx.split(Siglip(CONFIG, rngs=nnx.Rngs(0), remat=remat))
    pixels = jnp.zeros((2, 40, 40, 3))
    _, pull_back = jax.vjp(lambda weights: nnx.merge(graphdef, weights)(pixels), weights)
    of_layers = [x.shape for x in jax.tree.leaves(pull_back) if x.shape[:3] == (3, 2, 25)]
    assert sorted(shape[3] for shape in of_layers) == widths
