# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Labelling as a user does it: with replies from a file, and with a tiny transformers model."""

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cropvlm_jax.data import labelling, seed_boxes
from cropvlm_jax.data.sources import open_source
from cropvlm_jax.hub.tokenizer import train_tokenizer

SIZES = ((84, 140), (300, 500), (140, 84))  # height, width
CHAT_TEMPLATE = (
    "{% for part in messages[0]['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)


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


# Runs the app after Qwen's processor is made independent of torchvision.
WITH_QWEN = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
import test_label
test_label.pictures_only()
runpy.run_module("cropvlm_jax.apps.label", run_name="__main__", alter_sys=True)
"""


def run(folder, *arguments, qwen=False):
    """Runs the app in a process of its own."""
    where = (
        ["-c", WITH_QWEN, os.path.dirname(__file__)] if qwen else ["-m", "cropvlm_jax.apps.label"]
    )
    command = [sys.executable, *where, "--source=jsonl", f"--folder={folder}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


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


def save_tiny_qwen(folder):
    """Qwen2.5-VL with random weights and its processor, as `transformers` saves them."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig
    from transformers import Qwen2_5_VLForConditionalGeneration as Qwen
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer([labelling.prompt("What?")] * 5, 350),
        eos_token="<end_of_utterance>",
        pad_token="<end_of_utterance>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    start, end, image, video = tokenizer.convert_tokens_to_ids(special)
    processor = pictures_only()(Qwen2VLImageProcessorPil(), tokenizer, CHAT_TEMPLATE)
    processor.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16}
    config = Qwen2_5_VLConfig(
        text_config=sizes
        | {
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [1, 1, 2],
                "rope_theta": 1e4,
            },
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        },
        vision_config=sizes
        | {"depth": 1, "num_heads": 2, "out_hidden_size": 16, "fullatt_block_indexes": [0]},
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
    )
    torch.manual_seed(0)
    Qwen(config).save_pretrained(folder)


@functools.cache
def pictures_only():
    """Qwen2.5-VL's processor, less its video half, which needs torchvision."""
    from transformers import AutoProcessor, PreTrainedConfig
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.processing_utils import ProcessorMixin

    class PicturesOnly(Qwen2_5_VLProcessor):
        def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    class PicturesOnlyConfig(PreTrainedConfig):
        model_type = "pictures_only"

    AutoProcessor.register(PicturesOnlyConfig, PicturesOnly)
    return PicturesOnly


def test_a_local_model_is_asked_and_asked_only_once(folder, tmp_path):
    save_tiny_qwen(tmp_path / "qwen")
    replies, out = tmp_path / "replies.jsonl", tmp_path / "labels.jsonl"
    earlier = {"example_id": "q2", "reply": "[0, 0, 42, 70]", "resized": [140, 84]}
    replies.write_text(json.dumps(earlier) + "\n")
    files = (f"--replies={replies}", f"--out={out}")
    done = run(folder, *files, f"--model={tmp_path}/qwen", f"--max_pixels={20 * 28**2}", qwen=True)
    assert done.returncode == 0, done.stderr
    assert "picture 2/2" in done.stderr
    rows = [json.loads(line) for line in replies.read_text().splitlines()]
    assert [row["example_id"] for row in rows] == ["q2", "q0", "q1"] and rows[0] == earlier
    # The second picture is over the limit of the processor, and the frame is that of what it made.
    assert [row["resized"] for row in rows] == [[140, 84], [84, 140], [84, 140]]
    labels = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["seed"] for row in labels] == [[0, 0, 50, 50]]  # random weights name no box

    # Nothing is left to ask, so that the model need not even be there.
    done = run(folder, *files, "--model=no/such-model", "--whole_image_on_failure")
    assert done.returncode == 0, done.stderr
    assert len(replies.read_text().splitlines()) == 3
    labels = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["seed"] for row in labels] == [[0, 0, 100, 100]] * 2 + [[0, 0, 50, 50]]


def test_the_model_reads_the_official_prompt_and_replies_greedily(folder, tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    save_tiny_qwen(tmp_path)
    monkeypatch.setattr(labelling, "MAX_NEW_TOKENS", 3)
    picture = np.array(Image.open(folder / "0.png"))
    got = labelling.load_labeller(str(tmp_path), None)(picture, labelling.prompt("What?"))

    processor = AutoProcessor.from_pretrained(tmp_path)
    text = "<|vision_start|><|image_pad|><|vision_end|>" + labelling.prompt("What?")
    inputs = processor(text=[text], images=[Image.open(folder / "0.png")], return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    written = []
    for _ in range(3):
        with torch.inference_mode():
            token = model(**inputs).logits[0, -1].argmax().item()
        written.append(token)
        for name, value in (("input_ids", token), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            inputs[name] = torch.cat([inputs[name], torch.tensor([[value]])], 1)
    assert got == {
        "reply": processor.decode(written, skip_special_tokens=True),
        "resized": [84, 140],
    }
    assert got["reply"]


def test_without_torch_the_model_is_refused_with_a_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch torchvision transformers"):
        labelling.load_labeller("some/model", None)
