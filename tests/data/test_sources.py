# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import importlib
import io
import json
import logging
import os
import pickle
import random
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.data import rows, sources
from cropvlm_jax.data.source import Source, inside
from cropvlm_jax.data.sources import docvqa, jsonl, open_source, sroie, stvqa, textvqa
from cropvlm_jax.pixels import host

TEN = [" 7 ", "7", "seven", "7", "7", "", "7", "1", "7", "7"]


def picture(seed, height=6, width=9, fmt="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, fmt)
    return file.getvalue()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def put_lines(path, lines):
    put(path, b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines))


def put_parquet(path, columns, pictures, row_group_size=2):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": one, "path": "a.png"} for one in pictures], kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**columns, "image": image}), path, row_group_size=row_group_size)


def examples(source):
    return [source[index] for index in range(len(source))]


# TextVQA ------------------------------------------------------------------------------------------


def textvqa_row(number, **fields):
    return {
        "image_id": f"{number:016x}",
        "question_id": number,
        "question": f"what is number {number}?",
        "question_tokens": ["what"],
        "image_width": 9,
        "image_height": 6,
        "image_classes": ["Poster"],
        "answers": TEN,
        "set_name": "train",
        **fields,
    }


def put_textvqa(root, split, data):
    content = {"dataset_name": "textvqa", "dataset_version": "0.5.1", "data": data}
    put(root / f"TextVQA_0.5.1_{split}.json", content)
    folder = "test_images" if split == "test" else "train_images"
    for row in data:
        put(root / folder / f"{row['image_id']}.jpg", picture(row["question_id"], fmt="JPEG"))


def put_textvqa_parquet(path, data, **options):
    columns = {key: [row.get(key) for row in data] for key in data[0]}
    put_parquet(path, columns, [picture(row["question_id"]) for row in data], **options)


@pytest.mark.parametrize("split", ["train", "val", "validation", "test"])
@pytest.mark.parametrize("folder", ["data", "."])
def test_textvqa_parquet(tmp_path, split, folder):
    stored = {"val": "validation"}.get(split, split)
    data = [textvqa_row(number) for number in range(7)]
    if split == "test":
        data = [row | {"answers": ["", ""] if row["question_id"] else None} for row in data]
    put_textvqa_parquet(tmp_path / folder / f"{stored}-00000-of-00002.parquet", data[:5])
    put_textvqa_parquet(tmp_path / folder / f"{stored}-00001-of-00002.parquet", data[5:])
    put_textvqa_parquet(tmp_path / folder / "other-00000-of-00001.parquet", data[:1])
    source = open_source("textvqa", str(tmp_path), split)
    assert len(source) == 7
    assert source.skipped == []
    order = random.Random(0).sample(range(7), 7)
    for index in (*order, *range(7)):
        short = {"validation": "val"}.get(split, split)
        assert source[np.int64(index)] == {
            "example_id": f"textvqa/{short}/{index}",
            "image": picture(index),
            "question": f"what is number {index}?",
            "answers": [] if split == "test" else ["7", "7", "seven", *["7"] * 3, "1", "7", "7"],
        }


@pytest.mark.parametrize("split", ["train", "val", "validation", "test"])
def test_textvqa_json(tmp_path, split):
    stored = {"validation": "val"}.get(split, split)
    data = [textvqa_row(number) for number in (34602, 5)]
    if split == "test":
        del data[0]["answers"], data[1]["answers"]
    put_textvqa(tmp_path, stored, data)
    source = textvqa.open(tmp_path, split)
    assert [row["example_id"] for row in examples(source)] == [
        f"textvqa/{stored}/34602",
        f"textvqa/{stored}/5",
    ]
    assert source[1]["image"] == picture(5, fmt="JPEG")
    assert len(source[0]["answers"]) == (0 if split == "test" else 9)


