# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Zooms into one picture: a question in; a box, its crop and the answer out.

python -m cropvlm_jax.apps.zoom --cropper=runs/zoom_digits/cropper --target=zoom_digits/target \
    --image=scene.png --question="What digit is in the red frame?" --out=zoom.png
"""

import pathlib

from absl import app, flags
from PIL import Image

from cropvlm_jax import apps
from cropvlm_jax.api import CropVLM
from cropvlm_jax.evals import sheet
from cropvlm_jax.pixels import host

CROPPER = flags.DEFINE_string("cropper", None, "Folder, bundled model or hub id.", required=True)
TARGET = flags.DEFINE_string("target", None, "Same, of the model that answers; none: box only.")
IMAGE = flags.DEFINE_string("image", None, "Picture file.", required=True)
QUESTION = flags.DEFINE_string("question", None, "What to ask about the picture.", required=True)
OUT = flags.DEFINE_string("out", None, "Picture to write: the box in red beside its crop.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    if not pathlib.Path(IMAGE.value).is_file():
        raise app.UsageError(f"--image={IMAGE.value}: no such file")
    image = Image.fromarray(host.to_rgb(IMAGE.value))
    zoom = CropVLM.from_pretrained(CROPPER.value, TARGET.value)(image, QUESTION.value)
    lines = [f"box (percent): {list(zoom.box)}"]
    if TARGET.value:
        lines += [f"answer: {zoom.answer}", f"answer without the crop: {zoom.answer_without_crop}"]
    print("\n".join(lines))
    if OUT.value:
        sheet.panel(image, zoom.box, [QUESTION.value, *lines]).save(OUT.value)


if __name__ == "__main__":
    apps.run(main)
