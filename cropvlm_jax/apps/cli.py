# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The console script `cropvlm`: finds the command and hands the rest of the line to it."""

import dataclasses
import difflib
import importlib
import sys

PROGRAM = "cropvlm"


@dataclasses.dataclass(frozen=True)
class Command:
    """A line of `cropvlm --help`.

    Attributes:
        summary: what the command does, in one line.
        example: a command line that works as it stands, from a checkout.
    """

    summary: str
    example: str


COMMANDS = {
    "check": Command(
        "Prove on this machine that training computes what it should, and measure how fast.",
        "cropvlm check --json=check.json",
    ),
    "train": Command(
        "Train a cropper on boxes (SFT) or with a frozen reader as the reward (GRPO).",
        "cropvlm train --config=experiments/zoom_digits.py --workdir=runs/zoom_digits",
    ),
    "evaluate": Command(
        "Measure croppers in front of frozen readers on a benchmark, with controls.",
        "cropvlm evaluate --croppers=grpo=runs/zoom_digits/cropper --out=runs/zoom_digits",
    ),
    "zoom": Command(
        "Ask about a picture, a folder of pictures or a file of questions: boxes and answers.",
        "cropvlm zoom --cropper=zoom_digits/cropper --target=zoom_digits/target"
        " --image=scene.png --question='What digit is in the red frame?' --out=zoom.png",
    ),
    "serve": Command(
        "Serve the cropper as an OpenAI-compatible endpoint: clients change their base URL.",
        "cropvlm serve --cropper=zoom_digits/cropper --target=zoom_digits/target --port=8000",
    ),
    "mcp": Command(
        "Offer zooming to language models as a tool of the Model Context Protocol.",
        "cropvlm mcp --cropper=zoom_digits/cropper --folder=pictures",
    ),
    "label": Command(
        "Have a large model say where the answers are: the seed boxes that SFT imitates.",
        "cropvlm label --source=textvqa --folder=data/textvqa --replies=replies.jsonl"
        " --model=Qwen/Qwen2.5-VL-7B-Instruct --out=data/seed_boxes/textvqa.jsonl",
    ),
    "prepare": Command(
        "Copy a data set into files that training reads faster (optional).",
        "cropvlm prepare --source=textvqa --folder=data/textvqa --splits=train,val"
        " --data_dir=data/prepared",
    ),
    "export": Command(
        "Write a cropper as a Hugging Face folder in the precision that you ship.",
        "cropvlm export --model=runs/zoom_digits/cropper --out=my-cropper --dtype=bfloat16",
    ),
    "aot": Command(
        "Ask the TPU compiler whether a run fits a TPU slice; no TPU is needed.",
        "cropvlm aot --topology=v5e-8 --config=experiments/zoom_digits.py --save=report.json",
    ),
}


def overview() -> str:
    """What `cropvlm --help` prints."""
    lines = [
        f"usage: {PROGRAM} COMMAND [flags]",
        "",
        "CropVLM in JAX: a small model that learns where to zoom so that a frozen vision-language",
        "model answers better.",
        "",
        "Commands, each with an example:",
    ]
    for name, command in COMMANDS.items():
        lines += ["", f"  {name:<9} {command.summary}", f"      {command.example}"]
    return "\n".join([*lines, "", f"{PROGRAM} COMMAND --help explains a command and its flags."])


def main() -> int | None:
    """Runs the command that the command line names.

    Returns:
        The exit code of the program, where it is not the command that ends it.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-help", "-h", "help"):
        print(overview())
        return None
    if name == "--version":
        print(PROGRAM, importlib.import_module("cropvlm_jax").__version__)
        return None
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        guess = f" Did you mean {close[0]}?" if close else ""
        print(
            f"{PROGRAM}: there is no command {name!r}.{guess} See {PROGRAM} --help", file=sys.stderr
        )
        return 2
    sys.argv = [f"{PROGRAM}-{name}", *arguments]
    module = importlib.import_module(f"cropvlm_jax.apps.{name}")
    importlib.import_module("cropvlm_jax.apps").run(module.main)
    return None


if __name__ == "__main__":
    sys.exit(main())
