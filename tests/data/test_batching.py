# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from cropvlm_jax import geometry
from cropvlm_jax.data import batching
from cropvlm_jax.data.budgets import Budgets

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def test_the_gold_answer_is_that_of_most_annotators():
    assert batching.gold_answer(["no", "Yes", "No", "yes ", "YES"]) == "Yes"
    assert batching.gold_answer(["b", "a"]) == "b"
    with pytest.raises(ValueError, match="no answer"):
        batching.gold_answer([])


@given(
    tokens=st.lists(st.integers(0, 2**31 - 1), max_size=20),
    spare=st.integers(0, 9),
    side=st.sampled_from(["left", "right"]),
)
def test_padding_keeps_tokens_and_marks_them(tokens, spare, side):
    sequence = np.array(tokens, np.int32)
    padded, valid = batching.pad(sequence, len(tokens) + spare, side)
    assert len(padded) == len(valid) == len(tokens) + spare and padded.dtype == np.int32
    np.testing.assert_array_equal(padded[valid], sequence)
    assert not padded[~valid].any()
    empty = valid[:spare] if side == "left" else valid[len(tokens) :]
    assert not empty.any()
    if tokens:
        with pytest.raises(ValueError, match="over the limit"):
            batching.pad(sequence, len(tokens) - 1, side)


@given(question=texts, answers=st.lists(texts, min_size=1, max_size=10))
def test_what_is_spoken_comes_back(question, answers):
    try:
        spoken = batching.write_spoken(question, answers)
    except ValueError as error:
        assert "bytes, over" in str(error)
        return
    assert spoken.shape == (batching.SPOKEN_BYTES,) and spoken.dtype == np.uint8
    assert batching.read_spoken(spoken) == (question, answers)


def test_a_budget_is_told_to_the_cropper_and_priced():
    budgets = Budgets({"low": 8.0, "very high": 0.5}, seed=3)
    room = budgets.room(tiny.TOKENIZER)
    told = dataclasses.replace(tiny.CROPPER_INPUT, budgets=budgets, budget_tokens=room)
    prepare = dataclasses.replace(tiny.PREPARE, cropper_input=told)
    (example,) = tiny.make_examples(1)
    found = set()
    for step in range(8):
        row, budget = prepare(example, 5, None, step), budgets.draw(5, step)
        words = tiny.TOKENIZER.decode(row.crop_prompt[row.crop_prompt_valid].tolist())
        assert f"What? Budget: {budget.name}." in words
        assert row.price == np.float32({"low": 8.0, "very high": 0.5}[budget.name])
        np.testing.assert_array_equal(row.crop_prompt, prepare(example, 5, None, step).crop_prompt)
        np.testing.assert_array_equal(row.question, tiny.PREPARE(example, 5).question)
        found.add(budget.name)
    assert found == {"low", "very high"} and tiny.PREPARE(example, 5).price is None
    supervised = batching.BoxPreparer(told, tiny.GRAMMAR.max_length)
    row = supervised({**example, "box": (1, 2, 3, 4)}, 5, None, 7)
    words = tiny.TOKENIZER.decode(row.prompt[row.prompt_valid].tolist())
    assert f"What? Budget: {budgets.draw(5, 7).name}." in words


def test_rows_of_every_kind_stack():
    examples = tiny.make_examples(3)
    batch = tiny.make_batch(examples)
    for i, example in enumerate(examples):
        row = tiny.PREPARE(example, i)
        for name, value in row._asdict().items():
            column = getattr(batch, name)
            if value is None:
                assert column is None, name
            else:
                np.testing.assert_array_equal(column[i], value, name)
        assert row.spoken is None and row.gold is None


def test_a_box_becomes_the_reply_that_names_it():
    example = tiny.make_examples(1)[0]
    prepare = batching.BoxPreparer(tiny.CROPPER_INPUT, tiny.GRAMMAR.max_length)
    with pytest.raises(ValueError, match="no box"):
        prepare(example, 0)
    box = (12, 5, 40, 100)
    row = prepare(example | {"box": box}, 7)
    written = row.completion[row.completion_valid].tolist()
    expected = tiny.GRAMMAR.encode(np.array([box]), np.array(1))
    assert written == expected.tokens[expected.valid].tolist()
    assert row.example_id == 7
    assert tiny.TOKENIZER.decode(written).strip() == geometry.to_text(box)
    asked = tiny.PREPARE(example, 7)
    np.testing.assert_array_equal(
        row.prompt[row.prompt_valid], asked.crop_prompt[asked.crop_prompt_valid]
    )


@pytest.mark.parametrize(
    ("limits", "example", "reply"),
    [
        ((2, False), {"boxes": [(5, 0, 9, 9), (1, 2, 3, 4)]}, "[1, 2, 3, 4], [5, 0, 9, 9]."),
        ((2, True), {"boxes": [], "box": (1, 2, 3, 4)}, "Not needed."),
        ((4, False), {"box": (1, 2, 3, 4)}, "[1, 2, 3, 4]."),
        ((1, False), {"boxes": [(1, 2, 3, 4)]}, "[1, 2, 3, 4]."),
        # Where the boxes are not what a reply may name, the one box is.
        ((1, True), {"boxes": [(1, 2, 3, 4), (5, 0, 9, 9)], "box": (1, 0, 9, 9)}, "[1, 0, 9, 9]."),
        ((2, False), {"boxes": [], "box": (1, 0, 9, 9)}, "[1, 0, 9, 9]."),
    ],
)
def test_boxes_become_the_reply_that_names_them(limits, example, reply):
    prepare = batching.BoxPreparer(tiny.CROPPER_INPUT, 60, *limits)
    row = prepare(tiny.make_examples(1)[0] | example, 0)
    assert tiny.TOKENIZER.decode(row.completion[row.completion_valid].tolist()).strip() == reply


@pytest.mark.parametrize(
    ("limits", "boxes", "message"),
    [
        ((1, False), [(1, 2, 3, 4), (5, 0, 9, 9)], "2 boxes .* at most 1: set grpo.max_boxes=2"),
        ((2, False), [], "no box to learn from: set grpo.abstain=True"),
    ],
)
def test_boxes_that_no_reply_may_name_are_refused(limits, boxes, message):
    prepare = batching.BoxPreparer(tiny.CROPPER_INPUT, 60, *limits)
    with pytest.raises(ValueError, match=message):
        prepare(tiny.make_examples(1)[0] | {"boxes": boxes}, 0)
