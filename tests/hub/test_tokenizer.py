# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import hypothesis
import pytest
from hypothesis import strategies as st

from cropvlm_jax.hub.tokenizer import train_tokenizer

TEXTS = ["What digit is in the red frame?", "Which number is in the blue box?", "[12, 5, 40, 33]."]
TOKENIZER = train_tokenizer(TEXTS, 330)


def test_layout_of_the_vocabulary():
    leading = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert [TOKENIZER.token_to_id(token) for token in leading] == [0, 1, 2]
    size = TOKENIZER.get_vocab_size()
    assert size == 330
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(size))
    trailing = ["<global-img>", "<row_1_col_1>", "<row_1_col_2>", "<row_2_col_1>", "<row_6_col_6>"]
    trailing += ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    ids = [TOKENIZER.token_to_id(token) for token in trailing]
    assert ids == [size - n for n in (40, 39, 38, 33, 4, 3, 2, 1)]


def test_special_tokens_and_digits_are_single_tokens():
    encoding = TOKENIZER.encode("<|im_start|>User:<image><image>12<end_of_utterance>\n")
    tokens = encoding.tokens
    assert tokens[0] == "<|im_start|>"
    assert tokens.count("<image>") == 2
    assert tokens[-4:] == ["1", "2", "<end_of_utterance>", "Ċ"]
    assert TOKENIZER.decode(encoding.ids) == "User:12\n"


def test_merges_are_learnt():
    assert len(TOKENIZER.encode(TEXTS[0]).ids) < len(TEXTS[0]) / 2


def test_training_is_deterministic():
    assert train_tokenizer(TEXTS, 330).to_str() == TOKENIZER.to_str()


def test_few_texts_give_a_smaller_vocabulary_without_holes():
    tokenizer = train_tokenizer(["ab ab"], 1000)
    assert sorted(tokenizer.get_vocab().values()) == list(range(tokenizer.get_vocab_size()))
    assert tokenizer.token_to_id("<end_of_utterance>") == tokenizer.get_vocab_size() - 1


def test_a_vocabulary_too_small_for_the_bytes_is_refused():
    assert train_tokenizer(TEXTS, 299).get_vocab_size() == 299
    with pytest.raises(ValueError, match="at least 299"):
        train_tokenizer(TEXTS, 298)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.text())
def test_any_text_round_trips(text):
    hypothesis.assume("<" not in text)
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text
