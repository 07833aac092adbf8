# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains the reader of the documents experiment: a small SmolVLM that reads print in crops.

    python experiments/documents/suites.py ... --out=data/documents
    python experiments/documents/train_reader.py --documents=data/documents --receipts=FOLDER \
        --workdir=runs/documents/reader

In three phases. "letters": the tower alone says which letter stands at each place of drawn crops.
"answers": the whole model answers questions about one crop, tight ones first; then crops of the
training documents come to it. "pairs": a whole picture stands before the crop, as in the prompts
that a cropper's reward is computed from. A run that was stopped goes on from its last checkpoint,
which is at most 250 steps old. The result is the folder `reader` in the workdir.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import printed_lines
import real_crops
from absl import flags, logging
from flax import nnx
from pretraining import Phase, begin, from_scratch, make_tokenizer, save
from reading_batches import (
    CLASSES,
    COLUMNS,
    NO_LETTER,
    UNKNOWN,
    Reading,
    ReadingBatch,
    tile,
)
from tokenizers import Tokenizer

from cropvlm_jax import apps
from cropvlm_jax.data import batching
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.smolvlm.config import SiglipConfig, SmolVLMConfig
from cropvlm_jax.models.smolvlm.conversations import IMAGE, SmolVLMConversations
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.training.sft import completion_loss, reply_logits, written_exactly

DOCUMENTS = flags.DEFINE_string("documents", None, "Folder of the suites.", required=True)
RECEIPTS = flags.DEFINE_string("receipts", None, "Folder of SROIE.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training.", required=True)
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights and of what is drawn.")

SIDE, PATCH, WIDTH = 192, 24, 192
BATCH = 64
STEPS = {"letters": 1000, "answers": 2400, "pairs": 600}
EXPANSIONS = (1, 2, 4)  # of the validation crops, in areas


def shape(tokenizer: Tokenizer) -> SmolVLMConfig:
    """192 px pictures as 64 tokens, three million weights."""
    vision = SiglipConfig(SIDE, PATCH, WIDTH, 3 * WIDTH, 5, 4)
    text = LlamaConfig(
        tokenizer.get_vocab_size(), WIDTH, 2 * WIDTH, 3, 4, 2, 48, max_position_embeddings=2048
    )
    return SmolVLMConfig(vision, text, 1, tokenizer.token_to_id(IMAGE))


