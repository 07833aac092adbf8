# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Greedy decoding after a shared prefix, with and without what each continuation read itself."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from flax import nnx

from cropvlm_jax.models.decode import greedy_decode, read_prompt

LENGTH = 6


def test_what_is_read_first_or_by_each_continuation_gives_the_same_replies():
    """Two questions about each of two pictures: alone, and on the picture's shared prefix."""
    graphdef, params = tiny.make_model(0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 1, tiny.SIDE, tiny.SIDE, 3), np.uint8)
    pictured = np.full((2, tiny.CONFIG.image_seq_len + 1), tiny.CONFIG.image_token_id)
    pictured[:, -1] = 5
    asked = rng.integers(10, 200, (2, 2, 4))  # two pictures, two questions, four tokens
    end = tiny.TOKENIZER.token_to_id("<end_of_utterance>")

    @jax.jit
    def shared(params, images, pictured, asked):
        model = nnx.merge(graphdef, params)
        prefix = read_prompt(
            model, model.encode_images(images), pictured, jnp.ones_like(pictured, bool)
        )
        # The prefix ends before the last token of what was read: each continuation reads that.
        last = jnp.broadcast_to(pictured[:, None, -1:], (2, 2, 1))
        ids = jnp.concatenate([last, asked[..., :-1]], -1)
        _, own = model.read(ids, jnp.ones_like(ids, bool), None, prefix)
        return greedy_decode(
            model, prefix, asked[..., -1], end_token=end, max_tokens=LENGTH, own=own
        ).tokens

    @jax.jit
    def alone(params, images, ids):
        model = nnx.merge(graphdef, params)
        prefix = read_prompt(model, model.encode_images(images), ids, jnp.ones_like(ids, bool))
        reply = greedy_decode(model, prefix, ids[:, -1:], end_token=end, max_tokens=LENGTH)
        return reply.tokens[:, 0]

    replies = shared(params, images, pictured, asked)
    assert replies.shape == (2, 2, LENGTH) and len(np.unique(replies)) > 3
    for question in range(2):
        ids = np.concatenate([pictured, asked[:, question]], 1)
        np.testing.assert_array_equal(replies[:, question], alone(params, images, ids))
