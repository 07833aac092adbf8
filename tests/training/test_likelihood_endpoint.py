# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""GRPO whose dense reward is told by a server: likelihoods of the right answers, as a black box."""

import json
import os

import forked
import numpy as np
import pytest
import tiny_folder
from chat_server import endpoint, serving
from likelihood_server import LikelihoodServer
from tiny import CANVAS, CROPPER_INPUT, make_examples

from cropvlm_jax.data import batching
from cropvlm_jax.grpo.black_box import ask
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.models.smolvlm.conversations import ANSWER_INSTRUCTION
from cropvlm_jax.readers.vlm import VLMReader
from cropvlm_jax.training.config import default_config, load_config, source
from cropvlm_jax.training.stages import open_stage

GOLD = (["3."], ["A red digit.", "Red.", "a red digit."], ["42."], ["It is in a frame."])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> VLMReader:
    folder = tiny_folder.make_folder(tmp_path_factory.mktemp("models") / "reader", 2)
    return VLMReader.from_pretrained(folder)


@pytest.mark.parametrize(
    "rewards", [{}, {"gain": True, "likelihood": "mean"}, {"accuracy_weight": 1.0}]
)
def test_the_reward_is_that_of_the_model_behind_the_server(model, tmp_path, rewards):
    config = GRPOConfig(num_generations=3, **rewards)
    prepare = batching.Preparer(CROPPER_INPUT, None, (CANVAS,), 10)
    examples = [e | {"answers": gold} for e, gold in zip(make_examples(4), GOLD, strict=True)]
    batch = batching.stack([prepare(example, i) for i, example in enumerate(examples)])
    boxes = np.array([[[[0, 0, 50, 100]], [[10, 20, 60, 70]], [[0, 0, 50, 100]]]] * 4)
    count = np.ones(boxes.shape[:2], int)
    with serving(LikelihoodServer(model)) as server:
        reader = endpoint(server, tmp_path, instruction=ANSWER_INSTRUCTION, timeout=60)
        told, expected = (ask(each, config, batch, boxes, count) for each in (reader, model))
        # The small conversation, its answers, each different box, and each picture alone.
        asked = [body for *_, body in server.requests if "prompt_logprobs" in body]
        assert len(asked) == 3 + 4 + 4 * 2 + 4 * len(config.compared)
    assert told.keys() == expected.keys() and told["likelihood"].shape == (4, 3)
    np.testing.assert_allclose(told["likelihood"], expected["likelihood"], 0, 1e-4)
    assert np.unique(told["likelihood"]).size == 8


def test_a_run_in_front_of_a_server_earns_likelihoods(tmp_path):
    settings = {
        "target": "openai:m", "steps": 2, "batch_size": 2, "grpo.num_generations": 2,
        "gradient_accumulation_steps": 1, "grpo.gain": True, "eval.every": 2, "eval.examples": 2,
    }  # fmt: skip
    with serving(LikelihoodServer(VLMReader.from_pretrained("zoom_digits/target"))) as server:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        done = forked.python(
            *("-m", "cropvlm_jax.apps.train", f"--workdir={tmp_path}/run"),
            "--config=experiments/zoom_digits.py",
            *(f"--config.{key}={value}" for key, value in settings.items()),
            env=os.environ | {"OPENAI_BASE_URL": url, "HOME": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        bodies = [body for *_, body in server.requests]
    likely = [body for body in bodies if "prompt_logprobs" in body]
    assert all(body["prompt_logprobs"] == 0 and body["max_tokens"] == 1 for body in likely)
    assert len(bodies) - len(likely) <= 2  # what TensorBoard shows of the reader's own words
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    steps = [row for row in rows if "reward/likelihood" in row]
    assert len(steps) == 2 and all(row["unscored"] == 0 for row in steps)
    assert all(row["reward/likelihood"] != 0 and "reward/accuracy" not in row for row in steps)
    assert any(np.isfinite(row.get("eval/reward/likelihood", np.nan)) for row in rows)
    assert (tmp_path / "run" / "cropper" / "model.safetensors").is_file()


def test_a_server_without_likelihoods_is_refused_before_the_run(model, tmp_path, monkeypatch):
    config = default_config()
    config.cropper, config.target = "zoom_digits/cropper", "openai:m"
    config.data.sources.zoom_digits = source()
    with serving(LikelihoodServer(model)) as server:
        server.always = "missing"
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(ValueError, match="target='openai:m': m at .* no prompt_logprobs") as e:
            open_stage(load_config(config))
    assert "set grpo.likelihood_weight=0, grpo.verification_weight=0 and" in str(e.value)
    assert "\n" not in str(e.value)