class Losses:
    """The losses of the phases; weights are `{"model": ..., "letters": ...}`.

    `letters` is a linear layer from the tower's patches to the letters at their places, which is
    thrown away at the end.
    """

    def __init__(self, graph: nnx.GraphDef) -> None:
        self._graph = graph

    def letters(self, params: dict, batch: ReadingBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the letters at each place; digits and marks count most."""
        return self._letters(params, self._patches(params, batch), batch)

    def answers(self, params: dict, batch: ReadingBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the answers, and half of that of the letters."""
        model, conversations = nnx.merge(self._graph, params["model"]), batch.conversations
        patches = self._patches(params, batch)
        letters, metrics = self._letters(params, patches, batch)
        tokens = model.tokens_of_patches(patches)[:, None]
        if conversations.images.shape[1] == 2:  # the whole picture teaches the tower nothing
            whole = jax.lax.stop_gradient(model.encode_images(conversations.images[:, :1]))
            tokens = jnp.concatenate([whole, tokens], 1)
        logits = reply_logits(model, conversations, tokens)
        total, count = completion_loss(logits, conversations)
        metrics |= {"loss": total / count, "exact": written_exactly(logits, conversations).mean()}
        return total / count + 0.5 * letters, metrics

    def _patches(self, params: dict, batch: ReadingBatch) -> jax.Array:
        """The tower's patches of the crops, the last picture of each conversation."""
        model = nnx.merge(self._graph, params["model"])
        pixels = batch.conversations.images[:, -1].astype(jnp.float32) / 127.5 - 1
        return model.vision(pixels.astype(model.dtype))

    def _letters(
        self, params: dict, patches: jax.Array, batch: ReadingBatch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        layer = params["letters"]
        logits = patches.astype(jnp.float32) @ layer["kernel"] + layer["bias"]
        logits = logits.reshape(*batch.letters.shape, CLASSES)
        known = batch.letters != UNKNOWN
        letters = jnp.where(known, batch.letters, NO_LETTER).astype(jnp.int32)
        numeric = (letters > NO_LETTER) & (letters <= 32)  # "!" to "@"
        weights = known * jnp.where(letters == NO_LETTER, 0.3, jnp.where(numeric, 1.0, 0.4))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, letters)
        right = (logits.argmax(-1) == letters) & known & numeric
        share = right.sum() / jnp.maximum((known & numeric).sum(), 1)
        loss = (losses * weights).sum() / jnp.maximum(weights.sum(), 1)
        return loss, {"letters_loss": loss, "digits_right": share}


def whole_pictures(documents: str) -> np.ndarray:
    """Training pictures of receipts and pages as the reader sees them: uint8 `[N, S, S, 3]`."""
    found = []
    for suite, most in (("receipts", 150), ("pages", 250)):
        folder = pathlib.Path(documents) / suite
        with (folder / "train.jsonl").open(encoding="utf-8") as file:
            images = sorted({json.loads(line)["image"] for line in file})
        chosen = np.random.default_rng(1).permutation(images)[:most]
        found += [tile(real_crops.grey(folder / image), SIDE) for image in chosen]
    return np.stack(found)


class Held:
    """Exact answers on true boxes of validation documents, by suite and expansion of the box."""

    def __init__(
        self, graph: nnx.GraphDef, reading: Reading, places: dict[str, list[real_crops.Place]]
    ) -> None:
        self._right = jax.jit(
            lambda params, batch: written_exactly(
                reply_logits(nnx.merge(graph, params), batch.conversations), batch.conversations
            )
        )
        self._batches: dict[str, ReadingBatch] = {}
        for suite, asked in places.items():
            for expansion in EXPANSIONS:
                rng = np.random.default_rng(0)  # of the whole pictures before the crops
                crops = [(place, place.expanded(expansion)) for place in asked]
                rows = [reading.row(rng, crop, p.question, p.answer) for p, crop in crops]
                self._batches[f"{suite}_x{expansion}"] = batching.stack(rows)

    def __call__(self, params: dict) -> dict[str, float]:
        """Shares of exact answers."""
        model = params["model"]
        return {n: float(self._right(model, b).mean()) for n, b in self._batches.items()}


def validation_places(documents: str) -> dict[str, list[real_crops.Place]]:
    """At most 256 numeric answers of each suite's validation documents."""
    found = {}
    for suite in ("receipts", "pages"):
        places = real_crops.read_places(pathlib.Path(documents) / suite, "val", most=150)
        found[suite] = [p for p in places if p.category in real_crops.NUMERIC][:256]
    return found


def main(argv: list[str]) -> None:
    del argv
    asked = [*printed_lines.QUESTIONS.values(), *real_crops.questions(DOCUMENTS.value)]
    tokenizer = make_tokenizer(asked)
    config = shape(tokenizer)
    conversations = SmolVLMConversations(tokenizer, config.image_seq_len)

    def reading(**settings: Any) -> Reading:
        pictures = 2 if "wholes" in settings else 1
        return Reading(
            conversations=conversations,
            side=SIDE,
            patch=PATCH,
            batch_size=BATCH,
            prompt_tokens=max(len(conversations.answer(q, pictures).ids) for q in asked),
            documents=DOCUMENTS.value,
            receipts=RECEIPTS.value,
            **settings,
        )

    wholes, seed = whole_pictures(DOCUMENTS.value), 3 * SEED.value
    letters = reading(steps=STEPS["letters"], seed=seed, loose=(5.0, 5.0), hard=0.0, real=0.0)
    answers = reading(steps=STEPS["answers"], seed=seed + 1, loose=(1.3, 8.0), hard=0.6, real=0.5)
    pairs = reading(
        steps=STEPS["pairs"], seed=seed + 2, loose=(8.0, 8.0), hard=1.0, real=0.6, wholes=wholes
    )

    model = SmolVLM(config, rngs=nnx.Rngs(SEED.value), dtype=jnp.bfloat16)
    begin(model, letters(letters.steps).conversations.images[:, 0])  # a batch of no step
    graph, params = nnx.split(model)
    kernel = jax.random.normal(jax.random.key(SEED.value), (WIDTH, COLUMNS * CLASSES)) * 0.02
    weights = {
        "model": params,
        "letters": {"kernel": kernel, "bias": jnp.zeros(COLUMNS * CLASSES)},
    }
    losses, places = Losses(graph), validation_places(DOCUMENTS.value)
    of_answers, of_pairs = Held(graph, answers, places), Held(graph, pairs, places)
    for phase in (
        Phase("letters", letters, losses.letters, matrices=3e-3, others=1.5e-3),
        Phase("answers", answers, losses.answers, matrices=2e-3, others=1e-3, evaluate=of_answers),
        Phase("pairs", pairs, losses.answers, matrices=1e-3, others=5e-4, evaluate=of_pairs),
    ):
        weights = phase.train(WORKDIR.value, weights)
    model = nnx.merge(graph, weights["model"])
    run = from_scratch(
        script="train_reader.py",
        steps=sum(STEPS.values()),
        seed=SEED.value,
        data="drawn lines of print in the fonts of one machine; crops of the training "
        "receipts of SROIE (ICDAR 2019, CC BY 4.0) and of training pages of Debian's manuals",
        meaning="exact answers about numbers, dates and totals of validation documents, "
        "where the crop has so many times the area of the true box",
        metrics=of_pairs(weights),
    )
    save(pathlib.Path(WORKDIR.value) / "reader", model, tokenizer, role="reader", run=run)


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    apps.run_script(main)
