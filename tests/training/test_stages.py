# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a config says is computed."""

import gc
import weakref

import jax
import numpy as np
import pytest
import tiny

from cropvlm_jax.data import batching
from cropvlm_jax.grpo.reading import AnswerTemplate
from cropvlm_jax.models.smolvlm.conversations import SmolVLMConversations
from cropvlm_jax.pixels.plans import PlannedTiles
from cropvlm_jax.readers.ocr import OCRReader
from cropvlm_jax.training.config import default_config, load_config
from cropvlm_jax.training.stages import (
    BlackBoxStage,
    GRPOStage,
    SFTStage,
    black_box,
    cuts_in_step,
    open_stage,
)

MODEL = "zoom_digits/target"


def shared_config(changes):
    config = default_config()
    config.cropper = config.target = MODEL
    config.lora.rank = 2
    config.lora.targets = r"text\.layers\..*"
    config.data.longest_edge, config.data.canvas = 64, (128, 128)
    config.update_from_flattened_dict(changes)
    return load_config(config)


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
def test_where_cropper_and_target_encode_a_picture_once(changes, shared):
    stage = open_stage(shared_config(changes))
    assert isinstance(stage, GRPOStage)
    assert stage.step().shared_tower == shared


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
    parts = {"text", "vision", "connector"} if own else {"text"}
    for abstract in (False, True):
        assert set(open_stage(shared_config(changes), abstract).weights["target"]) == parts


def test_the_step_cuts_what_the_host_would():
    changes = {"stage": "sft", "data.longest_edge": 128, "data.tiles": "device"}
    in_step = open_stage(shared_config(changes))
    on_host = open_stage(shared_config(changes | {"data.tiles": "auto"}))  # devices are CPUs
    picture = np.random.default_rng(0).integers(0, 256, (200, 140, 3), np.uint8)
    scene = {"image": picture, "question": "Which?", "box": (1, 2, 30, 40)}
    rows = [batching.stack([stage.prepare(scene, 0)]) for stage in (in_step, on_host)]
    assert isinstance(rows[0].images, PlannedTiles) and rows[1].canvas is None
    assert rows[0].shrunk.tolist() == [True]
    state = in_step.init(in_step.weights, 1)
    got = jax.jit(in_step.step().see)(state, rows[0]).images.astype(int)
    want, _ = in_step.prepare.cropper_input.see(rows[0].canvas[0, :128, :89])
    assert rows[0].size.tolist() == [[128, 89]]
    assert np.abs(got[0] - want).max() <= 1 and (got[0] != want).mean() < 1e-2
    for stage, row in zip((in_step, on_host), rows, strict=True):
        assert stage.work(row) == {"prompts": 1, "images": 1 + 2 * 2}


@pytest.mark.parametrize(
    ("platform", "tiles", "in_step"),
    [
        ("cpu", "auto", False),
        ("tpu", "auto", True),
        ("gpu", "auto", True),
        ("cpu", "device", True),
        ("tpu", "host", False),
    ],
)
def test_where_pictures_become_tiles(platform, tiles, in_step):
    assert cuts_in_step(shared_config({"data.tiles": tiles}), platform) == in_step


def test_a_config_says_which_stage():
    assert isinstance(open_stage(shared_config({"stage": "sft"}), abstract=True), SFTStage)
    outside = {"target": f"vlm:{MODEL}", "grpo.likelihood_weight": 0.0, "grpo.accuracy_weight": 1.0}
    assert isinstance(open_stage(shared_config(outside)), BlackBoxStage)


@pytest.mark.parametrize(
    ("metric", "warned"),
    [("vicrop", 1), ("evalai", 1), ("anls", 1), ("contains", 0), ("nearly_contains", 0)],
)
def test_a_reward_that_a_transcript_never_earns_is_warned_of(monkeypatch, caplog, metric, warned):
    reader = OCRReader("fake", lambda picture: "text")
    monkeypatch.setattr(black_box, "open_reader", lambda spec, processor: reader)
    weights = {"grpo.likelihood_weight": 0.0, "grpo.accuracy_weight": 1.0, "grpo.accuracy": metric}
    open_stage(shared_config({"target": "rapidocr:v4"} | weights))
    assert sum("set one of contains" in r.getMessage() for r in caplog.records) == warned


def test_a_target_that_cannot_read_all_crops_is_refused(monkeypatch):
    changes = {"grpo.max_boxes": 2}
    with pytest.raises(ValueError, match="grpo.max_boxes=2: a picture, 2 crops, .* positions: set"):
        open_stage(shared_config(changes | {"data.question_tokens": 8192}), abstract=True)
    with pytest.raises(ValueError, match="max_boxes=2: .* 3 pictures, which the target's OnePic"):
        AnswerTemplate.from_conversations(OnePicture(tiny.TOKENIZER, 4), 2)
    reader = OCRReader("fake", lambda picture: "text")
    monkeypatch.setattr(black_box, "open_reader", lambda spec, processor: reader)
    changes |= {"target": "rapidocr:v4", "grpo.likelihood_weight": 0.0, "grpo.accuracy_weight": 1.0}
    with pytest.raises(ValueError, match="tell how many image tokens a crop .* grpo.crop_tokens"):
        open_stage(shared_config(changes | {"grpo.token_price": 1.0}))
    monkeypatch.setattr(reader, "most_pictures", 1, raising=False)
    with pytest.raises(ValueError, match="grpo.max_boxes=2: target='rapidocr:v4' takes at most 1"):
        open_stage(shared_config(changes))


class OnePicture(SmolVLMConversations):
    """Conversations about one picture only."""

    def answer(self, question, num_images=2, answer=None, grids=None):
        if num_images > 1:
            raise ValueError("one picture a question")
        return super().answer(question, num_images, answer, grids)


@pytest.mark.parametrize("changes", [{}, {"lora.rank": 0}, {"stage": "sft"}])
def test_only_the_train_state_holds_weights(changes):
    stage = open_stage(shared_config(changes))
    arrays = [weakref.ref(array) for array in jax.tree.leaves(stage.weights)]
    stage.weights.clear()
    gc.collect()
    assert arrays and not any(array() is not None for array in arrays)
