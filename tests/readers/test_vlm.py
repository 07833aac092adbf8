# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A reader of ours says what `transformers` says, for whatever mix of pictures it is given."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_folder
from flax import nnx
from tiny_folder import LIMIT, PICTURES, SPLIT

from cropvlm_jax.models.decode import greedy_decode, read_prompt
from cropvlm_jax.models.smolvlm.conversations import END
from cropvlm_jax.models.smolvlm.processor_files import CHAT_TEMPLATE
from cropvlm_jax.readers import together, vlm
from cropvlm_jax.readers.base import Reader
from cropvlm_jax.readers.vlm import VLMReader

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

A, B, C, D, E, F = PICTURES
IMAGES = [[A], [B, C], [F, C], [E], [F, B], [D]]
QUESTIONS = ["what?", "Which digit is it?", " Who signed, and when? ", "x" * 40, "What?", "é 日?"]
ANSWERS = ["3", "a red digit", "Dr. Who.", "It's 10:45, or is it not?", "x", "日本"]
REPLIES = ["3.", "A red digit.", "Dr. Who.", "It's 10:45, or is it not?.", "X.", "日本."]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tiny_folder.make_folder(tmp_path_factory.mktemp("models") / "reader", 2)
    return VLMReader.from_pretrained(folder)


class HuggingFace:
    """The processor and the model of a folder by `transformers`."""

    def __init__(self, folder: pathlib.Path, longest_edge: int):
        from transformers.models.idefics3 import image_processing_pil_idefics3

        image_processor = image_processing_pil_idefics3.Idefics3ImageProcessorPil.from_pretrained(
            folder, size={"longest_edge": longest_edge}
        )
        self.processor = transformers.Idefics3Processor(
            image_processor,
            transformers.AutoTokenizer.from_pretrained(folder),
            image_seq_len=tiny.CONFIG.image_seq_len,
            chat_template=CHAT_TEMPLATE,
        )
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(folder)

    def inputs(self, images, questions, replies=None):
        texts = []
        for i, (pictures, question) in enumerate(zip(images, questions, strict=True)):
            question = question.strip()
            user = f"{question[0].upper()}{question[1:]}\nGive a very brief answer."
            content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": user}]
            messages = [{"role": "user", "content": content}]
            if replies:
                reply = [{"type": "text", "text": replies[i]}]
                messages.append({"role": "assistant", "content": reply})
            texts.append(
                self.processor.apply_chat_template(messages, add_generation_prompt=not replies)
            )
        return self.processor(
            text=texts, images=images, padding=True, padding_side="left", return_tensors="pt"
        )

    def answer(self, pictures, question, max_tokens):
        """The reply, and whether it ended by itself."""
        inputs = self.inputs([pictures], [question])
        tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_tokens)
        reply = tokens[0, inputs["input_ids"].shape[1] :]
        ended = reply[-1] == self.processor.tokenizer.convert_tokens_to_ids(END)
        return self.processor.tokenizer.decode(reply, skip_special_tokens=True).strip(), bool(ended)

    def log_likelihood(self, pictures, question, reply):
        start = self.inputs([pictures], [question])["input_ids"].shape[1]
        inputs = self.inputs([pictures], [question], [reply])
        ids = inputs["input_ids"][0]
        end = self.processor.tokenizer.convert_tokens_to_ids(END)
        stop = torch.nonzero(ids == end)[-1].item() + 1
        with torch.no_grad():
            log_probs = self.model(**inputs).logits[0].log_softmax(-1)
        return log_probs[torch.arange(start, stop) - 1, ids[start:stop]].sum().item()


@pytest.fixture(scope="module", params=[None, SPLIT], ids=["one tile", "split"])
def pair(request, reader):
    """Our reader and theirs."""
    theirs = HuggingFace(reader.source.folder, request.param or tiny.SIDE)
    if request.param is not None:
        reader = VLMReader.from_pretrained(reader.source.folder, longest_edge=request.param)
    return reader, theirs


