# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes zoom_digits start weights from scratch: a reader and a cropper.

    python experiments/make_zoom_digits_weights.py --out=FOLDER

The target learns to read supervised, with a curriculum over crop size (tight crops first, then up
to the whole picture). The cropper learns from *noisy* boxes only: jittered, enlarged as the paper
enlarges its seed boxes, some of them plainly wrong; cleaner and larger frames come first. The
cropper's curriculum does not bind colours to places yet: BUILD.md tells what was tried.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from flax import nnx
from PIL import Image

from cropvlm_jax import boxes as box_lib
from cropvlm_jax import sft
from cropvlm_jax.data import images as image_lib
from cropvlm_jax.data import pipeline, zoom_digits
from cropvlm_jax.grpo import rollout
from cropvlm_jax.hub import pretrained
from cropvlm_jax.hub import tokenizer as tokenizer_lib
from cropvlm_jax.models.smolvlm import SmolVLM, SmolVLMConfig
from cropvlm_jax.prompts import ANSWER_INSTRUCTION, CROP_INSTRUCTION, IMAGE, Prompt, Prompts
from cropvlm_jax.training.state import TrainState

OUT = flags.DEFINE_string("out", None, "folder for `target` and `cropper`", required=True)
MODELS = flags.DEFINE_list("models", ["target", "cropper"], "which to make")
LEARNING_RATE = flags.DEFINE_float("learning_rate", 3e-3, "peak")
SEED = flags.DEFINE_integer("seed", 0, "of weights, scenes and noise")

EMBEDDING_STD = 0.3  # 0.02 never binds colours to places at this width
VOCAB_SIZE = 640
CROP_PROMPT, BOX_REPLY, ANSWER_PROMPT, ANSWER_REPLY = 52, 19, 64, 4  # tokens

Scene = tuple[np.ndarray, list[tuple[str, str, zoom_digits.Box]]]  # picture; question, answer, box


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of a curriculum."""

    steps: int
    digits: tuple[int, int]  # digits of a scene, least and most
    expansion: tuple[float, float]  # area factors of the boxes, log-uniform
    jitter: float = 0.0  # of the boxes' centres, in box sides
    wrong: float = 0.0  # share of the boxes at a random place
    whole: float = 0.0  # share of the crops that are the whole picture
    alone: float = 0.0  # share of the crops shown without the whole picture before them
    window: tuple[float, float] = (1.0, 1.0)  # side of the part of the scene that is shown
    dense: bool = False  # the scene's four frames fill the picture, so that only colour decides


TARGET = (
    Stage(500, (4, 4), (1.0, 1.5), jitter=0.05, alone=1.0),
    Stage(300, (4, 4), (1.0, 4.0), jitter=0.15, alone=0.3),
    Stage(600, (4, 4), (1.0, 15.0), jitter=0.2, alone=0.2),
    Stage(1200, (4, 4), (1.0, 60.0), jitter=0.25, alone=0.2, whole=0.1),
)
CROPPER = (
    Stage(600, (4, 4), (1.0, 1.0), dense=True),
    Stage(400, (4, 4), (2.0, 2.5), window=(0.25, 0.7)),
    Stage(600, (4, 4), (2.5, 2.5), window=(0.6, 1.0)),
    Stage(300, (4, 4), (4.0, 45.0), jitter=0.3, wrong=0.25),
)
BATCH = 64


def noisy_box(rng: np.random.Generator, box: np.ndarray, stage: Stage) -> np.ndarray:
    """The box of `stage` for a true percent box int `[4]`."""
    if rng.random() < stage.wrong:
        side = box[2:] - box[:2]
        low = rng.integers(0, 101 - side)
        box = np.concatenate([low, low + side])
    factor = np.exp(rng.uniform(*np.log(stage.expansion)))
    box = box_lib.expand(box, factor)
    side = box[2:] - box[:2]
    shift = np.rint(rng.uniform(-stage.jitter, stage.jitter, 2) * side).astype(int)
    shift = np.clip(shift, -box[:2], 100 - box[2:])
    return box + np.tile(shift, 2)


def supervised_batch(
    pictures: list[np.ndarray], conversations: list[Prompt], prompt_length: int, reply_length: int
) -> sft.SupervisedBatch:
    """B conversations and their pictures `[N, S, S, 3]` as one batch."""
    rows = [
        (
            *pipeline.pad(p.ids[: p.completion.start], prompt_length, "left"),
            *pipeline.pad(p.ids[p.completion], reply_length, "right"),
        )
        for p in conversations
    ]
    columns = (np.stack(column) for column in zip(*rows, strict=True))
    return sft.SupervisedBatch(np.stack(pictures), *columns)


def window(
    rng: np.random.Generator, image: np.ndarray, box: np.ndarray, stage: Stage
) -> tuple[np.ndarray, np.ndarray]:
    """A random part of a scene that holds the frame in question, and the frame's box in it."""
    size = np.array(image.shape[:2])
    part = np.maximum(rng.uniform(*stage.window) * size, 1).astype(int)
    left, top, right, bottom = box_lib.to_pixels(box, size)
    y = rng.integers(max(0, bottom - part[0]), min(top, size[0] - part[0]) + 1)
    x = rng.integers(max(0, right - part[1]), min(left, size[1] - part[1]) + 1)
    inside = np.array([left - x, top - y, right - x, bottom - y])
    return image[y : y + part[0], x : x + part[1]], box_lib.from_pixels(inside, part)


