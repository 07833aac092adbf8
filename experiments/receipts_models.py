# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Start models for `experiments/receipts.py`, from nothing but scanned receipts.

    python experiments/receipts_models.py --data=FOLDER --out=runs/receipts/start

The target learns to read on the training receipts: first single lines cut out along their boxes,
then total, date and company from the whole receipt and a crop about the line that holds them. The
cropper is random: `experiments/receipts.py:sft` teaches it boxes. The lines that hold the answers
are written as a labeller's replies, for `apps.label`. FOLDER is laid out as
`cropvlm_jax/data/sroie.py` says.
"""

import dataclasses
import json
import pathlib
import time

import jax
import numpy as np
import optax
from absl import app, flags, logging
from flax import nnx

from cropvlm_jax import boxes as box_lib
from cropvlm_jax import sft
from cropvlm_jax.data import images as image_lib
from cropvlm_jax.data import pipeline, sroie
from cropvlm_jax.hub import pretrained
from cropvlm_jax.hub.tokenizer import train_tokenizer
from cropvlm_jax.models.llama import LlamaConfig
from cropvlm_jax.models.siglip import SiglipConfig
from cropvlm_jax.models.smolvlm import SmolVLM, SmolVLMConfig
from cropvlm_jax.prompts import ANSWER_INSTRUCTION, CROP_INSTRUCTION, IMAGE, Prompts
from cropvlm_jax.training.metrics import Progress
from cropvlm_jax.training.state import TrainState

DATA = flags.DEFINE_string("data", None, "folder of the receipts", required=True)
OUT = flags.DEFINE_string("out", None, "folder for `target` and `cropper`", required=True)
STEPS = flags.DEFINE_multi_integer("steps", [1000, 600], "of reading lines, of reading fields")

SIDE, BATCH, PROMPT, REPLY = 96, 32, 128, 32  # pixels; conversations; tokens; tokens
READ = "What does the line say?"
LONGEST = 12  # characters of a line to read


def shape(tokenizer) -> SmolVLMConfig:
    """96 px pictures as 36 tokens, a million weights."""
    return SmolVLMConfig(
        vision=SiglipConfig(SIDE, 8, 96, 192, 3, 4),
        text=LlamaConfig(
            tokenizer.get_vocab_size(), 128, 256, 4, 4, 2, 32, max_position_embeddings=1024
        ),
        scale_factor=2,
        image_token_id=tokenizer.token_to_id(IMAGE),
    )


def cut(image: np.ndarray, box: np.ndarray, rng: np.random.Generator, most: float) -> np.ndarray:
    """A crop about a pixel box, jittered, its area up to `most` times larger, `[1, S, S, 3]`."""
    size = (box[2:] - box[:2]) * np.exp(rng.uniform(0.1, np.log(most) / 2, 2))
    middle = (box[2:] + box[:2]) / 2 + rng.uniform(-0.2, 0.2, 2) * (size - (box[2:] - box[:2]))
    height, width = image.shape[:2]
    x1, y1 = np.clip(middle - size / 2, 0, [width - 2, height - 2]).astype(int)
    x2, y2 = np.clip(middle + size / 2, [x1 + 2, y1 + 2], [width, height]).astype(int)
    return image_lib.tile(image[y1:y2, x1:x2], SIDE, SIDE)[0]


def batch(conversations: list, pictures: list) -> pipeline.SupervisedBatch:
    """Pads conversations and stacks them."""
    rows = [
        (
            *pipeline.pad(p.ids[: p.completion.start], PROMPT, "left"),
            *pipeline.pad(p.ids[p.completion], REPLY, "right"),
        )
        for p in conversations
    ]
    return pipeline.SupervisedBatch(
        np.stack(pictures), *(np.stack(column) for column in zip(*rows, strict=True))
    )


@dataclasses.dataclass
class Lessons:
    """What the target reads: lines, and fields with the boxes that hold them."""

    prompts: Prompts
    lines: list  # (receipt, pixel box, text)
    fields: list  # (receipt, pixel box, question, answer)
    receipts: dict  # name -> uint8 [H, W, 3]
    whole: dict  # name -> uint8 [1, S, S, 3]

    @classmethod
    def open(cls, folder: str, split: str, prompts: Prompts) -> "Lessons":
        """Reads the receipts of a split into memory."""
        source = sroie.open(folder, split)
        names, fields, receipts = set(), [], {}
        for i in range(len(source)):
            example = source[i]
            name = example["example_id"].split("/")[2]
            names.add(name)
            if name not in receipts:
                receipts[name] = image_lib.to_rgb(example["image"])
            if "box" in example and len(example["answers"][0]) <= REPLY - 4:
                size = np.array(receipts[name].shape[:2])
                box = box_lib.to_pixels(np.array(example["box"]), size)
                fields.append((name, box, example["question"], example["answers"][0]))
        lines = []
        for row in (pathlib.Path(folder) / "receipts.jsonl").read_text("utf-8").splitlines():
            receipt = json.loads(row)
            name = pathlib.Path(receipt["image"]).stem
            for line in receipt["lines"] if name in names else ():
                text = line["text"].strip()
                if 1 < len(text) <= LONGEST and text.isascii():
                    lines.append((name, np.array(line["box"]), text))
        whole = {name: image_lib.tile(image, SIDE, SIDE)[0] for name, image in receipts.items()}
        logging.info(
            "%s: %d receipts, %d lines, %d fields", split, len(names), len(lines), len(fields)
        )
        return cls(prompts, lines, fields, receipts, whole)

    def reading(self, rng: np.random.Generator) -> pipeline.SupervisedBatch:
        """Lines alone, cut out tightly."""
        pictures, conversations = [], []
        while len(pictures) < BATCH:
            name, box, text = self.lines[rng.integers(len(self.lines))]
            try:
                conversations.append(self.prompts.answer(READ, 1, text))
                pictures.append(cut(self.receipts[name], box, rng, 2.0))
            except ValueError:  # a text that no prompt takes
                continue
        return batch(conversations, pictures)

    def answering(
        self, rng: np.random.Generator, most: float = 30.0, size: int = BATCH
    ) -> pipeline.SupervisedBatch:
        """Fields from the whole receipt and a crop."""
        pictures, conversations = [], []
        for i in rng.integers(len(self.fields), size=size):
            name, box, question, answer = self.fields[i]
            conversations.append(self.prompts.answer(question, 2, answer))
            crop = cut(self.receipts[name], box, rng, most)
            pictures.append(np.concatenate([self.whole[name], crop]))
        return batch(conversations, pictures)


def train(model: SmolVLM, lessons: Lessons, held_out: Lessons) -> SmolVLM:
    """Teaches the target to read."""
    total = sum(STEPS.value)
    schedule = optax.warmup_cosine_decay_schedule(0, 2e-3, 50, total, 1e-4)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01)
    )
    graphdef, params = nnx.split(model)
    state = TrainState.create(params, optimizer)
    step = jax.jit(sft.make_sft_step(graphdef, optimizer), donate_argnums=0)
    evaluate = jax.jit(lambda params, b: sft.completion_loss(nnx.merge(graphdef, params), b))
    progress, began, losses = Progress(total), time.monotonic(), []
    for i in range(total):
        rng = np.random.default_rng(i)
        # Lines go on while fields are learned: there are many times more of them.
        fields = i >= STEPS.value[0] and i % 2
        made = lessons.answering(rng) if fields else lessons.reading(rng)
        state, metrics = step(state, made, jax.random.key(i))
        losses.append(metrics["loss"])
        progress.update(i + 1, f"loss {float(losses[-1]):.3f}")
        if (i + 1) % 200 == 0 or i + 1 == total:
            scores = []
            for most in (1.5, 4.0, 30.0, 400.0):
                made = held_out.answering(np.random.default_rng(0), most, 128)
                loss, tokens = evaluate(state.params, made)
                scores.append(f"x{most:g} {float(loss / tokens):.3f}")
            loss, tokens = evaluate(state.params, held_out.reading(np.random.default_rng(0)))
            logging.info(
                "after %d steps, %.0f s: training loss %.3f; nats a token on held-out receipts: "
                "lines %.3f, fields in crops up to %s",
                i + 1, time.monotonic() - began, float(np.mean(jax.device_get(losses[-200:]))),
                float(loss / tokens), ", ".join(scores),
            )  # fmt: skip
    return nnx.merge(graphdef, state.params)


def write_replies(split: str) -> None:
    """Writes the boxes of the lines that hold a split's answers as replies, in percent."""
    source = sroie.open(DATA.value, split)
    with (pathlib.Path(OUT.value) / f"replies_{split}.jsonl").open("w") as file:
        for row in source.rows:
            if "box" in row:
                reply = {"example_id": row["example_id"], "reply": str(list(row["box"]))}
                file.write(json.dumps(reply) + "\n")


def main(argv: list[str]) -> None:
    del argv
    texts = [
        f"User:{question}\n{instruction}\nAssistant: [12, 5, 40, 33]."
        for question in (READ, *sroie.QUESTIONS.values())
        for instruction in (ANSWER_INSTRUCTION, CROP_INSTRUCTION)
    ]
    tokenizer = train_tokenizer(texts, 640)
    config = shape(tokenizer)
    prompts = Prompts(tokenizer, config.image_seq_len)
    for seed, name in enumerate(("target", "cropper")):
        model = SmolVLM(config, rngs=nnx.Rngs(seed))
        for table, std in (
            (model.text.embedding, 0.3),
            (model.vision.position_embedding, 0.5),
        ):
            table.embedding[...] *= std * table.features**0.5
        if name == "target":
            lessons = (Lessons.open(DATA.value, split, prompts) for split in ("train", "val"))
            model = train(model, *lessons)
        folder = pathlib.Path(OUT.value) / name
        folder.mkdir(parents=True, exist_ok=True)
        pretrained.write_processor_files(folder, config, tokenizer, longest_edge=SIDE)
        pretrained.export(folder, model, pretrained.Pretrained.open(folder))
    for split in ("train", "val"):
        write_replies(split)


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    app.run(main)
