# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains the start cropper of the documents experiment, on drawn documents alone.

    python experiments/documents/train_cropper.py --documents=data/documents \
        --workdir=runs/documents/start

First documents are drawn, whose boxes are known because they were drawn. Then there are two phases.
"places": the tower alone says at each place of a picture whether it is blank, print, or the answer
to which question. "boxes": the whole model answers questions with boxes. No real picture is used;
the suites' folder only says which questions there are. A run that was stopped goes on. The result
is the folder `cropper` in the workdir.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags, logging
from flax import nnx
from locating_batches import (
    CELLS,
    FIRST_ANSWER,
    PRINT,
    QUESTIONS_EACH,
    Locating,
    LocatingBatch,
    all_questions,
    draw_documents,
)
from pretraining import Phase, begin, make_tokenizer, save

from cropvlm_jax import apps
from cropvlm_jax.geometry.grammar import Grammar
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.smolvlm.config import SiglipConfig, SmolVLMConfig
from cropvlm_jax.models.smolvlm.conversations import IMAGE, SmolVLMConversations
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.training.sft import completion_loss, reply_logits, written_exactly

DOCUMENTS = flags.DEFINE_string("documents", None, "Folder of the suites.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training.", required=True)
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights and of what is drawn.")
SIDE = flags.DEFINE_enum("side", "384", ["192", "384"], "Pixels of the pictures.")

PATCH, WIDTH = 16, 192
BATCH = 32
DRAWN = {"receipts": 6000, "pages": 6000}
STEPS = {"places": 800, "boxes": 1700}
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
    vision = SiglipConfig(side, PATCH, WIDTH, 3 * WIDTH, 5, 4)
    text = LlamaConfig(vocab_size, WIDTH, 2 * WIDTH, 3, 4, 2, 48, max_position_embeddings=2048)
    return SmolVLMConfig(vision, text, 4, image_token)


class Losses:
    """The losses of the phases; weights are `{"model": ..., "places": ...}`.

    `places` is a linear layer from the tower's patches to what stands at their places, which is
    thrown away at the end.
    """

    def __init__(self, graph: nnx.GraphDef, kinds: int) -> None:
        self._graph, self._kinds = graph, kinds

    def places(self, params: dict, batch: LocatingBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of what stands at each place; answers count most."""
        return self._places(params, self._patches(params, batch), batch)

    def boxes(self, params: dict, batch: LocatingBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the boxes' texts, and a fifth of that of the places."""
        patches = self._patches(params, batch)
        places, metrics = self._places(params, patches, batch)
        model = nnx.merge(self._graph, params["model"])
        # A picture's patches are computed once for all its questions.
        tokens = jnp.repeat(model.tokens_of_patches(patches), QUESTIONS_EACH, 0)[:, None]
        logits = reply_logits(model, batch.conversations, tokens)
        total, count = completion_loss(logits, batch.conversations)
        exact = written_exactly(logits, batch.conversations).mean()
        metrics |= {"loss": total / count, "exact": exact}
        return total / count + 0.2 * places, metrics

    def _patches(self, params: dict, batch: LocatingBatch) -> jax.Array:
        model = nnx.merge(self._graph, params["model"])
        pixels = (batch.images.astype(jnp.float32) / 127.5 - 1)[..., None]
        return model.vision(jnp.repeat(pixels, 3, -1).astype(model.dtype))

    def _places(
        self, params: dict, patches: jax.Array, batch: LocatingBatch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        layer = params["places"]
        logits = patches.astype(jnp.float32) @ layer["kernel"] + layer["bias"]
        logits = logits.reshape(*batch.places.shape, self._kinds)
        kinds = batch.places.astype(jnp.int32)
        weights = jnp.where(kinds <= PRINT, 0.3, 4.0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, kinds)
        loss = (losses * weights).sum() / weights.sum()
        answers = kinds > PRINT
        right = ((logits.argmax(-1) == kinds) & answers).sum() / answers.sum()
        return loss, {"places_loss": loss, "answers_right": right}


def main(argv: list[str]) -> None:
    del argv
    side, seed = int(SIDE.value), SEED.value
    drawn = pathlib.Path(WORKDIR.value) / "drawn"
    draw_documents(drawn, DRAWN, side, seed)
    questions = suite_questions(DOCUMENTS.value)
    asked = all_questions(questions)
    tokenizer = make_tokenizer(asked)
    config = shape(tokenizer.get_vocab_size(), tokenizer.token_to_id(IMAGE), side)
    conversations = SmolVLMConversations(tokenizer, config.image_seq_len)

    def locating(steps: int, number: int, chunks: slice = slice(HELD_CHUNKS, None)) -> Locating:
        longest = max(len(conversations.crop(question).ids) for question in asked)
        return Locating(
            conversations=conversations,
            questions=questions,
            folder=drawn,
            chunks=chunks,
            side=side,
            patch=PATCH,
            batch_size=BATCH,
            prompt_tokens=longest,
            reply_tokens=Grammar.from_tokenizer(tokenizer).max_length,
            steps=steps,
            seed=3 * seed + number,
        )

    places, boxes = locating(STEPS["places"], 0), locating(STEPS["boxes"], 1)
    model = SmolVLM(config, rngs=nnx.Rngs(seed), dtype=jnp.bfloat16)
    begin(model, np.repeat(places(places.steps).images[..., None], 3, -1))  # a batch of no step
    graph, params = nnx.split(model)
    kinds = FIRST_ANSWER + len(asked)
    kernel = jax.random.normal(jax.random.key(seed), (WIDTH, CELLS * CELLS * kinds)) * 0.02
    bias = jnp.zeros(CELLS * CELLS * kinds)
    weights = {"model": params, "places": {"kernel": kernel, "bias": bias}}
    losses = Losses(graph, kinds)
    held = [locating(1, 2, slice(HELD_CHUNKS))(step) for step in range(8)]

    def evaluate(params: dict) -> dict[str, float]:
        found = [jax.device_get(measure(params, batch)) for batch in held]
        return {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}

    measure = jax.jit(lambda params, batch: losses.boxes(params, batch)[1])
    for phase in (
        Phase("places", places, losses.places, matrices=3e-3, others=1.5e-3, evaluate=evaluate),
        Phase("boxes", boxes, losses.boxes, matrices=2e-3, others=1e-3, evaluate=evaluate),
    ):
        weights = phase.train(WORKDIR.value, weights)
    model = nnx.merge(graph, weights["model"])
    save(pathlib.Path(WORKDIR.value) / "cropper", model, tokenizer, role="cropper")


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    apps.run_script(main)