def gather(rng: np.random.Generator, image: np.ndarray, questions: list, side: int) -> Scene:
    """A small picture `[side, side, 3]` with the four frames of a scene in its quarters."""
    half, size = side // 2, np.array(image.shape[:2])
    picture, asked = image[:side, :side].copy(), []
    for number, (question, answer, box) in enumerate(questions):
        left, top, right, bottom = box_lib.to_pixels(np.array(box), size)
        frame = Image.fromarray(image[top:bottom, left:right])
        edge = int(rng.integers(round(0.55 * half), round(0.9 * half)))
        y, x = np.array([number // 2, number % 2]) * half + rng.integers(0, half - edge + 1, 2)
        picture[y : y + edge, x : x + edge] = frame.resize((edge, edge), Image.Resampling.LANCZOS)
        inside = np.array([x, y, x + edge, y + edge])
        asked.append((question, answer, tuple(box_lib.from_pixels(inside, np.full(2, side)))))
    return picture, asked


def reading_batch(
    scenes: list[Scene], stage: Stage, prompts: Prompts, side: int, rng: np.random.Generator
) -> sft.SupervisedBatch:
    """What the target reads: the whole picture, a noisy crop, the question."""
    pictures, conversations = [], []
    for image, questions in scenes:
        whole = image_lib.tile(image, side, side)[0]
        for question, answer, box in questions:
            box = noisy_box(rng, np.array(box), stage)
            if rng.random() < stage.whole:
                box = np.array(box_lib.FULL)
            x1, y1, x2, y2 = box_lib.to_pixels(box, np.array(image.shape[:2]))
            crop = image_lib.tile(image[y1:y2, x1:x2], side, side)[0]
            if rng.random() < stage.alone:
                pictures.append(np.concatenate([crop, crop]))  # no token asks for the second
                conversations.append(prompts.answer(question, 1, answer))
            else:
                pictures.append(np.concatenate([whole, crop]))
                conversations.append(prompts.answer(question, 2, answer))
    return supervised_batch(pictures, conversations, ANSWER_PROMPT, ANSWER_REPLY)


def locating_batch(
    scenes: list[Scene], stage: Stage, prompts: Prompts, side: int, rng: np.random.Generator
) -> sft.SupervisedBatch:
    """What the cropper imitates: the whole picture, the question, a noisy box."""
    pictures, conversations = [], []
    for image, questions in scenes:
        if stage.dense:
            image, questions = gather(rng, image, questions, side)
        for question, _, box in questions:
            picture, box = window(rng, image, np.array(box), stage)
            box = noisy_box(rng, box, stage)
            pictures.append(image_lib.tile(picture, side, side)[0])
            conversations.append(prompts.crop(question, (0, 0), box_lib.to_text(box)))
    return supervised_batch(pictures, conversations, CROP_PROMPT, BOX_REPLY)


def batches(
    stages: tuple[Stage, ...],
    make: Callable[..., sft.SupervisedBatch],
    seed: int,
) -> Iterator[sft.SupervisedBatch]:
    """The batches of a curriculum in order, prepared one ahead in a thread."""

    def prepare(number: int, stage: Stage, step: int) -> sft.SupervisedBatch:
        rng = np.random.default_rng([seed, number, step])
        source = zoom_digits.ZoomDigits("train", 1 << 30, seed + 1000 * (1 + number), stage.digits)
        scenes, questions = [], 0
        while questions < BATCH:
            image, asked = source.scene(int(rng.integers(len(source))))
            asked = asked[: BATCH - questions]
            scenes.append((image, asked))
            questions += len(asked)
        return make(scenes, stage, rng=rng)

    jobs = [(n, stage, step) for n, stage in enumerate(stages) for step in range(stage.steps)]
    with futures.ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(prepare, *jobs[0])
        for job in jobs[1:]:
            ready, ahead = ahead, pool.submit(prepare, *job)
            yield ready.result()
        yield ahead.result()


def train(
    model: SmolVLM,
    stages: tuple[Stage, ...],
    make: Callable[..., sft.SupervisedBatch],
    learning_rate: float,
    evaluate: Callable[[SmolVLM], str],
    seed: int,
) -> SmolVLM:
    """Trains through a curriculum and returns the trained model."""
    steps = sum(stage.steps for stage in stages)
    schedule = optax.warmup_cosine_decay_schedule(0, learning_rate, 100, steps, learning_rate / 20)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01)
    )
    graphdef, params = nnx.split(model)
    state = TrainState.create(params, optimizer)
    step = sft.make_sft_step(graphdef, optimizer)
    start, losses = time.time(), []
    for i, batch in enumerate(batches(stages, make, seed), start=1):
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
        if i % 100 == 0 or i == steps:
            loss, losses = float(np.mean(jax.device_get(losses))), []
            score = ""
            if i % 500 == 0 or i == steps:
                score = evaluate(nnx.merge(graphdef, state.params))
            rate = (time.time() - start) / i
            logging.info("%d/%d loss %.4f (%.2f s/step) %s", i, steps, loss, rate, score)
    return nnx.merge(graphdef, state.params)


