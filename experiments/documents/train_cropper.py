# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains the start cropper of the documents experiment.

    python experiments/documents/train_cropper.py --documents=data/documents --receipts=FOLDER \
        --seeds=runs/documents/seed_boxes --workdir=runs/documents/start

First documents are drawn, whose letters and answers are known because they were drawn. Then there
are phases. "letters": the tower alone says which letter stands at each place of a picture.
"places": it also says whether a place is blank, print, or the answer to which question. "boxes":
the whole model answers questions with boxes. "pointing": so does the decoder alone, and each token
of the picture says where in it the answers stand. "seeds": as "places", also on training documents
with their seed boxes. "answers": the decoder alone once more, on all of these. Of real pictures the
first four phases use the training receipts, for their letters only, which SROIE tells by lines. A
run that was stopped goes on. The result is the folder `cropper` in the workdir.
"""

import dataclasses
import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags, logging
from flax import nnx
from jax import nn
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
from pretraining import Loss, Phase, begin, from_scratch, make_tokenizer, save
from tokenizers import Tokenizer

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
SCALE = 4  # patches of a token's side
BATCH = 16
DRAWN = {"receipts": 6000, "pages": 3000}
TRAINING_PAGES = 4000
STEPS = {
    "letters": 1200,
    "places": 700,
    "boxes": 800,
    "pointing": 1200,
    "seeds": 1200,
    "answers": 1000,
}
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
    return SmolVLMConfig(vision, text, SCALE, image_token)


class Losses:
    """The losses of the phases; weights are the model's and those of linear layers beside it.

    The layers `letters` and `places` lead from the tower's patches to what stands at their places,
    `pointer` from the tokens of a picture to where in them answers stand. They are thrown away at
    the end.
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

    def pointing(
        self, params: dict, batch: LocatingBatch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the boxes' texts and of where tokens point; the tower learns nothing."""
        patches = jax.lax.stop_gradient(self._patches(params, batch))
        model = nnx.merge(self._graph, params["model"])
        tokens = model.tokens_of_patches(patches)
        logits = reply_logits(
            model, batch.conversations, jnp.repeat(tokens, QUESTIONS_EACH, 0)[:, None]
        )
        total, count = completion_loss(logits, batch.conversations)
        exact = written_exactly(logits, batch.conversations).mean()
        pointed, metrics = _pointed(params["pointer"], tokens, batch)
        return total / count + 0.3 * pointed, metrics | {"loss": total / count, "exact": exact}

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


def measured(loss: Loss, batches: list[LocatingBatch], weights: dict) -> dict[str, float]:
    """The mean metrics of a loss over batches."""
    measure = jax.jit(lambda weights, batch: loss(weights, batch)[1])
    found = [jax.device_get(measure(weights, batch)) for batch in batches]
    return {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}


def _at_places(layer: dict[str, jax.Array], patches: jax.Array, kinds: jax.Array) -> jax.Array:
    """The logits of what stands at each place, for places `[B, P, C]`."""
    logits = (patches @ layer["kernel"].astype(patches.dtype)).astype(jnp.float32) + layer["bias"]
    return logits.reshape(*kinds.shape, -1)


def _pointed(
    layer: dict[str, jax.Array], tokens: jax.Array, batch: LocatingBatch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """How well the tokens `[B, I, D]` of pictures tell where the answers to the questions stand.

    For each question a token has a logit of being the one with the answer's middle, and logits of
    the row and the column in it.
    """
    grid, inside = math.isqrt(tokens.shape[1]), SCALE * CELLS
    normed = nn.standardize(tokens.astype(jnp.float32), axis=-1)
    logits = normed @ layer["kernel"] + layer["bias"]
    logits = logits.reshape(*tokens.shape[:2], -1, 1 + 2 * inside)
    logits = jnp.repeat(logits, QUESTIONS_EACH, 0)[
        jnp.arange(len(batch.questions)), :, batch.questions
    ]
    column, row = jnp.floor(batch.middles.T * grid * inside).astype(jnp.int32)
    right = row // inside * grid + column // inside
    there = jnp.take_along_axis(logits, right[:, None, None], 1)[:, 0, 1:]
    rows, columns = jnp.split(there, 2, -1)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    token = cross_entropy(logits[..., 0], right).mean()
    place = (cross_entropy(rows, row % inside) + cross_entropy(columns, column % inside)).mean()
    pointed_right = (logits[..., 0].argmax(-1) == right).mean()
    return token + 0.5 * place, {
        "token_loss": token,
        "place_loss": place,
        "tokens_right": pointed_right,
    }


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    return (values * weights).sum() / jnp.maximum(weights.sum(), 1)


def _layer(key: jax.Array, outputs: int) -> dict[str, jax.Array]:
    """Weights of a linear layer from the width of the model."""
    kernel = jax.random.normal(key, (WIDTH, outputs)) * 0.02
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def courses(
    workdir: pathlib.Path,
    questions: dict[str, dict[str, str]],
    tokenizer: Tokenizer,
    image_tokens: int,
    side: int,
    seed: int,
) -> dict[str, Locating]:
    """The batches of each phase, and "held", of documents that none of them learns from."""
    conversations = SmolVLMConversations(tokenizer, image_tokens)
    letters = Locating(
        conversations=conversations,
        questions=questions,
        drawn=workdir / "drawn",
        chunks=slice(HELD_CHUNKS, None),
        receipts=workdir / "receipts.npz",
        pages=workdir / "pages.npz",
        real=(0.25, 0.0),
        seeds=False,
        turned=0.0,
        asks=False,
        smallest=0.4,
        side=side,
        patch=PATCH,
        batch_size=BATCH,
        prompt_tokens=max(len(conversations.crop(q).ids) for q in all_questions(questions)),
        reply_tokens=Grammar.from_tokenizer(tokenizer).max_length,
        steps=STEPS["letters"],
        seed=8 * seed,
    )
    replace = dataclasses.replace
    places = replace(letters, smallest=0.6, steps=STEPS["places"], seed=8 * seed + 1)
    boxes = replace(
        letters, real=(0.0, 0.0), asks=True, smallest=0.7, steps=STEPS["boxes"], seed=8 * seed + 2
    )
    seeded = {"seeds": True, "turned": 2.0}
    return {
        "letters": letters,
        "places": places,
        "boxes": boxes,
        "pointing": replace(boxes, steps=STEPS["pointing"], seed=8 * seed + 4),
        "seeds": replace(
            places, real=(0.3, 0.2), **seeded, steps=STEPS["seeds"], seed=8 * seed + 5
        ),
        "answers": replace(
            boxes, real=(0.2, 0.2), **seeded, steps=STEPS["answers"], seed=8 * seed + 6
        ),
        "held": replace(boxes, chunks=slice(HELD_CHUNKS), seed=8 * seed + 3),
    }


def main(argv: list[str]) -> None:
    del argv
    side, seed, workdir = int(SIDE.value), SEED.value, pathlib.Path(WORKDIR.value)
    draw_documents(workdir / "drawn", DRAWN, side, seed)
    if not (workdir / "receipts.npz").exists():
        receipts = read_receipts(DOCUMENTS.value, RECEIPTS.value, side, SEEDS.value)
        write(workdir / "receipts.npz", receipts)
    if not (workdir / "pages.npz").exists():
        pages = read_pages(DOCUMENTS.value, side, SEEDS.value, TRAINING_PAGES)
        write(workdir / "pages.npz", pages)
    questions = suite_questions(DOCUMENTS.value)
    asked = all_questions(questions)
    tokenizer = make_tokenizer(asked)
    config = shape(tokenizer.get_vocab_size(), tokenizer.token_to_id(IMAGE), side)
    batches = courses(workdir, questions, tokenizer, config.image_seq_len, side, seed)
    model = SmolVLM(config, rngs=nnx.Rngs(seed), dtype=jnp.bfloat16)
    examples = batches["letters"](STEPS["letters"]).images  # of no step
    begin(model, np.repeat(examples[..., None], 3, -1))
    graph, params = nnx.split(model)
    keys = jax.random.split(jax.random.key(seed), 3)
    weights = {
        "model": params,
        "letters": _layer(keys[0], CELLS**2 * LETTERS),
        "places": _layer(keys[1], CELLS**2 * (FIRST_ANSWER + len(asked))),
        "pointer": _layer(keys[2], len(asked) * (1 + 2 * SCALE * CELLS)),
    }
    losses = Losses(graph)
    held = [batches["held"](step) for step in range(8)]
    metrics: dict[str, float] = {}
    for name, loss, layers, rate in (
        ("letters", losses.letters, ("letters", "places"), 3e-3),
        ("places", losses.places, ("letters", "places"), 3e-3),
        ("boxes", losses.boxes, ("letters", "places"), 2e-3),
        ("pointing", losses.pointing, ("pointer",), 2e-3),
        ("seeds", losses.places, ("letters", "places"), 3e-3),
        ("answers", losses.pointing, ("pointer",), 2e-3),
    ):
        measure = functools.partial(measured, loss, held)
        phase = Phase(name, batches[name], loss, rate, rate / 2, measure)
        weights |= phase.train(workdir, {part: weights[part] for part in ("model", *layers)})
        metrics |= measure(weights)
    run = from_scratch(
        script="train_cropper.py",
        steps=sum(STEPS.values()),
        seed=SEED.value,
        data="drawn receipts and pages in the fonts of one machine; training receipts of SROIE "
        "(ICDAR 2019, CC BY 4.0) and training pages of Debian's manuals, with boxes of their "
        "answers that are wrong on purpose",
        meaning="on drawn documents: losses; shares of letters and of places of answers "
        "that the tower tells, of tokens that tell answers, and of boxes written exactly",
        metrics=metrics,
    )
    trained = nnx.merge(graph, weights["model"])
    save(workdir / "cropper", trained, tokenizer, role="cropper", run=run)


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    apps.run_script(main)
