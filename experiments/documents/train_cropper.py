# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains the start cropper of the documents experiment.

    python experiments/documents/train_cropper.py --documents=data/documents --receipts=FOLDER \
        --seeds=runs/documents/seed_boxes --workdir=runs/documents/start

First documents are drawn, whose letters and answers are known because they were drawn. Then there
are phases. "letters": the tower alone says which letter stands at each place of a picture.
"places": it also says whether a place is blank, print, or the answer to which question. "boxes":
the whole model answers questions with boxes. "seeds": as "places", also on training documents with
their seed boxes. Of real pictures the other phases use the training receipts, for their letters
only, which SROIE tells by lines. A run that was stopped goes on. The result is the folder `cropper`
in the workdir.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags, logging
from flax import nnx
from located import draw_documents, read_pages, read_receipts, write
from locating_batches import (
    CELLS,
    FIRST_ANSWER,
    LETTERS,
    NO_LETTER,
    OTHER,
    PRINT,
    QUESTIONS_EACH,
    UNKNOWN,
    Locating,
    LocatingBatch,
    all_questions,
)
from pretraining import Phase, begin, from_scratch, make_tokenizer, save

from cropvlm_jax import apps
from cropvlm_jax.geometry.grammar import Grammar
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.smolvlm.config import SiglipConfig, SmolVLMConfig
from cropvlm_jax.models.smolvlm.conversations import IMAGE, SmolVLMConversations
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.training.sft import completion_loss, reply_logits, written_exactly

DOCUMENTS = flags.DEFINE_string("documents", None, "Folder of the suites.", required=True)
RECEIPTS = flags.DEFINE_string("receipts", None, "Folder of SROIE.", required=True)
SEEDS = flags.DEFINE_string("seeds", None, "Folder of the seed boxes.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training.", required=True)
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights and of what is drawn.")
SIDE = flags.DEFINE_enum("side", "384", ["192", "384"], "Pixels of the pictures.")

PATCH, WIDTH = 16, 192
BATCH = 16
DRAWN = {"receipts": 6000, "pages": 3000}
TRAINING_PAGES = 4000
STEPS = {"letters": 1200, "places": 700, "boxes": 800, "seeds": 1200}
HELD_CHUNKS = 2  # of each kind, not trained on


def suite_questions(documents: str) -> dict[str, dict[str, str]]:
    """The questions of receipts and pages by category."""
    found: dict[str, dict[str, str]] = {}
    for suite in DRAWN:
        path = pathlib.Path(documents) / suite / "train.jsonl"
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        found[suite] = {row["category"]: row["question"] for row in rows}
    return found


def shape(vocab_size: int, image_token: int, side: int) -> SmolVLMConfig:
    """Pictures of 384 px as 36 tokens, of 192 px as 9; three million weights."""
    vision = SiglipConfig(side, PATCH, WIDTH, 3 * WIDTH, 5, 3)
    text = LlamaConfig(vocab_size, WIDTH, 2 * WIDTH, 3, 4, 2, 48, max_position_embeddings=2048)
    return SmolVLMConfig(vision, text, 4, image_token)


