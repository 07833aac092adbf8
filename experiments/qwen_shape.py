# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A Qwen without its weights: a published shape as a folder, enough for `cropvlm aot`.

    python experiments/qwen_shape.py runs/qwen7b qwen2_5_vl_7b

Nothing comes from the Hub: the tokenizer is a small one with Qwen's special tokens, so the ids of
these are not Qwen's, and questions are some tokens longer.
"""

import dataclasses
import json
import pathlib

from absl import app
from tokenizers import AddedToken, Tokenizer

from cropvlm_jax import apps
from cropvlm_jax.hub.tokenizer import train_tokenizer
from cropvlm_jax.models.conversations import SHORT_ANSWER_INSTRUCTION
from cropvlm_jax.models.qwen2_5_vl.config import QwenConfig
from cropvlm_jax.models.qwen2_5_vl.conversations import IMAGE, SYSTEM, VISION_END, VISION_START
from cropvlm_jax.models.qwen3_vl.config import Qwen3Config

VIDEO = "<|video_pad|>"


def qwen_tokenizer(texts: tuple[str, ...] = ()) -> Tokenizer:
    """A small tokenizer with Qwen's special tokens that has learned from `texts`."""
    tokenizer = train_tokenizer((SYSTEM, SHORT_ANSWER_INSTRUCTION, *texts), 400)
    special = (VISION_START, VISION_END, IMAGE, VIDEO)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


def write_shape(folder: pathlib.Path, config: QwenConfig, tokenizer: Tokenizer) -> QwenConfig:
    """Writes a shape and a tokenizer to a folder; returns the shape, which has its token ids."""
    ids = map(tokenizer.token_to_id, (VISION_START, VISION_END, IMAGE, VIDEO))
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    config = dataclasses.replace(config, **dict(zip(names, ids, strict=True)))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(config.to_hf(), indent=2, allow_nan=False) + "\n"
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return config


def main(argv: list[str]) -> None:
    if len(argv) != 3:
        raise app.UsageError("what folder is to be written, and which shape?")
    kind = Qwen3Config if argv[2].startswith("qwen3") else QwenConfig
    write_shape(pathlib.Path(argv[1]), getattr(kind, argv[2])(), qwen_tokenizer())


if __name__ == "__main__":
    apps.run_script(main)
