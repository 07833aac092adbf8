# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a config says is computed."""

import numpy as np
import pytest

from cropvlm_jax.data import batching
from cropvlm_jax.training.config import default_config
from cropvlm_jax.training.stage import build

MODEL = "zoom_digits/target"


def shared_config():
    config = default_config()
    config.cropper = config.target = MODEL
    config.lora.rank = 2
    config.lora.targets = r"text\.layers\..*"
    config.data.longest_edge, config.data.canvas = 64, (128, 128)
    return config


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({}, True),
        ({"cropper": "zoom_digits/cropper"}, False),  # the same shape, other weights
        # The policy's tower is trained, the reference's stays the target's.
        ({"lora.targets": r"(text|vision)\.layers\..*"}, True),
        ({"lora.rank": 0}, True),
        ({"data.longest_edge": 32}, False),  # a blurred tile is not what the target sees
        ({"data.longest_edge": 128}, False),
    ],
)
def test_where_cropper_and_target_share_a_tower(changes, shared):
    config = shared_config()
    config.update_from_flattened_dict(changes)
    picture = np.zeros((128, 128, 3), np.uint8)
    stage = build(config)
    row = stage.prepare({"image": picture, "question": "What?", "answers": ["3"]}, 0)
    batch = batching.stack([row])

    config.cropper = "zoom_digits/cropper"
    apart = build(config).flops(batch)["reward"]
    assert (stage.flops(batch)["reward"] < apart) == shared


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({}, False),
        ({"data.longest_edge": 128}, False),  # other tiles, the same weights
        ({"lora.rank": 0}, False),  # the reference is a copy that stays
        ({"lora.rank": 0, "grpo.beta": 0.0}, True),
        ({"cropper": "zoom_digits/cropper"}, True),
    ],
)
def test_when_the_target_holds_a_tower_of_its_own(changes, own):
    config = shared_config()
    config.update_from_flattened_dict(changes)
    parts = {"text", "vision", "connector"} if own else {"text"}
    for abstract in (False, True):
        assert set(build(config, abstract).weights["target"]) == parts
