# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes start weights for scenes that need none, one or several looks: a reader and two croppers.

    python experiments/make_look_weights.py --out=FOLDER

They go on from the bundled models of `make_zoom_digits_weights.py`; `look_lessons.py` says what
they learn. The reader reads up to three crops beside the picture. The cropper imitates noisy boxes
in noisy numbers. That of two looks goes on from it, on tiny frames alone.

A run that was cut off goes on from where it was when the command is given again.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
from absl import flags, logging
from digit_lessons import supervised_batch, train
from look_lessons import (
    ANSWER_PROMPT,
    ANSWER_REPLY,
    BOX_REPLY,
    CROP_PROMPT,
    CROPPER,
    CROPS,
    READER,
    SCENES,
    SECOND_LOOKS,
    SIDE,
    Course,
    crops,
    locating_batch,
    preparer,
    reading_batch,
    true_boxes,
)

from cropvlm_jax import CropVLM, apps, geometry
from cropvlm_jax.data import batching, sources
from cropvlm_jax.data.source import Box
from cropvlm_jax.data.sources.zoom_digits_looks import Asked
from cropvlm_jax.grpo import rollout
from cropvlm_jax.hub.export import export
from cropvlm_jax.hub.model_card import Run
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.hub.replies import Replies
from cropvlm_jax.models.conversations import Conversations
from cropvlm_jax.models.vlm import VLM
from cropvlm_jax.training import sft

