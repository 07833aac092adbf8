# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Random labellers whose every word is a box, as `transformers` has them, and data to label.

Random weights say no boxes in JSON. So whole boxes are tokens of the tokenizer, and the output head
knows only these and the end token: replies hold boxes that depend on picture and question.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qwen_shape import qwen_tokenizer, write_shape

from cropvlm_jax.data.sources import open_source
from cropvlm_jax.labelling.base import MAX_NEW_TOKENS, prompt
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.qwen2_5_vl.config import QwenConfig, QwenVisionConfig
from cropvlm_jax.models.qwen3_vl.config import Qwen3Config, Qwen3VisionConfig, interleaved

QUESTIONS = ("What?", "Who signed, and when?", "Which number is in the red frame?")
SIDE = 8  # px of a token's tile
PIXELS = 96 * SIDE**2  # most of a picture
SIZES = ((90, 120), (60, 40), (130, 60), (33, 31), (40, 95), (64, 64), (200, 150))  # height, width
BOXES = 60
VISION = QwenVisionConfig(2, 24, 40, 2, 32, 4, 2, 16, (1,))
TEXT = LlamaConfig(400, 32, 72, 2, 4, 2, 8, rope_theta=1e4, qkv_bias=True, mrope_section=(1, 1, 2))


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of labeller.

    Attributes:
        shape: without its token ids.
        opening: what its chat template writes before the user's turn.
        settings: of its image processor, besides those that all kinds share.
    """

    shape: Any
    opening: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
KINDS = {  # by the frame of their boxes
    "smart_resized": Kind(QwenConfig(VISION, TEXT), SYSTEM),
    "thousandths": Kind(
        Qwen3Config(
            Qwen3VisionConfig(2, 24, 40, 2, 32, 4, 2, 25, (0, 1)),
            dataclasses.replace(
                TEXT, qkv_bias=False, qk_norm=True, mrope_section=interleaved((2, 1, 1), 4)
            ),
        ),
        settings={"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    ),
}
SETTINGS = {"patch_size": 4, "merge_size": 2}


def boxes() -> list[str]:
    """Texts of boxes that lie, in part at least, in every picture of any frame."""
    rng = np.random.default_rng(0)
    low = rng.integers(0, 24, (BOXES, 2))
    return [
        f'"bbox_2d":{json.dumps(box, separators=(",", ":"))}'
        for box in np.concatenate([low, low + rng.integers(1, 60, (BOXES, 2))], 1).tolist()
    ]


def make_labeller(folder: pathlib.Path, frame: str) -> pathlib.Path:
    """Writes a random labeller whose boxes are in this frame."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = qwen_tokenizer(tuple(map(prompt, QUESTIONS)))
    tokenizer.add_tokens(boxes())
    words = [tokenizer.token_to_id(word) for word in (*boxes(), "<|im_end|>")]
    shape = KINDS[frame].shape
    text = dataclasses.replace(
        shape.text, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=2048
    )
    config = write_shape(folder, dataclasses.replace(shape, text=text), tokenizer)
    hf_config = transformers.AutoConfig.for_model(**config.to_hf())
    hf_config.text_config.bos_token_id = hf_config.text_config.eos_token_id = None
    model = transformers.AutoModelForImageTextToText.from_config(hf_config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                scale = ("norm" in name or "ln_q" in name) and name.endswith("weight")
                weight.normal_(0, 0.1, generator=generator).add_(float(scale))
            else:
                fan_in = 1 if "embed" in name else weight.numel() / weight.shape[0]
                weight.normal_(0, 1.5 * fan_in**-0.5, generator=generator)
        silent = np.setdiff1d(np.arange(text.vocab_size), words)
        model.lm_head.weight[silent] = 0
        model.lm_head.weight[words[-1]] *= 2  # or no reply would end
    model.save_pretrained(folder)
    settings = SETTINGS | KINDS[frame].settings | {"min_pixels": 256, "max_pixels": PIXELS}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def make_data(folder: pathlib.Path, count: int) -> Any:
    """A data set of pictures of several sizes; gives its training split."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    with (folder / "train.jsonl").open("w") as lines:
        for number in range(count):
            height, width = SIZES[number % len(SIZES)]
            small = rng.integers(0, 256, (3, 4, 3)).astype(np.uint8)
            picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
            picture.save(folder / f"{number}.png")
            question = QUESTIONS[number % len(QUESTIONS)]
            row = {"image": f"{number}.png", "question": question, "answer": "a"}
            print(json.dumps(row | {"example_id": f"q{number}"}), file=lines)
    return open_source("jsonl", folder, "train")


class Transformers:
    """A labeller as `transformers` runs it: one picture after the other."""

    def __init__(self, folder: pathlib.Path, frame: str):
        transformers = pytest.importorskip("transformers")
        module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
        self.torch = pytest.importorskip("torch")
        size = {"shortest_edge": 256, "longest_edge": PIXELS}
        settings = SETTINGS | KINDS[frame].settings
        self.processor = module.Qwen2VLImageProcessorPil(size=size, **settings)
        self.opening = KINDS[frame].opening
        self.tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>"
        )
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()

    def reply(self, picture: Image.Image, question: str) -> tuple[str, list[int]]:
        """A greedy reply, and height and width of the picture that the model saw."""
        seen = self.processor([picture.convert("RGB")], return_tensors="pt")
        grid = seen["image_grid_thw"][0]
        text = (
            f"{self.opening}<|im_start|>user\n"
            f"<|vision_start|>{'<|image_pad|>' * (int(grid.prod()) // 4)}<|vision_end|>"
            f"{prompt(question)}<|im_end|>\n<|im_start|>assistant\n"
        )
        inputs = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")
        image = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        ids = inputs["input_ids"]
        with self.torch.inference_mode():
            written = self.model.generate(
                input_ids=ids,
                mm_token_type_ids=(ids == image).int(),
                **seen,
                do_sample=False,
                max_new_tokens=MAX_NEW_TOKENS,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=0,
            )
        reply = self.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        return reply, (grid[1:] * 4).tolist()
