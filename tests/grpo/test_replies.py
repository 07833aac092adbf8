# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sampling and re-scoring replies of none to several boxes."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from cropvlm_jax import geometry
from cropvlm_jax.geometry import STOP, Grammar, automaton
from cropvlm_jax.grpo import rollout
from cropvlm_jax.hub.tokenizer import train_tokenizer
from cropvlm_jax.models.decode import read_prompt

GRAPHDEF, PARAMS = tiny.make_model(0)
BATCH = jax.tree.map(jnp.asarray, tiny.make_batch(tiny.make_examples(2)))
KEY = jax.random.key(5)
TOKENIZER = train_tokenizer(["Look: [1, 2], [3, 4].", "No."] * 5, 400)
VALUES = (0, 1, 10, 100)  # of the coordinates of the coarse boxes
CORNERS = [v for v in itertools.product(VALUES, repeat=4) if v[0] < v[2] and v[1] < v[3]]
COARSE = np.array(CORNERS)


def quickly(function: Any) -> Any:
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def prefix_of(model: Any) -> Any:
    tokens = model.encode_images(BATCH.tiles)
    return read_prompt(model, tokens, BATCH.crop_prompt, BATCH.crop_prompt_valid)


def test_one_box_is_what_it_was():
    """Recorded before replies could have several boxes."""

    @jax.jit
    def run() -> Any:
        model = nnx.merge(GRAPHDEF, PARAMS)
        return rollout.sample(
            model,
            tiny.GRAMMAR,
            prefix_of(model),
            BATCH.crop_prompt[:, -1],
            KEY,
            group=4,
            temperature=1.3,
            log_prob_temperature=1.0,
        )

    found = run()
    assert found.boxes[:, :, 0].tolist() == [
        [[48, 6, 62, 18], [84, 33, 88, 89], [27, 88, 41, 89], [0, 0, 13, 72]],
        [[84, 30, 100, 60], [43, 8, 49, 68], [68, 87, 69, 93], [44, 90, 95, 98]],
    ]
    log_probs = [
        [-19.718584060668945, -12.010927200317383, -17.629104614257812, -14.991571426391602],
        [-11.945602416992188, -15.971102714538574, -11.149811744689941, -16.930166244506836],
    ]
    np.testing.assert_allclose(found.log_probs, log_probs, rtol=1e-6)
    assert (found.count == 1).all()


class CoarseGrammar(Grammar):
    """Allows the 36 boxes whose coordinates are `VALUES`."""

    def _allowed(self, xp: Any, coordinate: Any, low: Any, written: Any) -> Any:
        table = np.zeros((2, 102, 102, 11), bool)
        for first, least in itertools.product((0, 1), range(102)):
            for value in VALUES[:-1] if first else VALUES[1:]:
                for i, digit in enumerate(str(value) * (value >= least)):
                    table[first, least, 1 + int(str(value)[:i]) if i else 0, int(digit)] = True
                table[first, least, 1 + value, STOP] |= value >= least
        found = xp.asarray(table)[
            (coordinate < 2) * 1, xp.clip(low, 0, 101), xp.clip(written, 0, 101)
        ]
        digits, stop, done = found[..., :STOP], found[..., STOP], coordinate >= 4
        ends = stop & (coordinate < 3), stop & (coordinate == 3) | done
        return xp.concatenate([digits & ~done[..., None], *(end[..., None] for end in ends)], -1)


def coarse_successor(boxes: Any) -> Any:
    """As `geometry.successor`, among `COARSE`."""
    xp = boxes.__array_namespace__()
    place = (boxes[..., None, :] == xp.asarray(COARSE)).all(-1).argmax(-1)
    return xp.asarray(np.concatenate([COARSE[1:], [[100, 0, 101, 1]]]))[place]


def all_replies(most: int) -> tuple[np.ndarray, np.ndarray]:
    """Every set of at most `most` coarse boxes."""
    sets = [s for n in range(most + 1) for s in itertools.combinations(CORNERS, n)]
    boxes = [(*s, *[geometry.FULL] * (most - len(s))) for s in sets]
    return np.array(boxes), np.array([len(s) for s in sets])


