# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Three suites of real pictures, as folders of the source `jsonl`: receipts, pages and street.

    pip install -e '.[data]'
    apt-get install r-doc-pdf texlive-latex-recommended-doc lilypond-doc-pdf octave-doc
    python experiments/documents/suites.py --receipts=FOLDER --street=FOLDER --pdfs=/usr/share/doc

It takes about half an hour on one core; pictures that are there already are kept.

- receipts: total, date and company of SROIE; the folder is as the source `sroie` says.
- street: words of ICDAR 2015's photos, as a folder of the source `jsonl`, and the largest of them.
- pages: manuals of Debian (of release 12 for the published figures), split by document.

SUITES.md says what is in them. At the end they are compared with `fingerprints.json`; `--compare`
does nothing else.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fingerprints
import page_suite
import receipt_suite
import street_suite
from absl import app, flags, logging

from cropvlm_jax import apps

RECEIPTS = flags.DEFINE_string("receipts", None, "Folder of SROIE.")
STREET = flags.DEFINE_string("street", None, "Folder of the street photos.")
PDFS = flags.DEFINE_string("pdfs", None, "Folder of the manuals, such as /usr/share/doc.")
OUT = flags.DEFINE_string("out", "data/documents", "Folder for the suites.")
COMPARE = flags.DEFINE_bool("compare", False, "Only compare what is there with fingerprints.json.")
SAVE = flags.DEFINE_bool("save", False, "Only write fingerprints.json from what is there.")

SPLITS = ("val", "train", "test")


def write(lines: Iterable[dict[str, Any]], path: Path) -> None:
    """Writes a file of JSON lines; it is there once all of it is.

    The order is that of the ids' digests, so that the first lines are a fair sample of all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w") as file:
        for line in sorted(lines, key=_place):
            file.write(json.dumps(line, allow_nan=False) + "\n")
    os.replace(part, path)


def _place(line: dict[str, Any]) -> str:
    return hashlib.sha256(line["example_id"].encode()).hexdigest()


def copied(example: dict[str, Any], origin: Path, folder: Path) -> dict[str, Any]:
    """The example with its picture copied into a folder."""
    picture = folder / example["image"]
    if not picture.exists():
        picture.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin / example["image"], picture)
    return example


def make(out: Path) -> None:
    """Makes the suites whose origin is named."""
    for split in SPLITS:
        if RECEIPTS.value:
            origin, folder = Path(RECEIPTS.value), out / "receipts"
            found = receipt_suite.questions(origin, split)
            write((copied(row, origin, folder) for row in found), folder / f"{split}.jsonl")
        if STREET.value:
            origin, folder = Path(STREET.value), out / "street"
            found = street_suite.questions(origin, split)
            write((copied(row, origin, folder) for row in found), folder / f"{split}.jsonl")
        if PDFS.value:
            folder = out / "pages"
            found = page_suite.questions(Path(PDFS.value), split)
            write(page_suite.draw(found, folder, split), folder / f"{split}.jsonl")


def main(argv: list[str]) -> None:
    del argv
    out = Path(OUT.value)
    if SAVE.value:
        return fingerprints.save(out)
    if not COMPARE.value:
        if not (RECEIPTS.value or STREET.value or PDFS.value):
            raise app.UsageError("nothing to make: name --receipts, --street or --pdfs.")
        make(out)
    told = fingerprints.compare(out)
    print("\n".join(told) or "the suites are the published ones")
    if told:
        raise SystemExit(1)


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    apps.run_script(main)
