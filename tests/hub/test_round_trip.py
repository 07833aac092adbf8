# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Models that transformers saved, opened, exported and loaded by it again: nothing changes."""

import json
import pathlib

import numpy as np
import pytest
import tiny
import tiny_folder
import tiny_llava
from PIL import Image
from qwen_shape import qwen_tokenizer

from cropvlm_jax.hub.export import export
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.hub.processors import FLAT, NESTED
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.qwen2_5_vl.config import QwenConfig, QwenVisionConfig
from cropvlm_jax.models.qwen3_vl.config import Qwen3Config, Qwen3VisionConfig
from cropvlm_jax.readers.vlm import VLMReader

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

QUESTION = "Which digit is it?"
TEMPLATE = "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}" + (
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def save_smolvlm(folder: pathlib.Path, **settings) -> None:
    """A model and its processor, as this version of transformers saves them."""
    made = tiny_folder.make_folder(folder.with_name(f"{folder.name}-made"), seed=0)
    transformers.AutoModelForImageTextToText.from_pretrained(made).save_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(made)
    for name, value in settings.items():
        setattr(processor.image_processor, name, value)
    processor.save_pretrained(folder)


def save_qwen(kind: str, folder: pathlib.Path) -> None:
    tokenizer = qwen_tokenizer((*tiny.QUESTIONS, *tiny.ANSWERS))
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    ids = [tokenizer.token_to_id(f"<|{name}|>") for name in names]
    shape = (tokenizer.get_vocab_size(), 32, 48, 2, 4, 2, 8)
    settings: dict = {"size": {"shortest_edge": 3136, "longest_edge": 12544}}
    if kind == "qwen":
        text = LlamaConfig(*shape, qkv_bias=True, mrope_section=(1, 1, 2))
        config = QwenConfig(QwenVisionConfig(2, 24, 40, 2, 32, 14, 2, 56, (1,)), text, *ids)
    else:
        text = LlamaConfig(*shape, qk_norm=True, mrope_section=(1, 1, 1, 1))
        config = Qwen3Config(Qwen3VisionConfig(2, 24, 40, 2, 32, 16, 2, 25, (0,)), text, *ids)
        settings = {"size": {"shortest_edge": 4096, "longest_edge": 16384}, "patch_size": 16}
        settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    hf_config = transformers.AutoConfig.for_model(**config.to_hf())
    transformers.AutoModelForImageTextToText.from_config(hf_config).save_pretrained(folder)
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    module.Qwen2VLImageProcessorPil(**settings).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def save(kind: str, folder: pathlib.Path) -> None:
    if kind == "smolvlm":
        save_smolvlm(folder)
    elif kind == "smolvlm-whole":
        save_smolvlm(folder, do_image_splitting=False)
    elif kind.startswith("qwen"):
        save_qwen(kind, folder)
    else:
        tiny_llava.write_folder(folder, tiny_llava.make_config(), pad=kind == "llava-pad")


def outputs(folder: pathlib.Path, kind: str, picture: np.ndarray) -> dict[str, np.ndarray]:
    """What transformers makes of a picture and a question: inputs and logits."""
    picture = Image.fromarray(picture)
    images = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    if kind.startswith("qwen"):  # its processor wants torchvision
        inputs = images([picture], return_tensors="pt")
        count = int(inputs["image_grid_thw"].prod()) // 4
        text = f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>{QUESTION}"
        inputs |= tokenizer(text, return_tensors="pt")
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
    else:
        processor = transformers.AutoProcessor.from_pretrained(folder)
        inputs = processor(text=f"<image>{QUESTION}", images=[picture], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    return {name: value.numpy() for name, value in inputs.items()} | {"logits": logits.numpy()}


def flatten(folder: pathlib.Path) -> None:
    """Makes the files what transformers 4 wrote: the image processor has a file of its own."""
    processor = json.loads((folder / NESTED).read_text())
    images = processor.pop("image_processor")
    (folder / FLAT).write_text(json.dumps(images))
    (folder / NESTED).write_text(json.dumps(processor))


@pytest.mark.parametrize("old", [False, True], ids=["transformers5", "transformers4"])
@pytest.mark.parametrize(
    "kind", ["smolvlm", "smolvlm-whole", "llava", "llava-pad", "qwen", "qwen3"]
)
def test_nothing_changes(kind, old, tmp_path):
    save(kind, tmp_path / "theirs")
    if old and (tmp_path / "theirs" / NESTED).is_file():
        flatten(tmp_path / "theirs")
    source = Pretrained.open(tmp_path / "theirs")
    assert (source.config.split if kind.startswith("smolvlm") else True) == (
        kind != "smolvlm-whole"
    )
    export(tmp_path / "ours", source.load(), source)
    again = Pretrained.open(tmp_path / "ours")
    export(tmp_path / "again", again.load(), again)
    assert (again.config, again.longest_edge) == (source.config, source.longest_edge)
    for name in (FLAT, NESTED, "config.json", "generation_config.json"):
        first, second = (json.loads((tmp_path / f / name).read_text()) for f in ("ours", "again"))
        assert first == second
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float32"

    for picture in (tiny.make_examples(1)[0]["image"], np.zeros((30, 90, 3), np.uint8)):
        expected = outputs(tmp_path / "theirs", kind, picture)
        actual = outputs(tmp_path / "ours", kind, picture)
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_a_longest_edge_of_training_is_exported(tmp_path):
    """And whether pictures are split: transformers sees the tiles that training saw."""
    picture = tiny.make_examples(1)[0]["image"]
    for kind in ("smolvlm", "smolvlm-whole"):
        save(kind, tmp_path / kind)
        source = Pretrained.open(tmp_path / kind)
        for edge in (tiny.SIDE, 3 * tiny.SIDE):
            folder = tmp_path / f"{kind}-{edge}"
            export(folder, source.load(), source, longest_edge=edge)
            tiles, _ = source.see(picture, edge)
            pixels = outputs(folder, kind, picture)["pixel_values"][0]
            expected = (tiles / 255 - 0.5) / 0.5
            np.testing.assert_allclose(pixels, expected.transpose(0, 3, 1, 2), atol=1e-6)
            assert len(tiles) == (1 if edge == tiny.SIDE or kind == "smolvlm-whole" else 10)
            assert Pretrained.open(folder).longest_edge == edge


def test_a_model_that_does_not_split_answers(tmp_path):
    save("smolvlm-whole", tmp_path / "model")
    reader = VLMReader.from_pretrained(tmp_path / "model", longest_edge=3 * tiny.SIDE)
    (reply,) = reader.answer([[tiny.make_examples(1)[0]["image"]]], [QUESTION], max_tokens=4)
    assert isinstance(reply.text, str)
    assert reader.image_tokens([[np.zeros((90, 99, 3), np.uint8)]]) == 4
