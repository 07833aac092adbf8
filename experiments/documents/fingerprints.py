# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether suites that were made elsewhere are those that the published figures are about.

`python experiments/documents/suites.py --compare` compares the folders that it made with
`fingerprints.json`: counts and digests, no data. Another release of the manuals gives other
questions; their documents are named.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("fingerprints.json")
SUITES = ("receipts", "pages", "street")
SPLITS = ("train", "val", "test")
KEYS = ("example_id", "question", "answers", "box")


def digest(lines: Iterable[dict[str, Any]]) -> str:
    """SHA-256 of ids, questions, answers and boxes, in the order of the lines' text."""
    texts = sorted(json.dumps([line.get(key) for key in KEYS], allow_nan=False) for line in lines)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def of_suite(folder: Path) -> dict[str, Any]:
    """Counts and digests of a suite by split, and of its documents where it has some."""
    found = {}
    for split in SPLITS:
        path = folder / f"{split}.jsonl"
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found[split] = {
            "questions": len(lines),
            "pictures": len({line["image"] for line in lines}),
            "boxes": sum("box" in line for line in lines),
            "categories": dict(sorted(Counter(line["category"] for line in lines).items())),
            "sha256": digest(lines),
        }
        documents = defaultdict(list)
        for line in lines:
            name, extension, _ = line["example_id"].partition(".pdf/")
            if extension:
                documents[name.removeprefix(f"{folder.name}/") + ".pdf"].append(line)
        if documents:
            found[split]["documents"] = {
                name: {"questions": len(of_document), "sha256": digest(of_document)[:16]}
                for name, of_document in sorted(documents.items())
            }
    return found


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What differs, a line for each split of a suite."""
    told = []
    for suite, splits in found.items():
        for split, of_split in splits.items():
            other = wanted[suite][split]
            if of_split["sha256"] == other["sha256"]:
                continue
            here, there = of_split.get("documents", {}), other.get("documents", {})
            names = sorted(n for n in here.keys() | there.keys() if here.get(n) != there.get(n))
            line = f"{suite}/{split}: {of_split['questions']} questions, {other['questions']} there"
            told.append(line + (f"; other documents: {', '.join(names)}" if names else ""))
    return told


def compare(folder: Path) -> list[str]:
    """What differs between the suites in a folder and the published ones.

    Raises:
        FileNotFoundError: the folder has no suite.
    """
    found = {name: of_suite(folder / name) for name in SUITES if (folder / name).is_dir()}
    if not found:
        raise FileNotFoundError(f"{folder} has none of {', '.join(SUITES)}: run suites.py")
    return differences(found, json.loads(FILE.read_text(encoding="utf-8")))


def save(folder: Path) -> None:
    """Makes the suites in a folder the published ones."""
    found = {name: of_suite(folder / name) for name in SUITES}
    FILE.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