NAMES = ("target", "cropper", "cropper_deep")
OUT = flags.DEFINE_string("out", None, "Folder for the models' folders.", required=True)
MODELS = flags.DEFINE_multi_enum(
    "models", NAMES, NAMES, "Which of the models to make, in this order; may be repeated."
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of scenes and noise.")
STEPS = flags.DEFINE_integer("steps", None, "Fewer steps a course, to try the script.")


def reading_accuracy(model: VLM, prompts: Conversations, scenes: int = 64) -> dict[str, float]:
    """Accuracy on unseen digits, by set and by what is shown beside the picture."""

    @jax.jit
    def right(batch: batching.SupervisedBatch) -> jax.Array:
        return sft.written_exactly(sft.reply_logits(model, batch), batch)

    scores = {}
    for name in SCENES:
        source = sources.open_drawn(name, "validation", scenes)
        drawn = [source.scene(index) for index in range(scenes)]  # type: ignore[attr-defined]
        for view in ("none", "one", "right", "right_x4", "hull"):
            pictures, conversations = [], []
            for image, questions in drawn:
                seen = crops(image, [geometry.FULL, *boxes_of(questions[0], view)])
                pictures.append(np.stack(seen + seen[:1] * (1 + CROPS - len(seen))))
                asked, answer = questions[0].question, questions[0].answer
                conversations.append(prompts.answer(asked, len(seen), answer))
            batch = supervised_batch(pictures, conversations, ANSWER_PROMPT, ANSWER_REPLY)
            scores[f"{name.removeprefix('zoom_digits_')}_{view}"] = float(right(batch).mean())
    return scores


def boxes_of(asked: Asked, view: str) -> Sequence[Box]:
    """The crops that a view shows beside the picture."""
    boxes = geometry.in_order(true_boxes(asked))
    if view == "right_x4":
        boxes = geometry.in_order([geometry.expand(np.array(box), 4) for box in boxes])
    hull = (asked.around or asked.box,)
    return {"none": (), "one": boxes[:1], "hull": hull}.get(view, boxes)


def locating_scores(
    model: VLM, prompts: Conversations, grammar: geometry.Grammar
) -> dict[str, float]:
    """What the cropper makes of unseen scenes.

    Args:
        model: The cropper.
        prompts: Its conversations.
        grammar: Of replies of none to two boxes.

    Returns:
        By set: the share of the true boxes whose centre is in a box of the likeliest reply, and how
        many boxes it has.
    """

    @jax.jit
    def propose(batch: batching.SupervisedBatch) -> rollout.Rollouts:
        tokens = model.encode_images(batch.images)
        return rollout.likeliest(model, grammar, tokens, batch.prompt, batch.prompt_valid)

    scores = {}
    for name in SCENES:
        source = sources.open_drawn(name, "validation", 64)
        asked = [source[index] for index in range(len(source))]
        pictures = [np.stack(crops(example["image"], [geometry.FULL])) for example in asked]
        texts = [prompts.crop(example["question"], (0, 0), "[0, 0, 1, 1].") for example in asked]
        found = propose(supervised_batch(pictures, texts, CROP_PROMPT, BOX_REPLY))
        hits = []
        for example, boxes, count in zip(asked, found.boxes[:, 0], found.count[:, 0], strict=True):
            for truth in example["boxes"] or [example["box"]]:
                middle = (np.array(truth[:2]) + np.array(truth[2:])) / 2
                named = np.asarray(boxes)[: int(count)]
                inside = (named[:, :2] <= middle) & (middle <= named[:, 2:])
                hits.append(bool(inside.all(-1).any()))
        short = name.removeprefix("zoom_digits_")
        scores[f"{short}_hit"] = float(np.mean(hits))
        scores[f"{short}_boxes"] = float(np.mean(found.count))
    return scores


def two_look_scores(model: VLM, start: Pretrained) -> dict[str, float]:
    """What two looks make of unseen tiny frames.

    Args:
        model: The cropper.
        start: What it was opened from; its replies are of two looks.

    Returns:
        The share of the frames whose centre is in the box of both looks, and the median of its area
        by the frame's.
    """
    source = sources.open_drawn("zoom_digits_deep", "validation", 64)
    scenes = [source[index] for index in range(len(source))]
    cropper = CropVLM(start, model, SIDE)
    found = cropper.propose([s["image"] for s in scenes], [s["question"] for s in scenes])
    boxes, truths = np.array(found, float), np.array([s["box"] for s in scenes], float)
    middles = (truths[:, :2] + truths[:, 2:]) / 2
    inside = ((boxes[:, :2] <= middles) & (middles <= boxes[:, 2:])).all(-1)
    ratio = geometry.area(boxes) / geometry.area(truths)
    return {"deep_hit": float(inside.mean()), "deep_area": float(np.median(ratio))}


MEANINGS = {  # of the scores
    "target": "accuracy by set and by what is shown beside the picture: no crop, the first true "
    "box, all true boxes, these with 4 times the area, or their hull (of a tiny frame, its ring)",
    "cropper": "by set: share of the frames asked about whose centre is in a box of the reply, and "
    "boxes of a reply; two at most",
    "cropper_deep": "share of the tiny frames whose centre is in the box of both looks, and "
    "the median of its area, by the frame's",
}


def described(name: str, courses: Sequence[Course], steps: int, scores: dict[str, float]) -> Run:
    """What the model card of a finished model says of its making."""
    seen = {set_name for course in courses for set_name in course.scenes or SCENES}
    return Run(
        title=f"From the bundled model, {steps:,} steps",
        facts={
            "made by": "`experiments/make_look_weights.py`",
            "seed": str(SEED.value),
            "data": ", ".join(f"`{set_name}`" for set_name in SCENES if set_name in seen),
            "metrics": MEANINGS[name],
        },
        metrics=scores,
        measured_after=steps,
        licence="apache-2.0",
    )


def make(name: str) -> None:
    """Trains one of the models and writes its folder."""
    folder = pathlib.Path(OUT.value)
    before = folder / "cropper" if name == "cropper_deep" else f"zoom_digits/{name}"
    start = Pretrained.open(before)
    prompts, model = start.conversations(), start.load()
    if name == "target":
        courses, batch = READER, reading_batch
        evaluate = functools.partial(reading_accuracy, prompts=prompts)
    elif name == "cropper":
        courses, batch = CROPPER, locating_batch
        start = dataclasses.replace(start, replies=Replies(max_boxes=2, abstain=True))
        evaluate = functools.partial(locating_scores, prompts=prompts, grammar=start.grammar())
    else:
        courses, batch = SECOND_LOOKS, locating_batch
        start = dataclasses.replace(start, replies=Replies(looks=2))
        evaluate = functools.partial(two_look_scores, start=start)
    total, scores = 0, dict[str, float]()
    for number, course in enumerate(courses):
        logging.info("%s: course %d of %d", name, number + 1, len(courses))
        steps = min(course.steps, STEPS.value or course.steps)
        model, scores = train(
            model,
            preparer(course, number, functools.partial(batch, prompts=prompts), SEED.value),
            steps,
            course.learning_rate,
            evaluate,
            folder / f"{name}_course{number}.npz",
        )
        total += steps
    role: Literal["cropper", "reader"] = "reader" if name == "target" else "cropper"
    export(folder / name, model, start, role=role, run=described(name, courses, total, scores))
    logging.info("%s is in %s", name, folder / name)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.INFO)
    for name in MODELS.value:
        make(name)


if __name__ == "__main__":
    apps.run_script(main)
