# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import base64
import csv
import io
import json
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cropvlm_jax.data.sources import hrbench, open_source, vstar
from cropvlm_jax.pixels import host

INSTRUCTION = "Answer with the option's letter from the given choices directly."


def _png(seed: int = 0, height: int = 20, width: int = 30) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# V* -----------------------------------------------------------------------------------------------


@pytest.fixture
def vstar_folder(tmp_path):
    notes = {
        "direct_attributes/sa_1": {
            "target_object": ["glove", "hat"],
            "bbox": [[20, 10, 30, 20], [100, 50, 9, 5.5]],
            "question": "What is the material of the glove?",
            "options": ["rubber", "cotton", "kevlar", "leather"],
        },
        "relative_position/sa_2": {
            "target_object": ["dog"],
            "bbox": [[0, 0, 2, 1]],
            "question": "Is the dog left of the cat?",
            "options": ["left", "right"],
        },
    }
    for seed, (name, content) in enumerate(notes.items()):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.jpg").write_bytes(_png(seed, 100, 200))
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def _ask(folder, *questions):
    lines = (q if isinstance(q, str) else json.dumps(q) for q in questions)
    (folder / "test_questions.jsonl").write_text("\n".join(lines))


FIRST = {
    "question_id": 7,
    "image": "direct_attributes/sa_1.jpg",
    "text": "What is the material of the glove?\n(A) cotton\n(B) rubber\n(C) kevlar\n(D) leather\n"
    + INSTRUCTION,
    "label": "B",
    "category": "direct_attributes",
}
SECOND = {
    "question_id": "8",
    "image": "relative_position/sa_2.jpg",
    "text": f"Is the dog left of the cat? (A) right (B) left {INSTRUCTION}",
    "label": "B",
    "category": "relative_position",
}


def test_vstar_questions_are_joined_with_the_boxes(vstar_folder):
    _ask(vstar_folder, FIRST, "", SECOND)
    source = open_source("vstar", vstar_folder, "test")
    assert source.skipped == []
    assert list(source) == [
        {
            "example_id": "vstar/test/7",
            "image": _png(0, 100, 200),
            "question": "What is the material of the glove?",
            "answers": ["rubber"],
            "options": ["cotton", "rubber", "kevlar", "leather"],
            "label": "B",
            "category": "direct_attributes",
            "box": (10, 10, 55, 56),  # of 20..109 px in 200, 10..55.5 px in 100
        },
        {
            "example_id": "vstar/test/8",
            "image": _png(1, 100, 200),
            "question": "Is the dog left of the cat?",
            "answers": ["left"],
            "options": ["right", "left"],
            "label": "B",
            "category": "relative_position",
            "box": (0, 0, 1, 1),
        },
    ]
    (vstar_folder / "relative_position/sa_2.json").unlink()
    assert "box" not in vstar.open(vstar_folder)[1]


def test_vstar_folders_without_questions(vstar_folder):
    (vstar_folder / "OCR").mkdir()  # no part of the scores
    (vstar_folder / "OCR/sa_3.jpg").write_bytes(_png())
    (vstar_folder / "OCR/sa_3.json").write_text("{}")
    first, second = vstar.open(vstar_folder)
    assert first == {
        "example_id": "vstar/test/direct_attributes/sa_1",
        "image": _png(0, 100, 200),
        "question": "What is the material of the glove?",
        "answers": ["rubber"],
        "options": ["rubber", "cotton", "kevlar", "leather"],
        "label": "A",
        "category": "direct_attributes",
        "box": (10, 10, 55, 56),
    }
    assert (second["answers"], second["category"]) == (["left"], "relative_position")


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (FIRST | {"label": "E"}, "label 'E'"),
        (FIRST | {"text": "What is it?"}, "no options"),
        (FIRST | {"text": "What? (A) one (C) two"}, "no options"),
        (FIRST | {"text": "What? (A) (B) two"}, "options are"),
        (FIRST | {"text": f"(A) one (B) two {INSTRUCTION}"}, "no question"),
        (FIRST | {"image": "direct_attributes/sa_9.jpg"}, "sa_9.jpg"),
        (FIRST | {"image": "../sa_1.jpg"}, "leads out of"),
        (FIRST | {"image": "direct_attributes/sa_1.json"}, "No picture"),
        ({"question_id": 7}, "no image"),
        ("{", "line 1 of test_questions.jsonl"),
        ("[]", "not an object"),
    ],
)
def test_vstar_names_what_it_skips(vstar_folder, broken, why):
    _ask(vstar_folder, broken, SECOND)
    source = vstar.open(vstar_folder)
    assert [example["example_id"] for example in source] == ["vstar/test/8"]
    (skipped,) = source.skipped
    assert skipped.startswith("line 1 of test_questions.jsonl")
    assert why in skipped


