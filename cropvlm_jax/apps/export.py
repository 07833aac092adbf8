# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes a cropper as a folder that `transformers` loads by itself, in the precision you ship.

Training keeps its cropper in float32; bfloat16 takes half the space. README.md in the new folder, a
model card, says how to run it, with `transformers` too, and what it was trained on. `hf upload`
publishes the folder.

Example:

    cropvlm export --model=runs/zoom_digits/cropper --out=my-cropper --dtype=bfloat16
"""

from typing import cast

from absl import app, flags

from cropvlm_jax import apps
from cropvlm_jax.hub.export import export
from cropvlm_jax.hub.model_card import Role
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
ROLE = flags.DEFINE_enum(
    "role",
    None,
    ["cropper", "reader"],
    "What the model does: a cropper's chat template makes a plain question ask for a box. By "
    "default as in its own folder; name it for a cropper that an older version wrote.",
)


def main(argv: list[str]) -> None:
    """Exports as the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    source = Pretrained.open(MODEL.value)
    export(OUT.value, source.load(), source, dtype=DTYPE.value, role=cast(Role | None, ROLE.value))


if __name__ == "__main__":
    apps.run(main)
