# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""LLaVA-1.5-7B without its weights: the published shape as a folder, enough for `cropvlm aot`.

    python experiments/llava_shape.py runs/llava_shape

Nothing comes from the Hub: the tokenizer is a small one, so questions are some tokens longer.
"""

import dataclasses
import json
import pathlib

from absl import app
from tokenizers import AddedToken

from cropvlm_jax import apps
from cropvlm_jax.hub.tokenizer import train_tokenizer
from cropvlm_jax.models.conversations import SHORT_ANSWER_INSTRUCTION
from cropvlm_jax.models.llava.config import LlavaConfig
from cropvlm_jax.models.llava.conversations import END, IMAGE


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError("what folder is to be written?")
    folder = pathlib.Path(argv[1])
    tokenizer = train_tokenizer((SHORT_ANSWER_INSTRUCTION,), 400)
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    image = tokenizer.token_to_id(IMAGE)
    config = dataclasses.replace(LlavaConfig.llava_7b(), image_token_id=image)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(config.to_hf(), indent=2, allow_nan=False) + "\n"
    )
    tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    apps.run_script(main)
