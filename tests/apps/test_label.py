# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Labelling as a user does it, with replies from a file; tests/labelling asks models."""

import json

import forked
import numpy as np
import pytest
from PIL import Image

from cropvlm_jax.data import seed_boxes
from cropvlm_jax.data.sources import open_source

SIZES = ((84, 140), (300, 500), (140, 84))  # height, width


@pytest.fixture
def folder(tmp_path):
    """A data set of three pictures, q0 to q2."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for i, (height, width) in enumerate(SIZES):
        picture = rng.integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
        example = {"example_id": f"q{i}", "image": f"{i}.png", "question": "What?", "answer": "a"}
        lines.append(json.dumps(example) + "\n")
    (folder / "train.jsonl").write_text("".join(lines))
    return folder


def run(folder, *arguments):
    """Runs the app."""
    command = ["cropvlm_jax.apps.label", "--source=jsonl", f"--folder={folder}", *arguments]
    return forked.python("-m", *command)


def test_replies_from_a_file_become_labels(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    replies, out = tmp_path / "replies.jsonl", tmp_path / "labels.jsonl"
    texts = ['```json\n[{"bbox_2d": [14, 14, 21, 21]}]\n```', "none", "[0, 0, 84, 140]"]
    rows = [{"example_id": f"q{i}", "reply": text} for i, text in enumerate(texts)]
    replies.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("~/data", "--replies=~/replies.jsonl", "--out=~/labels.jsonl", "--bounds=paper")
    assert done.returncode == 0, done.stderr
    assert "q1 is left out: no box in 'none'" in done.stderr and "2 labels are in" in done.stderr
    labels = [json.loads(line) for line in out.read_text().splitlines()]
    # 5 x 8.33 % of area .0042: x4
    assert labels == [
        {"example_id": "q0", "box": [7, 12, 17, 29], "seed": [10, 1400 / 84, 15, 25]},
        {"example_id": "q2", "box": [0, 0, 100, 100], "seed": [0, 0, 100, 100]},
    ]
    joined = seed_boxes.labelled(open_source("jsonl", folder, "train"), out)
    assert [joined[i]["box"] for i in range(2)] == [(7, 12, 17, 29), (0, 0, 100, 100)]


def test_without_replies_and_model_there_is_nothing_to_do(folder, tmp_path):
    done = run(folder, f"--out={tmp_path / 'labels.jsonl'}", "--replies=missing.jsonl")
    assert done.returncode != 0
    assert "missing.jsonl: no such file, and no --model" in done.stdout + done.stderr


def test_boxes_that_do_not_look_like_the_default_frame_end_with_one_line(folder, tmp_path):
    lines = (folder / "train.jsonl").read_text().splitlines()
    Image.new("RGB", (3000, 4000)).save(folder / "0.png")
    rows = [json.loads(lines[0]) | {"example_id": f"q{i}"} for i in range(9)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    replies = tmp_path / "replies.jsonl"
    written = [{"example_id": f"q{i}", "reply": f"[{80 * i}, 9, 999, 990]"} for i in range(9)]
    replies.write_text("\n".join(map(json.dumps, written)))
    files = (f"--replies={replies}", f"--out={tmp_path / 'labels.jsonl'}")
    done = run(folder, *files)
    assert done.returncode == 1 and not (tmp_path / "labels.jsonl").exists()
    last = done.stderr.strip().splitlines()[-1]
    assert "no number of 9 boxes is over 1000, although pictures are up to" in last
    assert "Say it with --frame" in last
    done = run(folder, *files, "--frame=smart_resized")
    assert done.returncode == 0 and "the numbers may count thousandths" in done.stderr
