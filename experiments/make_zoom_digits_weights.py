# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes zoom_digits start weights from scratch: a reader and a cropper.

    python experiments/make_zoom_digits_weights.py --out=FOLDER

The target learns to read supervised, with a curriculum over crop size (tight crops first, then up
to the whole picture). The cropper first learns to find frames and to match their colours, on exact
boxes of enlarged frames; then it imitates *noisy* boxes: jittered, enlarged as the paper enlarges
its seed boxes, some of them plainly wrong, so that GRPO has something to win. docs/lab.md tells
why.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from digit_lessons import misplaced, noisy_box, supervised_batch, train
from flax import nnx

from cropvlm_jax import apps, geometry
from cropvlm_jax.data import batching
from cropvlm_jax.data.sources import zoom_digits
from cropvlm_jax.grpo import rollout
from cropvlm_jax.hub import tokenizer as tokenizer_lib
from cropvlm_jax.hub.export import export, write_processor_files
from cropvlm_jax.hub.model_card import Run
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.models.smolvlm.config import SmolVLMConfig
from cropvlm_jax.models.smolvlm.conversations import (
    ANSWER_INSTRUCTION,
    CROP_INSTRUCTION,
    IMAGE,
    SmolVLMConversations,
)
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.pixels import host
from cropvlm_jax.training import sft

