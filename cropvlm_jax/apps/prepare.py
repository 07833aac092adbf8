# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes a data set as ArrayRecord files, for quick random access in training.

python -m cropvlm_jax.apps.prepare --source=textvqa --folder=~/textvqa --splits=train,val \
    --data_dir=~/prepared
"""

import os

from absl import app, flags, logging

from cropvlm_jax import apps
from cropvlm_jax.data import builders, sources

SOURCE = flags.DEFINE_enum("source", None, sources.NAMES, "The data set.", required=True)
FOLDER = flags.DEFINE_string("folder", None, "Folder of the data set.", required=True)
SPLITS = flags.DEFINE_list("splits", None, "Splits to write, e.g. train,val.", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of prepared data sets.", required=True)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    folder, data_dir = (os.path.expanduser(flag.value) for flag in (FOLDER, DATA_DIR))
    builders.prepare(SOURCE.value, folder, data_dir, SPLITS.value)
    for split in SPLITS.value:
        logging.info("%r is in %s", builders.open_prepared(SOURCE.value, data_dir, split), data_dir)


if __name__ == "__main__":
    apps.run(main)
