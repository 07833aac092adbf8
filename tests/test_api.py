# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The Python API says what `transformers` says, for whatever mix of pictures it is given."""

import dataclasses
import importlib.metadata
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image

import cropvlm_jax
from cropvlm_jax import api, geometry
from cropvlm_jax.grpo.rollout import read_prompt
from cropvlm_jax.hub.pretrained import Pretrained, export, write_processor_files
from cropvlm_jax.models import conversations
from cropvlm_jax.models.decode import greedy
from cropvlm_jax.models.smolvlm import SmolVLM

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LIMIT = 512  # positions of the models
SIZES = [(96, 128), (60, 128), (130, 40), (33, 31), (100, 97), (5, 64)]  # height, width
SPLIT = 2 * tiny.SIDE  # a longest edge that cuts these into 2 x 2, 1 x 2 and 2 x 1 tiles


def make_folder(folder: pathlib.Path, seed: int) -> pathlib.Path:
    """A random model whose replies depend on what it sees, and end at different lengths."""
    text = dataclasses.replace(tiny.CONFIG.text, max_position_embeddings=LIMIT)
    config = dataclasses.replace(tiny.CONFIG, text=text)
    model = nnx.eval_shape(lambda: SmolVLM(config, rngs=nnx.Rngs(0)))
    graphdef, abstract = nnx.split(model)
    rng = np.random.default_rng(seed)

    def random(path, weight):
        values = rng.normal(size=weight.shape)
        if path[-2].key == "kernel":
            values *= 2 * weight.shape[-2] ** -0.5
        elif path[-2].key in ("scale", "bias"):
            values = 0.1 * values + (path[-2].key == "scale")
        return jnp.asarray(values, jnp.float32)

    model = nnx.merge(graphdef, jax.tree.map_with_path(random, abstract))
    end = tiny.TOKENIZER.token_to_id(conversations.END)
    model.text.head[...] = model.text.head[...].at[end].multiply(2.0)
    folder.mkdir()
    write_processor_files(folder, config, tiny.TOKENIZER, longest_edge=SPLIT)
    export(folder, model, Pretrained.open(folder))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(cropper, target)."""
    root = tmp_path_factory.mktemp("models")
    return make_folder(root / "cropper", 1), make_folder(root / "target", 2)


@pytest.fixture(scope="module")
def target(folders):
    return api.Target.from_pretrained(folders[1])


def make_pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)) for _ in SIZES]
    return [s.resize(size[::-1], 2) for s, size in zip(small, SIZES, strict=True)]


PICTURES = make_pictures()
A, B, C, D, E, F = PICTURES
IMAGES = [[A], [B, C], [F, C], [E], [F, B], [D]]
QUESTIONS = ["what?", "Which digit is it?", " Who signed, and when? ", "x" * 40, "What?", "é 日?"]
ANSWERS = ["3", "a red digit", "Dr. Who.", "It's 10:45, or is it not?", "x", "日本"]
REPLIES = ["3.", "A red digit.", "Dr. Who.", "It's 10:45, or is it not?.", "X.", "日本."]


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
            chat_template=conversations.CHAT_TEMPLATE,
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
        ended = reply[-1] == self.processor.tokenizer.convert_tokens_to_ids(conversations.END)
        return self.processor.tokenizer.decode(reply, skip_special_tokens=True).strip(), bool(ended)

    def log_likelihood(self, pictures, question, reply):
        start = self.inputs([pictures], [question])["input_ids"].shape[1]
        inputs = self.inputs([pictures], [question], [reply])
        ids = inputs["input_ids"][0]
        end = self.processor.tokenizer.convert_tokens_to_ids(conversations.END)
        stop = torch.nonzero(ids == end)[-1].item() + 1
        with torch.no_grad():
            log_probs = self.model(**inputs).logits[0].log_softmax(-1)
        return log_probs[torch.arange(start, stop) - 1, ids[start:stop]].sum().item()


@pytest.fixture(scope="module", params=[None, SPLIT], ids=["one tile", "split"])
def pair(request, folders, target):
    """Our target and theirs."""
    theirs = HuggingFace(folders[1], request.param or tiny.SIDE)
    if request.param is not None:
        target = api.Target.from_pretrained(folders[1], longest_edge=request.param)
    return target, theirs


def test_answers(pair):
    ours, theirs = pair
    replies = [theirs.answer(*each, 12) for each in zip(IMAGES, QUESTIONS, strict=True)]
    expected = [text for text, _ in replies]
    assert len(set(expected)) == len(expected)
    assert {ended for _, ended in replies} == {True, False}
    assert ours.answer(IMAGES, QUESTIONS, max_tokens=12) == expected


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


def test_greedy_stops_at_the_end_token(target):
    ids = np.arange(10, 26).reshape(2, 8)
    model = nnx.merge(target.graphdef, target.params)
    pictures = np.zeros((2, 1, tiny.SIDE, tiny.SIDE, 3), np.uint8)

    @jax.jit
    def reply(end_token):
        image_tokens = model.encode_images(pictures)
        prefix = read_prompt(model, image_tokens, ids, np.ones(ids.shape, bool))
        return greedy(model, prefix, jnp.asarray(ids[:, -1]), end_token, 6)

    free = np.asarray(reply(-1))
    assert free.shape == (2, 6) and free.dtype == np.int32
    end = free[0, 2]
    expected = free.copy()
    for row in expected:
        row[(np.cumsum(row == end) > 0)] = end
    assert (expected[0, 3:] == end).all() and (expected != free).any()
    np.testing.assert_array_equal(reply(end), expected)


@pytest.fixture(scope="module")
def cropper(folders, target):
    return api.CropVLM.from_pretrained(folders[0], target)


def test_proposals_of_a_batch_are_those_of_each(cropper):
    assert cropper.longest_edge == SPLIT
    questions = QUESTIONS[:3] * 2
    actual = cropper.propose(PICTURES, questions)
    assert actual.shape == (6, 4) and np.issubdtype(actual.dtype, np.integer)
    assert geometry.is_valid(actual).all()
    assert len(np.unique(actual, axis=0)) > 3
    for box, picture, question in zip(actual, PICTURES, questions, strict=True):
        np.testing.assert_array_equal(cropper.propose([picture], [question]), [box])
    assert cropper.propose([], []).shape == (0, 4)


def test_batches_of_large_pictures_are_small(monkeypatch):
    monkeypatch.setattr(api, "TILE_BYTES", 3 * 2 * 2)

    def row(patches):  # as Qwen's pictures: many tiles under a leading axis of pictures
        return api._Row(np.zeros((1, patches, 2, 2, 3), np.uint8), np.arange(7), np.arange(3))

    batches = api._batches([row(16)] * 8 + [row(200)] * 2)
    assert [len(indices) for indices, _ in batches] == [4, 4, 1, 1]


def test_batches_are_few_and_full():
    def row(tiles, prompt):
        return api._Row(np.zeros((tiles, 2, 2, 3), np.uint8), np.arange(prompt), np.arange(3))

    rows = [row(5, 7), *[row(1, 30)] * 70, *[row(5, 33)] * 13]
    batches = [(indices, batch.images.shape, batch) for indices, batch in api._batches(rows)]
    assert sorted(sum((indices for indices, *_ in batches), [])) == list(range(len(rows)))
    assert [(len(indices), shape[:2]) for indices, shape, _ in batches] == [
        (64, (64, 1)),
        (8, (8, 5)),
        (6, (8, 1)),
        (6, (8, 5)),
    ]
    mixed = batches[1][2]
    assert batches[1][0][0] == 0 and mixed.prompt.shape == (8, 64)
    assert mixed.completion.shape == (8, 8)
    np.testing.assert_array_equal(mixed.prompt[0, -7:], np.arange(7))
    assert mixed.prompt_valid.sum(-1).tolist() == [7] + [33] * 7


@pytest.mark.parametrize("kind", ["path", "PIL", "array"])
def test_zoom(cropper, target, tmp_path, kind):
    path = tmp_path / "picture.png"
    A.save(path)
    zoom = cropper({"path": path, "PIL": A, "array": np.asarray(A)}[kind], "What?")
    assert isinstance(zoom, api.Zoom) and isinstance(zoom.box, tuple)
    assert zoom.box == tuple(cropper.propose([A], ["What?"])[0])
    x1, y1, x2, y2 = geometry.to_pixels(np.array(zoom.box), np.array(SIZES[0]))
    np.testing.assert_array_equal(zoom.crop, np.asarray(A)[y1:y2, x1:x2])
    assert zoom.answer == target.answer([[A, zoom.crop]], ["What?"])[0]
    assert zoom.answer_without_crop == target.answer([[A]], ["What?"])[0]
    assert cropper.target is target


def test_targets(folders):
    bare = api.CropVLM.from_pretrained(str(folders[0]), longest_edge=tiny.SIDE, dtype=jnp.bfloat16)
    assert bare.longest_edge == tiny.SIDE
    assert {x.dtype for x in jax.tree.leaves(bare.params)} == {jnp.dtype(jnp.bfloat16)}
    zoom = bare(B, "What?")
    assert geometry.is_valid(np.array(zoom.box))
    assert zoom.answer is None and zoom.answer_without_crop is None
    both = api.CropVLM.from_pretrained(folders[0], folders[1], dtype=jnp.bfloat16)
    assert both.target is not None and both.target.longest_edge == tiny.SIDE
    assert both.target.source.folder == folders[1]
    assert {x.dtype for x in jax.tree.leaves(both.target.params)} == {jnp.dtype(jnp.bfloat16)}


def test_no_compilation_for_the_same_shapes(cropper, target):
    functions = (api._answer, api._log_likelihood, api._propose, api._logits)
    ids = np.full((2, 40), 9)
    pixels = np.zeros((2, 1, 3, tiny.SIDE, tiny.SIDE))

    def call(images, questions, answers, length):
        target.answer(images, questions, 4)
        target.log_likelihood(images, questions, answers)
        cropper.propose([pictures[0] for pictures in images], questions)
        target.logits(ids[:, :length], pixels)
        return [function._cache_size() for function in functions]

    before = call([[A], [E], [D, B]], ["Who signed?"] * 3, ["3"] * 3, 40)
    assert all(before)
    after = call([[D, F], [E], [A]], ["What is in the red frame?"] * 3, ["A digit"] * 3, 37)
    assert after == before
    # The same model loaded again is no other program.
    again = api.Target.from_pretrained(target.source.folder)
    again.answer([[A]] * 2, ["Who signed?"] * 2, 4)
    assert functions[0]._cache_size() == before[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.target.answer([[A]], ["What?"] * 2), "1 images but 2 questions"),
        (lambda c: c.target.log_likelihood([[A]], ["What?"], []), "1 images but 0 answers"),
        (lambda c: c.propose([A, B], ["What?"]), "2 images but 1 questions"),
        (lambda c: c.target.answer([[A]], "W"), "questions must be a list of strings"),
        (lambda c: c.target.log_likelihood([[A]], ["What?"], [3]), "answers must be a list"),
        (lambda c: c.target.answer([[]], ["What?"]), "1 or 2 pictures"),
        (lambda c: c.target.answer([[A, B, C]], ["What?"]), "1 or 2 pictures"),
        (lambda c: c.target.answer([A], ["What?"]), "1 or 2 pictures"),
        (lambda c: c.target.answer([[3]], ["What?"]), "a picture is .* not int"),
        (lambda c: c.propose([[A]], ["What?"]), "a picture is .* not list"),
        (lambda c: c.target.answer([[A]], [" "]), "question is empty"),
        (lambda c: c.propose([A], [""]), "question is empty"),
        (lambda c: c.target.log_likelihood([[A]], ["What?"], [""]), "answer is empty"),
        (lambda c: c.target.answer([[A]], ["What?"], 0), "max_tokens=0"),
        (lambda c: c.target.answer([[A]], ["What?"], LIMIT), f"over the model's {LIMIT} positions"),
        (lambda c: c.target.answer([[A]], ["What" * LIMIT]), "over the model's"),
        (lambda c: c.target.log_likelihood([[A]], ["What?"], ["x" * LIMIT]), "over the model's"),
        (lambda c: c.propose([A], ["q" * LIMIT]), "over the model's"),
        (lambda c: api.CropVLM.from_pretrained(c.source.folder, c), "a target is"),
        (lambda c: api.Target.from_pretrained(c.source.folder, longest_edge=0), "longest_edge=0"),
    ],
)
def test_mistakes_are_named(cropper, call, message):
    with pytest.raises(ValueError, match=message):
        call(cropper)


def test_mistakes_in_arrays_are_named(target):
    ids, side = np.full((1, 6), 9), tiny.SIDE
    pixels = np.zeros((1, 2, 3, side, side), np.float32)
    with pytest.raises(ValueError, match="not \\[B, T\\]"):
        target.logits(ids[0], pixels)
    with pytest.raises(ValueError, match="not \\[B, T\\]"):
        target.logits(ids, pixels, np.ones((1, 5)))
    for wrong in (pixels[0], pixels[..., 1:], np.moveaxis(pixels, 2, -1), pixels[:0]):
        with pytest.raises(ValueError, match="pixel_values"):
            target.logits(ids, wrong)
    with pytest.raises(ValueError, match=r"\[1\] pictures of 4 tokens each have \[0\] <image>"):
        target.logits(ids, pixels + [[[[[0]]], [[[1]]]]])


def test_package(monkeypatch):
    assert cropvlm_jax.CropVLM is api.CropVLM
    assert cropvlm_jax.Target is api.Target
    assert cropvlm_jax.Zoom is api.Zoom
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{name} 1.2")
    assert cropvlm_jax.__version__ == "cropvlm_jax 1.2"
    with pytest.raises(AttributeError, match="no attribute 'Crop'"):
        _ = cropvlm_jax.Crop


@pytest.mark.parametrize(
    "code",
    [
        "import cropvlm_jax; assert not {'jax', 'flax'} & sys.modules.keys()",
        # Grain itself imports jax where there is one, for its profiler; we do not need it.
        "sys.modules['jax'] = None; import cropvlm_jax.data.batching; "
        "import cropvlm_jax.data.sources.zoom_digits",
    ],
)
def test_data_workers_do_without_jax(code):
    root = pathlib.Path(cropvlm_jax.__file__).parents[1]
    subprocess.run([sys.executable, "-c", f"import sys; {code}"], cwd=root, check=True)


ON_A_MESH = """
import jax, numpy as np
from cropvlm_jax import api
from cropvlm_jax import parallel
rng, n = np.random.default_rng(0), 9  # batches of eight rows and of one
pictures = [rng.integers(0, 256, (128, 128, 3), np.uint8) for _ in range(n)]
asked = [[picture, picture[:64]] for picture in pictures], ["Which digit is it?"] * n
mesh = parallel.make_mesh(data=4, fsdp=2)
found = []
for options in ({}, {"mesh": mesh}):
    target = api.Target.from_pretrained("zoom_digits/target", **options)
    cropper = api.CropVLM.from_pretrained("zoom_digits/cropper", target, **options)
    boxes = cropper.propose(pictures, asked[1]).tolist()
    found.append((target.answer(*asked, 4), boxes, target.log_likelihood(*asked, ["7"] * n)))
(one, one_boxes, likely), (split, split_boxes, as_likely) = found
kernel = target.params["text"]["layers"]["gate"]["kernel"][...]
assert kernel.sharding.mesh.size == 8 and not kernel.is_fully_replicated
assert one == split and one_boxes == split_boxes, found
np.testing.assert_allclose(as_likely, likely, rtol=1e-5)
"""


def test_a_mesh_answers_as_one_device_does():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-c", ON_A_MESH], check=True, env=environment)
