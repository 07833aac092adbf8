# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A few held-out pictures with their boxes, in TensorBoard after each evaluation of a run."""

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.pixels import host, sheet
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training.reporting import Reporter
from cropvlm_jax.training.stages.base import Stage
from cropvlm_jax.training.stages.look import SHOWN, Look
from cropvlm_jax.training.stages.program import Program
from cropvlm_jax.training.training_data import TrainingData

WIDTH = 84  # characters of a line under a picture


@dataclasses.dataclass(frozen=True)
class HeldOutPictures:
    """Draws the first examples of the first held-out batch, the same ones after each evaluation.

    Attributes:
        stage: says what the model makes of them.
        program: its jitted form.
        data: has the examples.
        reporter: gets the pictures, `held_out/1` and so on.
    """

    stage: Stage
    program: Program
    data: TrainingData
    reporter: Reporter

    def draw(self, step: int, state: TrainState, batch: Any, on_devices: Any) -> None:
        """Draws them; all processes take part, and process 0 draws those that it has prepared.

        Args:
            step: of the run.
            state: after it.
            batch: this host's rows of the first held-out batch.
            on_devices: the batch as the program takes it.
        """
        look: Look = jax.device_get(self.program.look(state, on_devices))
        if jax.process_index():
            return
        words = None if look.replies is None else self.stage.words(look.replies)
        own = self.data.rows[:SHOWN].tolist()
        for number, (row, index) in enumerate(zip(own, batch.example_id, strict=False), 1):
            picture = picture_of(
                self.data.held_out_example(int(index)),
                boxes=None if look.boxes is None else look.boxes[row, : look.count[row]],
                reply=None if words is None else words[row],
                reward=None if look.rewards is None else float(look.rewards[row]),
            )
            self.reporter.draw(step, f"held_out/{number}", np.asarray(picture))


def picture_of(
    example: Mapping[str, Any],
    *,
    boxes: np.ndarray | None,
    reply: str | None,
    reward: float | None,
) -> Image.Image:
    """An example with the proposed boxes in red, the true one in green, and what came of it.

    Args:
        example: has `image`, `question`, `answers`, and `box` where it is known.
        boxes: percent boxes `[n, 4]` of the model's reply; None where it gives no such replies.
        reply: of the reader; None where no reader answers.
        reward: of the box; None where there is no reward.
    """
    truth = example.get("box")
    lines = [example["question"]]
    if reply is not None:
        lines.append(f"reply: {reply} (right: {' / '.join(example['answers'])})")
    facts = [] if reward is None else [f"reward {reward:.3f}"]
    if boxes is not None and not len(boxes):
        facts.append("no crop")
    boxes = np.zeros((0, 4), int) if boxes is None else boxes
    for box in boxes:
        text = ", ".join(f"{edge:g}" for edge in box)
        facts.append(f"box [{text}], {geometry.area(box):.0%} of the picture")
        if truth is not None:
            facts.append(f"IoU {float(geometry.iou(box, np.array(truth))):.2f}")
    lines.append("; ".join(facts))
    image = Image.fromarray(host.to_rgb(example["image"]))
    shown, *others = [*boxes] or [truth if truth is not None else geometry.FULL]
    captions = [textwrap.shorten(line, WIDTH, placeholder=" ...") for line in lines]
    return sheet.panel(image, shown, captions, truth=truth, others=others)
