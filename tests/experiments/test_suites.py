# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The suites of real pictures: their splits and their fingerprints."""

import json
import re

import numpy as np
import pytest
from documents import fingerprints, page_suite, receipt_suite, street_suite

from cropvlm_jax import geometry

PUBLISHED = json.loads(fingerprints.FILE.read_text())


def _lines(folder, split, words):
    (folder / "a.jpg").touch()
    rows = [
        {"image": image, "question": f"Word {i}?", "answers": [answer], "box": box}
        for i, (image, answer, box) in enumerate(words)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(text)


def test_published_suites_are_large_enough_and_hold_no_data():
    tests = {suite: splits["test"]["questions"] for suite, splits in PUBLISHED.items()}
    assert sum(tests.values()) >= 3000 and tests["pages"] >= 2600
    assert PUBLISHED["pages"]["train"]["questions"] >= 10_000
    documents = PUBLISHED["pages"]["test"]["documents"]
    assert len(documents) >= 25
    assert max(of["questions"] for of in documents.values()) <= 0.06 * tests["pages"]
    for splits in PUBLISHED.values():
        for split in splits.values():
            assert re.fullmatch("[0-9a-f]{64}", split["sha256"])


def test_no_document_and_no_package_is_in_two_splits():
    groups = [
        {page_suite.group(name) for name in split["documents"]}
        for split in PUBLISHED["pages"].values()
    ]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    for split, of_split in PUBLISHED["pages"].items():
        assert {page_suite.split_of(name) for name in of_split["documents"]} == {split}


def test_the_manuals_of_a_package_stay_together_and_a_linked_one_counts_once(tmp_path):
    (tmp_path / "octave").mkdir()
    (tmp_path / "r-doc-pdf").mkdir()
    (tmp_path / "octave" / "a.pdf").touch()
    (tmp_path / "r-doc-pdf" / "b.pdf").symlink_to(tmp_path / "octave" / "a.pdf")
    (tmp_path / "r-doc-pdf" / "c.pdf").touch()
    assert list(page_suite.documents(tmp_path)) == ["octave/a.pdf", "r-doc-pdf/c.pdf"]
    assert page_suite.group("octave/a.pdf") == page_suite.group("octave/deeper/b.pdf")
    assert page_suite.group("texlive-doc/latex/a/b.pdf") == "texlive-doc/latex/a"
    with pytest.raises(FileNotFoundError, match="apt-get install r-doc-pdf"):
        page_suite.documents(tmp_path / "octave")


RECEIPT = {
    "image": "a.jpg",
    "width": 1000,
    "height": 1000,
    "lines": [
        {"text": "RM 119.00 19.00", "box": [300, 100, 600, 120]},
        {"text": "DATE: 01/02/2018 8:13:39", "box": [100, 200, 340, 220]},
    ],
}


@pytest.mark.parametrize(
    ("category", "answer", "line", "box"),
    [
        ("total", "19.00", 0, [48, 10, 60, 12]),  # not the end of 119.00
        ("date", "01/02/2018", 1, [15, 20, 27, 22]),
        ("date", "1/02/2018", 1, [10, 20, 34, 22]),  # not as it is written
        ("company", "DATE", 1, [10, 20, 34, 22]),
    ],
)
def test_a_box_holds_the_answer_and_not_its_line(category, answer, line, box):
    size = np.array([RECEIPT["height"], RECEIPT["width"]])
    whole = geometry.from_pixels(np.array(RECEIPT["lines"][line]["box"]), size)
    example = {"category": category, "answers": [answer], "box": tuple(whole.tolist())}
    assert list(receipt_suite.narrowed(example, RECEIPT)["box"]) == box
    del example["box"]
    assert receipt_suite.narrowed(example, RECEIPT) == example


def test_a_total_is_asked_for_without_its_currency():
    example = {"category": "total", "answers": ["RM 9.00"]}
    assert receipt_suite.without_currency(example)["answers"] == ["9.00", "RM 9.00"]
    example = {"category": "company", "answers": ["RM 9.00"]}
    assert receipt_suite.without_currency(example) == example


def test_the_largest_word_is_asked_for_where_it_is_much_larger(tmp_path):
    boxes = [("a.jpg", "BIG", [0, 0, 40, 20]), ("a.jpg", "SMALL", [0, 30, 20, 40])]
    boxes += [("b.jpg", "ONE", [0, 0, 20, 10]), ("b.jpg", "TWO", [0, 30, 20, 41])]
    _lines(tmp_path, "train", boxes)
    found = street_suite.questions(tmp_path, "train")
    (largest,) = [row for row in found if row["category"] == "largest word"]
    assert largest["question"] == street_suite.LARGEST and largest["answers"] == ["BIG"]
    assert len({row["example_id"] for row in found}) == len(found) == 5


def test_fingerprints_name_the_documents_that_differ(tmp_path):
    line = {"image": "1.jpg", "question": "?", "answers": ["7"], "category": "page number"}
    ids = ["pages/octave/a.pdf/1/page_number", "pages/octave/b.pdf/1/page_number"]
    folder = tmp_path / "pages"
    folder.mkdir()
    for split in fingerprints.SPLITS:
        lines = [json.dumps(line | {"example_id": name}) for name in ids]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    before = {"pages": fingerprints.of_suite(folder)}
    assert before["pages"]["val"]["questions"] == 2
    assert fingerprints.differences(before, before) == []
    text = (folder / "test.jsonl").read_text()
    (folder / "test.jsonl").write_text("\n".join(reversed(text.splitlines())))
    assert fingerprints.differences({"pages": fingerprints.of_suite(folder)}, before) == []
    head, _, tail = text.rpartition('"7"')
    (folder / "test.jsonl").write_text(f'{head}"8"{tail}')
    (told,) = fingerprints.differences({"pages": fingerprints.of_suite(folder)}, before)
    assert told.startswith("pages/test: 2 questions") and told.endswith(": octave/b.pdf")
