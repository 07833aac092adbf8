# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The cropper from Python, in front of readers of all kinds."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from tiny_folder import LIMIT, PICTURES, SIZES, SPLIT, make_folder

import cropvlm_jax
from cropvlm_jax import Zoom, api, geometry, zooms
from cropvlm_jax.grpo import rollout
from cropvlm_jax.hub import upload
from cropvlm_jax.models.decode import read_prompt
from cropvlm_jax.readers import base
from cropvlm_jax.readers.base import Reply
from cropvlm_jax.readers.registry import open_reader
from cropvlm_jax.readers.vlm import VLMReader

A, B, C, D, E, F = PICTURES
QUESTIONS = ["what?", "Which digit is it?", " Who signed, and when? "]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(cropper, target)."""
    root = tmp_path_factory.mktemp("models")
    return make_folder(root / "cropper", 1), make_folder(root / "target", 2)


@pytest.fixture(scope="module")
def target(folders):
    return VLMReader.from_pretrained(folders[1])


@pytest.fixture(scope="module")
def cropper(folders, target):
    return api.CropVLM.from_pretrained(folders[0], target)


def test_confidence_is_the_probability_of_the_reply(cropper):
    boxes, sure = cropper.look([A], ["What?"])
    model, row = nnx.merge(cropper.graphdef, cropper.params), cropper.crop_row(A, "What?")
    prompt = jnp.asarray(row.prompt)[None]
    tokens = model.encode_images(jnp.asarray(row.images)[None])
    prefix = read_prompt(model, tokens, prompt, jnp.ones_like(prompt, bool))
    replies = jnp.asarray(boxes)[:, None, None], jnp.ones((1, 1), int)
    told = rollout.reply_log_probs(model, cropper.grammar, prefix, prompt[:, -1], *replies, 1.0)
    choices = jnp.where(told.reply.allowed.any(-1), told.chosen, 0.0)
    np.testing.assert_allclose(sure[0], np.exp(choices.sum()), rtol=1e-4)
    assert cropper.zoom([A], "What?", compare=False)[0].confidence == sure[0]


def test_proposals_of_a_batch_are_those_of_each(cropper):
    assert cropper.longest_edge == SPLIT
    questions = QUESTIONS * 2
    actual = cropper.propose(PICTURES, questions)
    assert actual.shape == (6, 4) and np.issubdtype(actual.dtype, np.integer)
    assert geometry.is_valid(actual).all()
    assert len(np.unique(actual, axis=0)) > 3
    for box, picture, question in zip(actual, PICTURES, questions, strict=True):
        np.testing.assert_array_equal(cropper.propose([picture], [question]), [box])
    assert cropper.propose([], []).shape == (0, 4)


@pytest.mark.parametrize("kind", ["path", "PIL", "array"])
def test_zoom(cropper, target, tmp_path, kind):
    path = tmp_path / "picture.png"
    A.save(path)
    zoom = cropper({"path": path, "PIL": A, "array": np.asarray(A)}[kind], "What?")
    assert isinstance(zoom, Zoom) and isinstance(zoom.box, tuple)
    assert zoom.box == tuple(cropper.propose([A], ["What?"])[0])
    x1, y1, x2, y2 = geometry.to_pixels(np.array(zoom.box), np.array(SIZES[0]))
    np.testing.assert_array_equal(zoom.crop, np.asarray(A)[y1:y2, x1:x2])
    assert zoom.answer == target.answer([[A, zoom.crop]], ["What?"])[0].text
    assert zoom.answer_without_crop == target.answer([[A]], ["What?"])[0].text
    assert cropper.target is target


def test_a_batch_is_what_each_picture_gives(cropper, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(len(PICTURES))]
    for path, picture in zip(paths, PICTURES, strict=True):
        picture.save(path)
    each = cropper.zoom([paths[0], B, np.asarray(C), str(paths[3]), E, F], QUESTIONS * 2)
    single = [cropper(p, q) for p, q in zip(PICTURES, QUESTIONS * 2, strict=True)]
    for zoom, alone in zip(each, single, strict=True):
        assert zoom.boxes == alone.boxes and zoom.answer == alone.answer
        assert zoom.answer_without_crop == alone.answer_without_crop
        assert zoom.confidence == pytest.approx(alone.confidence, rel=1e-4)
        np.testing.assert_array_equal(zoom.crop, alone.crop)
    for_all = cropper.zoom(PICTURES, "what?")
    assert for_all[0].answer == each[0].answer and len(for_all) == 6
    assert cropper.zoom([], []) == cropper.zoom([], "what?") == []


def test_a_target_is_optional_and_may_be_named(folders):
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


class Counter:
    """A reader that says how many pictures it is shown, and their sizes."""

    name = "counter"

    def __init__(self, failure: str = ""):
        self.failure = failure

    def answer(self, images, questions):
        if self.failure:
            return [Reply("", self.failure) for _ in questions]
        return [Reply(" ".join(str(picture.shape) for picture in shown)) for shown in images]


def test_any_reader_may_be_the_target(folders):
    model = api.CropVLM.from_pretrained(folders[0], Counter())
    zoom = model(A, "What?")
    assert zoom.answer_without_crop == "(96, 128, 3)"
    assert zoom.answer == f"(96, 128, 3) {(*zoom.crop.size[::-1], 3)}"
    for failure in ("empty", "timeout: 3 s"):
        zoom = api.CropVLM.from_pretrained(folders[0], Counter(failure))(A, "What?")
        assert zoom.answer is None and zoom.answer_without_crop is None
        assert zoom.failure == zoom.failure_without_crop == failure


def test_the_target_may_be_asked_with_the_crop_only(folders, monkeypatch):
    reader, asked = Counter(), []
    answer = reader.answer
    monkeypatch.setattr(reader, "answer", lambda *given: asked.append(given) or answer(*given))
    model = api.CropVLM.from_pretrained(folders[0], reader)
    both = model.zoom([A, B], QUESTIONS[:2])
    alone = model.zoom([A, B], QUESTIONS[:2], compare=False)
    assert [(len(images), list(questions)) for images, questions in asked] == [
        (4, QUESTIONS[:2] * 2),
        (2, QUESTIONS[:2]),
    ]
    assert [zoom.answer for zoom in alone] == [zoom.answer for zoom in both]
    assert all(z.answer_without_crop is None and not z.failure_without_crop for z in alone)
    assert model(A, QUESTIONS[0], compare=False).answer == both[0].answer


class Broken(Counter):
    """A reader that does not do what the protocol says."""

    def __init__(self, replies):
        self.replies = replies

    def answer(self, images, questions):
        return self.replies


def test_one_picture_that_the_target_refuses_leaves_the_others(folders):
    class Choosy(Counter):
        def answer(self, images, questions):
            if any(shown[0].shape == (96, 128, 3) for shown in images):
                raise ValueError("too wide")
            return super().answer(images, questions)

    wide, other = api.CropVLM.from_pretrained(folders[0], Choosy()).zoom([A, B], "What?")
    assert wide.answer is None and wide.failure == "refusal: too wide"
    assert other.answer_without_crop == "(60, 128, 3)" and not other.failure


@pytest.mark.parametrize("replies", [[], ["text", "text"], None])
def test_a_reader_that_returns_something_else_is_named(folders, replies):
    model = api.CropVLM.from_pretrained(folders[0], Broken(replies))
    with pytest.raises(TypeError, match="counter: `answer` must return a list of 2 Reply, not"):
        model(A, "What?")


def test_pictures_are_asked_about_in_parts_that_fit_in_memory(folders, monkeypatch):
    monkeypatch.setattr(api, "BYTES", 50_000)
    sizes = []

    class Watched(Counter):
        def answer(self, images, questions):
            sizes.append(len(questions))
            return super().answer(images, questions)

    zooms = api.CropVLM.from_pretrained(folders[0], Watched()).zoom(PICTURES, "What?")
    assert sum(sizes) == 12 and len(sizes) > 1
    expected = [str((*size, 3)) for size in SIZES]
    assert [zoom.answer_without_crop for zoom in zooms] == expected


def test_settings_of_the_target_s_image_processor(folders):
    with pytest.raises(ValueError, match="no processor setting {'do_pad'}"):
        api.CropVLM.from_pretrained(*folders, processor={"do_pad": True})
    for target in ("tesseract", "openai:m"):
        with pytest.raises(ValueError, match="no image processor to set"):
            api.CropVLM.from_pretrained(folders[0], target, processor={"max_pixels": 9})
    with pytest.raises(ValueError, match="max_pixels.* is for a target that is opened here"):
        api.CropVLM.from_pretrained(folders[0], Counter(), processor={"max_pixels": 9})
    assert api.CropVLM.from_pretrained(*folders, processor={"do_pad": None}).target is not None


def test_saved_and_loaded_again_it_zooms_into_the_same_boxes(folders, cropper, tmp_path):
    cropper.save_pretrained(tmp_path / "saved")
    again = api.CropVLM.from_pretrained(tmp_path / "saved")
    assert again.longest_edge == SPLIT
    np.testing.assert_array_equal(
        again.propose(PICTURES, "What?"), cropper.propose(PICTURES, "What?")
    )
    coarse = api.CropVLM.from_pretrained(folders[0], longest_edge=tiny.SIDE)
    coarse.save_pretrained(str(tmp_path / "saved"), dtype=jnp.bfloat16)  # in the place of the other
    assert api.CropVLM.from_pretrained(tmp_path / "saved").longest_edge == tiny.SIDE
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not a model folder"):
        cropper.save_pretrained(tmp_path / "mine")


class Hub:
    """Stands in for the Hub's client: a folder on disk is the Hub."""

    def __init__(self, root, token=None):
        self.root, self.token = root, token

    def create_repo(self, repo, private=None, exist_ok=False):
        if repo.startswith("another/"):
            raise huggingface_hub.errors.LocalTokenNotFoundError("no token")
        huggingface_hub.utils.validate_repo_id(repo)
        assert exist_ok and private is True
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo}")

    def file_exists(self, repo_id, name):
        return (self.root / repo_id / name).is_file()

    def hf_hub_download(self, repo_id, name):
        return str(self.root / repo_id / name)

    def upload_folder(self, repo_id, folder_path, commit_message, ignore_patterns):
        ignored = shutil.ignore_patterns(*ignore_patterns or ())
        shutil.copytree(folder_path, self.root / repo_id, ignore=ignored, dirs_exist_ok=True)


