# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A reader in training: its loss is what the reader says of itself, and it learns to answer."""

import json

import numpy as np
import pytest
import tiny_folder
import tiny_llava

from cropvlm_jax import parallel
from cropvlm_jax.data import batching
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.hub import chat_template
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.vlm import VLMReader
from cropvlm_jax.training import loop
from cropvlm_jax.training.config import default_config, load_config, source
from cropvlm_jax.training.stages import open_stage
from cropvlm_jax.training.stages.sft import ReaderStage

SCENES = ZoomDigits("validation", 8)


def settings(**changes):
    config = default_config()
    config.stage, config.target = "reader", "zoom_digits/target"
    config.steps, config.batch_size, config.learning_rate = 4, 2, 1e-3
    config.data.update(question_tokens=64, answer_tokens=2)
    config.data.sources.zoom_digits = source()
    config.eval.sources.zoom_digits = source(split="validation")
    config.eval.update(every=2, examples=4)
    config.update_from_flattened_dict(changes)
    return config


def metrics(workdir, name):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in lines if name in row]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llava"
    tiny_llava.write_folder(folder, tiny_llava.make_config())
    return folder


@pytest.mark.parametrize("kind", ["smolvlm", "llava"])
def test_the_loss_is_that_of_the_reader_with_picture_and_crop(kind, request):
    name = "zoom_digits/target" if kind == "smolvlm" else str(request.getfixturevalue("llava"))
    tiles = "host" if kind == "smolvlm" else "device"  # cut by PIL, or inside of the step
    stage = open_stage(load_config(settings(**{"target": name, "data.tiles": tiles})))
    assert isinstance(stage, ReaderStage)
    rows = [stage.prepare(SCENES[index], index) for index in range(len(SCENES))]
    program = stage.compile(parallel.make_mesh(1, 1, 1), 1)
    state = program.create(stage.weights)
    batch = program.put(batching.stack(rows), len(rows))
    sums = program.evaluate(state, batch)

    reader = VLMReader.from_pretrained(name)
    scenes = [SCENES[index] for index in range(len(SCENES))]
    pictures = []
    for index, scene in enumerate(scenes):
        crop = host.cut(scene["image"], stage.prepare.crop(scene["box"], index))
        pictures.append([scene["image"], crop])
    questions = [scene["question"] for scene in scenes]
    answers = [scene["answers"][0] for scene in scenes]
    likelihoods = reader.likelihoods(pictures, questions, answers)
    loss, tokens = sums["loss"]
    np.testing.assert_allclose(loss, -sum(told.nats for told in likelihoods), rtol=1e-4)
    assert tokens == sum(told.tokens for told in likelihoods)
    replies = reader.answer(pictures, questions, max_tokens=4)
    right = [
        reply.text.rstrip(".") == answer for reply, answer in zip(replies, answers, strict=True)
    ]
    exact, count = sums["exact"]
    assert (exact, count) == (sum(right), len(scenes))
    assert kind == "llava" or 0 < exact < len(scenes)


def test_a_random_model_learns_and_is_written_as_a_reader(tmp_path):
    target = tiny_folder.make_folder(tmp_path / "random", seed=0)
    changes = {
        "target": str(target),
        "steps": 30,
        "batch_size": 8,
        "eval.every": 15,
        "eval.examples": 8,
    }
    workdir = tmp_path / "run"
    assert loop.run(settings(**changes), workdir)
    loss = metrics(workdir, "eval/loss")
    assert len(loss) == 2 and loss[1] < 0.7 * metrics(workdir, "loss")[0]
    assert len(metrics(workdir, "eval/exact")) == 2
    assert not (workdir / "cropper").exists()
    scene = SCENES[0]
    trained, before = (VLMReader.from_pretrained(f) for f in (workdir / "reader", target))
    asked = [[scene["image"]] * 2], [scene["question"]], scene["answers"]
    assert trained.log_likelihood(*asked)[0] > before.log_likelihood(*asked)[0]
    assert loop.run(settings(**changes), workdir)  # a run that is over stays as it is


def test_adapters_of_a_reader(tmp_path):
    changes = {"lora.rank": 2, "lora.targets": r"text\.layers\.(q|v)", "export_every": 2}
    assert loop.run(settings(**changes), tmp_path)
    for folder in ("reader", "reader-2", "adapter"):
        VLMReader.from_pretrained(tmp_path / folder)
    base = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert base["base_model_name_or_path"] == "zoom_digits/target"
    for folder in ("reader", "adapter"):
        card = (tmp_path / folder / "README.md").read_text()
        assert "### Training as a reader, 4 steps" in card and "| `eval/exact` |" in card
        template = chat_template.read(tmp_path / folder)
        assert not chat_template.asks_for_boxes(template)
    assert "### Training as a reader, 2 steps" in (tmp_path / "reader-2/README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": ""}, "target=''"),
        ({"target": "rapidocr:v4@160"}, "target='rapidocr:v4@160' is outside of the graph"),
        ({"target": "openai:gpt-4.1-nano"}, "is outside of the graph"),
        ({"reader.expansion": (4.0, 2.0)}, "reader.expansion"),
        ({"reader.expansion": (0.5, 2.0)}, "reader.expansion"),
        ({"reader.whole": 1.5}, "reader.whole"),
        ({"reader.jitter": -0.5}, "reader.jitter"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        open_stage(load_config(settings(**changes)))