def test_opening_parquet_reads_no_picture_and_a_broken_picture_column_is_an_os_error(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "train-00000-of-00001.parquet"
    put_textvqa_parquet(path, [textvqa_row(number) for number in range(5)], row_group_size=5)
    content = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(0)
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema.startswith("image."):
            start = column.dictionary_page_offset or column.data_page_offset
            content[start : start + column.total_compressed_size] = b"\xff" * (
                column.total_compressed_size
            )
    path.write_bytes(content)
    source = textvqa.open(tmp_path, "train")
    assert len(source) == 5
    with pytest.raises(OSError, match="row group 0 of .*train-00000"):
        source[3]


def test_a_row_group_is_read_once_in_order(tmp_path):
    data = [textvqa_row(number) for number in range(12)]
    put_textvqa_parquet(tmp_path / "train-0.parquet", data, row_group_size=3)
    source = textvqa.open(tmp_path, "train")
    rows._row_group.cache_clear()
    examples(source)
    assert rows._row_group.cache_info().misses == 4
    assert rows._row_group.cache_info().currsize == 2


def test_a_parquet_row_without_a_picture(tmp_path):
    columns = {key: [value] for key, value in textvqa_row(0).items()}
    put_parquet(tmp_path / "train-0.parquet", columns, [None])
    with pytest.raises(ValueError, match="no picture in row 0 of row group 0 of .*train-0"):
        textvqa.open(tmp_path, "train")[0]


def test_missing_shards_are_named_in_the_log(tmp_path, caplog):
    put_textvqa_parquet(tmp_path / "train-00001-of-00020.parquet", [textvqa_row(0)])
    with caplog.at_level(logging.WARNING, logger="absl"):
        textvqa.open(tmp_path, "train")
    assert "only 1 of 20 shards" in caplog.text


def test_parquet_text_that_is_not_utf8(tmp_path):
    pa = pytest.importorskip("pyarrow")
    columns = {key: [value] * 3 for key, value in textvqa_row(0).items()}
    columns["question"] = pa.array([b"fine?", b"\xff\xfe?", b"too?"], pa.binary()).view(pa.string())
    put_parquet(tmp_path / "train-0.parquet", columns, [picture(0)] * 3)
    source = textvqa.open(tmp_path, "train")
    assert [row["question"] for row in examples(source)] == ["fine?", "too?"]
    (line,) = source.skipped
    assert line.startswith("row 1 of train-0.parquet: ")
    assert "utf-8" in line


def test_without_pyarrow(tmp_path, monkeypatch):
    put_textvqa_parquet(tmp_path / "train-0.parquet", [textvqa_row(0)])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        textvqa.open(tmp_path, "train")


# DocVQA, InfographicVQA ---------------------------------------------------------------------------


def docvqa_row(number, **fields):
    return {
        "questionId": number,
        "question": f"What is in document {number}?",
        "question_types": ["form"],
        "image": f"documents/xyz_{number}.png",
        "docId": 279,
        "ucsf_document_id": "xyz",
        "ucsf_document_page_no": "1",
        "answers": ["10 mg", " 10mg"],
        "data_split": "train",
        **fields,
    }


def infographic_row(number, **fields):
    return {
        "questionId": number,
        "question": f"What is in graphic {number}?",
        "image_local_name": f"{number}.jpeg",
        "image_url": "https://example.org/a.jpeg",
        "ocr_output_file": f"{number}.json",
        "answers": ["10 mg", " 10mg"],
        "data_split": "train",
        **fields,
    }


@pytest.mark.parametrize(
    ("name", "folder", "own"),
    [
        ("docvqa", "DocVQA", {"docId": 279}),
        ("docvqa", "data", {"docId": 279}),
        ("docvqa", ".", {"docId": 279}),
        ("infographicvqa", "InfographicVQA", {"image_url": "x"}),
        ("infographicvqa", "data", {"image_url": "x"}),
        ("infographicvqa", ".", {"image_url": "x"}),
    ],
)
def test_docvqa_parquet(tmp_path, name, folder, own):
    columns = {
        "questionId": ["49153", "24580", "7"],
        "question": ["What?", "Who?", "Where?"],
        **{key: [value] * 3 for key, value in own.items()},
    }
    answers = [["10 mg", "10mg"], ["Ann "], []]
    pictures = [picture(seed) for seed in range(3)]
    put_parquet(
        tmp_path / folder / "validation-00000-of-00001.parquet",
        {**columns, "answers": answers},
        pictures,
    )
    put_parquet(
        tmp_path / folder / "test-00000-of-00001.parquet",
        {**columns, "answers": [None] * 3},
        pictures,
    )
    source = open_source(name, tmp_path, "validation")
    assert examples(source) == [
        {
            "example_id": f"{name}/val/49153",
            "image": pictures[0],
            "question": "What?",
            "answers": ["10 mg", "10mg"],
        },
        {
            "example_id": f"{name}/val/24580",
            "image": pictures[1],
            "question": "Who?",
            "answers": ["Ann"],
        },
    ]
    assert source.skipped == ["row 2 of validation-00000-of-00001.parquet: no answer"]
    test = open_source(name, tmp_path, "test")
    assert [row["answers"] for row in examples(test)] == [[], [], []]


@pytest.mark.parametrize("file", ["{}_v1.0.json", "{}_v1.0_withQT.json"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("pictures", ["documents", "{}/documents", "spdocvqa_images"])
def test_docvqa_json(tmp_path, file, split, pictures):
    data = [docvqa_row(number) for number in (1, 2)]
    if split == "test":
        del data[0]["answers"], data[1]["answers"]
    put(tmp_path / file.format(split), {"dataset_name": "docvqa", "data": data})
    for number in (1, 2):
        put(tmp_path / pictures.format(split) / f"xyz_{number}.png", picture(number))
    source = open_source("docvqa", tmp_path, split)
    assert len(source) == 2
    assert source[1] == {
        "example_id": f"docvqa/{split}/2",
        "image": picture(2),
        "question": "What is in document 2?",
        "answers": [] if split == "test" else ["10 mg", "10mg"],
    }


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("infographicsVQA_train_v1.0.json", "train"),
        ("infographicVQA_train_v1.0.json", "train"),
        ("infographicsVQA_val_v1.0_withQT.json", "val"),
        ("infographicVQA_val_v1.0.json", "val"),
        ("infographicsVQA_test_v1.0.json", "test"),
    ],
)
@pytest.mark.parametrize("pictures", ["infographicsvqa_images", "images"])
def test_infographicvqa_json(tmp_path, file, split, pictures):
    put(tmp_path / file, {"dataset_name": "infographicVQA", "data": [infographic_row(37313)]})
    put(tmp_path / pictures / "37313.jpeg", picture(1))
    source = open_source("infographicvqa", tmp_path, split)
    (example,) = examples(source)
    assert example["example_id"] == f"infographicvqa/{split}/37313"
    assert example["image"] == picture(1)
    assert example["answers"] == ["10 mg", "10mg"]


# ST-VQA -------------------------------------------------------------------------------------------


def stvqa_row(number, path, **fields):
    return {
        "question_id": number,
        "question": f"What does sign {number} say?",
        "answers": ["STOP"],
        "file_name": path.split("/")[-1],
        "file_path": path,
        "dataset": "coco-text",
        "question_tokens": [],
        "set_name": "train",
        **fields,
    }


@pytest.mark.parametrize("prefix", ["", "train/"])
@pytest.mark.parametrize("folder", [".", "train", "train_images"])
def test_stvqa_train_and_val_share_no_image(tmp_path, prefix, folder):
    paths = [f"coco-text/COCO_train2014_{number:012}.jpg" for number in range(60)]
    data = [stvqa_row(number, prefix + paths[number // 2]) for number in range(120)]
    put(tmp_path / "train_task_3.json", {"data": data})
    for number, path in enumerate(paths):
        put(tmp_path / folder / path, picture(number, fmt="JPEG"))
    found = {}
    for split in ("train", "val"):
        source = open_source("stvqa", tmp_path, split)
        found[split] = {example["image"] for example in examples(source)}
        assert all(
            example["example_id"].startswith(f"stvqa/{split}/") for example in examples(source)
        )
        assert len(source) == 2 * len(found[split])
    assert not found["train"] & found["val"]
    assert found["train"] | found["val"] == {picture(number, fmt="JPEG") for number in range(60)}
    # The split is a fact about the data set: it must be the same in every release and process.
    assert found["val"] == {picture(number, fmt="JPEG") for number in (20, 45, 47, 48, 52, 58)}


def test_stvqa_val_is_a_tenth():
    shares = np.array([rows.fraction(f"vizwiz/{number}.jpg") for number in range(20_000)])
    assert abs((shares < stvqa.VAL_SHARE).mean() - 0.1) < 0.01
    assert shares.min() >= 0
    assert shares.max() < 1


@pytest.mark.parametrize("folder", [".", "test", "test_task3_images"])
def test_stvqa_test(tmp_path, folder):
    row = stvqa_row(3, "test/icdar/img_1.jpg")
    del row["answers"]
    put(tmp_path / "test_task_3.json", {"data": [row]})
    put(tmp_path / folder / "icdar/img_1.jpg", picture(0))
    (example,) = examples(open_source("stvqa", tmp_path, "test"))
    assert example["answers"] == []
    assert example["image"] == picture(0)


@pytest.mark.parametrize("size", [(1, 40), (40, 1)])
def test_stvqa_pictures_of_one_pixel(tmp_path, size):
    put(tmp_path / "test_task_3.json", {"data": [stvqa_row(3, "a/b.png"), stvqa_row(4, "a/c.png")]})
    put(tmp_path / "a/b.png", picture(0, *size))
    put(tmp_path / "a/c.png", picture(0, 2, 2))
    source = stvqa.open(tmp_path, "test")
    with pytest.raises(ValueError, match=f"a/b.png is {size[1]} x {size[0]} px"):
        source[0]
    assert source[1]["image"] == picture(0, 2, 2)


# SROIE --------------------------------------------------------------------------------------------

LINES = [
    ("TAN WOON, YANN", (10, 10, 90, 20)),
    ("BOOK TA .K(TAMAN", (10, 25, 60, 35)),
    ("DAYA) SDN BHD", (20, 35, 95, 44)),
    ("DATE: 25/12/2018 8:13", (5, 50, 50, 58)),
    ("PRINTED 25/12/2018", (5, 60, 50, 68)),
    ("TOTAL RM9.00", (40, 101, 70, 110)),
    ("CASH 19.00", (40, 120, 70, 130)),
    ("ROUNDED 9.00", (41, 141, 71, 151)),
    ("POINTS 9.001", (41, 161, 71, 171)),
]
FIELDS = {
    "company": "BOOK TA .K (TAMAN DAYA) SDN BHD",
    "date": "25/12/2018",
    "address": "JOHOR",
    "total": "9.00",
}


def put_receipts(root, receipts, size=(200, 100)):
    """Both layouts of `{name: (fields, lines)}`, in `jsonl/` and `icdar/`."""
    lines = []
    for seed, (name, (fields, texts)) in enumerate(receipts.items()):
        pixels = picture(seed, *size, fmt="JPEG")
        boxes = [{"text": text, "box": [float(v) for v in box]} for text, box in texts]
        height, width = size
        image = f"images/{name}.jpg"
        lines.append(
            {"image": image, "width": width, "height": height, "fields": fields, "lines": boxes}
        )
        put(root / "jsonl" / image, pixels)
        put(root / f"icdar/img/{name}.jpg", pixels)
        put(root / f"icdar/key/{name}.json", fields)
        rows_ = [
            f"{x1},{y1},{x2},{y1},{x2},{y2},{x1},{y2},{text}" for text, (x1, y1, x2, y2) in texts
        ]
        put(root / f"icdar/box/{name}.csv", "\r\n".join([*rows_, ""]).encode())
    put_lines(root / "jsonl/receipts.jsonl", lines)


def all_splits(folder):
    return [
        one for split in ("train", "val", "test") for one in examples(sroie.open(folder, split))
    ]


def test_sroie(tmp_path):
    fields = [FIELDS | {"address": str(number)} for number in range(60)]
    put_receipts(tmp_path, {f"{number:03}": (fields[number], LINES) for number in range(60)})
    found = all_splits(tmp_path / "jsonl")
    assert found == all_splits(tmp_path / "icdar")
    assert len(found) == 180
    receipts = [
        {row["example_id"].split("/")[2] for row in found if split in row["example_id"]}
        for split in ("/train/", "/val/", "/test/")
    ]
    assert sum(map(len, receipts)) == len(set.union(*receipts)) == 60
    assert [len(split) for split in receipts] == [40, 11, 9]  # in every release, too
    for example in found:
        field = example["example_id"].split("/")[3]
        assert example["question"] == sroie.QUESTIONS[field]
        assert example["answers"] == [FIELDS[field]]
        assert host.picture_size(example["image"]) == (200, 100)
        # In percent of 100 x 200 px (width x height).
        want = {"company": (10, 12, 95, 22), "date": (5, 25, 50, 29), "total": (41, 70, 71, 76)}
        assert example["box"] == want[field]


def test_receipts_of_equal_fields_share_a_split(tmp_path):
    put_receipts(
        tmp_path,
        {f"{n:03}": (dict(sorted(FIELDS.items(), reverse=n > 9)), LINES) for n in range(20)}
        | {f"{n:03}": (FIELDS | {"address": f"{n}"}, LINES) for n in range(20, 40)},
    )
    for folder in ("jsonl", "icdar"):
        places = {}
        for example in all_splits(tmp_path / folder):
            _, split, name, _ = example["example_id"].split("/")
            places.setdefault(split, set()).add(int(name))
        (home,) = (split for split, names in places.items() if 0 in names)
        assert home == sroie._split("000")
        assert places[home] >= set(range(20))
        assert set.union(*places.values()) == set(range(40)) and len(places) == 3


@pytest.mark.parametrize(
    "box",
    [
        [70, 101, 40, 110],
        [40, 110, 70, 101],
        [40, 101, 40, 110],
        [100, 101, 130, 110],
        [40, 200, 70, 210],
        [-9, 101, 0, 110],
        [1e308, 101, 1.5e308, 110],
    ],
)
def test_evidence_outside_the_picture_costs_the_box(tmp_path, box):
    put_receipts(tmp_path, {"000": (FIELDS, [*LINES[:5], ("TOTAL 9.00", box)])})
    source = sroie.open(tmp_path / "jsonl", sroie._split("000"))
    boxes = {row["example_id"].rsplit("/")[-1]: "box" in row for row in source.rows}
    assert boxes == {"total": False, "date": True, "company": True}
    assert source.skipped == []
    assert source.lost_boxes == [
        "images/000.jpg, total: the evidence's box is empty or outside the picture"
    ]


def test_evidence_that_reaches_beyond_the_picture_is_clipped(tmp_path):
    put_receipts(tmp_path, {"000": (FIELDS, [("TOTAL 9.00", [-5, 101, 1e308, 250])])})
    source = sroie.open(tmp_path / "jsonl", sroie._split("000"))
    assert source.rows[0]["box"] == (0, 50, 100, 100)


def test_sroie_fields_that_no_line_holds(tmp_path):
    odd = {"company": "***", "date": "5/12/2018", "total": "", "address": ""}
    put_receipts(tmp_path, {"000": (odd, LINES), "001": ({**odd, "total": "1,009.00"}, LINES)})
    found = all_splits_that_exist(tmp_path / "jsonl")
    assert sorted(row["example_id"].split("/", 2)[2] for row in found) == [
        "000/company",
        "000/date",
        "001/company",
        "001/date",
        "001/total",
    ]
    assert not any("box" in row for row in found)


def all_splits_that_exist(folder):
    found = []
    for split in ("train", "val", "test"):
        try:
            found += examples(sroie.open(folder, split))
        except ValueError as error:
            assert "no usable example" in str(error)
    return found


def test_broken_receipts_are_named(tmp_path):
    fields = [FIELDS | {"address": str(number)} for number in range(12)]
    put_receipts(tmp_path, {f"{number:03}": (fields[number], LINES) for number in range(12)})
    icdar = tmp_path / "icdar"
    put(icdar / "box/003.csv", b"1,2,3,4,5,6,7,8,fine\n1,2,3,text\n")
    put(icdar / "box/004.csv", b"1,2,3,4,5,6,7,8,\xff\xfe\n")
    put(icdar / "key/005.json", b"{")
    (icdar / "key/006.json").unlink()
    put(icdar / "img/007.jpg", b"")
    put(icdar / "key/008.json", {k: v for k, v in FIELDS.items() if k != "total"})
    source = sroie.open(icdar, "train")
    starts = [line.split(":")[0] for line in source.skipped]
    assert starts[:5] == [f"receipt {number:03}" for number in (3, 4, 5, 6, 7)]
    assert "'1,2,3,text' in box/003.csv is not eight numbers" in source.skipped[0]
    assert "utf-8" in source.skipped[1]
    assert "no file 'key/006.json'" in source.skipped[3]
    lines = (tmp_path / "jsonl/receipts.jsonl").read_bytes().split(b"\n")
    good = json.loads(lines[0])
    bad = [
        good | {"width": 0},
        good | {"lines": [{"text": "a", "box": [1, 2, 3]}]},
        good | {"lines": [{"text": "a", "box": [1, 2, 3, float("nan")]}]},
        good | {"fields": None},
        good | {"lines": [{"text": "a", "box": [1, 2, 3, 10**400]}]},
        [1],
    ]
    put_lines(tmp_path / "jsonl/receipts.jsonl", [*lines, *bad])
    assert [line.split(":")[0] for line in sroie.open(tmp_path / "jsonl", "train").skipped] == [
        f"line {number} of receipts.jsonl" for number in range(13, 19)
    ]


# JSON lines ---------------------------------------------------------------------------------------


GOOD = {"image": "pictures/a.png", "question": "What?", "answer": "c"}


def open_lines(folder, lines, split="train"):
    """A jsonl source of these lines, whose picture is 40 px high and 80 px wide."""
    put(folder / "pictures/a.png", picture(0, 40, 80))
    put_lines(folder / f"{split}.jsonl", lines)
    return jsonl.open(folder, split)


def test_jsonl(tmp_path):
    good = {"image": "pictures/a.png", "question": "What?"}
    lines = [
        good | {"answers": ["a ", "b"], "box": [0, 5, 100, 6], "example_id": "mine"},
        good | {"answer": "c", "other": 3, "category": "letters"},
        b"",
        good | {"answer": 5.0},
        good | {"answers": []},
        {"question": "What?", "answer": "c"},
        good | {"answer": None, "example_id": 3},
        good | {"answer": "c", "example_id": 3},
        good | {"answer": "d", "example_id": "3"},
        good | {"answer": "c", "category": 1},
    ]
    open_lines(tmp_path, lines)
    for folder in (tmp_path, tmp_path / "train.jsonl"):
        source = open_source("jsonl", folder, "train")
        want = {"image": picture(0, 40, 80), "question": "What?"}
        assert examples(source) == [
            {**want, "example_id": "mine", "answers": ["a", "b"], "box": (0, 5, 100, 6)},
            {**want, "example_id": "jsonl/train/2", "answers": ["c"], "category": "letters"},
            {**want, "example_id": "3", "answers": ["c"]},
        ]
    place = "of train.jsonl"
    assert source.skipped == [
        f'line 4 {place}: answer 5.0 is a number: write it as text, such as "5.0"',
        f"line 5 {place}: no answer",
        f"line 6 {place}: no image",
        f"line 7 {place}: no answer",
        f"line 9 {place}: an earlier line has the example_id '3'",
        f"line 10 {place}: category is 1, not text",
    ]
    assert source.name_of(0) == "mine (pictures/a.png)"
    put_lines(tmp_path / "test.jsonl", [good])
    assert jsonl.open(tmp_path, "test")[0]["answers"] == []


@pytest.mark.parametrize(
    ("fields", "answers"),
    [
        ({"answers": "coffee"}, ["coffee"]),
        ({"answers": " coffee "}, ["coffee"]),
        ({"answer": "coffee"}, ["coffee"]),
        ({"answer": ["coffee", "tea"]}, ["coffee", "tea"]),
        ({"answers": ["coffee", ""]}, ["coffee"]),
        ({"answer": "coffee", "answers": None}, ["coffee"]),
        ({"answer": None, "answers": ["coffee"]}, ["coffee"]),
        ({"answer": "coffee", "answers": ["coffee", "coffee", "tea"]}, ["coffee", "coffee", "tea"]),
        ({"answer": "tea", "answers": "coffee"}, ["tea", "coffee"]),
        ({"answer": 5}, ["5"]),
        ({"answers": 0}, ["0"]),
        ({"answers": [5, "five"]}, ["5", "five"]),
        ({"answers": "12,50 \u20ac"}, ["12,50 \u20ac"]),
        ({"answers": "\ud83d\ude00"}, ["\U0001f600"]),  # JSON's way to spell one character
    ],
)
def test_answers_of_a_line(tmp_path, fields, answers):
    line = {"image": "pictures/a.png", "question": "What?"} | fields
    assert open_lines(tmp_path, [line])[0]["answers"] == answers


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"answer": 12.5}, "answer 12.5 is a number"),
        ({"answers": ["a", 1e3]}, "answer 1000.0 is a number"),
        ({"answer": float("nan")}, "answer nan is a number"),
        ({"answer": True}, "answer True is not text"),
        ({"answers": {"a": 1}}, "answer {'a': 1} is not text"),
        ({"answers": [["a"]]}, "answer ['a'] is not text"),
        ({"answers": ["a", None]}, "answer None is not text"),
        ({"answers": "  "}, "no answer"),
        ({"answer": "half \ud800"}, "the answer cannot be written as UTF-8: its character 6 is"),
        ({"answers": ["a", "\udfff"]}, "the answer cannot be written as UTF-8"),
        ({"question": "\ud800?"}, "the question cannot be written as UTF-8"),
        ({"example_id": "\ud83d"}, "the example_id cannot be written as UTF-8"),
        ({"image": "\udcff.png"}, "the image cannot be written as UTF-8"),
        ({"question": 5}, "question is 5, not text"),
        ({"question": ["What?"]}, "question is ['What?'], not text"),
        ({"image": None}, "no image"),
    ],
)
def test_faults_that_cost_the_line(tmp_path, fields, reason):
    line = {key: value for key, value in (GOOD | fields).items()}
    if "answers" in fields:
        del line["answer"]
    source = open_lines(tmp_path, [GOOD, line])
    assert len(source) == 1 and source.lost_boxes == []
    (skipped,) = source.skipped
    assert skipped.startswith(f"line 2 of train.jsonl: {reason}")


