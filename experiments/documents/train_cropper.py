# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains the start cropper of the documents experiment.

    python experiments/documents/train_cropper.py --documents=data/documents --receipts=FOLDER \
        --seeds=runs/documents/seed_boxes --workdir=runs/documents/start

First documents are drawn, whose letters and answers are known because they were drawn. Then there
are phases. "letters": the tower alone says which letter stands at each place of a picture.
"places": it also says whether a place is blank, print, or the answer to which question. "seeds":
the same, also of training documents with their seed boxes. "answers": the tower rests, and the
decoder answers questions with boxes; each token of a picture says which answers stand in it. Of
real pictures the first two phases use the training receipts, for their letters only, which SROIE
tells by lines. A run that was stopped goes on. The result is the folder `cropper` in the workdir.
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
from cropvlm_jax.data.batching import SupervisedBatch
from cropvlm_jax.geometry.grammar import Grammar
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.smolvlm.config import SiglipConfig, SmolVLMConfig
from cropvlm_jax.models.smolvlm.conversations import IMAGE, SmolVLMConversations
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.training.sft import completion_loss, written_exactly

DOCUMENTS = flags.DEFINE_string("documents", None, "Folder of the suites.", required=True)
RECEIPTS = flags.DEFINE_string("receipts", None, "Folder of SROIE.", required=True)
SEEDS = flags.DEFINE_string("seeds", None, "Folder of the seed boxes.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training.", required=True)
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights and of what is drawn.")
SIDE = flags.DEFINE_enum("side", "384", ["192", "384"], "Pixels of the pictures.")

PATCH, WIDTH = 16, 192
SCALE = 2  # patches of a token's side
BATCH = 16
DRAWN = {"receipts": 6000, "pages": 3000}
TRAINING_PAGES = 4000
STEPS = {"letters": 1200, "places": 700, "seeds": 2000, "answers": 4000}
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
    """Pictures of 384 px as 144 tokens, of 192 px as 36; three million weights."""
    vision = SiglipConfig(side, PATCH, WIDTH, 3 * WIDTH, 5, 3)
    text = LlamaConfig(vocab_size, WIDTH, 2 * WIDTH, 4, 4, 2, 48, max_position_embeddings=2048)
    return SmolVLMConfig(vision, text, SCALE, image_token)


@dataclasses.dataclass(frozen=True)
class Losses:
    """The losses of the phases; weights are the model's and those of linear layers beside it.

    The layers `letters` and `places` lead from the tower's patches to what stands at their places,
    `tokens` from the tokens of a picture to where in them answers stand, and `aim` from the last
    token of a prompt to the row and the column of the answer. They are thrown away at the end.

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
        inside, metrics = _inside(params["tokens"], tokens, batch)
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


def measured(loss: Loss, batches: list[LocatingBatch], weights: dict) -> dict[str, float]:
    """The mean metrics of a loss over batches."""
    measure = jax.jit(lambda weights, batch: loss(weights, batch)[1])
    found = [jax.device_get(measure(weights, batch)) for batch in batches]
    return {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}


def _at_places(layer: dict[str, jax.Array], patches: jax.Array, kinds: jax.Array) -> jax.Array:
    """The logits of what stands at each place, for places `[B, P, C]`."""
    logits = (patches @ layer["kernel"].astype(patches.dtype)).astype(jnp.float32) + layer["bias"]
    return logits.reshape(*kinds.shape, -1)


def _inside(
    layer: dict[str, jax.Array], tokens: jax.Array, batch: LocatingBatch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """How well the tokens `[B, I, D]` of pictures tell where in them answers stand.

    For each question a token has a logit of being the one with the answer's middle, and logits of
    the row and the column inside of it.
    """
    grid, cells = math.isqrt(tokens.shape[1]), SCALE * CELLS
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


def _layer(key: jax.Array, outputs: int) -> dict[str, jax.Array]:
    """Weights of a linear layer from the width of the model."""
    kernel = jax.random.normal(key, (WIDTH, outputs)) * 0.02
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def courses(
    workdir: pathlib.Path,
    questions: dict[str, dict[str, str]],
    tokenizer: Tokenizer,
    conversations: SmolVLMConversations,
    side: int,
    seed: int,
) -> dict[str, Locating]:
    """The batches of each phase, and "held", of documents that none of them learns from."""
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
    seeds = replace(
        places, real=(0.3, 0.2), seeds=True, turned=2.0, steps=STEPS["seeds"], seed=8 * seed + 5
    )
    answers = replace(
        seeds, real=(0.2, 0.2), asks=True, smallest=0.7, steps=STEPS["answers"], seed=8 * seed + 6
    )
    held = replace(
        answers, real=(0.0, 0.0), turned=0.0, chunks=slice(HELD_CHUNKS), seed=8 * seed + 3
    )
    return {"letters": letters, "places": places, "seeds": seeds, "answers": answers, "held": held}


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
    conversations = SmolVLMConversations(tokenizer, config.image_seq_len)
    batches = courses(workdir, questions, tokenizer, conversations, side, seed)
    model = SmolVLM(config, rngs=nnx.Rngs(seed), dtype=jnp.bfloat16)
    examples = batches["letters"](STEPS["letters"]).images  # of no step
    begin(model, np.repeat(examples[..., None], 3, -1))
    graph, params = nnx.split(model)
    keys = jax.random.split(jax.random.key(seed), 4)
    weights = {
        "model": params,
        "letters": _layer(keys[0], CELLS**2 * LETTERS),
        "places": _layer(keys[1], CELLS**2 * (FIRST_ANSWER + len(asked))),
        "tokens": _layer(keys[2], len(asked) * (1 + 2 * SCALE * CELLS)),
        "aim": _layer(keys[3], 2 * CELLS * config.vision.grid),
    }
    is_picture = conversations.crop(asked[0], (0, 0)).ids == config.image_token_id
    losses = Losses(graph, int(is_picture.nonzero()[0][-1]) + 1)
    held = [batches["held"](step) for step in range(8)]
    metrics: dict[str, float] = {}
    for name, loss, layers, rate in (
        ("letters", losses.letters, ("letters", "places"), 3e-3),
        ("places", losses.places, ("letters", "places"), 3e-3),
        ("seeds", losses.places, ("letters", "places"), 3e-3),
        ("answers", losses.answers, ("tokens", "aim"), 2e-3),
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
        "that the tower tells, of tokens and of prompts that tell where answers stand, and of "
        "boxes written exactly",
        metrics=metrics,
    )
    trained = nnx.merge(graph, weights["model"])
    save(workdir / "cropper", trained, tokenizer, role="cropper", run=run)


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    apps.run_script(main)
