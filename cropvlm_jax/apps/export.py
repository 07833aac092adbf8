# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes a cropper as a folder that `transformers` loads by itself, in the precision you ship.

Training keeps its cropper in float32; bfloat16 takes half the space. `hf upload` publishes the
folder.

Example:

    cropvlm export --model=runs/zoom_digits/cropper --out=my-cropper --dtype=bfloat16
"""

from absl import app, flags

from cropvlm_jax import apps
from cropvlm_jax.hub.export import export
from cropvlm_jax.hub.pretrained import Pretrained

MODEL = flags.DEFINE_string(
    "model",
    None,
    "The model: a folder, such as a run's cropper/, or a Hugging Face id. A PEFT adapter is merged "
    "into its base model.",
    required=True,
)
OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Precision of the weights in the new folder."
)


def main(argv: list[str]) -> None:
    """Exports as the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    source = Pretrained.open(MODEL.value)
    export(OUT.value, source.load(), source, dtype=DTYPE.value)


if __name__ == "__main__":
    apps.run(main)