@pytest.mark.parametrize(
    ("fields", "box"),
    [
        ({"box": [60, 71, 88, 75]}, (60, 71, 88, 75)),
        ({"box": [60.0, 71.0, 88.0, 75.0]}, (60, 71, 88, 75)),
        ({"box": [60.2, 71.9, 87.1, 75.01]}, (60, 71, 88, 76)),  # what is around it
        ({"box": [0, 0, 100.0, 100]}, (0, 0, 100, 100)),
        ({"box": [10.1, 20.1, 10.2, 20.2]}, (10, 20, 11, 21)),
        ({"box": [99.5, 99.5, 99.9, 100]}, (99, 99, 100, 100)),
        ({"box": [0, 0, 1, 1]}, (0, 0, 1, 1)),
        ({"box": [0.29 * 100, 0.57 * 100, 0.58 * 100, 100 * 1.1 / 1.1]}, (29, 57, 58, 100)),
        ({"box": [0, 0, 7.000000000000001, 100.00000000000001]}, (0, 0, 7, 100)),
        ({"box": [60, 71, 88, 75], "frame": "percent"}, (60, 71, 88, 75)),
        ({"box": [0.2, 0.3, 0.8, 0.9], "frame": "percent"}, (0, 0, 1, 1)),
        ({"box": [60, 71, 88, 75], "frame": None}, (60, 71, 88, 75)),
        ({"box": [8, 4, 40, 20], "frame": "pixels"}, (10, 10, 50, 50)),
        ({"box": [8.4, 4.2, 40.1, 20.0], "frame": "pixels"}, (10, 10, 51, 50)),
        ({"box": [0, 0, 80, 40], "frame": "pixels"}, (0, 0, 100, 100)),
        ({"box": [-0.4, 0, 80.3, 40.9], "frame": "pixels"}, (0, 0, 100, 100)),  # by rounding
        ({"box": [100, 200, 505, 1000], "frame": "thousandths"}, (10, 20, 51, 100)),
        ({"box": None}, None),
    ],
)
def test_boxes_of_a_line(tmp_path, fields, box):
    source = open_lines(tmp_path, [GOOD | fields])
    assert source[0].get("box") == box and source.lost_boxes == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"box": [0, 5, 0, 6]}, "is empty or out of order"),
        ({"box": [50, 5, 10, 6]}, "is empty or out of order"),
        ({"box": [0, 5, 101, 6]}, "is not inside 0..100 by 0..100 (percent)"),
        ({"box": [-1, 5, 10, 6]}, "is not inside"),
        ({"box": [0, 5, 10]}, "is not four numbers"),
        ({"box": []}, "is not four numbers"),
        ({"box": "0, 5, 10, 6"}, "is not four numbers"),
        ({"box": {"x": 1}}, "is not four numbers"),
        ({"box": [0, 5, "10", 6]}, "is not four numbers"),
        ({"box": [0, 0, True, 6]}, "is not four numbers"),
        ({"box": [0, 0, 1, 10**400]}, "is not four numbers"),
        ({"box": [0, 0, float("nan"), 9]}, "is not four numbers"),
        ({"box": [float("-inf"), 0, 8, 9]}, "is not four numbers"),
        ({"box": [[0, 5, 10, 6]]}, "is not four numbers"),
        ({"box": [0.1, 0.25, 0.5, 0.75]}, "seems to count shares of 1"),
        ({"box": [8, 4, 90, 20], "frame": "pixels"}, "is not inside 0..80 by 0..40 (pixels)"),
        ({"box": [0, 0, 8, 8], "frame": "inches"}, "frame 'inches' is none of percent, pixels"),
        ({"box": [0, 0, 8, 8], "frame": "smart_resized"}, "is none of percent"),
        ({"box": [0, 0, 8, 8], "frame": 100}, "frame 100 is none of"),
        ({"box": [0, 0, 8, 8], "frame": "pixels", "image": "b.png"}, "no file 'b.png'"),
        ({"box": [0, 0, 8, 1001], "frame": "thousandths"}, "is not inside 0..1000"),
    ],
)
def test_a_wrong_box_costs_the_box(tmp_path, caplog, fields, reason):
    source = open_lines(tmp_path, [GOOD, GOOD | fields])
    assert len(source) == 2 and source.skipped == []
    assert source.rows[1]["answers"] == ["c"] and "box" not in source.rows[1]
    (lost,) = source.lost_boxes
    assert lost.startswith("line 2 of train.jsonl: ") and reason in lost
    assert f"jsonl/train: 1 of 2 rows kept without their box: {lost}" in caplog.text


