# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The commands of the README, run as a user runs them, for a few steps."""

import json
import logging
import os
import re
import shutil
import subprocess

import forked
import jax
import numpy as np
import pytest
from chat_server import KEY, serving
from flax import nnx
from PIL import Image, ImageDraw, ImageFont

from cropvlm_jax.api import CropVLM
from cropvlm_jax.apps import command
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.hub import chat_template
from cropvlm_jax.hub.adapter_export import export_adapter
from cropvlm_jax.hub.adapters import BASE, CONFIG
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.models import lora


def run(app: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return forked.python("-m", f"cropvlm_jax.apps.{app}", *arguments, env=os.environ | environment)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of three tiny steps."""
    workdir, compiled = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("compiled")
    settings = ("steps=3", "batch_size=2", "grpo.num_generations=2", "grpo.beta=0.01")
    done = run(
        "train",
        "--config=experiments/zoom_digits.py",
        f"--workdir={workdir}",
        *(f"--config.{setting}" for setting in settings),
        JAX_COMPILATION_CACHE_DIR=str(compiled),
    )
    assert done.returncode == 0, done.stderr
    assert "3/3" in done.stderr  # progress, as plain lines where there is no terminal
    assert "checkpoint_manager" not in done.stderr  # which logs a lot
    assert list(compiled.glob("jit_*"))
    return workdir


def test_train_leaves_metrics_a_summary_and_a_cropper(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert json.loads((trained / "summary.json").read_text())["steps"] == 3
    assert list((trained / "tensorboard").iterdir())
    before = Pretrained.open("zoom_digits/cropper").load().text.head[...]
    after = Pretrained.open(trained / "cropper").load().text.head[...]
    assert before.shape == after.shape and (before != after).any()
    card = (trained / "cropper" / "README.md").read_text()
    assert re.findall("^### (.*)$", card, re.M) == ["GRPO, 3 steps", "From scratch, 2,250 steps"]
    assert "| started from | `zoom_digits/cropper` |" in card and "license: apache-2.0" in card
    assert chat_template.asks_for_boxes(chat_template.read(trained / "cropper"))


def test_evaluate_prints_the_table_and_writes_it(trained):
    croppers = f"--croppers=sft=zoom_digits/cropper,grpo={trained / 'cropper'}"
    few = ("--limit=12", "--best_scale_items=8")
    done = run("evaluate", croppers, f"--out={trained}", *few, "--expansions=4", "--report")
    assert done.returncode == 0, done.stderr
    results = json.loads((trained / "results.json").read_text())
    croppers = ["sft", "sft_best_scale", "grpo"]
    names = ["no_crop", "centre", "random", "upscaled", *croppers, "oracle"]
    assert list(results["accuracy"]) == names and all(name in done.stdout for name in names)
    assert results["best_scale"]["validation"]["n"] == 8
    assert "lead of grpo over sft_best_scale" in done.stdout
    assert results["n"] == 12 and results["train_seconds"] > 0
    assert all(0 <= results[name] <= 1 for name in ("coverage", "area", "valid"))
    assert results["trained_with"] == {"grpo": "zoom_digits/target"}
    for name in ("before_after", "scores", "expansion", "transfer", "training", "examples"):
        Image.open(trained / f"{name}.png").verify()
    page = (trained / "report.html").read_text()
    assert page.count("<svg") == 4 and "trained with zoom_digits/target" in page


def test_zoom_says_what_the_api_says(tmp_path):
    example = ZoomDigits("test", 5)[4]
    Image.fromarray(example["image"]).save(tmp_path / "scene.png")
    done = run(
        "zoom",
        "--cropper=zoom_digits/cropper",
        "--target=zoom_digits/target",
        f"--image={tmp_path / 'scene.png'}",
        f"--question={example['question']}",
        f"--out={tmp_path / 'zoom.png'}",
        JAX_COMPILATION_CACHE_DIR="/dev/null/there",  # nothing can be kept there
    )
    assert done.returncode == 0, done.stderr
    model = CropVLM.from_pretrained("zoom_digits/cropper", "zoom_digits/target")
    zoom = model(example["image"], example["question"])
    assert f"box (percent): {list(zoom.box)}" in done.stdout
    assert f"answer: {zoom.answer}" in done.stdout
    tokens, edge = model.tokens_of(512, 512), model.longest_edge
    assert f"{tokens} image tokens of 512 x 512 px, resized to longest_edge={edge}" in done.stderr
    assert "a square picture, however small, costs" in done.stderr
    Image.open(tmp_path / "zoom.png").verify()


@pytest.mark.parametrize("target", ["rapidocr:v4@256", "tesseract@256"])
def test_zoom_in_front_of_an_ocr_engine(tmp_path, target):
    if target.startswith("rapidocr"):
        pytest.importorskip("rapidocr_onnxruntime")
    elif not shutil.which("tesseract"):
        pytest.skip("no tesseract here: apt-get install tesseract-ocr")
    image = Image.new("RGB", (512, 512), "white")
    ImageDraw.Draw(image).text((20, 20), "TOTAL 48.15", "black", ImageFont.load_default(60))
    image.save(tmp_path / "receipt.png")
    done = run(
        "zoom",
        "--cropper=zoom_digits/cropper",
        f"--target={target}",
        f"--image={tmp_path / 'receipt.png'}",
        "--question=What is the total?",
    )
    assert done.returncode == 0, done.stderr
    assert "answer without the crop: TOTAL 48.15" in done.stdout


def test_zoom_says_why_an_endpoint_did_not_answer(tmp_path):
    Image.new("RGB", (64, 64), "white").save(tmp_path / "blank.png")
    with serving() as server:
        done = run(
            "zoom",
            "--cropper=zoom_digits/cropper",
            "--target=openai:m",
            f"--image={tmp_path / 'blank.png'}",
            "--question=400",
            OPENAI_BASE_URL=f"http://127.0.0.1:{server.server_port}/v1",
            OPENAI_API_KEY=KEY,
            HOME=str(tmp_path),
        )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "box (percent): [" in done.stdout and "answer: none (HTTP 400: " in done.stdout
    assert "openai:m did not answer: HTTP 400" in done.stderr and KEY not in done.stderr


def test_export_in_bfloat16(tmp_path):
    arguments = (f"--out={tmp_path / 'out'}", "--dtype=bfloat16")
    done = run("export", "--model=zoom_digits/target", *arguments)
    assert done.returncode == 0, done.stderr
    assert "zoom_digits/target is exported as a reader" in done.stderr
    assert "(--role=cropper)" in done.stderr
    again = Pretrained.open(tmp_path / "out").load()
    original = Pretrained.open("zoom_digits/target").load()
    np.testing.assert_allclose(again.text.head[...], original.text.head[...], rtol=1 / 128)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# A reader" in card and "### From scratch, 3,100 steps" in card


def test_export_of_an_adapter_is_a_whole_model(tmp_path):
    source = Pretrained.open("zoom_digits/cropper")
    model = lora.add(source.load(), lora.LoRAConfig(rank=2), nnx.Rngs(0))
    model.connector.lora_b[...] += 0.1
    export_adapter(tmp_path / "adapter", model, "zoom_digits/cropper")
    arguments = (f"--model={tmp_path / 'adapter'}", f"--out={tmp_path / 'out'}")
    done = run("export", *arguments, "--role=cropper")
    assert done.returncode == 0, done.stderr
    again = Pretrained.open(tmp_path / "out").load()
    merged = lora.merge(model)
    np.testing.assert_allclose(again.connector.kernel, merged.connector.kernel, atol=1e-6)
    assert "# A cropper" in (tmp_path / "out" / "README.md").read_text()

    config = tmp_path / "adapter" / CONFIG
    config.write_text(config.read_text().replace("zoom_digits/cropper", "runs/moved"))
    done = run("export", *arguments)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert f"{config}: {BASE}='runs/moved' is not there" in done.stderr


@pytest.mark.parametrize(
    ("app", "arguments", "message"),
    [
        ("train", ["--workdir=x"], "--config"),
        (
            "train",
            ["--config=experiments/zoom_digits.py", "--workdir=x", "--config.stpes=3"],
            "stpes",
        ),
        ("evaluate", ["--croppers=zoom_digits/cropper", "--out=x"], "name=model"),
        ("evaluate", ["--croppers=a=b", "--expansions=1,x", "--out=x"], "positive numbers"),
        ("evaluate", ["--croppers=a=b", "--benchmark=docvqa", "--out=x"], "local folder"),
        ("zoom", ["--cropper=a", "--image=missing.png", "--question=q"], "no such file"),
        ("export", ["--model=no/such-model-here", "--out=x"], "neither"),
    ],
)
def test_wrong_arguments_are_refused_with_a_message(app, arguments, message, tmp_path):
    done = run(app, *arguments)
    assert done.returncode != 0 and message in done.stdout + done.stderr


def test_compiled_programs_are_kept_at_home_unless_the_environment_says_where(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    before = jax.config.jax_compilation_cache_dir
    try:
        command.use_compilation_cache()  # of conftest.py
        assert jax.config.jax_compilation_cache_dir == before
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        command.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == "/home/me/.cache/cropvlm_jax/xla"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    ("file", "level", "told"),
    [
        (command.__file__, logging.INFO, True),
        (jax.__file__, logging.INFO, False),
        (jax.__file__, logging.WARNING, True),
        (jax.__file__, logging.ERROR, True),
    ],
)
def test_other_packages_log_warnings_and_errors_alone(file, level, told):
    assert command.is_told(logging.LogRecord("absl", level, file, 1, "text", (), None)) == told
