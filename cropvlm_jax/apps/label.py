# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Has a large model say where the answers are, and makes seed boxes of its replies.

Seed boxes are what the supervised stage (SFT) imitates. --model asks a Qwen2.5-VL or Qwen3-VL of
this package, on all devices and hosts, or openai:MODEL, a chat endpoint at OPENAI_BASE_URL. Replies
are kept in --replies; given again, the command goes on where it stopped. Without --model, the file
holds replies that were made elsewhere. As in the paper, boxes are enlarged, small ones the most.

Example:

    cropvlm label --source=textvqa --folder=data/textvqa --replies=replies.jsonl \
        --model=Qwen/Qwen2.5-VL-7B-Instruct --out=data/seed_boxes/textvqa.jsonl

On several hosts, give the same command on each with --distributed, and files that all of them see.
"""

import functools
import os
import textwrap
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import app, flags, logging

from cropvlm_jax import apps, geometry, parallel
from cropvlm_jax.apps import processes
from cropvlm_jax.data import seed_boxes
from cropvlm_jax.data.source import Source
from cropvlm_jax.data.sources import open_source
from cropvlm_jax.labelling import endpoint, plan, replies, run, vlm
from cropvlm_jax.labelling.base import Labeller
from cropvlm_jax.readers.registry import is_black_box

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
PART = flags.DEFINE_list(
    "part",
    ["0", "1"],
    "The stretch of the split to label, as shares of its examples: 0,0.5 is the first half, which "
    "the paper's SFT takes.",
)
REPLIES = flags.DEFINE_string(
    "replies",
    None,
    'File of replies, one line of JSON for each, {"example_id": ..., "reply": ...}. It is read '
    "and, with --model, added to.",
    required=True,
)
MODEL = flags.DEFINE_string(
    "model",
    None,
    "Model to ask: the folder or Hugging Face id of a VLM of this package, or openai:MODEL, which "
    "is behind a chat endpoint; @PIXELS after it reduces the pictures that are sent.",
)
FRAME = flags.DEFINE_enum(
    "frame",
    None,
    geometry.FRAMES,
    "What the numbers of a reply count, where neither model nor replies tell: smart_resized, "
    "pixels as Qwen2.5-VL resizes pictures; thousandths (Qwen2-VL, Qwen3-VL); pixels of the "
    "original; percent. smart_resized_unscaled is a mistake of the official code. Without --model, "
    "smart_resized, refused where the numbers do not look like it.",
)
MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels",
    None,
    "Most pixels of a picture that Qwen's processor has resized. Default: what the folder of "
    f"--model says, at most {vlm.MOST_TOKENS:,} tokens; else {geometry.MAX_PIXELS}, as released.",
    lower_bound=28 * 28,
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    "bfloat16",
    ["float32", "bfloat16"],
    "Precision in which a --model of this package computes.",
)
FSDP = flags.DEFINE_integer(
    "fsdp",
    1,
    "How many devices of a host share one copy of the weights, which a 7B model needs on chips of "
    "16 GB.",
    lower_bound=1,
)
CONCURRENCY = flags.DEFINE_integer(
    "concurrency",
    endpoint.CONCURRENCY,
    "How many requests to a chat endpoint are under way at once.",
    lower_bound=1,
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Ask and write nothing: say how many questions are to be asked, and how many hours that takes, "
    "as far as it can be known before.",
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
    "Where a reply has no box, take the whole picture, as the official code does, instead of none.",
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "File of seed boxes to write; in a run's config, source(..., boxes=FILE) reads it.",
    required=True,
)
processes.define()


def main(argv: list[str]) -> None:
    """Labels as the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    path, out = (os.path.expanduser(flag.value) for flag in (REPLIES, OUT))
    if not MODEL.value and not os.path.isfile(path):
        raise app.UsageError(f"--replies={REPLIES.value}: no such file, and no --model to ask")
    source = open_data()
    if DRY_RUN.value:
        if not MODEL.value or processes.are_several():
            raise app.UsageError("--dry_run is for --model, in one process")
        pending = replies.unanswered(source.ids(), path)
        print(
            "\n".join(["This is a dry run: nothing is asked or written.", *take(source, pending)])
        )
        return
    with processes.joined():
        if MODEL.value:
            run.label(source, path, functools.partial(open_labeller, source))
        if jax.process_index() == 0:
            write_labels(source, path, out)
        parallel.on_all_hosts(True)  # or the others would end while the labels are made


def open_data() -> Source:
    """The part of the data set that is to be labelled.

    Raises:
        UsageError: the part is none.
        ValueError: the data set cannot be used.
    """
    source = open_source(SOURCE.value, os.path.expanduser(FOLDER.value), SPLIT.value)
    try:
        start, stop = map(float, PART.value)
        return source if (start, stop) == (0, 1) else source.part(start, stop)
    except ValueError as error:
        raise app.UsageError(f"--part={','.join(PART.value)}: {error}") from None


def model_name() -> str:
    """The model to ask, with the user's home spelled out."""
    return os.path.expanduser(str(MODEL.value))


def open_labeller(source: Source, indices: Sequence[int]) -> Labeller:
    """The model to ask, after the log has said what this takes."""
    logging.info("%s", "\n".join(["to ask:", *take(source, indices)]))
    if is_black_box(model_name()):
        return endpoint.EndpointLabeller.open(
            model_name(),
            frame=FRAME.value,
            max_pixels=MAX_PIXELS.value,
            concurrency=CONCURRENCY.value,
        )
    opened, frame = vlm.open_labeller(model_name(), frame=FRAME.value, max_pixels=MAX_PIXELS.value)
    devices = jax.local_devices()
    several = max(len(devices), FSDP.value) > 1
    mesh = parallel.make_mesh(fsdp=FSDP.value, devices=devices) if several else None
    model = opened.load(mesh, dtype=jnp.dtype(DTYPE.value))
    return vlm.VLMLabeller(opened, model, frame, mesh)


def take(source: Source, indices: Sequence[int]) -> list[str]:
    """What it takes to ask about examples, for people."""
    lines: plan.Lines = [("questions", f"{len(indices):,} of {len(source):,} have no reply yet")]
    name = model_name()
    if is_black_box(name):
        frame = endpoint.named_frame(name, FRAME.value)
        lines += plan.of_endpoint(name, len(indices), CONCURRENCY.value)
    else:
        model, frame = vlm.open_labeller(
            name, frame=FRAME.value, max_pixels=MAX_PIXELS.value, weights=False
        )
        if indices:
            devices = jax.local_devices()
            lines += plan.of_model(model, source, indices, devices, jnp.dtype(DTYPE.value))
    lines.append(("frame", f"{frame}: what the numbers of its boxes count"))
    return [
        wrapped
        for label, text in lines
        for wrapped in textwrap.wrap(f"{label:<10} {text}", 100, subsequent_indent=" " * 11)
    ]


def write_labels(source: Source, path: str, out: str) -> None:
    """Makes labels of the replies, and writes them."""
    labels = seed_boxes.make_labels(
        source,
        replies.read(path),
        FRAME.value,
        MAX_PIXELS.value or geometry.MAX_PIXELS,
        geometry.PAPER_BOUNDS if BOUNDS.value == "paper" else None,
        WHOLE_IMAGE.value,
    )
    seed_boxes.write_labels(labels, out)
    logging.info("%d labels are in %s", len(labels), out)


if __name__ == "__main__":
    apps.run(main)
