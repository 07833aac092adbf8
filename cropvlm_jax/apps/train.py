# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains a cropper with GRPO.

python -m cropvlm_jax.apps.train --config=experiments/zoom_digits.py --workdir=runs/zoom_digits \
    --config.steps=300
"""

from absl import app, flags, logging
from ml_collections import config_flags

from cropvlm_jax.training import loop

CONFIG = config_flags.DEFINE_config_file("config", None, "Module of the run; unknown keys fail.")
flags.mark_flag_as_required("config")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for metrics and the trained cropper.", required=True
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: settings are --config.name=value")
    loop.run(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    app.run(main)
