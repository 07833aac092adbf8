# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Questions about one picture are read together, and answered as each of them alone."""

import functools

import jax
import numpy as np
import pytest
import tiny_folder
from tiny_evals import Guesser, questions, run
from tiny_folder import PICTURES, SPLIT

from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.models.conversations import Conversations
from cropvlm_jax.models.vlm import VLM
from cropvlm_jax.readers import together
from cropvlm_jax.readers.vlm import VLMReader

ITEMS, END = 5, 32  # END: longest reply


class Counted:
    """Counts what programs do while they run, by callbacks from inside of them."""

    def __init__(self, monkeypatch, kind):
        self.tiles, self.pictures, self.passes = [], 0, 0
        encode, read = kind.encode_images, VLM.read

        def counted_encode(model, images):
            jax.debug.callback(self._encoded, images)
            return encode(model, images)

        def counted_read(model, ids, valid, tokens=None, prefix=None, cache=None, slot=0):
            if prefix is None:
                jax.debug.callback(self._read, ids)
            elif cache is not None:
                jax.debug.callback(self._decoded, ids)
            return read(model, ids, valid, tokens, prefix, cache, slot)

        monkeypatch.setattr(kind, "encode_images", counted_encode)
        monkeypatch.setattr(VLM, "read", counted_read)
        programs = {"encode_tiles": 0, "greedy_answers": (0, 4, 5)}  # compiled anew, to be counted
        for name, static in programs.items():
            again = functools.partial(getattr(together, name).__wrapped__)
            monkeypatch.setattr(together, name, jax.jit(again, static_argnums=static))

    def _encoded(self, images):
        self.tiles += list(np.asarray(images).reshape(-1, *images.shape[2:]))

    def _read(self, ids):
        self.pictures += len(ids)

    def _decoded(self, ids):
        self.passes += 1


class Elsewhere(Guesser):
    """Proposes other boxes than a `Guesser`."""

    def propose(self, images, asked):
        return super().propose(images, asked) + np.array([5, 5, 15, 10])


def test_an_evaluation_of_seven_conditions_reads_each_whole_picture_once(tmp_path, monkeypatch):
    target = VLMReader.from_pretrained("zoom_digits/target")
    counted = Counted(monkeypatch, target.source.architecture.model)
    source = ZoomDigits("test", ITEMS)
    croppers = {"sft": Guesser(), "grpo": Elsewhere()}
    results, records = run(tmp_path, source, readers=[target], croppers=croppers)
    jax.effects_barrier()
    assert len(results["accuracy"]) == 7
    wholes = [target.see([example["image"]])[0][0] for example in map(source.__getitem__, range(5))]
    reads = [sum(np.array_equal(tile, whole) for tile in counted.tiles) for whole in wholes]
    assert reads == [1] * ITEMS
    asked = questions(records)
    crops = asked - ITEMS  # all but the picture alone
    assert ITEMS + crops == target.work["tiles"] <= len(counted.tiles)
    assert len(counted.tiles) < 1.2 * target.work["tiles"] + together.TOWER_TILES  # little padding
    assert target.work["pictures"] == ITEMS <= counted.pictures < 2 * ITEMS
    # Decoding stopped when all replies had ended, long before the longest reply there may be.
    assert 2 <= counted.passes < END / 4


@pytest.fixture(scope="module", params=[None, SPLIT], ids=["one tile", "split"])
def reader(request, tmp_path_factory):
    folder = tiny_folder.make_folder(tmp_path_factory.mktemp("models") / "reader", 2)
    return VLMReader.from_pretrained(folder, longest_edge=request.param)


def conversations():
    """Questions about few pictures: alone and with crops, more of them than are read at once."""
    first, second, *crops = (np.asarray(picture.convert("RGB")) for picture in PICTURES)
    shown = [[first], *([first, crop] for crop in crops), [second], [second, crops[0]]]
    shown += [[first, crop] for crop in crops] + [[first]]
    texts = ["Who signed?", "What?", "Which digit is it? " * 3]
    return shown, [texts[i % 3] + f" {i}" for i in range(len(shown))]


def test_answers_and_likelihoods_are_those_of_each_question_alone(reader):
    shown, asked = conversations()
    assert sum(pictures[0] is shown[0][0] for pictures in shown) > together.QUESTIONS
    before = reader.work["pictures"]
    replies = reader.answer(shown, asked, 8)
    assert reader.work["pictures"] == before + 2
    alone = [reader.answer([s], [q], 8)[0] for s, q in zip(shown, asked, strict=True)]
    assert [reply.text for reply in replies] == [reply.text for reply in alone]
    assert len({reply.text for reply in replies}) > 3
    sure = [reply.nats for reply in alone]
    np.testing.assert_allclose([reply.nats for reply in replies], sure, rtol=1e-4)
    answers = [f"Answer {i}" for i in range(len(shown))]
    told = reader.log_likelihood(shown, asked, answers)
    each = zip(shown, asked, answers, strict=True)
    np.testing.assert_allclose(
        told, [reader.log_likelihood([s], [q], [a])[0] for s, q, a in each], rtol=0, atol=1e-4
    )


def test_one_that_is_refused_costs_its_own_item_only(reader):
    shown, asked = conversations()
    asked[3] = " "
    with pytest.raises(ValueError, match="item 4: The question is empty"):
        reader.answer(shown, asked, 8)
    assert reader.answer([], []) == []


@pytest.mark.parametrize("questions", [1, 7, 8, 9, 17])
def test_questions_are_padded_by_less_than_one_a_part(questions):
    images = np.zeros((1, 2, 2, 3), np.uint8)
    asked = [together.Question(i, range(0), np.arange(5), np.arange(0)) for i in range(questions)]
    batch = together.stack_groups([together.Group(images, 1, np.arange(3), asked)])
    parts = -(-questions // together.QUESTIONS)
    assert questions <= batch.asked.prompt.shape[1] < questions + parts
    assert batch.asked.prompt.shape[1] % parts == 0 and batch.asked.crop.shape[-1] == 0


def test_all_conversations_are_the_same_up_to_the_end_of_the_picture(reader):
    made: Conversations = reader.conversations
    shown, asked = conversations()
    grids = [reader.see([picture])[1][0] for picture in (shown[0][0], shown[1][1])]
    alone = made.answer(asked[0], 1, None, grids[:1])
    closer = made.answer(asked[1], 2, "Yes", grids)
    stop = alone.images[0].stop
    assert closer.images[0].stop == stop
    np.testing.assert_array_equal(alone.ids[:stop], closer.ids[:stop])
