# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Asks one question about one picture: where does the cropper zoom, and what is then answered?

It prints the box in percent of width and height (left, top, right, bottom) and, with --target, the
answers of the frozen reader with and without the crop.

Example, with the models that come with the package:

    cropvlm zoom --cropper=zoom_digits/cropper --target=zoom_digits/target --image=scene.png \
        --question="What digit is in the red frame?" --out=zoom.png
"""

import pathlib

from absl import app, flags, logging
from PIL import Image

from cropvlm_jax import apps
from cropvlm_jax.api import CropVLM
from cropvlm_jax.evals import sheet
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.base import ReaderUnavailable, Reply
from cropvlm_jax.readers.registry import open_reader

CROPPER = flags.DEFINE_string(
    "cropper",
    None,
    "The cropper: a folder, such as a run's cropper/ or that of a PEFT adapter, a Hugging Face id, "
    "or zoom_digits/cropper, which comes with the package.",
    required=True,
)
TARGET = flags.DEFINE_string(
    "target",
    None,
    "The reader that answers: a VLM named in the same ways, openai:MODEL, rapidocr:v4, "
    "rapidocr:v6 or tesseract; @PIXELS after a name limits the pictures that it sees. Without "
    "--target nobody answers, and only the box is printed.",
)
IMAGE = flags.DEFINE_string("image", None, "Picture file, of any format and size.", required=True)
QUESTION = flags.DEFINE_string("question", None, "What to ask about the picture.", required=True)
OUT = flags.DEFINE_string(
    "out", None, "Picture to write, which shows the box in red beside its crop."
)


def main(argv: list[str]) -> None:
    """Zooms as the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    if not pathlib.Path(IMAGE.value).is_file():
        raise app.UsageError(f"--image={IMAGE.value}: no such file")
    if OUT.value and pathlib.Path(OUT.value).suffix.lower() not in Image.registered_extensions():
        raise app.UsageError(f"--out={OUT.value}: name a picture file, such as zoom.png")
    image = Image.fromarray(host.to_rgb(IMAGE.value))
    target = open_reader(TARGET.value) if TARGET.value else None
    model = CropVLM.from_pretrained(CROPPER.value, target)
    logging.info(
        "the cropper reads %d image tokens of %d x %d px, resized to longest_edge=%d",
        model.tokens_of(image.height, image.width),
        image.width,
        image.height,
        model.longest_edge,
    )
    zoom = model(image, QUESTION.value)
    lines = [f"box (percent): {list(zoom.box)}"]
    if TARGET.value:
        lines += [
            f"answer: {said(zoom.answer, zoom.failure)}",
            f"answer without the crop: {said(zoom.answer_without_crop, zoom.failure_without_crop)}",
        ]
    print("\n".join(lines))
    if OUT.value:
        sheet.panel(image, zoom.box, [QUESTION.value, *lines]).save(OUT.value)
    for failure in (zoom.failure, zoom.failure_without_crop):
        if Reply("", failure).unanswered:
            raise ReaderUnavailable(f"{TARGET.value} did not answer: {failure}")


def said(answer: str | None, failure: str) -> str:
    """An answer, or why there is none."""
    return f"none ({failure})" if answer is None else answer


if __name__ == "__main__":
    apps.run(main)
