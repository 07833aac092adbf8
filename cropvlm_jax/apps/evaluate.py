# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluates croppers on held-out zoom_digits scenes, with controls.

python -m cropvlm_jax.apps.evaluate --target=zoom_digits/target \
    --croppers=sft=zoom_digits/cropper,grpo=runs/zoom_digits/cropper --out=runs/zoom_digits
"""

import json
import pathlib

from absl import app, flags, logging
from PIL import Image

from cropvlm_jax import apps
from cropvlm_jax.api import CropVLM, Target
from cropvlm_jax.data.zoom_digits import ZoomDigits
from cropvlm_jax.evals import controls, sheet
from cropvlm_jax.training.metrics import Progress

TARGET = flags.DEFINE_string("target", "zoom_digits/target", "Folder, bundled model or hub id.")
CROPPERS = flags.DEFINE_list(
    "croppers", None, "name=model pairs, the one to report last.", required=True
)
OUT = flags.DEFINE_string(
    "out", None, "Folder for results.json and before_after.png.", required=True
)
SCENES = flags.DEFINE_integer("scenes", 1000, "Held-out scenes.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the scenes and the random crops.")
PANELS = 6  # scenes of the picture sheet


def table(results: dict) -> str:
    """The results as a text table."""
    rows = [f"{name:>10}  {score:6.1%}" for name, score in results["accuracy"].items()]
    figures = (f"{name} {results[name]:.3f}" for name in ("coverage", "area", "valid"))
    title = f"target accuracy on {results['n']} held-out scenes"
    return "\n".join([title, *rows, "boxes of the last cropper: " + ", ".join(figures)])


def picture_sheet(source: ZoomDigits, target: Target, boxes: dict) -> Image.Image:
    """The first scenes, a column for each cropper."""
    panels = []
    for i in range(min(PANELS, len(source))):
        example = source[i]
        image = example["image"]
        for name, proposed in boxes.items():
            pictures = [image, controls.cut(image, proposed[i])]
            (reply,) = target.answer([pictures], [example["question"]])
            captions = [
                example["question"],
                f"{name}: {proposed[i].tolist()} -> {reply!r} (truth {example['answers'][0]})",
            ]
            panels.append(sheet.panel(Image.fromarray(image), proposed[i], captions))
    return sheet.grid(panels, columns=len(boxes))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    pairs = [pair.split("=", 1) for pair in CROPPERS.value]
    if any(len(pair) != 2 for pair in pairs):
        raise app.UsageError(f"--croppers takes name=model pairs, got {CROPPERS.value}")
    out = pathlib.Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    target = Target.from_pretrained(TARGET.value)
    croppers = {name: CropVLM.from_pretrained(model, target) for name, model in pairs}
    source = ZoomDigits("test", SCENES.value, SEED.value)
    progress = Progress(2 * len(source), what="scene (boxes, then answers)")
    results = controls.evaluate(source, target, croppers, SEED.value, progress.update)
    boxes = results.pop("boxes")
    summary = out / "summary.json"
    if summary.is_file():
        results |= json.loads(summary.read_text(encoding="utf-8"))
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    picture_sheet(source, target, boxes).save(out / "before_after.png")
    print(table(results))
    logging.info("results.json and before_after.png are in %s", out)


if __name__ == "__main__":
    apps.run(main)