def test_answers(pair):
    ours, theirs = pair
    replies = [theirs.answer(*each, 12) for each in zip(IMAGES, QUESTIONS, strict=True)]
    expected = [text for text, _ in replies]
    assert len(set(expected)) == len(expected)
    assert {ended for _, ended in replies} == {True, False}
    replies = ours.answer(IMAGES, QUESTIONS, max_tokens=12)
    assert [reply.text for reply in replies] == expected
    assert not any(reply.failure for reply in replies)


def test_log_likelihoods(pair):
    ours, theirs = pair
    expected = list(map(theirs.log_likelihood, IMAGES, QUESTIONS, REPLIES))
    actual = ours.log_likelihood(IMAGES, QUESTIONS, ANSWERS)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3)


def test_logits(pair):
    ours, theirs = pair
    inputs = theirs.inputs(IMAGES[:3], QUESTIONS[:3])
    arrays = {name: value.numpy() for name, value in inputs.items()}
    assert not arrays["pixel_values"].any(axis=(2, 3, 4)).all()  # zero pictures fill short rows
    with torch.no_grad():
        expected = theirs.model(**inputs).logits.numpy()
    mask, pixels = arrays["attention_mask"], arrays["pixel_values"]
    actual = ours.logits(arrays["input_ids"], pixels, mask)
    assert actual.shape == expected.shape and actual.dtype == np.float32
    real = mask.astype(bool)
    np.testing.assert_allclose(actual[real], expected[real], rtol=0, atol=1e-3)

    # A zero picture before the real ones, and no mask.
    row = int(real.all(-1).nonzero()[0][0])
    ids = arrays["input_ids"][row : row + 1]
    pixels = np.pad(pixels[row : row + 1], [(0, 0), (1, 0), *[(0, 0)] * 3])
    actual = ours.logits(ids, pixels)
    np.testing.assert_allclose(actual[0], expected[row], rtol=0, atol=1e-3)


def test_greedy_stops_at_the_end_token(reader):
    ids = jnp.arange(10, 26).reshape(2, 8)
    model = nnx.merge(reader.graphdef, reader.params)
    pictures = jnp.zeros((2, 1, tiny.SIDE, tiny.SIDE, 3), jnp.uint8)

    @jax.jit
    def reply(end_token):
        image_tokens = model.encode_images(pictures)
        prefix = read_prompt(model, image_tokens, ids, jnp.ones(ids.shape, bool))
        replies = greedy_decode(model, prefix, ids[:, -1:], end_token=end_token, max_tokens=6)
        return replies.tokens[:, 0]

    free = np.asarray(reply(-1))
    assert free.shape == (2, 6) and free.dtype == np.int32
    end = free[0, 2]
    expected = free.copy()
    for row in expected:
        row[(np.cumsum(row == end) > 0)] = end
    assert (expected[0, 3:] == end).all() and (expected != free).any()
    np.testing.assert_array_equal(reply(end), expected)


def test_no_compilation_for_the_same_shapes(reader):
    functions = (together.greedy_answers, together.log_likelihoods, vlm._logits)
    ids = np.full((2, 40), 9)
    pixels = np.zeros((2, 1, 3, tiny.SIDE, tiny.SIDE))

    def call(images, questions, answers, length):
        reader.answer(images, questions, 4)
        reader.log_likelihood(images, questions, answers)
        reader.logits(ids[:, :length], pixels)
        return [function._cache_size() for function in functions]

    before = call([[A], [E], [D, B]], ["Who signed?"] * 3, ["3"] * 3, 40)
    assert all(before)
    after = call([[D, F], [E], [A]], ["What is in the red frame?"] * 3, ["A digit"] * 3, 37)
    assert after == before
    # The same model loaded again is no other program.
    again = VLMReader.from_pretrained(reader.source.folder)
    again.answer([[A], [E], [D, B]], ["Who signed?"] * 3, 4)
    assert functions[0]._cache_size() == before[0]


