# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a labeller that is often a little wrong would reply, for the supervised stage.

    python experiments/documents/seed_replies.py --documents=data/documents \
        --out=runs/documents/seed_replies --seed=0
    for suite in receipts pages; do for split in train val; do
      cropvlm label --source=jsonl --folder=data/documents/$suite --split=$split --frame=percent \
        --replies=runs/documents/seed_replies/${suite}_$split.jsonl \
        --out=runs/documents/seed_boxes/${suite}_$split.jsonl
    done; done

A seed box is the true one, moved by a normal error of half its height and of a tenth of its width;
one in ten stands at a random place. `cropvlm label` then enlarges them as the paper does.
"""

import json
import pathlib

import numpy as np
from absl import flags, logging
from noisy_boxes import seed_box

from cropvlm_jax import apps

DOCUMENTS = flags.DEFINE_string("documents", None, "Folder of the suites.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder for the replies.", required=True)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the errors.")


def main(argv: list[str]) -> None:
    del argv
    out = pathlib.Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    for number, suite in enumerate(("receipts", "pages")):
        for split in ("train", "val"):
            rng = np.random.default_rng([SEED.value, number, split == "val"])
            path = pathlib.Path(DOCUMENTS.value) / suite / f"{split}.jsonl"
            with path.open(encoding="utf-8") as file:
                rows = [row for row in map(json.loads, file) if "box" in row]
            with (out / f"{suite}_{split}.jsonl").open("w", encoding="utf-8") as file:
                for row in rows:
                    reply = str(seed_box(rng, row["box"]))
                    line = {"example_id": row["example_id"], "reply": reply}
                    file.write(json.dumps(line, allow_nan=False) + "\n")
            logging.info("%s/%s: %d replies", suite, split, len(rows))


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    apps.run_script(main)