def test_boxes_of_a_file_in_another_frame_are_left_out_together(tmp_path, caplog):
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 1000, (20, 2, 2)), axis=1).reshape(20, 4)
    lines = [GOOD | {"box": box} for box in (corners + [0, 0, 1, 1]).tolist()]
    lines += [GOOD | {"box": [10, 20, 30, 40]}, GOOD | {"box": [1, 2, 3, 4], "frame": "percent"}]
    source = open_lines(tmp_path, lines)
    assert len(source) == 22 and source.skipped == []
    assert [row.get("box") for row in source.rows] == [None] * 21 + [(1, 2, 3, 4)]
    assert "of 21 boxes without a frame are not in percent, so all are left out" in caplog.text
    assert '"frame": "thousandths"' in source.lost_boxes[0]


def test_boxes_that_are_likely_in_another_frame_are_doubted(tmp_path, caplog):
    lines = [GOOD | {"box": [9, 9, 20 + i, 30 + i], "frame": "thousandths"} for i in range(9)]
    assert len(open_lines(tmp_path, lines)) == 9
    assert "is 'thousandths' the frame of the boxes? no number of 9 boxes is over" in caplog.text
    assert "may count percent" in caplog.text


def test_fields_that_nothing_reads_are_named(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="absl")
    open_lines(tmp_path, [GOOD | {"bbox": [1, 2, 3, 4]}, GOOD | {"source": "web"}])
    assert "'bbox' (1x, is 'box' meant?), 'source' (1x)" in caplog.text


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["pixels", "percent", "pictures/a.png", "\ud800", 10**400, -0.0]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
BOXES = st.lists(st.integers(-5, 120) | st.floats(-5, 120), min_size=4, max_size=4)
ODD = st.fixed_dictionaries({}, optional=dict.fromkeys(jsonl.FIELDS, ANY) | {"box": BOXES | ANY})


