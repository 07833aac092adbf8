# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains the start cropper of the documents experiment.

    python experiments/documents/train_cropper.py --documents=data/documents --receipts=FOLDER \
        --seeds=runs/documents/seed_boxes --workdir=runs/documents/start

First documents are drawn, whose letters and answers are known because they were drawn. Then there
are phases. "letters": the tower alone says which letter stands at each place of a picture.
"places": it also says whether a place is blank, print, or the answer to which question. "seeds":
the same, also of training documents with their seed boxes. "closer": the same, of larger pictures.
"answers": the tower rests, and the decoder answers questions with boxes; each token of a picture
says which answers stand in it. Of real pictures the first two phases use the training receipts, for
their letters only, which SROIE tells by lines. A run that was stopped goes on. The result is the
folder `cropper` in the workdir.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from flax import nnx
from located import draw_documents, read_pages, read_receipts, write
from locating_batches import (
    Locating,
    LocatingBatch,
    all_questions,
)
from locating_losses import Losses, layers
from pretraining import Loss, Phase, begin, from_scratch, make_tokenizer, save, with_grid
from tokenizers import Tokenizer

from cropvlm_jax import apps
from cropvlm_jax.geometry.grammar import Grammar
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.smolvlm.config import SiglipConfig, SmolVLMConfig
from cropvlm_jax.models.smolvlm.conversations import IMAGE, SmolVLMConversations
from cropvlm_jax.models.smolvlm.model import SmolVLM

DOCUMENTS = flags.DEFINE_string("documents", None, "Folder of the suites.", required=True)
RECEIPTS = flags.DEFINE_string("receipts", None, "Folder of SROIE.", required=True)
SEEDS = flags.DEFINE_string("seeds", None, "Folder of the seed boxes.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training.", required=True)
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights and of what is drawn.")

PATCH, WIDTH = 16, 192
SCALE = 3  # patches of a token's side
BATCH = 16
DRAWN = {"receipts": 6000, "pages": 3000}
TRAINING_PAGES = 4000
STEPS = {"letters": 1200, "places": 700, "seeds": 2000, "closer": 700, "answers": 4000}
# Pixels of the pictures: a tower learns faster on small ones, and reads better in large ones.
SIDES = {"letters": 384, "places": 384, "seeds": 384, "closer": 480, "answers": 480}
SIDE = max(SIDES.values())
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
    """Pictures of 480 px as 10 x 10 tokens, of 384 px as 8 x 8; three million weights."""
    vision = SiglipConfig(side, PATCH, WIDTH, 3 * WIDTH, 5, 3)
    text = LlamaConfig(vocab_size, WIDTH, 2 * WIDTH, 4, 4, 2, 48, max_position_embeddings=2048)
    return SmolVLMConfig(vision, text, SCALE, image_token)


def measured(loss: Loss, batches: list[LocatingBatch], weights: dict) -> dict[str, float]:
    """The mean metrics of a loss, which is compiled already, over batches."""
    found = [jax.device_get(loss(weights, batch)[1]) for batch in batches]
    return {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}


def courses(
    workdir: pathlib.Path,
    questions: dict[str, dict[str, str]],
    tokenizer: Tokenizer,
    conversations: SmolVLMConversations,
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
        side=SIDES["letters"],
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
    closer = replace(
        seeds,
        side=SIDES["closer"],
        real=(0.4, 0.2),
        smallest=0.5,
        turned=3.0,
        steps=STEPS["closer"],
        seed=8 * seed + 7,
    )
    answers = replace(
        closer,
        real=(0.2, 0.2),
        asks=True,
        smallest=0.7,
        turned=2.0,
        steps=STEPS["answers"],
        seed=8 * seed + 6,
    )
    return {
        "letters": letters,
        "places": places,
        "seeds": seeds,
        "closer": closer,
        "answers": answers,
        "held": replace(
            answers, real=(0.0, 0.0), turned=0.0, chunks=slice(HELD_CHUNKS), seed=8 * seed + 3
        ),
    }


def main(argv: list[str]) -> None:
    del argv
    seed, workdir = SEED.value, pathlib.Path(WORKDIR.value)
    draw_documents(workdir / "drawn", DRAWN, SIDE, seed)
    if not (workdir / "receipts.npz").exists():
        receipts = read_receipts(DOCUMENTS.value, RECEIPTS.value, SIDE, SEEDS.value)
        write(workdir / "receipts.npz", receipts)
    if not (workdir / "pages.npz").exists():
        pages = read_pages(DOCUMENTS.value, SIDE, SEEDS.value, TRAINING_PAGES)
        write(workdir / "pages.npz", pages)
    questions = suite_questions(DOCUMENTS.value)
    asked = all_questions(questions)
    tokenizer = make_tokenizer(asked)
    models = {
        side: SmolVLM(
            shape(tokenizer.get_vocab_size(), tokenizer.token_to_id(IMAGE), side),
            rngs=nnx.Rngs(seed),
            dtype=jnp.bfloat16,
        )
        for side in SIDES.values()
    }
    config = models[SIDE].config
    conversations = SmolVLMConversations(tokenizer, config.image_seq_len)
    batches = courses(workdir, questions, tokenizer, conversations, seed)
    first = models[SIDES["letters"]]
    examples = batches["letters"](STEPS["letters"]).images  # of no step
    begin(first, np.repeat(examples[..., None], 3, -1))
    weights = {"model": nnx.state(first)} | layers(seed, config, len(asked))
    is_picture = conversations.crop(asked[0], (0, 0)).ids == config.image_token_id
    picture_tokens = int(is_picture.nonzero()[0][-1]) + 1
    metrics: dict[str, float] = {}
    for name, loss, beside, rate in (
        ("letters", Losses.letters, ("letters", "places"), 3e-3),
        ("places", Losses.places, ("letters", "places", "own"), 3e-3),
        ("seeds", Losses.places, ("letters", "places", "own"), 3e-3),
        ("closer", Losses.places, ("letters", "places", "own"), 1.5e-3),
        ("answers", Losses.answers, ("tokens", "aim"), 2e-3),
    ):
        side = SIDES[name]
        weights["model"] = with_grid(weights["model"], side // PATCH)
        held = dataclasses.replace(batches["held"], side=side)
        of_batch = functools.partial(loss, Losses(nnx.graphdef(models[side]), picture_tokens))
        compiled = jax.jit(of_batch)
        measure = functools.partial(measured, compiled, [held(step) for step in range(8)])
        phase = Phase(name, batches[name], of_batch, rate, rate / 2, measure)
        trained = phase.train(workdir, {part: weights[part] for part in ("model", *beside)})
        weights |= trained
        metrics |= measure(trained)
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
    nnx.update(models[SIDE], weights["model"])
    save(workdir / "cropper", models[SIDE], tokenizer, role="cropper", run=run)


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    apps.run_script(main)