@pytest.mark.parametrize(
    "bbox", [[[1, 2, 3]], [[1, 2, 0, 4]], [1, 2, "x", 4], [[200, 0, 5, 5]], [[1, 2, 1e999, 4]], {}]
)
def test_vstar_bad_boxes_cost_the_box(vstar_folder, bbox):
    notes = {"question": "q", "options": ["a", "b"], "bbox": bbox}
    (vstar_folder / "relative_position/sa_2.json").write_text(json.dumps(notes))
    source = vstar.open(vstar_folder)
    assert len(source) == 2 and source.skipped == []
    assert "box" not in source[1]
    if bbox == {}:
        assert source.lost_boxes == []
    else:
        assert "relative_position/sa_2.jpg: bbox" in source.lost_boxes[0]


def test_vstar_is_not_here(vstar_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="V. Bench is not in .*test_questions.jsonl"):
        vstar.open(tmp_path / "direct_attributes")
    with pytest.raises(ValueError, match="'test', not 'val'"):
        vstar.open(vstar_folder, "val")


WORDS = st.text("abc .?'-(5", min_size=1).map(str.strip).filter(bool)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=6), st.sampled_from([" ", "\n", "\n\n"]))
@settings(max_examples=100, deadline=None)
def test_vstar_prompts_come_apart_again(question, options, between):
    parts = [question, *(f"({'ABCDEF'[i]}) {o}" for i, o in enumerate(options)), INSTRUCTION]
    assert vstar._parse(between.join(parts)) == {"question": question, "options": options}


# HR-Bench -----------------------------------------------------------------------------------------

COLUMNS = ["index", "question", "answer", "category", "A", "B", "C", "D", "cycle_category", "image"]


def _rows(count: int) -> list[dict]:
    return [
        {
            "index": i,
            "question": f'What, "exactly",\tdoes\nsign {i} say?' if i % 3 == 0 else f"Sign {i}?",
            "answer": "ABCD"[i % 4],
            "category": "single" if i % 2 else "cross",
            **{letter: f"{letter.lower()}{i} é" for letter in "ABCD"},
            "cycle_category": str(i % 4),
            "image": base64.b64encode(_png(i)).decode(),
        }
        for i in range(count)
    ]


def _write_tsv(path, rows, **kwargs):
    with path.open("w", newline="", encoding="utf-8") as file:
        kwargs = {"delimiter": "\t", "lineterminator": "\n"} | kwargs  # pandas' own settings
        writer = csv.DictWriter(file, COLUMNS, **kwargs)
        writer.writeheader()
        writer.writerows(rows)


def _want(row: dict, split: str) -> dict:
    return {
        "example_id": f"hrbench/{split}/{row['index']}",
        "image": base64.b64decode(row["image"]),
        "question": row["question"],
        "answers": [row[row["answer"]]],
        "options": [row[letter] for letter in "ABCD"],
        "label": row["answer"],
        "category": row["category"],
        "cycle_category": row["cycle_category"],
    }


@pytest.mark.parametrize(
    "written",
    [{}, {"quoting": csv.QUOTE_ALL}, {"lineterminator": "\r\n"}],
    ids=["minimal", "all quoted", "crlf"],
)
def test_hrbench_tsv(tmp_path, written):
    rows = _rows(9)
    _write_tsv(tmp_path / "hr_bench_4k.tsv", rows, **written)
    source = open_source("hrbench_4k", tmp_path, "test")
    assert source.skipped == []
    assert list(source) == [_want(row, "4k") for row in rows]
    assert pickle.loads(pickle.dumps(source))[5] == _want(rows[5], "4k")


def test_hrbench_tsv_with_bom_and_columns_in_another_order(tmp_path):
    path = tmp_path / "hr_bench_8k.tsv"
    _write_tsv(path, rows := _rows(3))
    lines = csv.reader(io.StringIO(path.read_text(), newline=""), delimiter="\t")
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter="\t").writerows(line[::-1] for line in lines)
    assert list(hrbench.open(tmp_path, "8k")) == [_want(row, "8k") for row in rows]


