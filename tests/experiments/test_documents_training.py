# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the small reader and cropper of the documents experiment learn from, and how."""

import dataclasses
import json
import re
from typing import get_args

import cropper
import jax
import jax.numpy as jnp
import located
import locating_batches
import locating_losses
import noisy_boxes
import numpy as np
import pretraining
import printed_lines
import pytest
import reading_batches
import real_crops
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cropvlm_jax.geometry.grammar import Grammar
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.smolvlm.config import SiglipConfig, SmolVLMConfig
from cropvlm_jax.models.smolvlm.conversations import IMAGE, SmolVLMConversations
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.readers.registry import is_black_box
from cropvlm_jax.scoring.in_graph import Metric
from cropvlm_jax.training.config import load_config
from cropvlm_jax.training.sft import reply_logits


@pytest.mark.parametrize("hard", [0.0, 1.0])
@pytest.mark.parametrize("kind", printed_lines.QUESTIONS)
def test_a_drawn_crop_shows_its_answer_in_its_middle_half_or_nearer(kind, hard):
    for seed in range(20):
        crop = printed_lines.draw(np.random.default_rng(seed), kind, loose=1.0, hard=hard)
        again = printed_lines.draw(np.random.default_rng(seed), kind, loose=1.0, hard=hard)
        np.testing.assert_array_equal(crop.image, again.image)
        codes, boxes = crop.letters[:, 0], crop.letters[:, 1:]
        inside = (boxes >= -1e-6).all(1) & (boxes <= 1 + 1e-6).all(1)
        whole = "".join(chr(int(code)) for code in codes[inside])
        assert crop.answer.replace(" ", "") in whole


def test_letters_of_a_crop_stand_at_their_patches():
    letters = np.array([[ord("7"), 0.0, 0.0, 0.5, 0.5], [ord("a"), 0.5, 0.5, 1.0, 1.0]])
    cells = reading_batches.letters_by_patch(letters, grid=2)
    assert cells.shape == (4, reading_batches.COLUMNS)
    assert (cells[0] == ord("7") - ord(" ")).all() and (cells[3] == ord("a") - ord(" ")).all()
    assert (cells[1:3] == reading_batches.NO_LETTER).all()


def test_letters_are_those_that_the_pixels_show():
    crop = printed_lines.draw(np.random.default_rng(3), "number", loose=1.0, hard=0.0)
    grid = 16
    cells = reading_batches.letters_by_patch(crop.letters, grid).reshape(grid, -1)
    picture = reading_batches.tile(crop.image, grid * reading_batches.COLUMNS)[..., 0]
    columns = picture.min(0) < (int(picture.min()) + int(picture.max())) / 2
    shown = (cells != reading_batches.NO_LETTER).any(0)
    assert columns[shown].mean() > 0.6 and columns[~shown].mean() < 0.3


@pytest.mark.parametrize("loose", [1.0, 2.0, 8.0])
def test_a_crop_of_a_real_place_holds_the_whole_box(loose):
    surroundings = np.full((90, 300), 40, np.uint8)
    surroundings[40:50, 100:160] = 200
    place = real_crops.Place("total", "?", "1", surroundings, (100, 40, 160, 50))
    sizes = []
    for seed in range(30):
        crop = place.cut(np.random.default_rng(seed), loose)
        assert (crop == crop.max()).sum() == 10 * 60
        sizes.append(crop.size / (10 * 60))
    assert max(sizes) < loose * 4 and (loose == 1 or max(sizes) > loose / 2)
    np.testing.assert_array_equal(place.expanded(1), surroundings[40:50, 100:160])


