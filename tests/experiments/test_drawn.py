# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Drawn documents: what is said about them is what is seen on them."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from documents import drawn
from documents.drawn import fonts, frames, warp
from documents.drawn.document import Sheet

from cropvlm_jax.data.sources import jsonl
from cropvlm_jax.data.sources.sroie import QUESTIONS
from cropvlm_jax.pixels import host

KINDS = {"receipt": drawn.draw_receipt, "page": drawn.draw_page}
PAGE_FIELDS = {
    *("page number", "running head", "running foot", "first heading", "last heading"),
    *("section number", "figure number", "table number", "figure caption", "table caption"),
    *("first line number", "last line number", "title", "date", "version"),
}


@pytest.fixture(scope="module")
def receipts() -> list[drawn.Document]:
    return [drawn.draw_receipt(np.random.default_rng(seed)) for seed in range(30)]


@pytest.fixture(scope="module")
def pages() -> list[drawn.Document]:
    return [drawn.draw_page(np.random.default_rng(seed)) for seed in range(40)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_one_document_and_another_seed_another(kind: str):
    first, again, other = (KINDS[kind](np.random.default_rng(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.image, again.image)
    assert (first.lines, first.fields, first.evidence) == (
        again.lines,
        again.fields,
        again.evidence,
    )
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_pictures_are_those_of_scanners(receipts, pages):
    for document in (*receipts, *pages):
        assert document.image.dtype == np.uint8 and document.image.flags.writeable
        height, width, channels = document.image.shape
        assert channels == 3 and 240 <= width <= 1800 and 300 <= height <= 2000


def test_every_receipt_has_all_three_fields(receipts):
    assert all(set(r.fields) == {"total", "date", "company"} == set(r.evidence) for r in receipts)


def test_all_fields_of_pages_appear(pages):
    assert set().union(*(page.fields for page in pages)) == PAGE_FIELDS


def test_answers_stand_in_the_lines_inside_of_their_boxes(receipts, pages):
    for document in (*receipts, *pages):
        for name, (answer, box) in document.fields.items():
            around = document.evidence[name]
            inside = [
                line.text
                for line in document.lines
                if np.all(np.array(line.box[:2]) >= np.array(around[:2]) - 0.1)
                and np.all(np.array(line.box[2:]) <= np.array(around[2:]) + 0.1)
            ]
            assert answer in " ".join(inside), (name, answer, inside)
            assert box[0] >= around[0] - 2 and box[2] <= around[2] + 2


def test_boxes_and_characters_lie_inside_of_the_picture(receipts, pages):
    for document in (*receipts, *pages):
        height, width, _ = document.image.shape
        boxes = [line.box for line in document.lines]
        boxes += [field.box for field in document.fields.values()]
        left, top, right, bottom = np.array(boxes).T
        assert (left < right).all() and (top < bottom).all()
        assert left.min() >= 0 and top.min() >= 0
        assert right.max() <= width and bottom.max() <= height
        for line, edges in zip(document.lines, document.edges, strict=True):
            assert len(edges) == len(line.text) + 1 and (np.diff(edges) >= 0).all()


def test_boxes_of_rendered_pages_hold_dark_ink(pages):
    for page in pages:
        for line in page.lines:
            left, top, right, bottom = np.rint(line.box).astype(int)
            part = page.image[top:bottom, left:right]
            assert int(part.max()) - int(part.min()) > 20, line


def ink_of(image) -> np.ndarray:
    """Left, top, right, bottom of what is not blank."""
    rows, columns = np.nonzero(np.asarray(image) > 40)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize("dots", [0, 2])
@pytest.mark.parametrize("wide,tall", [(1, 1), (1.7, 1), (1, 2)])
def test_a_written_line_has_a_box_around_its_ink(dots: int, wide: float, tall: float):
    face = fonts.Face(
        file=fonts.of_kind("mono")[0].regular, size=24, wide=wide, tall=tall, dots=dots
    )
    sheet = Sheet(800, 120)
    line = sheet.write("TOTAL RM 12.50", 20, 80, face)
    sheet.mark("total", line, "12.50")
    text, box = sheet.lines[line]
    ink = ink_of(sheet.image)
    assert text == "TOTAL RM 12.50"
    assert (np.array(box[:2]) <= ink[:2]).all() and (np.array(box[2:]) >= ink[2:]).all()
    assert np.abs(np.array(box) - ink).max() < 0.3 * face.height + 2
    part = sheet.marks["total"].parts[0]
    assert part[0] == pytest.approx(20 + face.length("TOTAL RM "), abs=0.2 * face.height)
    assert sheet.edges[line][-1] == pytest.approx(20 + face.length(text))


def test_nothing_is_written_over_the_edge():
    face = fonts.Face(file=fonts.families()[0].regular, size=24)
    sheet = Sheet(60, 60)
    assert sheet.write("much too long for this", 5, 40, face) is None
    assert sheet.write("   ", 5, 40, face) is None
    assert not sheet.lines and sheet.image.getbbox() is None


@pytest.mark.parametrize("place", [frames.scanned, frames.photographed, frames.on_page])
def test_boxes_follow_the_paper(place):
    face = fonts.Face(file=fonts.families()[0].regular, size=30)
    for seed in range(16):
        sheet = Sheet(500, 900)
        line = sheet.write("HERE", 300 - 15 * seed, 860 - 50 * seed, face)
        frame: warp.Frame = place(np.random.default_rng(seed), sheet).within(800)
        (box,) = frame.boxes(np.array([sheet.lines[line].box]), sheet)
        ink = ink_of(frame.photograph(sheet))
        assert (box[:2] <= ink[:2] + 1).all() and (box[2:] >= ink[2:] - 1).all()
        assert np.abs(box - ink).max() < 16


def test_receipts_are_laid_out_as_scanned_ones_are(receipts):
    """The means of 294 receipts of the training split of SROIE, give or take."""
    middles = {"total": [], "date": [], "company": []}
    for receipt in receipts:
        height, width, _ = receipt.image.shape
        for name, (left, top, right, bottom) in receipt.evidence.items():
            middles[name].append(((left + right) / 2 / width, (top + bottom) / 2 / height))
    found = {name: np.mean(values, 0) for name, values in middles.items()}
    assert found["total"] == pytest.approx([0.74, 0.66], abs=0.08)
    assert found["date"] == pytest.approx([0.52, 0.44], abs=0.12)
    assert found["company"] == pytest.approx([0.47, 0.15], abs=0.06)
    assert np.mean([r.image.shape[0] / r.image.shape[1] for r in receipts]) == pytest.approx(
        2, abs=0.3
    )


def test_a_machine_without_fonts_is_told_what_to_install(monkeypatch, tmp_path):
    fonts.families.cache_clear()
    monkeypatch.setattr(fonts, "FOLDERS", (str(tmp_path),))
    with pytest.raises(OSError, match="no usable font .* apt-get install"):
        fonts.families()
    fonts.families.cache_clear()


def test_drawn_receipts_are_a_folder_of_the_source_jsonl(tmp_path):
    script = pathlib.Path(drawn.__file__).parents[1] / "draw_suite.py"
    subprocess.run([sys.executable, script, f"--out={tmp_path}", "--count=2"], check=True)
    examples = list(jsonl.open(tmp_path, "test"))
    assert [example["category"] for example in examples] == ["total", "date"] * 2
    assert [example["question"] for example in examples[:2]] == [
        QUESTIONS[category] for category in ("total", "date")
    ]
    again = drawn.draw_receipt(np.random.default_rng([1000, 1]))
    np.testing.assert_array_equal(host.to_rgb(examples[2]["image"]), again.image)
    assert examples[2]["answers"] == [again.fields["total"].answer]
    inner = np.array(again.evidence["total"]) / ([*again.image.shape[1::-1]] * 2) * 100
    box = np.array(examples[2]["box"])
    assert (box[:2] <= inner[:2]).all() and (box[2:] >= inner[2:]).all() and box.max() <= 100