OUT = flags.DEFINE_string("out", None, "Folder for `target` and `cropper`.", required=True)
MODELS = flags.DEFINE_multi_enum(
    "models",
    ["target", "cropper"],
    ["target", "cropper"],
    "Which of the two to make; may be repeated.",
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, scenes and noise.")

EMBEDDING_STD = 0.3  # 0.02 never binds colours to places at this width
POINT = "What is in the frame?"
VOCAB_SIZE = 640
CROP_PROMPT, BOX_REPLY, ANSWER_PROMPT, ANSWER_REPLY = 52, 19, 64, 4  # tokens

Scene = tuple[np.ndarray, list[tuple[str, str, zoom_digits.Box]]]  # picture; question, answer, box


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of a curriculum."""

    steps: int
    digits: int  # of a scene
    expansion: tuple[float, float]  # area factors of the boxes, log-uniform
    jitter: float = 0.0  # of the boxes' centres, in box sides
    wrong: float = 0.0  # share of the boxes at a random place
    whole: float = 0.0  # share of the crops that are the whole picture
    alone: float = 0.0  # share of the crops shown without the whole picture before them
    enlarge: tuple[float, float] = (1.0, 1.0)  # of the frames
    point: bool = False  # reply with each frame's colour and place instead of a box


@dataclasses.dataclass(frozen=True)
class Course:
    """Stages under one warm-up and cosine decay of the learning rate."""

    learning_rate: float
    stages: tuple[Stage, ...]


TARGET = (
    Course(
        3e-3,
        (
            Stage(1000, 4, (1.0, 1.5), jitter=0.05, alone=1.0),
            Stage(300, 4, (1.0, 4.0), jitter=0.15, alone=0.3),
            Stage(600, 4, (1.0, 15.0), jitter=0.2, alone=0.2),
            Stage(1200, 4, (1.0, 60.0), jitter=0.25, alone=0.2, whole=0.1),
        ),
    ),
)
CROPPER = (
    Course(2e-3, (Stage(300, 1, (1.0, 1.0), enlarge=(2.0, 5.0)),)),
    Course(2e-3, (Stage(1000, 4, (1.0, 1.0), enlarge=(1.2, 2.2), point=True),)),
    Course(
        1.5e-3,
        (Stage(350, 4, (1.0, 1.0), enlarge=(1.0, 2.2)), Stage(350, 4, (1.0, 1.0))),
    ),
    Course(6e-4, (Stage(250, 4, (4.0, 45.0), jitter=0.3, wrong=0.25),)),
)
BATCH = 64


def stage_box(rng: np.random.Generator, box: np.ndarray, stage: Stage) -> np.ndarray:
    """The box of `stage` for a true percent box int `[4]`."""
    if rng.random() < stage.wrong:
        box = misplaced(rng, box)
    return noisy_box(rng, box, stage.expansion, stage.jitter)


def reading_batch(
    scenes: list[Scene],
    stage: Stage,
    prompts: SmolVLMConversations,
    side: int,
    rng: np.random.Generator,
) -> batching.SupervisedBatch:
    """What the target reads: the whole picture, a noisy crop, the question."""
    pictures, conversations = [], []
    for image, questions in scenes:
        whole = host.tile(image, side, side)[0]
        for question, answer, box in questions:
            box = stage_box(rng, np.array(box), stage)
            if rng.random() < stage.whole:
                box = np.array(geometry.FULL)
            x1, y1, x2, y2 = geometry.to_pixels(box, np.array(image.shape[:2]))
            crop = host.tile(image[y1:y2, x1:x2], side, side)[0]
            if rng.random() < stage.alone:
                pictures.append(np.concatenate([crop, crop]))  # no token asks for the second
                conversations.append(prompts.answer(question, 1, answer))
            else:
                pictures.append(np.concatenate([whole, crop]))
                conversations.append(prompts.answer(question, 2, answer))
    return supervised_batch(pictures, conversations, ANSWER_PROMPT, ANSWER_REPLY)


def locating_batch(
    scenes: list[Scene],
    stage: Stage,
    prompts: SmolVLMConversations,
    side: int,
    rng: np.random.Generator,
) -> batching.SupervisedBatch:
    """What the cropper imitates: the whole picture, the question, a noisy box."""
    pictures, conversations = [], []
    for image, questions in scenes:
        picture = host.tile(image, side, side)[0]
        if stage.point:
            pictures.append(picture)
            conversations.append(prompts.crop(POINT, (0, 0), pointing(questions)))
            continue
        for question, _, box in questions:
            box = stage_box(rng, np.array(box), stage)
            pictures.append(picture)
            conversations.append(prompts.crop(question, (0, 0), geometry.to_text(box)))
    return supervised_batch(pictures, conversations, CROP_PROMPT, BOX_REPLY)


def pointing(questions: list[tuple[str, str, zoom_digits.Box]]) -> str:
    """Where each frame is in tenths of the picture, "red38 blue91 ...".

    A colour's own token predicts the place: one look at the picture, where a box needs its tokens
    to fetch the colour from the question first. Neither half of that is learned without the other.
    """
    words = []
    for question, _, (x1, y1, x2, y2) in questions:
        (color,) = set(zoom_digits.COLORS) & set(question.split())
        words.append(f"{color}{(x1 + x2) // 20}{(y1 + y2) // 20}")
    return " ".join(words)


def preparer(
    stages: tuple[Stage, ...],
    make: Callable[..., batching.SupervisedBatch],
    seed: int,
) -> Callable[[int], batching.SupervisedBatch]:
    """What prepares the batch of a step of a course."""
    jobs = [(n, stage, step) for n, stage in enumerate(stages) for step in range(stage.steps)]

    def prepare(job: int) -> batching.SupervisedBatch:
        number, stage, step = jobs[job]
        rng = np.random.default_rng([seed, number, step])
        source = zoom_digits.ZoomDigits(
            "train", 1 << 30, seed + 1000 * (1 + number), (stage.digits,) * 2, enlarge=stage.enlarge
        )
        per_scene = 1 if stage.point else stage.digits
        picked = rng.integers(len(source), size=BATCH // per_scene)
        return make([source.scene(i) for i in picked], stage, rng=rng)

    return prepare


def described(name: str, seed: int, scores: dict[str, float]) -> Run:
    """What the model card of a finished model says of its making."""
    courses = TARGET if name == "target" else CROPPER
    steps = sum(stage.steps for course in courses for stage in course.stages)
    meaning = "coverage of the true box, share of boxes that hold its centre, area"
    if name == "target":
        meaning = "accuracy where the crop has so many times the area of the true box; x0: no crop"
    return Run(
        title=f"From scratch, {steps:,} steps",
        facts={
            "made by": "`experiments/make_zoom_digits_weights.py`",
            "seed": str(seed),
            "data": "drawn scenes of handwritten digits in coloured frames, `zoom_digits`",
            "metrics": meaning,
        },
        metrics=scores,
        measured_after=steps,
        licence="apache-2.0",
    )


def reading_accuracy(
    model: SmolVLM, scenes: list[Scene], prompts: SmolVLMConversations
) -> dict[str, float]:
    """Accuracy on unseen digits against the crop's area factor (x0: the whole picture)."""

    @jax.jit
    def correct(batch: batching.SupervisedBatch) -> jax.Array:
        logits = sft.reply_logits(model, batch)[:, 1]  # after the space
        return (jnp.argmax(logits, -1) == batch.completion[:, 1]).mean()

    scores = {}
    for factor in (1, 2, 4, 10, 20, 45, 0):
        stage = Stage(0, 4, (max(factor, 1),) * 2, whole=float(factor == 0))
        rng = np.random.default_rng(0)
        batch = reading_batch(scenes, stage, prompts, model.config.vision.image_size, rng)
        scores[f"x{factor}"] = float(correct(batch))
    return scores


def locating_scores(
    model: SmolVLM, scenes: list[Scene], prompts: SmolVLMConversations, grammar: geometry.Grammar
) -> dict[str, float]:
    """Greedy boxes on unseen scenes: coverage of the true box, hit rate of its centre, area."""
    side = model.config.vision.image_size
    plain = Stage(0, 4, (1.0, 1.0))
    batch = locating_batch(scenes, plain, prompts, side, np.random.default_rng(0))
    truth = np.array([box for _, questions in scenes for _, _, box in questions])

    @jax.jit
    def propose(batch: batching.SupervisedBatch) -> jax.Array:
        image_tokens = model.encode_images(batch.images)
        found = rollout.likeliest(model, grammar, image_tokens, batch.prompt, batch.prompt_valid)
        return found.boxes[:, 0, 0]

    boxes = np.asarray(propose(batch))
    middle = (truth[:, :2] + truth[:, 2:]) / 2
    hit = ((boxes[:, :2] <= middle) & (middle <= boxes[:, 2:])).all(-1)
    coverage, area = geometry.coverage(boxes, truth), geometry.area(boxes)
    means = {"coverage": coverage, "hit": hit, "area": area}
    return {name: float(values.mean()) for name, values in means.items()}


def corpus() -> Iterator[str]:
    """All that the tiny tokenizer must write well."""
    rng = np.random.default_rng(0)
    for template in zoom_digits.QUESTIONS:
        for color in zoom_digits.COLORS:
            question = template.format(color=color)
            for text in (CROP_INSTRUCTION, ANSWER_INSTRUCTION):
                yield f"User:{question}\n{text}\nAssistant:"
            yield " " + geometry.to_text(rng.integers(0, 101, 4))


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.INFO)
    tokenizer = tokenizer_lib.train_tokenizer(corpus(), VOCAB_SIZE)
    shape = SmolVLMConfig.tiny(tokenizer.get_vocab_size(), tokenizer.token_to_id(IMAGE))
    prompts = SmolVLMConversations(tokenizer, shape.image_seq_len)
    source = zoom_digits.ZoomDigits("validation", 128, seed=SEED.value)
    scenes = [source.scene(i) for i in range(len(source))]
    side = shape.vision.image_size
    for name in MODELS.value:
        if name == "target":
            # A reader needs no match of colours: its heads are narrower.
            text = dataclasses.replace(shape.text, num_key_value_heads=2, head_dim=16)
            config, position_std = dataclasses.replace(shape, text=text), 0.3
            courses, make = TARGET, functools.partial(reading_batch, prompts=prompts, side=side)
            evaluate = functools.partial(reading_accuracy, scenes=scenes, prompts=prompts)
        else:
            # At 0.3 and more than 1e-3 it learns colours and never places.
            config, position_std = shape, 1.0
            courses, make = CROPPER, functools.partial(locating_batch, prompts=prompts, side=side)
            grammar = geometry.Grammar.from_tokenizer(tokenizer)
            evaluate = functools.partial(
                locating_scores, scenes=scenes, prompts=prompts, grammar=grammar
            )
        model = SmolVLM(config, rngs=nnx.Rngs(SEED.value))
        for table, std in (
            (model.text.embedding, EMBEDDING_STD),
            (model.vision.position_embedding, position_std),
        ):
            table.embedding[...] *= std * table.features**0.5
        for number, course in enumerate(courses):
            logging.info("%s: course %d of %d", name, number + 1, len(courses))
            prepare = preparer(course.stages, make, SEED.value + 10_000 * number)
            steps = sum(stage.steps for stage in course.stages)
            model, scores = train(model, prepare, steps, course.learning_rate, evaluate)
        folder = pathlib.Path(OUT.value) / name
        folder.mkdir(parents=True, exist_ok=True)
        write_processor_files(folder, config, tokenizer, longest_edge=side)
        role = "cropper" if name == "cropper" else "reader"
        run = described(name, SEED.value, scores)
        export(folder, model, Pretrained.open(folder), role=role, run=run)
        logging.info("%s is in %s", name, folder)


if __name__ == "__main__":
    apps.run_script(main)