def test_what_is_pushed_is_what_is_saved(cropper, tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "HfApi", lambda token: Hub(tmp_path / "hub", token))
    address = cropper.push_to_hub("me/cropper", private=True)
    assert address == "https://huggingface.co/me/cropper"
    cropper.save_pretrained(tmp_path / "saved")
    pushed, saved = tmp_path / "hub" / "me" / "cropper", tmp_path / "saved"
    names = {path.name for path in saved.iterdir()}
    assert {path.name for path in pushed.iterdir()} == names >= {"model.safetensors"}
    for name in names - {"README.md"}:
        assert (pushed / name).read_bytes() == (saved / name).read_bytes(), name
    card = pushed / "README.md"
    assert "me/cropper" in card.read_text()
    for text in (f"{card.read_text()}\nBy me.\n", "Mine."):  # what a user wrote there stays
        card.write_text(text)
        cropper.push_to_hub("me/cropper", private=True)
        assert card.read_text() == text
    with pytest.raises(ValueError, match="'my cropper' cannot be the name of a repository"):
        cropper.push_to_hub("my cropper", private=True)
    with pytest.raises(OSError, match="'another/cropper' was not pushed .*hf auth login"):
        cropper.push_to_hub("another/cropper", private=True)


def test_no_compilation_for_the_same_shapes(cropper):
    cropper.propose([A, E, D], ["Who signed?"] * 3)
    before = api.likeliest_boxes._cache_size()
    cropper.propose([D, E, A], ["What is in the red frame?"] * 3)
    assert api.likeliest_boxes._cache_size() == before > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.propose([A, B], ["What?"]), "2 images but 1 questions"),
        (lambda c: c.propose([[A]], ["What?"]), "a picture is .* not list"),
        (lambda c: c.propose(A, "What?"), "images must be a list of pictures, not Image"),
        (lambda c: c.zoom("a.png", "What?"), "images must be a list of pictures, not str"),
        (lambda c: c.zoom(np.asarray(A), "What?"), "must be a list of pictures, not ndarray"),
        (lambda c: c.zoom(iter([A]), "What?"), "must be a list of pictures, not list_iterator"),
        (lambda c: c.zoom([A, np.zeros((4, 4))], "What?"), "item 2: .*must be uint8"),
        (lambda c: c.zoom([A], [3]), "questions must be a list of strings"),
        (lambda c: c.zoom([A], None), "questions must be a list of strings"),
        (lambda c: c(A, ""), "^The question is empty"),
        (lambda c: c.zoom([A, B], ["What?", ""]), "item 2: The question is empty"),
        (lambda c: c.propose([A], [""]), "question is empty"),
        (lambda c: c.propose([A], ["q" * LIMIT]), "over the model's"),
        (lambda c: api.CropVLM.from_pretrained(c.source.folder, c), "a target is"),
    ],
)
def test_mistakes_are_named(cropper, call, message):
    with pytest.raises(ValueError, match=message):
        call(cropper)


