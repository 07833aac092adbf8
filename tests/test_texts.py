# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Halves of surrogate pairs, wherever they come from: no tokenizer, file or terminal takes them."""

import json

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from cropvlm_jax import texts
from cropvlm_jax.readers.base import EMPTY, Reply, reply_from
from cropvlm_jax.readers.inputs import check_texts

HALVES = [
    "\ud800",
    "\udbff",
    "\udc00",
    "\udfff",
    "What? \ud83d",
    "\ud83d What?",
    "Wh\udcffat?",  # a byte of a command line that is not UTF-8
    "\ude00\ud83d",  # the wrong way round
    "\ud83d \ude00",
    "\ud800\ud800",
    json.loads('"\\ud800 from JSON"'),
]
PICTURE = np.zeros((8, 8, 3), np.uint8)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_other_text_passes(text):
    assert texts.check(text, "text") == texts.mend(text) == text


@pytest.mark.parametrize("text", HALVES)
def test_halves_are_refused_by_name_and_mended(text):
    with pytest.raises(ValueError, match="the question cannot be written as UTF-8: its character"):
        texts.check(text, "question")
    mended = texts.mend(text)
    assert "\ufffd" in mended and texts.check(mended, "text")
    assert mended.replace("\ufffd", "") == "".join(c for c in text if not 0xD800 <= ord(c) < 0xE000)


def test_halves_that_belong_together_are_joined():
    assert texts.mend("\ud83d\ude00!") == "\U0001f600!"


@pytest.mark.parametrize("text", HALVES)
def test_conversations_refuse_them(text):
    for ask in (tiny.CONVERSATIONS.crop, tiny.CONVERSATIONS.answer):
        with pytest.raises(ValueError, match="cannot be written as UTF-8"):
            ask(text)
    with pytest.raises(ValueError, match="the answer cannot be written as UTF-8"):
        tiny.CONVERSATIONS.answer("What?", 1, text)


@pytest.mark.parametrize("text", HALVES)
def test_models_name_the_question(text):
    with pytest.raises(ValueError, match="the question 2 cannot be written as UTF-8"):
        check_texts([PICTURE] * 2, questions=["What?", text])


@pytest.mark.parametrize("text", HALVES)
def test_replies_are_mended(text):
    reply = reply_from(text)
    assert reply == Reply(texts.mend(text).strip()) and reply.text.encode()
    assert reply_from(" ") == Reply("", EMPTY)


@pytest.mark.parametrize("text", HALVES)
def test_an_example_with_one_gives_its_place_to_another(text):
    example = tiny.make_examples(1)[0]
    for change in ({"question": text}, {"answers": [text]}):
        with pytest.raises(ValueError, match="cannot be written as UTF-8"):
            tiny.PREPARE(example | change, 0)