@settings(deadline=None, max_examples=60)
@given(st.lists(ODD, min_size=1, max_size=8))
def test_whatever_lines_hold_they_are_used_or_named(changes):
    with tempfile.TemporaryDirectory() as folder:
        lines = [GOOD, *(GOOD | change for change in changes)]
        source = open_lines(Path(folder), lines)
    assert len(source) + len(source.skipped) == len(lines)
    for row in source.rows:
        assert all(answer.strip() for answer in row["answers"]) and row["question"].encode()
        assert "box" not in row or geometry.is_valid(np.array(row["box"]))
        assert all(type(edge) is int for edge in row.get("box", ()))


def test_one_json_list_is_no_file_of_lines(tmp_path):
    put(tmp_path / "train.jsonl", json.dumps([GOOD, GOOD], indent=1).encode())
    with pytest.raises(ValueError, match=r"train.jsonl is one JSON list: write each .* on a line"):
        jsonl.open(tmp_path, "train")


def test_a_jsonl_file_is_of_the_split_that_it_is_named_after(tmp_path):
    line = {"image": "a.png", "question": "What?", "answer": "c"}
    for name in ("train", "validation", "mine"):
        put_lines(tmp_path / f"{name}.jsonl", [line])
    for name, split in (("validation", "val"), ("mine", "val"), ("mine", "train")):
        assert jsonl.open(tmp_path / f"{name}.jsonl", split).name == f"jsonl/{split}"
    for name, split in (("train", "val"), ("validation", "test"), ("train", "mine")):
        with pytest.raises(ValueError, match=f"{name}.jsonl is by its name not the .*'{split}'"):
            jsonl.open(tmp_path / f"{name}.jsonl", split)