def test_package(monkeypatch):
    assert cropvlm_jax.CropVLM is api.CropVLM
    assert cropvlm_jax.Zoom is zooms.Zoom
    assert cropvlm_jax.VLMReader is VLMReader and cropvlm_jax.open_reader is open_reader
    assert cropvlm_jax.Reader is base.Reader and cropvlm_jax.Reply is Reply
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{name} 1.2")
    assert cropvlm_jax.__version__ == "cropvlm_jax 1.2"
    with pytest.raises(AttributeError, match="no attribute 'Crop'"):
        _ = cropvlm_jax.Crop


# Grain itself imports jax where there is one, for its profiler; we do not need it.
WORKER = """
import sys, cropvlm_jax
assert not {"jax", "flax"} & sys.modules.keys()
sys.modules["jax"] = None
import cropvlm_jax.data.batching
import cropvlm_jax.data.sources.zoom_digits
"""


def test_data_workers_do_without_jax():
    root = pathlib.Path(cropvlm_jax.__file__).parents[1]
    subprocess.run([sys.executable, "-c", WORKER], cwd=root, check=True)


ON_A_MESH = """
import jax, numpy as np
from cropvlm_jax import CropVLM, VLMReader, parallel
rng, n = np.random.default_rng(0), 9  # batches of eight rows and of one
pictures = [rng.integers(0, 256, (128, 128, 3), np.uint8) for _ in range(n)]
asked = [[picture, picture[:64]] for picture in pictures], ["Which digit is it?"] * n
mesh = parallel.make_mesh(data=4, fsdp=2)
found = []
for options in ({}, {"mesh": mesh}):
    target = VLMReader.from_pretrained("zoom_digits/target", **options)
    cropper = CropVLM.from_pretrained("zoom_digits/cropper", target, **options)
    boxes = cropper.propose(pictures, asked[1]).tolist()
    replies = target.answer(*asked, 4)
    told = [reply.nats for reply in replies] + target.log_likelihood(*asked, ["7"] * n).tolist()
    found.append(([reply.text for reply in replies], boxes, told))
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
