# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Labels examples for the supervised stage with the boxes that a large model names.

The model's replies come from a file, or from a local transformers model (for Qwen2.5-VL:
`pip install torch torchvision transformers`), which goes on where an interrupted run stopped:

python -m cropvlm_jax.apps.label --source=textvqa --folder=data/textvqa --out=labels.jsonl \
    --replies=replies.jsonl --model=Qwen/Qwen2.5-VL-7B-Instruct
"""

import os

from absl import app, flags, logging

from cropvlm_jax import apps, geometry
from cropvlm_jax.data import seed_boxes
from cropvlm_jax.data.sources import open_source
from cropvlm_jax.progress import Progress

SOURCE = flags.DEFINE_string("source", None, "Data set, such as textvqa or jsonl.", required=True)
FOLDER = flags.DEFINE_string("folder", None, "Where its files are.", required=True)
SPLIT = flags.DEFINE_string("split", "train", "Split of the data set.")
REPLIES = flags.DEFINE_string(
    "replies",
    None,
    'JSONL of {"example_id", "reply"}: to import, or where --model\'s go.',
    required=True,
)
MODEL = flags.DEFINE_string("model", None, "Folder or hub id of a transformers model to ask.")
FRAME = flags.DEFINE_enum(
    "frame",
    "smart_resized",
    geometry.FRAMES,
    "Coordinates of the replies: smart_resized for Qwen2.5-VL, thousandths for Qwen2-VL and "
    "Qwen3-VL; smart_resized_unscaled reproduces the official code's mistake.",
)
MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels",
    None,
    "Larger pictures are smart-resized for Qwen to at most this; by default what --model's "
    f"processor says, and {geometry.MAX_PIXELS} for imported replies.",
    lower_bound=28 * 28,
)
BOUNDS = flags.DEFINE_enum(
    "bounds", "computed", ["computed", "paper"], "Quintiles of seed areas that decide expansion."
)
WHOLE_IMAGE = flags.DEFINE_bool(
    "whole_image_on_failure", False, "As the official code: no box in the reply, the whole image."
)
OUT = flags.DEFINE_string("out", None, "Label file to write.", required=True)


def main(argv: list[str]) -> None:
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
