# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Prints what validation questions choose for the evaluation on test.

    python experiments/documents/chosen.py --run=runs/documents/grpo_likelihood_0
    python experiments/documents/chosen.py --evaluation=runs/documents/val/pages/tesseract/0

Of a run: the folder of its cropper with the best reward. Of an evaluation of one cropper at several
expansions: the expansion with the best score, of equals the one nearest to 1.
"""

import math
import pathlib

from absl import app, flags

from cropvlm_jax import apps, json_lines
from cropvlm_jax.hub.files import read_json

RUN = flags.DEFINE_string("run", None, "Folder of a run.")
EVALUATION = flags.DEFINE_string("evaluation", None, "Folder of an evaluation.")


def best_cropper(run: pathlib.Path) -> pathlib.Path:
    """The exported cropper of a run whose reward on validation questions was the best.

    Raises:
        ValueError: no evaluation of the run was at a step of which there is a cropper.
    """
    rewards = {}
    for row in json_lines.read(run / "metrics.jsonl"):
        folder = run / f"cropper-{row['step']}"
        if "eval/reward" in row and folder.is_dir():
            rewards[folder] = row["eval/reward"]
    if not rewards:
        raise ValueError(f"{run} has no cropper-STEP of a step that was evaluated")
    return max(rewards, key=rewards.__getitem__)


def best_expansion(evaluation: pathlib.Path) -> float:
    """The factor of the boxes' areas at which the only reader of an evaluation is right most often.

    Raises:
        ValueError: the evaluation has several readers or croppers.
    """
    results = read_json(evaluation / "results.json")
    croppers, targets = results["protocol"]["croppers"], results["targets"]
    if len(croppers) != 1 or len(targets) != 1:
        raise ValueError(f"{evaluation}: not an evaluation of one cropper with one reader")
    (cropper,), (found,) = croppers, targets.values()
    scores = next(iter(found["scores"].values()))
    factors = {1.0: cropper} | {f: f"{cropper} x{f:g}" for f in results["protocol"]["expansions"]}
    return max(factors, key=lambda f: (scores[factors[f]]["score"], -abs(math.log(f))))


def main(argv: list[str]) -> None:
    del argv
    if (RUN.value is None) == (EVALUATION.value is None):
        raise app.UsageError("name a --run or an --evaluation")
    if RUN.value:
        print(best_cropper(pathlib.Path(RUN.value)))
    else:
        print(f"{best_expansion(pathlib.Path(EVALUATION.value)):g}")


if __name__ == "__main__":
    apps.run_script(main)