def reading_accuracy(model: SmolVLM, scenes: list[Scene], prompts: Prompts) -> str:
    """Accuracy on unseen digits against the crop's area factor (x0: the whole picture)."""

    @jax.jit
    def correct(batch: sft.SupervisedBatch) -> jax.Array:
        logits = sft.completion_logits(model, batch)[:, 1]  # after the space
        return (jnp.argmax(logits, -1) == batch.completion[:, 1]).mean()

    scores = []
    for factor in (1, 2, 4, 10, 20, 45, 0):
        stage = Stage(0, (4, 4), (max(factor, 1),) * 2, whole=float(factor == 0))
        rng = np.random.default_rng(0)
        batch = reading_batch(scenes, stage, prompts, model.config.vision.image_size, rng)
        scores.append(f"x{factor} {float(correct(batch)):.3f}")
    return " ".join(scores)


def locating_scores(
    model: SmolVLM, scenes: list[Scene], prompts: Prompts, grammar: box_lib.Grammar
) -> str:
    """Greedy boxes on unseen scenes: coverage of the true box, hit rate of its centre, area."""
    side = model.config.vision.image_size
    plain = Stage(0, (4, 4), (1.0, 1.0))
    batch = locating_batch(scenes, plain, prompts, side, np.random.default_rng(0))
    truth = np.array([box for _, questions in scenes for _, _, box in questions])

    @jax.jit
    def propose(batch: sft.SupervisedBatch) -> jax.Array:
        prefix = rollout.read_prompt(model, batch.images, batch.prompt, batch.prompt_valid)
        key = jax.random.key(0)
        return rollout.sample(model, grammar, prefix, batch.prompt[:, -1], key, 1, 0.0).boxes[:, 0]

    boxes = np.asarray(propose(batch))
    middle = (truth[:, :2] + truth[:, 2:]) / 2
    hit = ((boxes[:, :2] <= middle) & (middle <= boxes[:, 2:])).all(-1)
    coverage, area = box_lib.coverage(boxes, truth), box_lib.area(boxes)
    return f"coverage {coverage.mean():.3f} hit {hit.mean():.3f} area {area.mean():.3f}"


def corpus() -> Iterator[str]:
    """All that the tiny tokenizer must write well."""
    rng = np.random.default_rng(0)
    for template in zoom_digits.QUESTIONS:
        for color in zoom_digits.COLORS:
            question = template.format(color=color)
            for text in (CROP_INSTRUCTION, ANSWER_INSTRUCTION):
                yield f"User:{question}\n{text}\nAssistant:"
            yield " " + box_lib.to_text(rng.integers(0, 101, 4))


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.INFO)
    tokenizer = tokenizer_lib.train_tokenizer(corpus(), VOCAB_SIZE)
    config = SmolVLMConfig.tiny(tokenizer.get_vocab_size(), tokenizer.token_to_id(IMAGE))
    prompts = Prompts(tokenizer, config.image_seq_len)
    grammar = box_lib.Grammar.from_tokenizer(tokenizer)
    source = zoom_digits.ZoomDigits("validation", 128, seed=SEED.value)
    scenes = [source.scene(i) for i in range(len(source))]
    side = config.vision.image_size
    curricula = {
        "target": (
            TARGET,
            functools.partial(reading_batch, prompts=prompts, side=side),
            functools.partial(reading_accuracy, scenes=scenes, prompts=prompts),
        ),
        "cropper": (
            CROPPER,
            functools.partial(locating_batch, prompts=prompts, side=side),
            functools.partial(locating_scores, scenes=scenes, prompts=prompts, grammar=grammar),
        ),
    }
    for name in MODELS.value:
        stages, make, evaluate = curricula[name]
        model = SmolVLM(config, rngs=nnx.Rngs(SEED.value))
        for table in (model.text.embedding, model.vision.position_embedding):
            table.embedding[...] *= EMBEDDING_STD * table.features**0.5
        model = train(model, stages, make, LEARNING_RATE.value, evaluate, SEED.value)
        folder = pathlib.Path(OUT.value) / name
        folder.mkdir(parents=True, exist_ok=True)
        pretrained.write_processor_files(folder, config, tokenizer, longest_edge=side)
        pretrained.export(folder, model, pretrained.Pretrained.open(folder))
        logging.info("%s is in %s", name, folder)


if __name__ == "__main__":
    app.run(main)
