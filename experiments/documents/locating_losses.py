# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the start cropper of this folder is told: its losses."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import nn
from locating_batches import (
    CELLS,
    FIRST_ANSWER,
    LETTERS,
    NO_LETTER,
    OTHER,
    PRINT,
    QUESTIONS_EACH,
    UNKNOWN,
    LocatingBatch,
)

from cropvlm_jax.data.batching import SupervisedBatch
from cropvlm_jax.models.smolvlm.config import SmolVLMConfig
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.training.sft import completion_loss, written_exactly


def layers(seed: int, config: SmolVLMConfig, questions: int) -> dict[str, dict[str, jax.Array]]:
    """The linear layers beside the model, see `Losses`.

    Args:
        seed: of their weights.
        config: of the model; tower and decoder are of one width.
        questions: how many there are.
    """
    keys = jax.random.split(jax.random.key(seed), 4)
    width = config.text.hidden_size
    return {
        "letters": _layer(keys[0], width, CELLS**2 * LETTERS),
        "places": _layer(keys[1], width, CELLS**2 * (FIRST_ANSWER + questions)),
        "tokens": _layer(keys[2], width, questions * (1 + 2 * config.scale_factor * CELLS)),
        "aim": _layer(keys[3], width, 2 * CELLS * config.vision.grid),
    }