def test_it_is_a_reader_and_says_what_its_replies_depend_on(reader):
    assert isinstance(reader, Reader) and reader.name == str(reader.source.folder)
    split = VLMReader.from_pretrained(reader.source.folder, longest_edge=SPLIT)
    assert split.name == f"{reader.name}@{SPLIT}" and split.settings == reader.settings
    whole = np.zeros((96, 128, 3), np.uint8)  # two rows of two tiles, and the whole picture
    tokens = tiny.CONFIG.image_seq_len
    assert reader.image_tokens([[whole, whole], [whole]]) == 3 * tokens
    assert split.image_tokens([[whole]]) == 5 * tokens
    (told,) = reader.likelihoods([[whole]], ["What?"], ["3"])
    assert told.tokens >= 2 and not told.failure  # the end token is one of them


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.answer([[A]], ["What?"] * 2), "1 images but 2 questions"),
        (lambda r: r.log_likelihood([[A]], ["What?"], []), "1 images but 0 answers"),
        (lambda r: r.answer([[A]], "W"), "questions must be a list of strings"),
        (lambda r: r.log_likelihood([[A]], ["What?"], [3]), "answers must be a list"),
        (lambda r: r.answer([[]], ["What?"]), "1 to 5 pictures"),
        (lambda r: r.answer([[A, B, C] * 2], ["What?"]), "1 to 5 pictures"),
        (lambda r: r.answer(A, ["What?"]), "images must be a list of pictures, not Image"),
        (lambda r: r.answer([A, 3], ["What?"] * 2), "item 2: a picture is .* not int"),
        (lambda r: r.answer([[3]], ["What?"]), "a picture is .* not int"),
        (lambda r: r.answer([[A]], [" "]), "question is empty"),
        (lambda r: r.log_likelihood([[A]], ["What?"], [""]), "answer is empty"),
        (lambda r: r.answer([[A]], ["What?"], 0), "max_tokens=0"),
        (lambda r: r.answer([[A]], ["What?"], LIMIT), f"over the model's {LIMIT} positions"),
        (lambda r: r.answer([[A]], ["What" * LIMIT]), "over the model's"),
        (lambda r: r.log_likelihood([[A]], ["What?"], ["x" * LIMIT]), "over the model's"),
        (lambda r: VLMReader.from_pretrained(r.source.folder, longest_edge=0), "longest_edge=0"),
    ],
)
def test_mistakes_are_named(reader, call, message):
    with pytest.raises(ValueError, match=message):
        call(reader)


def test_mistakes_in_arrays_are_named(reader):
    ids, side = np.full((1, 6), 9), tiny.SIDE
    pixels = np.zeros((1, 2, 3, side, side), np.float32)
    with pytest.raises(ValueError, match="not \\[B, T\\]"):
        reader.logits(ids[0], pixels)
    with pytest.raises(ValueError, match="not \\[B, T\\]"):
        reader.logits(ids, pixels, np.ones((1, 5)))
    for wrong in (pixels[0], pixels[..., 1:], np.moveaxis(pixels, 2, -1), pixels[:0]):
        with pytest.raises(ValueError, match="pixel_values"):
            reader.logits(ids, wrong)
    with pytest.raises(ValueError, match=r"\[1\] pictures of 4 tokens each have \[0\] <image>"):
        reader.logits(ids, pixels + [[[[[0]]], [[[1]]]]])


def test_a_single_picture_needs_no_list_of_its_own(reader):
    flat, nested = [A, np.asarray(B)], [[A], [B]]
    assert reader.answer(flat, ["What?"] * 2) == reader.answer(nested, ["What?"] * 2)
    asked = ["What?"] * 2, ["7", "8"]
    np.testing.assert_array_equal(
        reader.log_likelihood(flat, *asked), reader.log_likelihood(nested, *asked)
    )
    assert reader.image_tokens(flat) == reader.image_tokens(nested)