def test_lines_that_are_no_json_are_skipped(tmp_path):
    put(tmp_path / "a.png", picture(0))
    good = {"image": "a.png", "question": "Größe?", "answer": "8 µm"}
    lines = [
        json.dumps(good, ensure_ascii=False).encode("utf-8-sig"),
        json.dumps(good, ensure_ascii=False).encode("latin-1"),
        json.dumps(good).encode("utf-16"),
        b'{"image": "a.png", ',
        b"[" * 100_000,
        b"17",
        json.dumps(good | {"question": "half a pair \ud83d"}).encode(),
        good,
    ]
    put_lines(tmp_path / "train.jsonl", lines)
    source = jsonl.open(tmp_path, "train")
    assert [row["question"] for row in examples(source)] == ["Größe?"] * 2
    assert [line.split(" of ")[0] for line in source.skipped] == [
        f"line {number}" for number in (2, 3, 4, 5, 6, 7)
    ]
    assert "utf-8" in source.skipped[0]


# What all of them share ---------------------------------------------------------------------------


def test_one_broken_row_among_a_thousand(tmp_path, caplog):
    data = [textvqa_row(number) for number in range(1000)]
    data[17]["question"] = ""
    put(tmp_path / "TextVQA_0.5.1_train.json", {"data": data})
    for row in data[:20]:
        put(tmp_path / f"train_images/{row['image_id']}.jpg", picture(row["question_id"]))
    with caplog.at_level(logging.WARNING, logger="absl"):
        source = textvqa.open(tmp_path, "train")
    assert len(source) == 999
    assert source.skipped == ["row 17 of TextVQA_0.5.1_train.json: no question"]
    assert "1 of 1000 rows left out: row 17 of TextVQA_0.5.1_train.json: no quest" in caplog.text
    assert [source[index]["example_id"] for index in (0, 16, 17)] == [
        f"textvqa/train/{number}" for number in (0, 16, 18)
    ]
    with pytest.raises(FileNotFoundError, match=r"train_images/0+3e7\.jpg"):
        source[998]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": None}, "no question"),
        ({"question": " \n"}, "no question"),
        ({"question": 17}, "question is 17, not text"),
        ({"question": ["What?"]}, "question is ['What?'], not text"),
        ({"answers": None}, "no answer"),
        ({"answers": []}, "no answer"),
        ({"answers": ["", "  "]}, "no answer"),
        ({"answers": 7.5}, 'answer 7.5 is a number: write it as text, such as "7.5"'),
        ({"answers": {"text": "yes"}}, "answer {'text': 'yes'} is not text"),
        ({"answers": True}, "answer True is not text"),
        ({"answers": ["yes", None]}, "answer None is not text"),
        ({"question_id": None}, "no question_id"),
        ({"question_id": True}, "question_id is True, not text"),
        ({"image_id": None}, "no image_id"),
    ],
)
def test_rows_without_what_an_example_needs(tmp_path, change, reason):
    put_textvqa(tmp_path, "train", [textvqa_row(1)])
    put(tmp_path / "TextVQA_0.5.1_train.json", {"data": [textvqa_row(1) | change, textvqa_row(1)]})
    assert textvqa.open(tmp_path, "train").skipped == [
        f"row 0 of TextVQA_0.5.1_train.json: {reason}"
    ]


