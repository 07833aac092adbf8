# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
from small_pdfs import pdf

from cropvlm_jax.data import page_layout, pdf_files
from cropvlm_jax.data.sources import open_source, pages

WIDTH, HEIGHT = 612, 792
LETTERS = "abcdefghijklmnopqrst"


def _body(page):
    """Text of which no row is on two pages."""
    return [
        (
            72,
            640 - 14 * i,
            f"words {LETTERS[i] * 3} of {LETTERS[page] * 4} ordinary text",
            10,
        )
        for i in range(20)
    ]


def _open(folder, contents):
    """The questions of a document, by its pages' words, in a list a page."""
    names = (folder / f"manual {i}.pdf" for i in itertools.count())
    path = next(path for path in names if pdf_files.split_of(path) == "train")
    path.write_bytes(pdf([(words, "") for words in contents]))
    found = [{} for _ in contents]
    for example in open_source("pages", folder, "train"):
        _, name, page, category = example["example_id"].split("/")
        assert name == path.name.replace(" ", "_")
        assert category == example["category"].replace(" ", "_")
        assert example["question"] == page_layout.QUESTIONS[example["category"]]
        assert example["answers"][0].lower() not in example["question"].lower().split()
        found[int(page) - 1][example["category"]] = example
    return found


def _manual(count=6, number="{}", first=7):
    """Pages with a head, a number, a heading and text."""
    return [
        [
            (72, 750, "Chapter 2: Colours", 10),
            (520, 750, number.format(first + i), 10),
            (72, 680, f"2.{i + 1}   Mixing colour {'abcdef'[i]}", 18),
            *_body(i),
        ]
        for i in range(count)
    ]


def _near(box, left, baseline, size):
    """Whether a percent box begins at a place in points and is as high as one line."""
    x, y = 100 * left / WIDTH, 100 * (1 - baseline / HEIGHT)
    return abs(box[0] - x) < 1.5 and abs(box[3] - y) < 1.5 and box[3] - box[1] < 250 * size / HEIGHT


def test_head_number_and_heading_of_each_page(tmp_path):
    found = _open(tmp_path, _manual())
    for i, page in enumerate(found[1:], 1):
        assert set(page) == {"page number", "running head", "first heading", "section number"}
        assert page["page number"]["answers"] == [str(7 + i)]
        assert _near(page["page number"]["box"], 520, 750, 10)
        assert page["running head"]["answers"] == ["Chapter 2: Colours"]
        assert _near(page["running head"]["box"], 72, 750, 10)
        title = f"Mixing colour {'abcdef'[i]}"
        assert page["first heading"]["answers"] == [f"2.{i + 1} {title}", title]
        assert _near(page["first heading"]["box"], 72, 680, 18)
        assert page["section number"]["answers"] == [f"2.{i + 1}"]
        assert page["section number"]["box"][2] < page["first heading"]["box"][2]


