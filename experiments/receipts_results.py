# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The receipts' results from the records of `cropvlm evaluate`: totals and dates, by reader.

    python experiments/receipts_results.py --evaluation=runs/receipts/evaluation \
        --save=experiments/receipts/results.json

`receipts.py` says how the evaluation is made. Company names are left out: they are long, and a
reader that misses one letter of them does not contain them.
"""

import json
import pathlib

from absl import flags

from cropvlm_jax import apps
from cropvlm_jax.evals.records import read_records
from cropvlm_jax.evals.statistics import summarise

EVALUATION = flags.DEFINE_string("evaluation", None, "Folder of the evaluation.", required=True)
SAVE = flags.DEFINE_string("save", None, "File to write.", required=True)
FIELDS = ("total", "date")
KEYS = ("score", "score_interval", "gain", "gain_interval", "lead", "lead_interval")


def main(argv: list[str]) -> None:
    del argv
    folder = pathlib.Path(EVALUATION.value)
    whole = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    records = read_records(folder / whole["records"])
    asked = [record for record in records if record["category"] in FIELDS]
    results = summarise(whole["protocol"], asked)
    saved = {
        "trained_with": whole["trained_with"]["grpo"],
        "croppers_trained_with": whole["trained_with"],
        "n": results["n"],
        "metric": "contains",
        "readers": {
            reader: {name: row["score"] for name, row in found["scores"]["contains"].items()}
            for reader, found in results["targets"].items()
        },
        "anls": {
            reader: {name: row["score"] for name, row in found["scores"]["anls"].items()}
            for reader, found in results["targets"].items()
        },
        "intervals": {
            reader: {
                name: {key: row[key] for key in KEYS}
                for name, row in found["scores"]["contains"].items()
            }
            for reader, found in results["targets"].items()
        },
        "boxes": results["boxes"],
        "protocol": results["protocol"],
    }
    path = pathlib.Path(SAVE.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(saved, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    for reader, scores in saved["readers"].items():
        print(reader, {name: round(score, 3) for name, score in scores.items()})


if __name__ == "__main__":
    apps.run_script(main)