class Losses:
    """The losses of the phases; weights are `{"model": ..., "letters": ..., "places": ...}`.

    `letters` and `places` are linear layers from the tower's patches to what stands at their
    places, which are thrown away at the end.
    """

    def __init__(self, graph: nnx.GraphDef) -> None:
        self._graph = graph

    def letters(self, params: dict, batch: LocatingBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the letter at each place."""
        return self._letters(params, self._patches(params, batch), batch)

    def places(self, params: dict, batch: LocatingBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of what stands at each place, and half of that of the letters."""
        patches = self._patches(params, batch)
        loss, metrics = self._places(params, patches, batch)
        letters, more = self._letters(params, patches, batch)
        return loss + 0.5 * letters, metrics | more

    def boxes(self, params: dict, batch: LocatingBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the boxes' texts, and a fifth of those of places and letters."""
        patches = self._patches(params, batch)
        places, metrics = self._places(params, patches, batch)
        letters, more = self._letters(params, patches, batch)
        model = nnx.merge(self._graph, params["model"])
        # A picture's patches are computed once for all its questions.
        tokens = jnp.repeat(model.tokens_of_patches(patches), QUESTIONS_EACH, 0)[:, None]
        logits = reply_logits(model, batch.conversations, tokens)
        total, count = completion_loss(logits, batch.conversations)
        exact = written_exactly(logits, batch.conversations).mean()
        metrics |= more | {"loss": total / count, "exact": exact}
        return total / count + 0.2 * (places + letters), metrics

    def _patches(self, params: dict, batch: LocatingBatch) -> jax.Array:
        model = nnx.merge(self._graph, params["model"])
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


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    return (values * weights).sum() / jnp.maximum(weights.sum(), 1)


def _layer(key: jax.Array, kinds: int) -> dict[str, jax.Array]:
    """Weights from a patch to the kinds at its places."""
    outputs = CELLS * CELLS * kinds
    kernel = jax.random.normal(key, (WIDTH, outputs)) * 0.02
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def main(argv: list[str]) -> None:
    del argv
    side, seed, workdir = int(SIDE.value), SEED.value, pathlib.Path(WORKDIR.value)
    draw_documents(workdir / "drawn", DRAWN, side, seed)
    receipts, pages = workdir / "receipts.npz", workdir / "pages.npz"
    if not receipts.exists():
        write(receipts, read_receipts(DOCUMENTS.value, RECEIPTS.value, side, SEEDS.value))
    if not pages.exists():
        write(pages, read_pages(DOCUMENTS.value, side, SEEDS.value, TRAINING_PAGES))
    questions = suite_questions(DOCUMENTS.value)
    asked = all_questions(questions)
    tokenizer = make_tokenizer(asked)
    config = shape(tokenizer.get_vocab_size(), tokenizer.token_to_id(IMAGE), side)
    conversations = SmolVLMConversations(tokenizer, config.image_seq_len)
    training = Locating(
        conversations=conversations,
        questions=questions,
        drawn=workdir / "drawn",
        chunks=slice(HELD_CHUNKS, None),
        receipts=receipts,
        pages=pages,
        real=(0.25, 0.0),
        seeds=False,
        turned=0.0,
        asks=False,
        smallest=0.4,
        side=side,
        patch=PATCH,
        batch_size=BATCH,
        prompt_tokens=max(len(conversations.crop(question).ids) for question in asked),
        reply_tokens=Grammar.from_tokenizer(tokenizer).max_length,
        steps=STEPS["letters"],
        seed=4 * seed,
    )
    replace = dataclasses.replace
    places = replace(training, smallest=0.6, steps=STEPS["places"], seed=4 * seed + 1)
    boxes = replace(
        training, real=(0.0, 0.0), asks=True, smallest=0.7, steps=STEPS["boxes"], seed=4 * seed + 2
    )
    seeds = replace(
        places, real=(0.3, 0.2), seeds=True, turned=2.0, steps=STEPS["seeds"], seed=4 * seed + 5
    )
    held = replace(boxes, chunks=slice(HELD_CHUNKS), seed=4 * seed + 3)
    model = SmolVLM(config, rngs=nnx.Rngs(seed), dtype=jnp.bfloat16)
    begin(model, np.repeat(training(training.steps).images[..., None], 3, -1))  # of no step
    graph, params = nnx.split(model)
    keys = jax.random.split(jax.random.key(seed))
    weights = {
        "model": params,
        "letters": _layer(keys[0], LETTERS),
        "places": _layer(keys[1], FIRST_ANSWER + len(asked)),
    }
    losses = Losses(graph)
    held_batches = [held(step) for step in range(8)]

    def evaluate(params: dict) -> dict[str, float]:
        found = [jax.device_get(measure(params, batch)) for batch in held_batches]
        return {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}

    measure = jax.jit(lambda params, batch: losses.boxes(params, batch)[1])
    for phase in (
        Phase("letters", training, losses.letters, matrices=3e-3, others=1.5e-3, evaluate=evaluate),
        Phase("places", places, losses.places, matrices=3e-3, others=1.5e-3, evaluate=evaluate),
        Phase("boxes", boxes, losses.boxes, matrices=2e-3, others=1e-3, evaluate=evaluate),
        Phase("seeds", seeds, losses.places, matrices=3e-3, others=1.5e-3, evaluate=evaluate),
    ):
        weights = phase.train(workdir, weights)
    model = nnx.merge(graph, weights["model"])
    run = from_scratch(
        script="train_cropper.py",
        steps=sum(STEPS.values()),
        seed=SEED.value,
        data="drawn receipts and pages in the fonts of one machine; the letters, not the "
        "answers, of the training receipts of SROIE (ICDAR 2019, CC BY 4.0)",
        meaning="on drawn documents: losses; shares of letters and of places of answers "
        "that the tower tells, and of boxes written exactly",
        metrics=evaluate(weights),
    )
    save(workdir / "cropper", model, tokenizer, role="cropper", run=run)


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    apps.run_script(main)