def test_box_holds_all_ink_of_the_answer(tmp_path):
    example = _open(tmp_path, _manual())[3]["page number"]
    image = example["image"]
    height, width = image.shape[:2]
    x1, y1, x2, y2 = np.array(example["box"]) / 100 * [width, height, width, height]
    head = (image.min(-1) < 128)[: height // 10]
    columns = np.flatnonzero(head[:, width // 2 :].any(0)) + width // 2
    lines = np.flatnonzero(head[:, width // 2 :].any(1))
    assert x1 <= columns[0] and columns[-1] <= x2 and y1 <= lines[0] and lines[-1] <= y2
    assert (x2 - x1) * (y2 - y1) < 0.002 * height * width


@pytest.mark.parametrize("numbers", [[3, 9, 4, 1, 8, 2], [5] * 6, [10, 20, 30, 40, 50, 60]])
def test_numbers_that_do_not_count_the_pages_are_none(tmp_path, numbers):
    contents = _manual()
    for words, number in zip(contents, numbers, strict=True):
        words[1] = (520, 750, str(number), 10)
    assert not any("page number" in page for page in _open(tmp_path, contents))


@pytest.mark.parametrize("number", ["{}", "Page {}", "- {} -", "{} of 99"])
def test_numbers_at_the_foot_in_many_spellings(tmp_path, number):
    contents = [[*_body(i), (300, 40, number.format(3 + i), 10)] for i in range(5)]
    for i, page in enumerate(_open(tmp_path, contents)):
        assert page["page number"]["answers"] == [str(3 + i)]
        assert "running head" not in page


def test_roman_numbers(tmp_path):
    contents = [
        [*_body(i), (300, 40, number, 10)] for i, number in enumerate(("iii", "iv", "v", "vi"))
    ]
    answers = [page["page number"]["answers"] for page in _open(tmp_path, contents)]
    assert answers == [["iii"], ["iv"], ["v"], ["vi"]]


def test_text_at_the_top_that_does_not_return_is_no_head(tmp_path):
    contents = [
        [(72, 750, f"sentence {'abcde'[i] * 5} begins", 10), *_body(i), (300, 40, str(i), 10)]
        for i in range(5)
    ]
    assert not any("running head" in page for page in _open(tmp_path, contents))


def test_the_last_heading_is_asked_for_where_there_are_two(tmp_path):
    contents = _manual()
    for i, words in enumerate(contents):
        words[-1] = (72, 374, f"2.{i + 1}.1   Blue and {'abcdef'[i] * 3}", 14)
        del words[-2]
    page = _open(tmp_path, contents)[2]
    assert page["first heading"]["answers"][0] == "2.3 Mixing colour c"
    assert page["last heading"]["answers"] == ["2.3.1 Blue and ccc", "Blue and ccc"]
    assert page["section number"]["answers"] == ["2.3"]


def test_a_heading_of_two_rows_is_not_asked_for(tmp_path):
    contents = _manual()
    contents[3].insert(3, (72, 660, "and of many more", 18))
    found = _open(tmp_path, contents)
    assert "first heading" not in found[3] and "section number" not in found[3]
    assert "first heading" in found[2]


def test_captions_of_one_figure_and_of_none_where_there_are_two(tmp_path):
    contents = _manual()
    contents[2][-1] = (150, 330, "Figure 2.1: A wheel of colours", 10)
    contents[3][-1] = (150, 330, "Figure 2.2: A star of colours", 10)
    contents[3][-5] = (150, 430, "Figure 2.3: A cube of colours", 10)
    contents[4][-1] = (150, 330, "Figure 2.1 shows a wheel of colours", 10)
    found = _open(tmp_path, contents)
    assert found[2]["figure number"]["answers"] == ["2.1"]
    assert found[2]["figure caption"]["answers"] == ["A wheel of colours"]
    assert not any("figure" in category for page in found[3:] for category in page)


def test_numbers_of_the_lines_of_a_program(tmp_path):
    contents = _manual()
    for i in range(4):
        contents[2][4 + i] = (60, 580 - 14 * i, str(98 + i), 6)
        contents[2].append((90, 580 - 14 * i, "x = f(x)", 10))
        contents[3][4 + i] = (60, 580 - 14 * i, str(98 + 2 * i), 6)  # these do not count on
    found = _open(tmp_path, contents)
    assert found[2]["first line number"]["answers"] == ["98"]
    assert found[2]["last line number"]["answers"] == ["101"]
    assert "first line number" not in found[3]


def test_title_date_and_version_of_the_first_page(tmp_path):
    title = [
        (150, 600, "The colours package", 24),
        (200, 560, "Version 2.1a, 3 May 2021", 12),
        *_body(9)[8:],
    ]
    page = _open(tmp_path, [title, *_manual()])[0]
    assert {category: example["answers"] for category, example in page.items()} == {
        "title": ["The colours package"],
        "date": ["3 May 2021"],
        "version": ["2.1a"],
    }


def test_answers_in_letters_that_the_text_layer_does_not_know_are_left_out(tmp_path):
    contents = _manual()
    contents[3][2] = (72, 680, "2.4   Mixing \\001\\002\\003 colour", 18)
    found = _open(tmp_path, contents)
    assert "first heading" not in found[3] and "first heading" in found[2]


def test_files_that_are_broken_or_say_nothing_are_named(tmp_path):
    _open(tmp_path, _manual())
    names = [tmp_path / f"other {i}.pdf" for i in range(30)]
    broken, silent = [path for path in names if pdf_files.split_of(path) == "train"][:2]
    broken.write_bytes(b"%PDF-1.4\nnothing\n")
    silent.write_bytes(pdf([([(72, 700, "Hello")], "")]))
    source = pages.open(tmp_path, "train")
    assert [line.split(":")[0] for line in source.skipped] == sorted([broken.name, silent.name])
    with pytest.raises(FileNotFoundError, match="no PDF file"):
        pages.open(tmp_path / "none", "train")
