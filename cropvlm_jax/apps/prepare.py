# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Copies a data set into ArrayRecord files, which training reads quickly in any order.

Training reads every data set without this too; it pays for data sets in parquet files. A run's
config then names the new folder: `source("data/prepared", prepared=True)`. Needs
`pip install -e '.[data]'`.

Example:

    cropvlm prepare --source=textvqa --folder=data/textvqa --splits=train,val \
        --data_dir=data/prepared
"""

import os

from absl import app, flags, logging

from cropvlm_jax import apps
from cropvlm_jax.data import builders, sources

SOURCE = flags.DEFINE_enum("source", None, sources.NAMES, "Kind of the data set.", required=True)
FOLDER = flags.DEFINE_string(
    "folder", None, "Where the data set lies, as it is distributed.", required=True
)
SPLITS = flags.DEFINE_list("splits", None, "Splits to copy, with commas between.", required=True)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder to write to, which several data sets may share.", required=True
)


def main(argv: list[str]) -> None:
    """Prepares the data set that the flags name."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    folder, data_dir = (os.path.expanduser(flag.value) for flag in (FOLDER, DATA_DIR))
    builders.prepare(SOURCE.value, folder, data_dir, SPLITS.value)
    for split in SPLITS.value:
        logging.info("%r is in %s", builders.open_prepared(SOURCE.value, data_dir, split), data_dir)


if __name__ == "__main__":
    apps.run(main)
