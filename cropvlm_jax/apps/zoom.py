# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Asks about one picture or about many: where does the cropper zoom, and what is then answered?

With --image, a question about one picture, it prints the box in percent of width and height (left,
top, right, bottom), or several boxes, or that none is needed, and, with --target, the answers of
the frozen reader with and without the crop.

With --images, the pictures of a folder and of the folders in it, or --jsonl, a file of pictures and
questions, the folder --out gets results.jsonl with a line a question, the crops, and
contact_sheet.html, one page to look at them all. Given again after a kill, the same command goes on
where it stopped; what failed is tried again. It ends with 1 where anything failed. docs/zoom.md
explains what is written.

Example, with the models that come with the package:

    cropvlm zoom --cropper=zoom_digits/cropper --target=zoom_digits/target --image=scene.png \
        --question="What digit is in the red frame?" --out=zoom.png

    cropvlm zoom --cropper=zoom_digits/cropper --images=scans \
        --question="What digit is in the red frame?" --out=zoomed
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging
from PIL import Image

from cropvlm_jax import apps, texts
from cropvlm_jax.api import CropVLM
from cropvlm_jax.apps import budget_flag, target_processor
from cropvlm_jax.evals.study import describe
from cropvlm_jax.pixels import host, sheet
from cropvlm_jax.readers.base import ReaderUnavailable, Reply
from cropvlm_jax.zooming import contact_sheet, questions, run
from cropvlm_jax.zooming.results import FAILURE, Record
from cropvlm_jax.zooms import Zoom

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
    "--target nobody answers, and only the box is found.",
)
PROCESSOR = target_processor.define()
BUDGET = budget_flag.define()
COMPARE = flags.DEFINE_bool(
    "compare",
    True,
    "Also ask the target about the picture alone, to see what the crop changes. --nocompare asks "
    "only with the crop, half as many questions.",
)
KEEP_IF_SURER = flags.DEFINE_bool(
    "keep_if_surer",
    False,
    "Harm control: where the target is less sure of its answer with the crops than of that "
    "without, the answer is that without. The target must tell how likely its answers are.",
)
CALIBRATION = flags.DEFINE_string(
    "calibration",
    None,
    "File that makes `confidence` the probability that an answer is right, for this --target; "
    "docs/readers.md says how it is made.",
)
IMAGE = flags.DEFINE_string("image", None, "Picture file, of any format and size.")
IMAGES = flags.DEFINE_string(
    "images", None, "Folder of pictures, which may be in folders in it; takes --question too."
)
JSONL = flags.DEFINE_string(
    "jsonl",
    None,
    'File with a line of JSON a question: {"image": ..., "question": ...} and optionally "id". '
    "Paths of pictures are absolute or start at the file's folder. --question is for lines without "
    "one.",
)
QUESTION = flags.DEFINE_string("question", None, "What to ask about the picture or pictures.")
OUT = flags.DEFINE_string(
    "out",
    None,
    "With --image, a picture to write, which shows the box in red beside its crop. With --images "
    "or --jsonl, the folder of the results, which is needed.",
)
NAMED = 20  # failures that are printed; the file of results has all


