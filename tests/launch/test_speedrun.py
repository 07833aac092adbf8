# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""launch/speedrun.sh as a user types it, from nothing to the report, with tiny stand-ins.

Models and data have the names, the places and the formats of the real ones: the labeller as
transformers saves a Qwen2.5-VL, SmolVLM with its processor, TextVQA in parquet shards. Pretended
are the installation, which would take the network, and `hf`, which copies instead of downloading.
"""

import dataclasses
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import speedrun_cost
import tiny
import tiny_folder
from command_lines import ROOT
from PIL import Image
from safetensors.numpy import load_file
from tiny_labellers import QUESTIONS, make_labeller

from cropvlm_jax.labelling import replies
from cropvlm_jax.models.smolvlm.config import SiglipConfig

TRAINING, VALIDATION = 16, 16  # questions
SMOLVLM, QWEN = "HuggingFaceTB/SmolVLM-256M-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"
PROGRAMS = {
    "hf": """[ "$1 $2" = "download lmms-lab/textvqa" ]
mkdir -p "${4#*=}" && cp -r hub/data "${4#*=}" """,
    "cropvlm": f'echo "$1" >>called; exec {sys.executable} -m cropvlm_jax.apps.cli "$@"',
    "python": f'[ "$2" != pip ]; exec {sys.executable} "$@"',  # nothing is installed
}


def in_hub_cache(home: pathlib.Path, name: str) -> pathlib.Path:
    """Where the Hub's client keeps the files of a model, which are to be written there."""
    folder = home / "hub" / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots").mkdir()
    return folder / "snapshots" / ("0" * 40)


def write_textvqa(folder: pathlib.Path) -> None:
    """TextVQA as lmms-lab/textvqa has it, in a folder `data`, with pictures of noise."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, count in (("train", TRAINING), ("validation", VALIDATION)):
        pictures = []
        for number in range(count):
            height, width = tiny_folder.SIZES[number % 3]
            small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
            small.resize((2 * width, 2 * height), 2).save(file := io.BytesIO(), "JPEG")
            pictures.append({"bytes": file.getvalue(), "path": f"{number}.jpg"})
        columns = {
            "image_id": [f"{split}{number}" for number in range(count)],
            "question_id": list(range(count)),
            "question": [QUESTIONS[number % len(QUESTIONS)] for number in range(count)],
            "answers": [[str(number % 3)] * 10 for number in range(count)],
            "image": pa.array(pictures, kind),
        }
        shard = folder / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.table(columns), shard, row_group_size=7)


def write_smolvlm(folder: pathlib.Path) -> None:
    """A random SmolVLM that sees tiles of 512 px, as the one of 256M parameters does."""
    text = dataclasses.replace(tiny.CONFIG.text, max_position_embeddings=8192)
    vision = SiglipConfig(512, 64, 16, 32, 2, 2)
    config = dataclasses.replace(tiny.CONFIG, vision=vision, text=text, scale_factor=4)
    tiny_folder.make_folder(folder, 0, config, longest_edge=2048)


@pytest.fixture
def machine(tmp_path):
    """A folder with what a clone has, and with what is on the Hub; gives it and an environment."""
    checkout = tmp_path / "cropvlm_jax"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    shutil.copytree(ROOT / "launch", checkout / "launch")
    shutil.copy(ROOT / "pyproject.toml", checkout)
    (checkout / "experiments").symlink_to(ROOT / "experiments")
    write_textvqa(checkout / "hub" / "data")
    write_smolvlm(in_hub_cache(tmp_path, SMOLVLM))
    make_labeller(in_hub_cache(tmp_path, QWEN), "smart_resized")
    for name, text in PROGRAMS.items():
        program = checkout / ".venv" / "bin" / name
        program.write_text(f"#!/usr/bin/env bash\nset -e\n{text}\n")
        program.chmod(0o755)
    (checkout / ".venv" / "bin" / "activate").write_text("PATH=$PWD/.venv/bin:$PATH\n")
    for extras in ("tpu,data,report", "data,report"):  # with and without an NVIDIA GPU
        (checkout / ".venv" / f".installed-{extras}").touch()
    environment = os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "SETTINGS": "--config.data.canvas=(256,256) --config.data.workers=1 "
        "--config.batch_size=4 --config.grpo.num_generations=2",
    }
    return checkout, environment


def test_from_nothing_to_the_report(machine):
    checkout, environment = machine
    command = ["bash", "launch/speedrun.sh"]
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    called = (checkout / "called").read_text().split()
    assert called == ["label", "train", "train", "evaluate", "export"]
    told = replies.read(checkout / "data" / "replies" / "textvqa.jsonl")
    assert len(told) == TRAINING // 2 and {row["frame"] for row in told.values()} == {
        "smart_resized"
    }
    boxes = (checkout / "data" / "seed_boxes" / "textvqa.jsonl").read_text().splitlines()
    assert TRAINING // 4 < len(boxes) <= TRAINING // 2
    out = checkout / "runs" / "speedrun"
    for stage in ("sft", "grpo"):
        rows = (out / stage / "metrics.jsonl").read_text().splitlines()
        assert json.loads(rows[-1])["step"] >= 1
    results = json.loads((out / "textvqa" / "results.json").read_text())
    assert results["n"] == VALIDATION
    assert {"no_crop", "sft_best_scale", "sft", "grpo"} <= results["accuracy"].keys()
    assert (out / "textvqa" / "report.html").is_file()
    weights = load_file(out / "cropper" / "model.safetensors")  # of bfloat16, which NumPy has not
    assert weights
    assert "done: the cropper is in runs/speedrun/cropper" in done.stderr


def test_its_head_has_the_computed_costs_and_says_that_they_are():
    head = (ROOT / "launch" / "speedrun.sh").read_text().partition("set -euo")[0]
    assert "COMPUTED, NOT MEASURED" in head and "never ran on a TPU" in head
    for line in speedrun_cost.lines():
        assert f"#     {line}\n" in head
    assert f"{speedrun_cost.UTILISATION:.0%} of the peak" in head
    assert f"${speedrun_cost.DOLLARS['v5e']:.2f} a chip" in head
