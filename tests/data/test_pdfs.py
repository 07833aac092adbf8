# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import itertools
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pypdfium2
import pytest
from PIL import Image
from small_pdfs import pdf

from cropvlm_jax.data import pdf_files
from cropvlm_jax.data.sources import open_source, pdfs


def _write(folder, pages, split="train", trailer=""):
    """Writes a file whose name is in the split."""
    names = (folder / f"manual {i}.pdf" for i in itertools.count())
    path = next(path for path in names if pdf_files.split_of(path) == split and not path.exists())
    path.write_bytes(pdf(pages, trailer))
    return path


def _prose(seed=0, lines=25):
    """Lines of words of which many return."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghij"), rng.integers(2, 10))) for _ in range(120)]
    return [(72, 740 - 14 * i, " ".join(rng.choice(words, 8))) for i in range(lines)]


def _render(words, attributes=""):
    """What a page of US letter looks like at 150 dpi."""
    document = pypdfium2.PdfDocument(pdf([(words, attributes)]))
    image = document[0].render(scale=149.999 / 72).to_numpy()
    assert sorted(image.shape) == [3, 1275, 1650]
    return image


def _pixels(image, box):
    height, width = image.shape[:2]
    x1, y1, x2, y2 = np.array(box) / 100 * [width, height, width, height]
    inside = np.zeros((height, width), bool)
    inside[int(y1) : int(np.ceil(y2)) + 1, int(x1) : int(np.ceil(x2)) + 1] = True
    return inside


WORDS = ["several", "different", "coloured", "pencils"]


@pytest.mark.parametrize("crop", ["", "/CropBox [100 500 400 700]"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_box_holds_all_ink_of_a_page_with_one_line(tmp_path, rotation, crop):
    _write(tmp_path, [([(150, 600, " ".join(WORDS))], f"/Rotate {rotation} {crop}")])
    (example,) = pdfs.open(tmp_path, "train")
    assert example["question"] == 'What word follows "several different coloured"?'
    assert example["answers"] == ["pencils"]
    ink = example["image"].min(-1) < 128
    size = np.array([300, 200] if crop else [612, 792])[:: -1 if rotation % 180 else 1]
    assert ink.shape == tuple(np.ceil(size[::-1] * 150 / 72))
    inside = _pixels(example["image"], example["box"])
    assert ink.sum() > 500
    assert not ink[~inside].any()
    x1, y1, x2, y2 = example["box"]
    tighter = np.array([[x1 + 2, y1, x2, y2], [x1, y1 + 2, x2, y2], [x1, y1, x2 - 2, y2]])
    assert all(ink[~_pixels(example["image"], box)].any() for box in tighter)


@pytest.mark.parametrize("rotation", [0, 90])
def test_box_holds_the_answer_among_many_lines(tmp_path, rotation):
    lines = [(72, 740 - 14 * i, " ".join(WORDS[i % 4 :] + WORDS[: i % 4])) for i in range(8)]
    place = (90, 740 - 14 * 3)
    asked = [(x, y, text) for x, y, text in lines if y != place[1]]
    shown = [(*place, "Please remember these numbers")]
    _write(tmp_path, [(asked + shown, f"/Rotate {rotation}")])
    blank = _render(asked, f"/Rotate {rotation}")
    by_answer = {e["answers"][0]: e for e in pdfs.open(tmp_path, "train")}
    example = by_answer["numbers"]  # all other phrases are on the page twice
    assert len(by_answer) == 1
    change = (example["image"] != blank).any(-1)
    assert change.sum() > 500
    assert not change[~_pixels(example["image"], example["box"])].any()


def test_phrases_are_unique_and_followed_by_the_answer(tmp_path):
    path = _write(tmp_path, [(_prose(seed), "") for seed in range(12)])
    source = pdfs.open(tmp_path, "train")
    assert len(source) == 24
    document = pypdfium2.PdfDocument(path)
    for example in source:
        page = int(re.fullmatch(r"pdfs/.*\.pdf/(\d+)\.[12]", example["example_id"])[1])
        lines = document[page - 1].get_textpage().get_text_range().splitlines()
        phrase = re.fullmatch(r'What word follows "(\w+ \w+ \w+)"\?', example["question"])[1]
        assert len(phrase) - 2 >= 12
        assert " ".join(lines).count(phrase) == 1
        (answer,) = example["answers"]
        assert 4 <= len(answer) <= 14
        assert any(f" {phrase} {answer} " in f" {line} " for line in lines)
        assert example["category"] == "text"
    document.close()


def test_phrases_keep_to_plain_words_and_to_their_column(tmp_path):
    pages = [
        ([(72, 700, "several different"), (300, 700, "coloured pencils")], ""),  # two columns
        ([(72, 700, "several different"), (72, 686, "coloured pencils")], ""),  # two lines
        ([(72, 700, "several different coloured pencil5")], ""),
        ([(72, 700, "several different, coloured pencils")], ""),
        ([(72, 700, "several different coloured ink")], ""),
        ([(72, 700, "several different coloured incomprehensibility")], ""),
        ([(72, 700, "so one may use pencils")], ""),
        ([(72, 700, " ".join(WORDS)), (72, 600, " ".join(WORDS[:3]).upper())], ""),
        ([(72, 700, " ".join(WORDS))], "/CropBox [0 0 200 792]"),  # half of it is cut off
        ([(72, 700, " ".join(WORDS))], ""),
    ]
    _write(tmp_path, pages)
    source = pdfs.open(tmp_path, "train")
    assert [e["example_id"].rsplit("/")[-1] for e in source] == ["10.1"]


def _entries(count, line):
    words = [line(i, f"Chapter {'abcdefghijkl'[i]} of all", 7 + 9 * i) for i in range(count)]
    return [word for words_of_line in words for word in words_of_line]


CONTENTS = {
    "dots": lambda i, title, page: [(72, 700 - 16 * i, f"{title} ........ {page}")],
    "spaced dots": lambda i, title, page: [(72, 700 - 16 * i, f"{title} . . . . . {page}")],
    "wide gap": lambda i, title, page: [(72, 700 - 16 * i, title), (500, 700 - 16 * i, page)],
}


@pytest.mark.parametrize("style", CONTENTS)
def test_contents_lines(tmp_path, style):
    pages = [
        (_entries(5, CONTENTS[style]), ""),
        (_entries(2, CONTENTS[style]), ""),  # too few
        (_entries(1, CONTENTS[style]) + _prose(), ""),
    ]
    _write(tmp_path, pages)
    source = pdfs.open(tmp_path, "train")
    assert [e["category"] for e in source] == ["contents"] * 2 + ["text"] * (len(source) - 2)
    for example in itertools.islice(source, 2):
        letter = re.fullmatch(
            r"Which page does \*Chapter (\w) of all\* begin on\?", example["question"]
        )[1]
        line = "abcde".index(letter)
        assert example["answers"] == [str(7 + 9 * line)]
        words = _entries(5, CONTENTS[style])
        ink = _render([word for word in words if word[1] == 700 - 16 * line]).min(-1) < 128
        assert ink.any()
        assert not ink[~_pixels(example["image"], example["box"])].any()
        assert example["box"][3] - example["box"][1] <= 3


def test_other_tables_are_no_contents(tmp_path):
    prices = [(100 + 50 * (i % 2), f"Chapter {'abcd'[i]} of all") for i in range(4)]
    gap = [w for i, (p, t) in enumerate(prices) for w in CONTENTS["wide gap"](i, t, p)]
    close = [(72, 700 - 16 * i, f"Chapter {'abcd'[i]} of all {10 + i}") for i in range(4)]
    same = [(72, 700 - 16 * i, f"Chapter of all ..... {10 + i}") for i in range(4)]
    _write(tmp_path, [(gap, ""), (close, ""), (same, ""), ([(72, 700, " ".join(WORDS))], "")])
    assert [e["category"] for e in pdfs.open(tmp_path, "train")] == ["text"]


def _encrypted():
    key = "<" + "5a" * 32 + ">"
    return (
        f"/ID [{key} {key}] "
        f"/Encrypt << /Filter /Standard /V 1 /R 2 /Length 40 /P -4 /O {key} /U {key} >>"
    )


def test_unusable_files_are_skipped_and_named(tmp_path):
    good = _write(tmp_path, [(_prose(), "")])
    (tmp_path / "inner").mkdir()
    locked = _write(tmp_path / "inner", [(_prose(), "")], trailer=_encrypted())
    broken = _write(tmp_path, [])
    broken.write_bytes(b"%PDF-1.4 and then nothing")
    empty = _write(tmp_path, [])
    empty.write_bytes(b"")
    scan = _write(tmp_path, [])
    Image.new("RGB", (200, 100), "red").save(scan)
    source = open_source("pdfs", tmp_path, "train")
    assert {e["example_id"].split("/")[1] for e in source} == {good.name}
    skipped = sorted(source.skipped)
    names = [f"inner/{locked.name}", broken.name, empty.name, scan.name]
    named = sorted(f"{name}: " for name in names)
    assert [line[: len(name)] for line, name in zip(skipped, named, strict=True)] == named
    assert "assword" in next(line for line in skipped if line.startswith("inner/"))
    assert f"{scan.name}: no text layer on 1 of 1 pages, perhaps scans: run OCR" in "".join(skipped)
    good.unlink()
    with pytest.raises(OSError, match="manual"):
        source[0]


def test_links_out_of_the_folder_are_refused(tmp_path):
    (tmp_path / "set").mkdir()
    good = _write(tmp_path / "set", [(_prose(), "")])
    linked, outside = _write(tmp_path / "set", []), _write(tmp_path, [(_prose(), "")])
    linked.unlink()
    linked.symlink_to(outside)
    source = pdfs.open(tmp_path / "set", "train")
    assert {row["image"][0] for row in source.rows} == {good}
    (skipped,) = source.skipped
    assert skipped.startswith(f"{linked.name}: ") and "through a link" in skipped
    outside.rename(tmp_path / "set/inner.pdf")
    linked.unlink()
    linked.symlink_to(tmp_path / "set/inner.pdf")
    assert linked in {row["image"][0] for row in pdfs.open(tmp_path / "set", "train").rows}


def test_splits_go_by_file_name(tmp_path):
    names = [tmp_path / f"manual-{i}.pdf" for i in range(3000)]
    counts = {
        split: sum(pdf_files.split_of(n) == split for n in names) for split in ("train", "val")
    }
    assert counts["train"] == pytest.approx(2400, abs=90)
    assert counts["val"] == pytest.approx(300, abs=60)
    paths = {split: _write(tmp_path, [(_prose(), "")], split) for split in ("train", "val", "test")}
    for split, path in paths.items():
        (tmp_path / split).mkdir()
        (tmp_path / split / path.name.replace("pdf", "PDF")).write_bytes(b"")
        source = pdfs.open(tmp_path, split)
        assert {e["example_id"].split("/")[1] for e in source} == {path.name}
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        pdfs.open(tmp_path, "dev")
    paths["val"].unlink()
    for path in tmp_path.rglob("*.PDF"):
        path.unlink()
    with pytest.raises(ValueError, match="none of the 2 PDF files .* 'val'"):
        pdfs.open(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match="no PDF file"):
        pdfs.open(tmp_path / "train", "train")


def test_the_same_questions_every_time_and_pages_in_threads(tmp_path):
    (tmp_path / "a").mkdir()
    for seed in range(3):
        _write(tmp_path / "a", [(_prose(seed), "/MediaBox [0 0 300 792]"), (_prose(seed + 9), "")])
    source = pdfs.open(tmp_path / "a", "train")
    assert len({e["example_id"] for e in source}) == len(source) == 12
    (tmp_path / "a").rename(tmp_path / "b")
    again = pickle.loads(pickle.dumps(pdfs.open(tmp_path / "b", "train")))
    want = list(again)
    moved = pdfs.open(tmp_path / "b", "train")
    with ThreadPoolExecutor(4) as pool:
        for read, example in zip(pool.map(moved.__getitem__, range(12)), want, strict=True):
            np.testing.assert_array_equal(read.pop("image"), example.pop("image"))
            assert read == example
    assert [row["question"] for row in source.rows] == [e["question"] for e in want]


def test_long_pages_are_clipped(tmp_path):
    line = [(10, 14000, " ".join(WORDS), 48)]
    _write(tmp_path, [(line, "/MediaBox [0 0 900 14400]")])
    (example,) = pdfs.open(tmp_path, "train")
    assert example["image"].shape == (4096, 256, 3)
    ink = example["image"].min(-1) < 200
    assert ink.any()
    assert not ink[~_pixels(example["image"], example["box"])].any()


SENTENCE = [(72, 700, " ".join(WORDS))]
DRAWING = "0 0 m 99 99 l S"  # a line, after which no text comes


def _page(kind):
    """A page and what it counts as."""
    words = {
        "text": SENTENCE,
        "empty": [],
        "scan": [(0, 0, f") Tj ET {DRAWING} BT (")],
        "tiny": [(72, 700, " ".join(WORDS), 3)],
        "number": [(300, 40, "17")],
    }
    return words[kind], ""


@pytest.mark.parametrize(
    ("kinds", "named"),
    [
        (["scan"], ["no text layer on 1 of 1 pages"]),
        (["scan"] * 12, ["no text layer on 12 of 12 pages"]),
        (["scan", "empty"], ["no text layer on 1 of 2 pages"]),
        (["text", "scan", "scan"], ["no text layer on 2 of 3 pages"]),
        (["text", "empty", "text"], []),
        (["text", "number"], []),
        (["number"], ["nothing to ask about on its 1 pages"]),
        (["empty"], ["nothing to ask about on its 1 pages"]),
        (["number", "empty"], ["nothing to ask about on its 2 pages"]),
        (["tiny"], ["text lower than 8 px as rendered on 1 of 1 pages"]),
        (["text", "tiny"], ["text lower than 8 px as rendered on 1 of 2 pages"]),
        (["scan", "tiny", "number"], ["no text layer on 1", "text lower", "nothing to ask about"]),
    ],
)
def test_pages_that_are_not_asked_about_are_counted_by_file(tmp_path, caplog, kinds, named):
    caplog.set_level("INFO", logger="absl")
    other = _write(tmp_path, [(_prose(), "")])
    path = _write(tmp_path, [_page(kind) for kind in kinds])
    source = pdfs.open(tmp_path, "train")
    assert len(source.skipped) == len(named)
    for line, words in zip(source.skipped, named, strict=True):
        assert line.startswith(f"{path.name}: {words}")
    asked = {row["image"] for row in source.rows} - {(other, 0)}
    assert asked == {(path, i) for i, kind in enumerate(kinds) if kind == "text"}
    counts = [kinds.count(kind) for kind in ("empty", "scan", "tiny", "number")]
    assert (
        f"pdfs/train: 2 files, {1 + len(kinds)} pages: {1 + kinds.count('text')} with questions, "
        "{} empty, {} without a text layer, {} with too small text, {} with nothing to ask about"
    ).format(*counts) in caplog.text


@pytest.mark.parametrize(
    ("size", "height", "readable"),
    [
        (12, 792, True),
        (6, 792, True),
        (5, 792, False),
        (3, 792, False),
        (12, 3000, True),
        (12, 7000, False),
        (12, 14400, False),  # 3 px
        (24, 14400, False),
        (48, 14400, True),
        (8, 3370, False),  # A0
        (12, 3370, True),
    ],
)
def test_text_is_asked_about_where_it_can_be_read(tmp_path, size, height, readable):
    _write(tmp_path, [(_prose(), "")])
    line = (10, height - 100, " ".join(WORDS), size)
    path = _write(tmp_path, [([line], f"/MediaBox [0 0 1200 {height}]")])
    source = pdfs.open(tmp_path, "train")
    assert readable == any(row["image"] == (path, 0) for row in source.rows)
    assert readable == (not source.skipped)
    if readable:
        (example,) = (e for e in source if path.name in e["example_id"])
        rows = np.flatnonzero((example["image"].min(-1) < 160).any(1))
        assert rows.max() - rows.min() + 1 >= pdf_files.LEAST_HEIGHT - 1
