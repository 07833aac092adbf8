# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Has a large model say where the answers are, and makes seed boxes of its replies.

Seed boxes are what the supervised stage (SFT) imitates. With --model, that model is asked about
each question, through `transformers` (`pip install -e '.[label]'`), and its replies are kept in the
file --replies; given again, the command goes on where it stopped. Without --model, the file holds
replies that were made elsewhere. As in the paper, boxes are enlarged, small ones the most.

Example:

    cropvlm label --source=textvqa --folder=data/textvqa --replies=replies.jsonl \
        --model=Qwen/Qwen2.5-VL-7B-Instruct --out=data/seed_boxes/textvqa.jsonl
"""

import os

from absl import app, flags, logging

from cropvlm_jax import apps, geometry
from cropvlm_jax.data import labelling, seed_boxes
from cropvlm_jax.data.sources import open_source
from cropvlm_jax.progress import Progress

SOURCE = flags.DEFINE_string(
    "source",
    None,
    "Kind of the data set, such as textvqa, docvqa or jsonl; docs/data.md lists all.",
    required=True,
)
FOLDER = flags.DEFINE_string(
    "folder", None, "Where the data set lies, as it is distributed.", required=True
)
SPLIT = flags.DEFINE_string("split", "train", "Split of the data set to label.")
REPLIES = flags.DEFINE_string(
    "replies",
    None,
    'File of replies, one line of JSON for each, {"example_id": ..., "reply": ...}. It is read '
    "and, with --model, added to.",
    required=True,
)
MODEL = flags.DEFINE_string("model", None, "Model to ask: a folder or a Hugging Face id.")
FRAME = flags.DEFINE_enum(
    "frame",
    None,
    geometry.FRAMES,
    "What the numbers of a reply count: smart_resized, pixels of the picture as Qwen's processor "
    "resizes it (Qwen2.5-VL); thousandths of width and height (Qwen2-VL, Qwen3-VL); pixels of the "
    "original; percent. smart_resized_unscaled reproduces a mistake of the official code. Default: "
    "smart_resized, refused where the numbers do not look like it.",
)
MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels",
    None,
    "Most pixels of a picture after Qwen's processor has resized it. Default: what the processor "
    f"of --model says, and {geometry.MAX_PIXELS} for replies that were made elsewhere.",
    lower_bound=28 * 28,
)
BOUNDS = flags.DEFINE_enum(
    "bounds",
    "computed",
    ["computed", "paper"],
    "How much a box is enlarged depends on the fifth of all boxes that its area is in. Where the "
    "fifths begin: computed from these boxes, or as in the paper.",
)
WHOLE_IMAGE = flags.DEFINE_bool(
    "whole_image_on_failure",
    False,
    "Where a reply has no box, take the whole picture, as the official code does; by default such "
    "an example is left out.",
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "File of seed boxes to write; in a run's config, source(..., boxes=FILE) reads it.",
    required=True,
)


def main(argv: list[str]) -> None:
    """Labels as the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    folder, replies, out = (os.path.expanduser(flag.value) for flag in (FOLDER, REPLIES, OUT))
    if not MODEL.value and not os.path.isfile(replies):
        raise app.UsageError(f"--replies={REPLIES.value}: no such file, and no --model to ask")
    source = open_source(SOURCE.value, folder, SPLIT.value)
    if MODEL.value and (indices := labelling.unanswered(source, replies)):
        ask = labelling.load_labeller(os.path.expanduser(MODEL.value), MAX_PIXELS.value)
        progress = Progress(len(indices), what="picture")
        labelling.collect(source, indices, ask, replies, progress.update)
    labels = seed_boxes.make_labels(
        source,
        labelling.read_replies(replies),
        FRAME.value,
        MAX_PIXELS.value or geometry.MAX_PIXELS,
        geometry.PAPER_BOUNDS if BOUNDS.value == "paper" else None,
        WHOLE_IMAGE.value,
    )
    seed_boxes.write_labels(labels, out)
    logging.info("%d labels are in %s", len(labels), out)


if __name__ == "__main__":
    apps.run(main)