def _layer(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    kernel = jax.random.normal(key, (inputs, outputs)) * 0.02
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


@dataclasses.dataclass(frozen=True)
class Losses:
    """The losses of the phases; weights are the model's and those of linear layers beside it.

    Of these layers `letters` and `places` lead from the tower's patches to what stands at their
    places, `tokens` from the tokens of a picture to where in them answers stand, and `aim` from
    the last token of a prompt to the row and the column of the answer. They are thrown away at the
    end.

    Attributes:
        graph: of the model.
        picture_tokens: of a prompt, up to the last one of its picture.
    """

    graph: nnx.GraphDef
    picture_tokens: int

    def letters(self, params: dict, batch: LocatingBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the letter at each place."""
        return self._letters(params, self._patches(params, batch), batch)

    def places(self, params: dict, batch: LocatingBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of what stands at each place, and half of that of the letters."""
        patches = self._patches(params, batch)
        loss, metrics = self._places(params, patches, batch)
        letters, more = self._letters(params, patches, batch)
        return loss + 0.5 * letters, metrics | more

    def answers(self, params: dict, batch: LocatingBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the boxes' texts and of where answers stand; the tower rests."""
        patches = jax.lax.stop_gradient(self._patches(params, batch))
        model = nnx.merge(self.graph, params["model"])
        tokens = model.tokens_of_patches(patches)
        hidden = self._replies(model, tokens, batch.conversations)
        logits = model.text.logits(hidden)
        total, count = completion_loss(logits, batch.conversations)
        exact = written_exactly(logits, batch.conversations).mean()
        inside, metrics = _inside(params["tokens"], tokens, batch, model.config.scale_factor)
        aim, more = _aim(params["aim"], hidden[:, 0], batch)
        metrics |= more | {"loss": total / count, "exact": exact}
        return total / count + 0.3 * inside + 0.1 * aim, metrics

    def _replies(
        self, model: SmolVLM, tokens: jax.Array, conversations: SupervisedBatch
    ) -> jax.Array:
        """The hidden states that predict the replies' tokens, `[B * QUESTIONS_EACH, C, D]`.

        The conversations about a picture share its tokens, `[B, I, D]`, which are read once.
        """
        prompt, valid = conversations.prompt, conversations.prompt_valid
        pads, last = (~valid).sum(1, keepdims=True), self.picture_tokens
        picture = jnp.take_along_axis(prompt, pads + jnp.arange(last), 1)[::QUESTIONS_EACH, None]
        prefix = model.read(picture, jnp.ones_like(picture, bool), tokens[:, None])[1]
        asked = jnp.arange(last, prompt.shape[1]) >= pads + last
        ids = jnp.concatenate([prompt[:, last:], conversations.completion[:, :-1]], 1)
        there = jnp.concatenate([asked, conversations.completion_valid[:, :-1]], 1)
        shape = (len(tokens), QUESTIONS_EACH, -1)
        hidden, _ = model.read(ids.reshape(shape), there.reshape(shape), prefix=prefix)
        return hidden.reshape(*ids.shape, -1)[:, prompt.shape[1] - last - 1 :]

    def _patches(self, params: dict, batch: LocatingBatch) -> jax.Array:
        model = nnx.merge(self.graph, params["model"])
        pixels = (batch.images.astype(jnp.float32) / 127.5 - 1)[..., None]
        return model.vision(jnp.repeat(pixels, 3, -1).astype(model.dtype))

    def _letters(
        self, params: dict, patches: jax.Array, batch: LocatingBatch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        known = batch.letters != UNKNOWN
        written = known & (batch.letters != NO_LETTER)
        logits = _at_places(params["letters"], patches, batch.letters)
        kinds = jnp.where(known, batch.letters, NO_LETTER).astype(jnp.int32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, kinds)
        loss = _mean(losses, jnp.where(written, 1.0, 0.2) * known)
        right = _mean(logits.argmax(-1) == kinds, written)
        return loss, {"letters_loss": loss, "letters_right": right}

    def _places(
        self, params: dict, patches: jax.Array, batch: LocatingBatch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        other = batch.places == OTHER
        known = (batch.places != UNKNOWN) & ~other
        answers = known & (batch.places > PRINT)
        logits = _at_places(params["places"], patches, batch.places)
        kinds = jnp.where(known, batch.places, 0).astype(jnp.int32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, kinds)
        told = batch.told[:, None, None, :]
        no_answer = jax.nn.logsumexp(logits, -1, where=~told) - jax.nn.logsumexp(logits, -1)
        losses = jnp.where(other, -no_answer, losses)
        loss = _mean(losses, jnp.where(answers, 4.0, 0.3) * (known | other))
        right = _mean(logits.argmax(-1) == kinds, answers)
        return loss, {"places_loss": loss, "answers_right": right}


def _at_places(layer: dict[str, jax.Array], patches: jax.Array, kinds: jax.Array) -> jax.Array:
    """The logits of what stands at each place, for places `[B, P, C]`."""
    logits = (patches @ layer["kernel"].astype(patches.dtype)).astype(jnp.float32) + layer["bias"]
    return logits.reshape(*kinds.shape, -1)


def _inside(
    layer: dict[str, jax.Array], tokens: jax.Array, batch: LocatingBatch, scale: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """How well the tokens `[B, I, D]` of pictures tell where in them answers stand.

    For each question a token, `scale` patches wide, has a logit of being the one with the answer's
    middle, and logits of the row and the column inside of it.
    """
    grid, cells = math.isqrt(tokens.shape[1]), scale * CELLS
    normed = nn.standardize(tokens.astype(jnp.float32), axis=-1)
    logits = normed @ layer["kernel"] + layer["bias"]
    logits = logits.reshape(*tokens.shape[:2], -1, 1 + 2 * cells)
    logits = jnp.repeat(logits, QUESTIONS_EACH, 0)
    logits = logits[jnp.arange(len(logits)), :, batch.questions]
    column, row = _cells(batch.middles, grid * cells)
    right = row // cells * grid + column // cells
    there = jnp.take_along_axis(logits, right[:, None, None], 1)[:, 0, 1:]
    rows, columns = jnp.split(there, 2, -1)
    token = _cross_entropy(logits[..., 0], right)
    place = _cross_entropy(rows, row % cells) + _cross_entropy(columns, column % cells)
    tokens_right = (logits[..., 0].argmax(-1) == right).mean()
    return token + 0.5 * place, {"token_loss": token, "tokens_right": tokens_right}


def _aim(
    layer: dict[str, jax.Array], hidden: jax.Array, batch: LocatingBatch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """How well hidden states `[B * QUESTIONS_EACH, D]` tell rows and columns of answers."""
    logits = hidden.astype(jnp.float32) @ layer["kernel"] + layer["bias"]
    columns, rows = jnp.split(logits, 2, -1)
    column, row = _cells(batch.middles, rows.shape[-1])
    near = abs(columns.argmax(-1) - column) <= 4
    near &= abs(rows.argmax(-1) - row) <= 1
    loss = _cross_entropy(columns, column) + _cross_entropy(rows, row)
    return loss, {"aim_loss": loss, "aimed_near": near.mean()}


def _cells(middles: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Columns and rows of places `[N, 2]`, of so many in a picture."""
    column, row = jnp.floor(middles.T * count).astype(jnp.int32)
    return column, row


def _cross_entropy(logits: jax.Array, kinds: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, kinds).mean()


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    return (values * weights).sum() / jnp.maximum(weights.sum(), 1)