@given(st.lists(st.text("ab\t\"'\n é").filter(str.strip), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_hrbench_reads_what_csv_writes(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("tsv")
    rows = [_rows(1)[0] | {"index": i, "question": t, "D": t} for i, t in enumerate(texts)]
    _write_tsv(folder / "hr_bench_4k.tsv", rows)
    assert list(hrbench.open(folder, "4k")) == [_want(row, "4k") for row in rows]


def test_hrbench_names_the_rows_it_skips(tmp_path):
    path = tmp_path / "hr_bench_4k.tsv"
    rows = _rows(8)
    _write_tsv(path, rows)
    header = path.read_bytes().split(b"\n")[0]
    fields = [[str(row[c]).encode() for c in COLUMNS] for row in rows]
    fields[0][1] = fields[3][1] = fields[6][1] = b"Sign?"
    fields[1][5] = b"\xff\xfe"  # no UTF-8
    fields[2][1] = b'"never closed'
    fields[4][2] = b"E"
    del fields[5][5]
    fields[7][1] = b'"never closed either'
    path.write_bytes(b"\n".join([header, *(b"\t".join(line) for line in fields)]) + b"\n")
    source = hrbench.open(tmp_path, "4k")
    rows = [rows[i] | {"question": "Sign?"} for i in (0, 3, 6)]
    assert list(source) == [_want(row, "4k") for row in rows]
    reasons = ["utf-8", "quotes do not close", "'E' is none of", "9 fields instead of 10", "quotes"]
    assert len(source.skipped) == len(reasons)
    for skipped, number, reason in zip(source.skipped, (2, 3, 5, 6, 8), reasons, strict=True):
        assert skipped.startswith(f"row {number} of hr_bench_4k.tsv")
        assert reason in skipped


def test_hrbench_broken_pictures(tmp_path):
    rows = _rows(4)
    rows[1]["image"] = "no*base64"
    rows[2]["image"] = ""
    _write_tsv(tmp_path / "hr_bench_4k.tsv", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hr_bench_8k.parquet")
    for split in ("4k", "8k"):
        source = hrbench.open(tmp_path, split)
        assert len(source) == 4
        with pytest.raises(ValueError, match=f"no picture in base64 .*hr_bench_{split}"):
            source[1]
        with pytest.raises(ValueError, match=f"no picture .*hr_bench_{split}"):
            source[2]
        assert source[3] == _want(rows[3], split)


def test_hrbench_fields_of_over_100_megabytes(tmp_path):
    path = tmp_path / "hr_bench_8k.tsv"
    rows = _rows(3)
    large = _png(1) + bytes(80_000_000)  # decoders stop at the picture's end
    encoded = base64.b64encode(large)
    assert len(encoded) > 100_000_000
    _write_tsv(path, rows[:1] + [rows[1] | {"image": "ENCODED"}] + rows[2:])
    path.write_bytes(path.read_bytes().replace(b"ENCODED", encoded))
    try:
        tracemalloc.start()
        source = hrbench.open(tmp_path, "8k")
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 1_000_000
        assert source[1]["image"] == large
        assert host.to_rgb(source[1]["image"]).shape == (20, 30, 3)
        assert source[2] == _want(rows[2], "8k")
    finally:
        path.unlink()


def test_hrbench_parquet(tmp_path):
    rows = _rows(11)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hr_bench_8k.parquet", row_group_size=4)
    source = open_source("hrbench_8k", tmp_path, "test")
    want = [_want(row, "8k") for row in rows]
    assert list(source) == want
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    assert [source[i] for i in order] == [want[i] for i in order]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.__getitem__, order * 3)) == [want[i] for i in order] * 3
    assert pickle.loads(pickle.dumps(source))[10] == want[10]
    _write_tsv(tmp_path / "hr_bench_8k.tsv", rows[:5])
    assert list(hrbench.open(tmp_path, "8k")) == want[:5]  # preferred


def test_hrbench_parquet_text_that_is_not_utf8(tmp_path):
    rows = _rows(5)
    table = pa.Table.from_pylist(rows)
    texts = [b"\xff\xfe" if i == 3 else row["A"].encode() for i, row in enumerate(rows)]
    table = table.set_column(4, "A", pa.array(texts, pa.binary()).view(pa.string()))
    pq.write_table(table, tmp_path / "hr_bench_8k.parquet", row_group_size=2)
    source = hrbench.open(tmp_path, "8k")
    assert list(source) == [_want(row, "8k") for row in rows if row["index"] != 3]
    (skipped,) = source.skipped
    assert skipped.startswith("row 3 of hr_bench_8k.parquet: ") and "utf-8" in skipped


def test_hrbench_tsv_in_utf16_is_named(tmp_path):
    (tmp_path / "hr_bench_4k.tsv").write_text("index\tquestion\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"hr_bench_4k.tsv is no TSV file in UTF-8"):
        hrbench.open(tmp_path, "4k")


def test_hrbench_is_not_here(tmp_path):
    with pytest.raises(FileNotFoundError, match="HR-Bench 4k is not in .*hr_bench_4k.parquet"):
        hrbench.open(tmp_path, "4k")
    with pytest.raises(ValueError, match="'4k' and '8k', not 'test'"):
        hrbench.open(tmp_path, "test")
    (tmp_path / "hr_bench_4k.tsv").write_text("index\tquestion\n1\tWhy?\n")
    with pytest.raises(ValueError, match="no column answer, category, cycle_category, A, B, C"):
        hrbench.open(tmp_path, "4k")
    (tmp_path / "hr_bench_8k.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(ValueError, match="no readable parquet"):
        hrbench.open(tmp_path, "8k")
    row = _rows(1)[0] | {"image": {"bytes": _png(), "path": None}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "hr_bench_8k.parquet")
    with pytest.raises(ValueError, match="image is struct.*not text in base64"):
        hrbench.open(tmp_path, "8k")