def test_no_usable_row_is_an_error(tmp_path):
    put_textvqa(tmp_path, "train", [textvqa_row(1)])
    for data, reason in (([], "$"), ([{}, 3], ": row 0 of .*: no image_id; row 1 of .*: a int")):
        put(tmp_path / "TextVQA_0.5.1_train.json", {"data": data})
        with pytest.raises(ValueError, match=f"textvqa/train: no usable example{reason}"):
            textvqa.open(tmp_path, "train")


def test_a_very_long_question_passes_through(tmp_path):
    question = "why? " * 2000
    put_textvqa(tmp_path, "train", [textvqa_row(1, question=question)])
    assert textvqa.open(tmp_path, "train")[0]["question"] == question


@pytest.mark.parametrize(
    "content",
    [
        '{"data": [{"question": "Größe"}]}'.encode("latin-1"),
        '{"data": []}'.encode("utf-16"),
        b'{"data": [',
        b"",
        b"[" * 100_000,
    ],
)
def test_a_json_file_that_cannot_be_read_is_refused(tmp_path, content):
    (tmp_path / "train_images").mkdir()
    put(tmp_path / "TextVQA_0.5.1_train.json", content)
    with pytest.raises(ValueError, match=r"TextVQA_0.5.1_train\.json is no JSON file in UTF-8"):
        textvqa.open(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "found"),
    [([1], "a list"), ({"questions": [], "info": 1}, "questions, info"), ({"data": {}}, "data")],
)
def test_a_json_file_of_another_shape_is_refused(tmp_path, content, found):
    put(tmp_path / "train_task_3.json", content)
    match = f'train_task_3.json: expected an object with a list "data", found {found}'
    with pytest.raises(ValueError, match=match):
        stvqa.open(tmp_path, "train")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all", b"PAR1" * 20])
def test_a_parquet_file_that_cannot_be_read_is_refused(tmp_path, content):
    pytest.importorskip("pyarrow")
    put(tmp_path / "train-0.parquet", content)
    with pytest.raises(ValueError, match=r"train-0\.parquet is no readable parquet file"):
        textvqa.open(tmp_path, "train")


def test_folders_of_another_data_set_are_refused(tmp_path):
    put_textvqa(tmp_path / "textvqa", "train", [textvqa_row(1)])
    put(tmp_path / "docvqa/train_v1.0.json", {"data": [docvqa_row(1)]})
    put(tmp_path / "docvqa/documents/xyz_1.png", picture(1))
    put(tmp_path / "infographicvqa/infographicsVQA_train_v1.0.json", {"data": [infographic_row(1)]})
    put(tmp_path / "infographicvqa/images/1.jpeg", picture(1))
    put(tmp_path / "stvqa/train_task_3.json", {"data": [stvqa_row(1, "a.jpg")]})
    put_receipts(tmp_path / "receipts", {"000": (FIELDS, LINES)})
    (tmp_path / "receipts/jsonl").rename(tmp_path / "sroie")
    put_lines(tmp_path / "jsonl/train.jsonl", [{"image": "a", "question": "b", "answer": "c"}])
    names = ("textvqa", "docvqa", "infographicvqa", "stvqa", "sroie", "jsonl")
    for name in names:
        for folder in (*names, "empty", "absent"):
            root = tmp_path / folder
            if folder == "empty":
                root.mkdir(exist_ok=True)
            if folder == name:
                continue
            with pytest.raises(FileNotFoundError) as error:
                open_source(name, root, "train")
            message = str(error.value)
            if folder == "absent":
                assert f"there is no folder {root}" in message
            else:
                found = sorted(path.name for path in root.iterdir())
                assert f"is not in {root}: expected" in message
                assert f"found {', '.join(found) or 'nothing'}" in message


