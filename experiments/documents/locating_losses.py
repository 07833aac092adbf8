# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the start cropper of this folder is told: its losses."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
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
    keys = jax.random.split(jax.random.key(seed), 5)
    width = config.text.hidden_size
    return {
        "letters": _layer(keys[0], width, CELLS**2 * LETTERS),
        "places": _layer(keys[1], width, CELLS**2 * (FIRST_ANSWER + questions)),
        "tokens": _layer(keys[2], width, questions * 2 * (1 + 2 * _percents(config.image_seq_len))),
        "aim": _layer(keys[3], width, 4 * 101),
        "own": _layer(keys[4], width, 2 * 100),
    }


def _percents(tokens: int) -> int:
    """Percents of a side of the picture that each of its tokens takes."""
    return 100 // math.isqrt(tokens)


def _layer(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    kernel = jax.random.normal(key, (inputs, outputs)) * 0.02
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


@dataclasses.dataclass(frozen=True)
class Losses:
    """The losses of the phases; weights are the model's and those of linear layers beside it.

    Of these layers `letters` and `places` lead from the tower's patches to what stands at their
    places, `own` from patches to where in the picture they are themselves, which the decoder could
    not know otherwise. `tokens` leads from the tokens of a picture to which corners of answers
    stand in them, `aim` from the last token of a prompt to the edges of the answer. They are thrown
    away at the end.

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
        """Cross-entropy of what stands at each place, of letters, and of patches' own places."""
        patches = self._patches(params, batch)
        loss, metrics = self._places(params, patches, batch)
        letters, of_letters = self._letters(params, patches, batch)
        own, of_own = _own(params["own"], patches)
        return loss + 0.5 * letters + 0.2 * own, metrics | of_letters | of_own

    def answers(self, params: dict, batch: LocatingBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the boxes' texts and of where answers stand; the tower rests."""
        patches = jax.lax.stop_gradient(self._patches(params, batch))
        model = nnx.merge(self.graph, params["model"])
        tokens = model.tokens_of_patches(patches)
        hidden = self._replies(model, tokens, batch.conversations)
        logits = model.text.logits(hidden)
        total, count = completion_loss(logits, batch.conversations)
        exact = written_exactly(logits, batch.conversations).mean()
        inside, metrics = _inside(params["tokens"], tokens, batch)
        aim, more = _aim(params["aim"], hidden[:, 0], batch)
        metrics |= more | {"loss": total / count, "exact": exact}
        return total / count + 0.3 * inside + 0.2 * aim, metrics

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
        no_answer = nn.logsumexp(logits, -1, where=~told) - nn.logsumexp(logits, -1)
        losses = jnp.where(other, -no_answer, losses)
        loss = _mean(losses, jnp.where(answers, 4.0, 0.3) * (known | other))
        right = _mean(logits.argmax(-1) == kinds, answers)
        return loss, {"places_loss": loss, "answers_right": right}


def _at_places(layer: dict[str, jax.Array], patches: jax.Array, kinds: jax.Array) -> jax.Array:
    """The logits of what stands at each place, for places `[B, P, C]`."""
    logits = (patches @ layer["kernel"].astype(patches.dtype)).astype(jnp.float32) + layer["bias"]
    return logits.reshape(*kinds.shape, -1)


def _own(layer: dict[str, jax.Array], patches: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """How well patches `[B, P, D]` tell where in the picture they are."""
    grid = math.isqrt(patches.shape[1])
    logits = patches.astype(jnp.float32) @ layer["kernel"] + layer["bias"]
    percents = (np.arange(grid) + 0.5) * 100 // grid
    down, across = np.meshgrid(percents, percents, indexing="ij")
    wanted = jnp.asarray(np.stack([down.ravel(), across.ravel()], 1), jnp.int32)
    wanted = jnp.broadcast_to(wanted, (*patches.shape[:2], 2))
    logits = logits.reshape(*wanted.shape, 100)
    right = (logits.argmax(-1) == wanted).mean()
    return _cross_entropy(logits, wanted), {"own_right": right}


def _inside(
    layer: dict[str, jax.Array], tokens: jax.Array, batch: LocatingBatch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """How well the tokens `[B, I, D]` of pictures tell which corners of answers stand in them.

    For the first and the last corner of each question's answer, a token has a logit of being the
    one with it, and logits of the percents of the picture, inside of the token, where it stands.
    """
    grid, percents = math.isqrt(tokens.shape[1]), _percents(tokens.shape[1])
    normed = nn.standardize(tokens.astype(jnp.float32), axis=-1)
    logits = normed @ layer["kernel"] + layer["bias"]
    logits = logits.reshape(*tokens.shape[:2], -1, 2, 1 + 2 * percents)
    logits = jnp.repeat(logits, QUESTIONS_EACH, 0)
    logits = logits[jnp.arange(len(logits)), :, batch.questions]  # [B * Q, I, 2, ...]
    corners = jnp.minimum(batch.boxes, 99).reshape(-1, 2, 2)
    across, down = jnp.moveaxis(corners, -1, 0)
    right = down // percents * grid + across // percents
    there = jnp.take_along_axis(logits, right[:, None, :, None], 1)[:, 0, :, 1:]
    columns, rows = jnp.split(there, 2, -1)
    which = logits[..., 0].swapaxes(1, 2)
    token = _cross_entropy(which, right)
    place = _cross_entropy(columns, across % percents) + _cross_entropy(rows, down % percents)
    return token + 0.5 * place, {
        "token_loss": token,
        "tokens_right": (which.argmax(-1) == right).mean(),
    }


def _aim(
    layer: dict[str, jax.Array], hidden: jax.Array, batch: LocatingBatch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """How well hidden states `[B * QUESTIONS_EACH, D]` tell the edges of the answers."""
    logits = hidden.astype(jnp.float32) @ layer["kernel"] + layer["bias"]
    logits = logits.reshape(len(hidden), 4, -1)
    near = (abs(logits.argmax(-1) - batch.boxes) <= jnp.array([4, 1, 4, 1])).all(-1)
    loss = _cross_entropy(logits, batch.boxes)
    return loss, {"aim_loss": loss, "aimed_near": near.mean()}


def _cross_entropy(logits: jax.Array, kinds: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, kinds).mean()


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    return (values * weights).sum() / jnp.maximum(weights.sum(), 1)