def main(argv: list[str]) -> None:
    """Zooms as the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    given = {flag.name: flag.value for flag in (IMAGE, IMAGES, JSONL) if flag.value is not None}
    if len(given) != 1:
        raise app.UsageError("give one of --image, --images and --jsonl")
    ((name, value),) = given.items()
    path = pathlib.Path(value).expanduser()
    out = pathlib.Path(OUT.value).expanduser() if OUT.value else None
    if not QUESTION.value and name != "jsonl":
        raise app.UsageError(f"--{name} takes --question=..., too")
    if name == "image":
        zoom_one(path, str(QUESTION.value), out)
    elif out is None:
        raise app.UsageError(f"--{name} takes --out=..., a folder for the results, too")
    else:
        zoom_many(name, path, QUESTION.value, out)


def zoom_one(path: pathlib.Path, question: str, out: pathlib.Path | None) -> None:
    """Asks about one picture, and prints what is found.

    Args:
        path: of the picture.
        question: about it.
        out: of a picture to write, if any.

    Raises:
        ReaderUnavailable: something kept the target from answering.
    """
    if path.is_dir():
        raise app.UsageError(f"--image={path} is a folder: give it as --images=...")
    if not path.is_file():
        raise app.UsageError(f"--image={path}: no such file")
    if out:
        check_picture_to_write(out, path)
    image = Image.fromarray(host.to_rgb(path))
    model = open_model()
    logging.info(
        "the cropper reads %d image tokens of %d x %d px, resized to longest_edge=%d",
        model.tokens_of(image.height, image.width),
        image.width,
        image.height,
        model.longest_edge,
    )
    zoom = model(image, question, compare=COMPARE.value, keep_if_surer=KEEP_IF_SURER.value)
    lines = found(zoom, compare=COMPARE.value)
    print("\n".join(lines))
    if out:
        sheet.panel(image, zoom.box, [question, *lines], others=zoom.boxes[1:]).save(out)
    for failure in (zoom.failure, zoom.failure_without_crop):
        if Reply("", failure).unanswered:
            raise ReaderUnavailable(f"{TARGET.value} did not answer: {failure}")


def found(zoom: Zoom, compare: bool) -> list[str]:
    """Lines that say where the cropper looked, and what the target answered.

    Args:
        zoom: what was found.
        compare: whether the answer to the picture alone is told.
    """
    boxes = [str(list(box)) for box in zoom.boxes]
    if len(boxes) == 1:
        lines = [f"box (percent): {boxes[0]}"]
    else:
        lines = [f"boxes (percent): {', '.join(boxes) or 'none, not needed'}"]
    if not TARGET.value:
        return lines
    lines.append(f"answer: {said(zoom.answer, zoom.failure)}")
    if compare:
        without = said(zoom.answer_without_crop, zoom.failure_without_crop)
        lines.append(f"answer without the crop: {without}")
    if KEEP_IF_SURER.value and zoom.boxes:
        sure = (
            "unknown" if m is None else f"{m:.2f}" for m in (zoom.margin_with, zoom.margin_without)
        )
        chosen = "with" if zoom.kept else "without"
        lines.append(
            f"log-odds of the target's answers: {next(sure)} with the crop, {next(sure)} without; "
            f"the answer is that {chosen}"
        )
    if CALIBRATION.value:
        lines.append(f"the answer is right with a probability of {zoom.confidence:.0%}")
    return lines


def check_picture_to_write(out: pathlib.Path, path: pathlib.Path) -> None:
    """Checks, before anything is paid for, that a picture can be written; makes its folder.

    Args:
        out: of the picture to write.
        path: of the picture that is asked about.
    """
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise app.UsageError(f"--out={out}: name a picture file, such as zoom.png")
    if out.is_dir():
        raise app.UsageError(f"--out={out} is a folder: name a picture file in it")
    if out.resolve() == path.resolve():
        raise app.UsageError(f"--out={out} is the picture itself: name another file")
    out.parent.mkdir(parents=True, exist_ok=True)


def open_model() -> CropVLM:
    """The cropper, with the target that answers if there is one."""
    targets = [TARGET.value] if TARGET.value else []
    processor = target_processor.read(PROCESSOR.value, targets)
    return budget_flag.open_cropper(
        str(CROPPER.value),
        BUDGET.value,
        TARGET.value or None,
        processor=processor,
        calibration=CALIBRATION.value or None,
    )


def said(answer: str | None, failure: str) -> str:
    """An answer, or why there is none."""
    return f"none ({failure})" if answer is None else answer


def zoom_many(kind: str, path: pathlib.Path, question: str | None, out: pathlib.Path) -> None:
    """Asks about many pictures, into a folder of results.

    Args:
        kind: "images" or "jsonl".
        path: of the folder of pictures, or of the file of JSON lines.
        question: about all pictures, or those without one of their own.
        out: folder of the results.

    Raises:
        OSError: something failed; the other results are there.
    """
    if out.exists() and not out.is_dir():
        raise app.UsageError(f"--out={out} is a file: name a folder for the results")
    if kind == "jsonl":
        asked = questions.of_jsonl(path, question)
    elif path.is_file():
        raise app.UsageError(f"--images={path} is a file: give a picture as --image=...")
    else:
        asked = questions.of_folder(path, str(question), out)
    model = open_model()
    settings = {kind: str(path.resolve()), "question": question} | models(model)
    records = run.zoom_all(
        model, asked, out, settings, compare=COMPARE.value, keep_if_surer=KEEP_IF_SURER.value
    )
    failed = [record for record in records if FAILURE in record]
    print(texts.mend("\n".join(summary(records, failed, out))))
    if failed:
        raise OSError(
            f"{len(failed)} of {len(records)} failed, such as {failed[0]['id']}; the same command "
            "tries them again"
        )


def models(model: CropVLM) -> dict[str, Any]:
    """The cropper and the target, as the settings of a folder of results tell them."""
    told = {"cropper": {"name": place(str(CROPPER.value))} | describe(model)}
    if model.target is not None:
        told["target"] = {"name": place(str(TARGET.value)), "compare": COMPARE.value}
        told["target"] |= describe(model.target)
        if KEEP_IF_SURER.value:
            told["target"]["keep_if_surer"] = True
    if model.calibration is not None:
        told["calibration"] = dataclasses.asdict(model.calibration)
    return told


def place(name: str) -> str:
    """A model's name, or where its folder is."""
    return os.path.abspath(name) if os.path.exists(name) else name


def summary(records: Sequence[Record], failed: Sequence[Record], out: pathlib.Path) -> list[str]:
    """Lines that say what is done, where it is, and what failed."""
    lines = [
        f"questions: {len(records)}, of which {len(failed)} failed",
        f"results: {out / questions.RESULTS}",
        f"contact sheet: {out / contact_sheet.PAGE}",
    ]
    lines += [f"failed: {record['id']}: {record[FAILURE]}" for record in failed[:NAMED]]
    if len(failed) > NAMED:
        lines.append(f"failed: {len(failed) - NAMED} more, which {questions.RESULTS} names")
    return lines


if __name__ == "__main__":
    apps.run(main)