def test_json_without_its_pictures_is_refused(tmp_path):
    put(tmp_path / "TextVQA_0.5.1_train.json", {"data": [textvqa_row(1)]})
    with pytest.raises(FileNotFoundError, match="TextVQA_0.5.1_train.json with train_images/"):
        textvqa.open(tmp_path, "train")
    put(tmp_path / "train_v1.0.json", {"data": [docvqa_row(1)]})
    with pytest.raises(FileNotFoundError, match="with documents/ or .*spdocvqa_images/; found T"):
        docvqa.open(tmp_path, "train")


def test_parquet_of_another_data_set_is_refused(tmp_path):
    put_textvqa_parquet(tmp_path / "data/validation-0.parquet", [textvqa_row(1)])
    for name, column in (("docvqa", "docId"), ("infographicvqa", "image_url")):
        with pytest.raises(ValueError, match=rf"another data set: .*{column} .*found image_id, "):
            open_source(name, tmp_path, "val")
    pa = pytest.importorskip("pyarrow")
    table = pa.table({key: [value] for key, value in {**textvqa_row(1), "image": b"x"}.items()})
    importlib.import_module("pyarrow.parquet").write_table(table, tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match=r"image \(struct of bytes and path\)"):
        textvqa.open(tmp_path, "train")


def test_pictures_stay_inside_the_folder(tmp_path):
    root = tmp_path / "set"
    put(root / "a.png", picture(0))
    put(tmp_path / "secret.png", picture(1))
    put(tmp_path / "set2/secret.png", picture(1))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "fine.png").symlink_to(root / "a.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    ways_out = (
        "../secret.png",
        "../set2/secret.png",
        "x/../../secret.png",
        str(tmp_path / "secret.png"),
        "link.png",
        "folder/secret.png",
    )
    others = ("loop.png", "missing.png", "x" * 5000, ".", "a\0.png")
    ways_in = ("a.png", "./x/../a.png", "fine.png", str(root / "a.png"))
    lines = [
        {"image": path, "question": "What?", "answer": "c"}
        for path in (*ways_out, *others, *ways_in)
    ]
    put_lines(root / "train.jsonl", lines)
    source = jsonl.open(root, "train")
    for index, path in enumerate(ways_out):
        with pytest.raises(ValueError, match="leads out of the data folder"):
            source[index]
        with pytest.raises(ValueError, match="leads out of the data folder") as error:
            inside(root, path)
        linked = path in ("link.png", "folder/secret.png")
        assert linked == ("through a link: copy it in, or download with `hf" in str(error.value))
    for index in range(len(ways_out), len(ways_out) + len(others)):
        with pytest.raises((OSError, ValueError)):
            source[index]
    for index in range(len(ways_out) + len(others), len(lines)):
        assert source[index]["image"] == picture(0)
    (tmp_path / "alias").symlink_to(root)
    assert inside(tmp_path / "alias", "a.png") == (root / "a.png").resolve()


def test_sources_travel_to_other_processes(tmp_path):
    put_textvqa(tmp_path, "train", [textvqa_row(1), textvqa_row(2)])
    put(tmp_path / "test_task_3.json", {"data": [stvqa_row(3, "a/b.png")]})
    put(tmp_path / "a/b.png", picture(0))
    put_textvqa_parquet(tmp_path / "validation-0.parquet", [textvqa_row(3)])
    opened = [
        open_source("textvqa", tmp_path, "train"),
        open_source("textvqa", tmp_path, "val"),
        open_source("stvqa", tmp_path, "test"),
    ]
    for source in opened:
        copy = pickle.loads(pickle.dumps(source))
        assert examples(copy) == examples(source)
        assert repr(copy) == f"{source.name} ({len(source)} examples)"


def test_source_leaves_its_rows_alone():
    source = Source("x", [{"example_id": "0", "image": 3}], lambda where: where + 1)
    assert source[0]["image"] == source[0]["image"] == 4
    with pytest.raises(IndexError):
        source[1]


@pytest.mark.parametrize("name", ["textvqa", "docvqa", "infographicvqa", "stvqa", "sroie"])
def test_unknown_splits(tmp_path, name):
    with pytest.raises(ValueError, match="unknown split 'dev': use one of train, val, "):
        open_source(name, tmp_path, "dev")


def test_the_registry(tmp_path):
    with pytest.raises(ValueError, match="unknown data set 'coco': use one of textvqa, docvqa, "):
        open_source("coco", tmp_path, "train")
    for name in ("hrbench_4k", "hrbench_8k"):
        with pytest.raises(ValueError, match="HR-Bench has one split, 'test', not 'train'"):
            open_source(name, tmp_path, "train")
    for name in sources.NAMES:
        with pytest.raises(FileNotFoundError):
            open_source(name, tmp_path / "absent", "test")


def test_data_never_imports_jax():
    code = """
        import sys
        import cropvlm_jax.data.sources as sources
        for module, _ in sources._OPENERS.values():
            __import__(f"cropvlm_jax.data.sources.{module}")
        loaded = {"jax", "pyarrow"} & set(sys.modules)
        assert not loaded, loaded
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment)