@pytest.mark.parametrize("tokenizer", [TOKENIZER, tiny.TOKENIZER], ids=["apart", "shared"])
def test_the_probabilities_of_all_replies_sum_to_one(monkeypatch, tokenizer):
    """By enumeration: K = 2 and abstaining; K = 1 where the tokenizer allows no more."""
    monkeypatch.setattr(automaton, "successor", coarse_successor)
    most = 2 if tokenizer is TOKENIZER else 1
    spelled = Grammar.from_tokenizer(tiny.TOKENIZER if most == 1 else TOKENIZER, 1, abstain=True)
    with monkeypatch.context() as real:
        real.setattr(automaton, "successor", geometry.successor)
        spelled = Grammar.from_tokenizer(tokenizer, most, abstain=True)
    grammar = CoarseGrammar(**{f: getattr(spelled, f) for f in Grammar.__dataclass_fields__})
    boxes, count = all_replies(most)
    assert len(count) == (1 + 36 + 630 if most == 2 else 37)
    last = BATCH.crop_prompt[:, -1]

    @quickly
    def run(boxes: jax.Array, count: jax.Array) -> Any:
        model = nnx.merge(GRAPHDEF, PARAMS)
        prefix = prefix_of(model)
        told = rollout.reply_log_probs(model, grammar, prefix, last, boxes, count, 1.3)
        drawn = rollout.sample(
            model, grammar, prefix, last, KEY, group=64, temperature=1.3, log_prob_temperature=1.3
        )
        again = rollout.reply_log_probs(model, grammar, prefix, last, drawn.boxes, drawn.count, 1.3)
        of_choices = [jnp.where(t.reply.allowed.any(-1), t.chosen, 0) for t in (told, again)]
        return [x.sum(-1) for x in of_choices], drawn

    both = jnp.asarray(np.stack([boxes] * 2)), jnp.asarray(np.stack([count] * 2))
    (log_probs, of_drawn), drawn = run(*both)
    np.testing.assert_allclose(np.exp(np.float64(log_probs)).sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(drawn.log_probs, of_drawn, atol=1e-4)
    assert set(np.asarray(drawn.count).ravel().tolist()) == set(range(most + 1))
    known = {tuple(b.ravel().tolist()) for b in boxes}
    for reply in np.asarray(drawn.boxes).reshape(-1, 4 * most).tolist():
        assert tuple(reply) in known


@pytest.mark.parametrize(("max_boxes", "abstain"), [(4, False), (3, True)])
def test_samples_parse_and_are_scored_as_they_were_drawn(max_boxes, abstain):
    grammar = Grammar.from_tokenizer(TOKENIZER, max_boxes, abstain)
    last = BATCH.crop_prompt[:, -1]

    @quickly
    def run() -> Any:
        model = nnx.merge(GRAPHDEF, PARAMS)
        prefix = prefix_of(model)
        drawn = rollout.sample(
            model, grammar, prefix, last, KEY, group=24, temperature=2.0, log_prob_temperature=1.0
        )
        told = rollout.reply_log_probs(model, grammar, prefix, last, drawn.boxes, drawn.count, 1.0)
        return drawn, jnp.where(told.reply.allowed.any(-1), told.chosen, 0).sum(-1), told.reply

    drawn, log_probs, reply = jax.device_get(run())
    np.testing.assert_allclose(drawn.log_probs, log_probs, atol=2e-4)
    assert len(set(drawn.count.ravel().tolist())) >= 3
    replies = zip(*(x.reshape(-1, *x.shape[2:]) for x in (*drawn[:2], *reply[:2])), strict=True)
    for boxes, count, tokens, valid in replies:
        text = TOKENIZER.decode(tokens[valid].tolist())
        assert text == f" {geometry.reply_text(boxes[:count])}"
        assert geometry.parse_all(text) == tuple(map(tuple, boxes[:count].tolist()))
        assert (boxes[count:] == geometry.FULL).all()