def test_numeric_lines_of_training_receipts_become_places(tmp_path):
    (tmp_path / "suite").mkdir()
    picture = np.full((60, 120), 255, np.uint8)
    picture[20:30, 10:50] = 0
    for name in ("a.png", "b.png"):
        Image.fromarray(picture).save(tmp_path / "suite" / name)
    (tmp_path / "suite" / "train.jsonl").write_text(json.dumps({"image": "a.png"}) + "\n")
    lines = ["RM 12.50", "TOTAL 5", "12", "21/08/2017 18:05:07 0000000 1"]  # only the first will do
    told = [{"text": text, "box": [10.0, 20.0, 50.0, 30.0]} for text in lines]
    rows = [{"image": name, "lines": told} for name in ("a.png", "b.png")]  # b is of another split
    (tmp_path / "receipts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (place,) = real_crops.read_lines(tmp_path / "suite", tmp_path, "What is written here?")
    assert (place.answer, place.question) == ("RM 12.50", "What is written here?")
    assert (place.expanded(1) == 0).all() and place.expanded(1).shape == (10, 40)


def test_a_seed_box_has_the_size_of_the_true_one_and_stays_inside():
    boxes = [[0, 0, 3, 2], [40, 50, 60, 52], [97, 98, 100, 100]]
    rng, near = np.random.default_rng(0), 0
    for box in boxes * 200:
        seed = noisy_boxes.seed_box(rng, box)
        assert min(seed) >= 0 and max(seed) <= 100
        size = np.subtract(seed[2:], seed[:2])
        np.testing.assert_allclose(size, np.subtract(box[2:], box[:2]), atol=0.02)
        near += abs(seed[1] - box[1]) < 3
    assert 0.85 < near / 600 < 0.97


def test_boxes_move_with_the_picture():
    picture = np.zeros((200, 200), np.uint8)
    picture[60:100, 80:120] = 255
    box = np.array([[0.4, 0.3, 0.6, 0.5]])
    for seed in range(40):
        side = (200, 160)[seed % 2]
        image, moved = locating_batches.changed(np.random.default_rng(seed), picture, box, side)
        assert image.shape == (side, side)
        middle = (int(image.min()) + int(image.max())) / 2
        rows, columns = np.nonzero(image > middle)
        seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / side
        np.testing.assert_allclose(seen, moved[0].clip(0, 1), atol=0.011)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_turned_part_shows_the_middle_of_a_box_where_it_is_told(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(60, 140, 2)
    picture = np.full((200, 200), 255, np.uint8)
    picture[y - 3 : y + 3, x - 3 : x + 3] = 0
    box = np.array([[x - 3, y - 3, x + 3, y + 3]]) / 200
    image, moved = locating_batches.changed(rng, picture, box, 200, smallest=0.9, turned=10.0)
    weights = float(image.max()) - image
    seen = np.array([(weights.sum(0) @ np.arange(200)), (weights.sum(1) @ np.arange(200))])
    seen = (seen / weights.sum() + 0.5) / 200
    np.testing.assert_allclose(seen, (moved[0, :2] + moved[0, 2:]) / 2, atol=0.005)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Batches for a line that is fitted; one of them may be missing."""

    steps: int = 6
    missing: int = -1

    def __call__(self, step: int) -> np.ndarray:
        """Points of a step."""
        if step == self.missing:
            raise ValueError("no such batch")
        return np.random.default_rng(step).normal(size=8).astype(np.float32)


def _loss(params, batch):
    loss = ((batch * params["layer"]["kernel"].sum() - 3 * batch) ** 2).mean()
    return loss, {"loss": loss}


def test_a_pretraining_that_stopped_goes_on_as_if_it_had_not(tmp_path):
    start = {"layer": {"kernel": jnp.ones((2, 2))}}

    def train(folder, **batches):
        phase = pretraining.Phase("line", Numbers(**batches), _loss, matrices=0.1, others=0.1)
        return phase.train(tmp_path / folder, start, every=2)

    unbroken = train("unbroken")
    with pytest.raises(ValueError, match="no such batch"):
        train("stopped", missing=5)
    resumed = train("stopped")
    np.testing.assert_array_equal(unbroken["layer"]["kernel"], resumed["layer"]["kernel"])
    assert not np.array_equal(unbroken["layer"]["kernel"], start["layer"]["kernel"])


@pytest.mark.parametrize("variant", cropper.VARIANTS)
def test_the_accuracy_of_a_reward_in_the_step_is_one_of_those_in_the_graph(variant):
    config = load_config(cropper.get_config(variant))
    assert is_black_box(config.target or "") or config.grpo.accuracy in get_args(Metric)


def _locating(folder, **settings):
    question = "What is the total amount?"
    tokenizer = pretraining.make_tokenizer([question])
    made = locating_batches.Locating(
        conversations=SmolVLMConversations(tokenizer, 9),
        questions={"receipts": {"total": question}, "pages": {"total": question}},
        drawn=folder,
        chunks=slice(None),
        receipts=folder / "receipts.npz",
        pages=folder / "pages.npz",
        real=(0.0, 0.0),
        seeds=False,
        turned=0.0,
        asks=True,
        smallest=0.7,
        side=64,
        patch=16,
        batch_size=4,
        prompt_tokens=64,
        reply_tokens=Grammar.from_tokenizer(tokenizer).max_length,
        steps=1,
        seed=0,
    )
    return dataclasses.replace(made, **settings)


def _document(answers):
    """A black A at the top left, and a black 7 below it to the right."""
    image = np.full((64, 64), 255, np.uint8)
    image[0:16, 0:8] = image[32:48, 40:56] = 0
    boxes = np.array([[0, 0, 8, 16], [40, 32, 56, 48]]) / 64
    return located.Located(image, np.array([ord("A"), ord("7")]), boxes, boxes, answers)


def test_letters_and_answers_stand_where_the_changed_picture_shows_them(tmp_path):
    for suite in ("receipts", "pages"):
        documents = [_document({"total": [0.625, 0.5, 0.875, 0.75]})]
        located.write(tmp_path / f"{suite}_0000.npz", documents)
    batch = _locating(tmp_path, batch_size=64)(0)
    grid, cells = 4, locating_batches.CELLS
    blocks = (-1, grid, grid, cells, cells)
    for kinds, wanted in ((batch.letters, 27), (batch.places, locating_batches.FIRST_ANSWER)):
        places = kinds.reshape(blocks).swapaxes(2, 3).reshape(-1, grid * cells, grid * cells)
        middles = batch.images[:, 2::4, 2::4]
        dark = middles < (middles.min((1, 2)) / 2 + middles.max((1, 2)) / 2)[:, None, None]
        assert (places == wanted).any((1, 2)).mean() > 0.9
        # A place on an edge may show either.
        assert dark[places == wanted].mean() > 0.85
    assert set(np.unique(batch.letters)) <= {0, 1, 27}
    assert len(batch.conversations.prompt) == 64 * locating_batches.QUESTIONS_EACH


def _real(folder):
    """A receipt with its letters, and the same picture as a page of which nothing else is known."""
    receipt = _document({"total": [0.625, 0.5, 0.875, 0.75]})
    nothing = np.zeros((0, 4), np.float32)
    page = located.Located(receipt.image, receipt.letters[:0], nothing, nothing, receipt.answers)
    located.write(folder / "receipts.npz", [receipt])
    located.write(folder / "pages.npz", [page])
    return _locating(folder, real=(1.0, 0.0), asks=False)


def test_of_real_receipts_letters_alone_are_told(tmp_path):
    batch = _real(tmp_path)(0)
    assert batch.conversations is None
    assert (batch.places == locating_batches.UNKNOWN).all()
    assert (batch.letters != locating_batches.NO_LETTER).any((1, 2)).all()


def test_seeds_tell_answers_and_of_a_page_nothing_else(tmp_path):
    locating = dataclasses.replace(_real(tmp_path), seeds=True, batch_size=16)
    receipts = locating(0)
    pages = dataclasses.replace(locating, real=(0.0, 1.0))(0)
    answer = locating_batches.FIRST_ANSWER
    print_too = {locating_batches.BLANK, locating_batches.PRINT, answer}
    assert set(np.unique(receipts.places)) == print_too
    assert set(np.unique(pages.places)) == {locating_batches.OTHER, answer}
    assert (pages.letters == locating_batches.UNKNOWN).all()
    np.testing.assert_array_equal(pages.told, np.tile(np.arange(answer + 1) == answer, (16, 1)))


def test_the_text_of_a_box_says_what_its_numbers_say(tmp_path):
    locating = dataclasses.replace(_real(tmp_path), seeds=True, asks=True, turned=3.0)
    batch = locating(0)
    tokenizer = pretraining.make_tokenizer(["What is the total amount?"])
    for row, valid, box in zip(
        batch.conversations.completion,
        batch.conversations.completion_valid,
        batch.boxes,
        strict=True,
    ):
        text = tokenizer.decode(row[valid])
        assert [int(number) for number in re.findall(r"[0-9]+", text)] == box.tolist()
    assert set(batch.questions) == {0}


def test_a_tower_of_more_patches_has_the_positions_between():
    rows = np.repeat(np.arange(4.0), 4)  # each position says its row
    config = SmolVLMConfig(
        SiglipConfig(64, 16, 8, 8, 1, 2), LlamaConfig(400, 8, 16, 1, 2, 1, 4), 2, 399
    )
    model = SmolVLM(config, rngs=nnx.Rngs(0))
    model.vision.position_embedding.embedding[...] = jnp.tile(rows[:, None], 8)
    params = nnx.state(model)
    for grid in (4, 6):
        larger = pretraining.with_grid(params, grid)
        found = larger["vision"]["position_embedding"]["embedding"][...]
        wanted = np.clip((np.arange(grid) + 0.5) * 4 / grid - 0.5, 0, 3)
        np.testing.assert_allclose(found, np.tile(np.repeat(wanted, grid)[:, None], 8), atol=1e-5)
    assert len(params["vision"]["position_embedding"]["embedding"][...]) == 16


def _losing(folder):
    """Losses, weights and a batch of a tiny model, of receipts and pages with seed boxes."""
    _real(folder)
    question = "What is the total amount?"
    tokenizer = pretraining.make_tokenizer([question])
    vision = SiglipConfig(64, 16, 24, 48, 1, 2)
    text = LlamaConfig(tokenizer.get_vocab_size(), 24, 48, 2, 2, 1, 12)
    config = SmolVLMConfig(vision, text, 2, tokenizer.token_to_id(IMAGE))
    model = SmolVLM(config, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    conversations = SmolVLMConversations(tokenizer, config.image_seq_len)
    batch = _locating(
        folder,
        conversations=conversations,
        real=(0.5, 0.5),
        seeds=True,
        prompt_tokens=60 + config.image_seq_len,
    )(0)
    ids = conversations.crop(question, (0, 0)).ids
    last = int((ids == config.image_token_id).nonzero()[0][-1]) + 1
    weights = {"model": params} | locating_losses.layers(0, config, questions=1)
    return locating_losses.Losses(graph, last), weights, batch


def test_questions_that_share_a_picture_are_read_as_if_each_were_alone(tmp_path):
    losses, weights, batch = _losing(tmp_path)
    # Prompts of two lengths: every other one loses its tenth token from the end.
    prompt, valid = batch.conversations.prompt.copy(), batch.conversations.prompt_valid.copy()
    for tokens in (prompt, valid):
        tokens[::2] = np.insert(np.delete(tokens[::2], -10, axis=1), 0, 0, axis=1)
    conversations = batch.conversations._replace(prompt=prompt, prompt_valid=valid)
    conversations = jax.tree.map(jnp.asarray, conversations)
    model = nnx.merge(losses.graph, weights["model"])
    tokens = model.tokens_of_patches(losses._patches(weights, batch))
    hidden = losses._replies(model, tokens, conversations)
    each = jnp.repeat(tokens, locating_batches.QUESTIONS_EACH, 0)[:, None]
    wanted = reply_logits(model, conversations, each)
    there = conversations.completion_valid
    np.testing.assert_allclose(
        np.asarray(model.text.logits(hidden))[there], np.asarray(wanted)[there], atol=1e-4
    )


def test_what_a_picture_does_not_tell_costs_nothing(tmp_path):
    losses, weights, batch = _losing(tmp_path)
    untold = batch._replace(
        letters=np.full_like(batch.letters, locating_batches.UNKNOWN),
        places=np.full_like(batch.places, locating_batches.UNKNOWN),
    )
    grads = jax.grad(lambda weights: losses.places(weights, untold)[0])(weights)
    for name in ("letters", "places"):
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads[name]))
    # Beside the answers of a page all that counts is that no answer it is asked for is seen there.
    other = batch._replace(
        letters=untold.letters, places=np.full_like(batch.places, locating_batches.OTHER)
    )
    asked = locating_batches.FIRST_ANSWER
    for kind, cheap in ((locating_batches.BLANK, True), (asked, False)):
        bias = weights["places"]["bias"].reshape(-1, asked + 1).at[:, kind].set(30.0)
        seen = weights | {"places": weights["places"] | {"bias": bias.ravel()}}
        assert (losses.places(seen, other)[1]["places_loss"] < 1e-3) == cheap


def test_patches_that_tell_where_they_are_are_right():
    places = np.zeros((3, 36, 200))
    for patch in range(36):
        row, column = divmod(patch, 6)
        places[:, patch, [int((row + 0.5) * 100 / 6), 100 + int((column + 0.5) * 100 / 6)]] = 50
    unit = {"kernel": jnp.eye(200), "bias": jnp.zeros(200)}
    loss, metrics = locating_losses._own(unit, jnp.asarray(places))
    assert loss < 1e-3 and metrics["own_right"] == 1


def test_tokens_and_aims_that_tell_where_answers_stand_are_right(tmp_path):
    _, _, batch = _losing(tmp_path)
    pictures = len(batch.questions) // locating_batches.QUESTIONS_EACH
    # Layers that add nothing to what 2 x 2 tokens and prompts say of one question.
    tokens = np.zeros((pictures, 4, 2, 1 + 2 * 50))
    hidden = np.zeros((len(batch.questions), 4, 101))
    for i, box in enumerate(batch.boxes):
        hidden[i, range(4), box] = 50
        for corner, (x, y) in enumerate(np.minimum(box, 99).reshape(2, 2)):
            says = tokens[i // locating_batches.QUESTIONS_EACH, y // 50 * 2 + x // 50, corner]
            says[[0, 1 + x % 50, 51 + y % 50]] = 50
    layers = [
        {"kernel": jnp.eye(size), "bias": jnp.zeros(size)} for size in (2 * (1 + 2 * 50), 4 * 101)
    ]
    _, metrics = locating_losses._inside(
        layers[0], jnp.asarray(tokens.reshape(pictures, 4, -1)), batch
    )
    assert metrics["tokens_right"] == 1
    loss, metrics = locating_losses._aim(
        layers[1], jnp.asarray(hidden.reshape(len(hidden), -1)), batch
    )
    assert loss < 1e-3 and metrics["aimed_near"] == 1


def test_kinds_of_letters_know_no_case():
    kinds = locating_batches.letter_kinds(np.array([ord(x) for x in "aA zZ09.:é"]))
    assert kinds[0] == kinds[1] == 1 and kinds[3] == kinds[4] == 26 and kinds[5] == kinds[6] == 27
    assert list(kinds[7:9]) == [28, 32]
    assert kinds[2] == kinds[9] == locating_batches.LETTERS - 1


def test_training_receipts_have_the_letters_of_their_lines(tmp_path):
    suite, origin = tmp_path / "receipts", tmp_path / "origin"
    (suite / "images").mkdir(parents=True)
    origin.mkdir()
    Image.new("RGB", (50, 100), "white").save(suite / "images" / "1.png")
    row = {"example_id": "1/total", "image": "images/1.png", "category": "total"}
    untold = row | {"example_id": "1/date", "category": "date"}
    (suite / "train.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(untold) + "\n")
    seed = {"example_id": "1/total", "box": [0, 0, 90, 90], "seed": [10, 20, 30.5, 40]}
    (tmp_path / "receipts_train.jsonl").write_text(json.dumps(seed) + "\n")
    lines = [{"text": "a b", "box": [5, 10, 35, 20]}]
    receipts = [
        {"image": f"images/{number}.png", "width": 50, "height": 100, "lines": lines}
        for number in (1, 2)  # the second one is of another split
    ]
    text = "".join(json.dumps(receipt) + "\n" for receipt in receipts)
    (origin / "receipts.jsonl").write_text(text)
    (receipt,) = located.read_receipts(tmp_path, origin, side=32, seeds=tmp_path)
    assert receipt.answers == {"total": [0.1, 0.2, 0.305, 0.4]} and receipt.image.shape == (32, 32)
    assert "".join(map(chr, receipt.letters)) == "ab"
    wanted = [[0.1, 0.1, 0.3, 0.2], [0.5, 0.1, 0.7, 0.2]]
    np.testing.assert_allclose(receipt.letter_boxes, wanted, atol=1e-6)
    located.write(tmp_path / "file.npz", [receipt, receipt])
    for again in located.read(tmp_path / "file.npz"):
        np.testing.assert_array_equal(again.letters, receipt.letters)
        np.testing.assert_allclose(again.letter_boxes, wanted, atol=1e-5)
        np.testing.assert_allclose(again.lines, receipt.lines, atol=1e-5)
        assert again.answers == receipt.answers


def test_the_longest_box_has_room_in_the_start_croppers_batches(tmp_path):
    locating = _locating(tmp_path)
    answer = locating_batches.Answer("What is the total amount?", np.array([0.1, 0.1, 1.0, 1.0]))
    row = locating._conversation(answer)
    assert row.completion_valid.sum() == locating.reply_tokens


def test_a_model_that_is_saved_again_tells_of_its_training_once(tmp_path):
    tokenizer = pretraining.make_tokenizer(["What is written here?"])
    vision = SiglipConfig(16, 8, 8, 16, 1, 2)
    text = LlamaConfig(tokenizer.get_vocab_size(), 8, 16, 1, 2, 1, 4)
    config = SmolVLMConfig(vision, text, 1, tokenizer.token_to_id(IMAGE))
    model = SmolVLM(config, rngs=nnx.Rngs(0))
    run = pretraining.from_scratch("x.py", 3, 0, data="none", meaning="none", metrics={"a": 0.5})
    for _ in range(2):
        pretraining.save(tmp_path / "reader", model, tokenizer, role="reader", run=run)
    card = (tmp_path / "reader" / "README.md").read_text()
    assert card.count("### From scratch, 3 steps") == 1 and "| `a` | 0.5 |" in card
