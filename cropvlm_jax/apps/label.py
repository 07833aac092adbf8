# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Makes the boxes that the supervised stage imitates from the replies of a large model.

With --model, that model is asked where the answer to each question is, through `transformers`
(`pip install -e '.[label]'`), and its replies are kept in the file --replies; given again, the
command goes on where it stopped. Without --model, the file has replies made elsewhere.

Example:

    cropvlm label --source=textvqa --folder=data/textvqa --replies=replies.jsonl \
        --model=Qwen/Qwen2.5-VL-7B-Instruct --out=data/seed_boxes/textvqa.jsonl
"""

import os

from absl import app, flags, logging

from cropvlm_jax import apps, geometry
from cropvlm_jax.data import seed_boxes
from cropvlm_jax.data.sources import open_source
from cropvlm_jax.progress import Progress

SOURCE = flags.DEFINE_string(
    "source", None, "Kind of the data set, such as textvqa, docvqa or jsonl.", required=True
)
FOLDER = flags.DEFINE_string(
    "folder", None, "Where its files are, as it is distributed.", required=True
)
SPLIT = flags.DEFINE_string("split", "train", "Which split of it.")
REPLIES = flags.DEFINE_string(
    "replies",
    None,
    'File of replies, a line of JSON {"example_id": ..., "reply": ...} each: read and, with '
    "--model, added to.",
    required=True,
)
MODEL = flags.DEFINE_string("model", None, "Model to ask: a folder or a Hugging Face id.")
FRAME = flags.DEFINE_enum(
    "frame",
    "smart_resized",
    geometry.FRAMES,
    "What the numbers of a reply mean: smart_resized for Qwen2.5-VL, thousandths for Qwen2-VL and "
    "Qwen3-VL; smart_resized_unscaled reproduces a mistake of the official code.",
)
MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels",
    None,
    "Larger pictures are smart-resized for Qwen to at most this; by default what --model's "
    f"processor says, and {geometry.MAX_PIXELS} for imported replies.",
    lower_bound=28 * 28,
)
BOUNDS = flags.DEFINE_enum(
    "bounds",
    "computed",
    ["computed", "paper"],
    "Quintiles of the boxes' areas, by which small boxes are enlarged: those of this data set, or "
    "the paper's.",
)
WHOLE_IMAGE = flags.DEFINE_bool(
    "whole_image_on_failure",
    False,
    "As the official code does, take the whole picture where a reply has no box; by default such "
    "an example is left out.",
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "File of boxes to write, which a run names as the `boxes` of a source.",
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
    if MODEL.value and (indices := seed_boxes.unanswered(source, replies)):
        ask = seed_boxes.load_labeller(os.path.expanduser(MODEL.value), MAX_PIXELS.value)
        progress = Progress(len(indices), what="picture")
        seed_boxes.collect(source, indices, ask, replies, progress.update)
    labels = seed_boxes.make_labels(
        source,
        seed_boxes.read_replies(replies),
        FRAME.value,
        MAX_PIXELS.value or geometry.MAX_PIXELS,
        geometry.PAPER_BOUNDS if BOUNDS.value == "paper" else None,
        WHOLE_IMAGE.value,
    )
    seed_boxes.write_labels(labels, out)
    logging.info("%d labels are in %s", len(labels), out)


if __name__ == "__main__":
    apps.run(main)
