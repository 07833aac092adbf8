# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A small tokenizer of SmolVLM's structure, for tiny models."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

_LEADING = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TRAILING = (
    "<global-img>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE with SmolVLM's pre-tokenization and special tokens.

    Digits are single tokens, every byte is in the vocabulary so that any text encodes, and equal
    texts give equal tokenizers. Ids: the three leading special tokens, bytes, merges, then the
    image tokens and `<end_of_utterance>`.

    Args:
        texts: What to learn the merges from.
        vocab_size: The most tokens in all, special ones included; fewer if `texts` has no more
            pairs to merge.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(_LEADING) + len(alphabet) + len(_TRAILING)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size must be at least {least} (bytes, specials), got {vocab_size}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(_TRAILING),
        initial_alphabet=alphabet,
        special_tokens=_special(_LEADING),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(_special(_TRAILING))
    return tokenizer


def _special(tokens: Iterable[str]) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]
