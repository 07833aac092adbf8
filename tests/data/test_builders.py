# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import io
import json
import pickle
import subprocess
import sys

import grain
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cropvlm_jax.data import builders
from cropvlm_jax.data.source import Source
from cropvlm_jax.data.sources import NAMES, open_source


def _encoded(seed: int, kind: str = "PNG", height: int = 20, width: int = 30) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _jsonl(folder, split, count=7):
    folder.mkdir(exist_ok=True)
    lines = []
    for i in range(count):
        kind = ("PNG", "JPEG", "WEBP")[i % 3]
        (folder / f"{split}{i}").write_bytes(_encoded(i, kind, 20 + i))
        line = {
            "image": f"{split}{i}",
            "question": f"Wo fährt Bus {i}?",
            "answers": ["é", "b"][i % 2 :],
        }
        lines.append(line | ({"box": [i, 10, 20 + i, 100]} if i % 2 else {}))
    (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


def _textvqa(folder, count=300):
    """More rows than a shard takes; pictures in three row groups."""
    (folder / "data").mkdir(parents=True)
    pictures = [_encoded(i, "PNG", 4 + i % 5, 6) for i in range(count)]
    table = {
        "image_id": [f"{i // 2:016x}" for i in range(count)],
        "question_id": pa.array(range(count), pa.int32()),
        "question": [f"what does sign {i} say?" for i in range(count)],
        "image": [{"bytes": picture, "path": "x.png"} for picture in pictures],
        "image_width": pa.array([6] * count, pa.int32()),
        "image_height": pa.array([4 + i % 5 for i in range(count)], pa.int32()),
        "answers": [[f"{i}"] * 10 for i in range(count)],
    }
    path = folder / "data/validation-00000-of-00001.parquet"
    pq.write_table(pa.table(table), path, row_group_size=100)
    return folder


def _equal(one, other):
    return [dict(example) for example in one] == [dict(example) for example in other]


def test_every_data_set_has_a_builder():
    assert {builder.name for builder in builders.Builder.__subclasses__()} == set(NAMES)


@pytest.mark.parametrize(
    ("name", "make", "splits"),
    [
        ("jsonl", lambda folder: _jsonl(_jsonl(folder, "train"), "val", 3), ["train", "val"]),
        ("textvqa", _textvqa, ["val"]),
    ],
)
def test_examples_come_back_through_grain(tmp_path, name, make, splits):
    folder = make(tmp_path / "source")
    builders.prepare(name, folder, tmp_path / "prepared", splits)
    for split in splits:
        want = open_source(name, folder, split)
        source = builders.open_prepared(name, tmp_path / "prepared", split)
        assert isinstance(source, Source)
        assert (len(source), source.name, source.skipped) == (len(want), want.name, [])
        assert _equal(grain.MapDataset.source(source), want)
        assert _equal(pickle.loads(pickle.dumps(source)), want)
        shuffled = grain.MapDataset.source(source).shuffle(0).to_iter_dataset()
        by_id = {example["example_id"]: example for example in want}
        assert len(by_id) == len(want)
        assert all(example == by_id[example["example_id"]] for example in shuffled)
        assert _equal(source.part(0.4, 0.9), want.part(0.4, 0.9))
        with pytest.raises(IndexError):
            source[len(want)]


def test_options_and_pixels_survive(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    choice = {
        "options": ["one", "two"],
        "label": "B",
        "category": "signs",
        "cycle_category": "3",
        "box": (0, 1, 2, 3),
    }
    plain = {"example_id": "1", "image": 1, "question": "q", "answers": []}
    rows = [plain, plain | choice | {"example_id": "2"}]
    source = Source("vstar/test", rows, lambda image: pixels)
    monkeypatch.setattr(builders, "open_source", lambda name, folder, split: source)
    folder = _jsonl(tmp_path / "source", "test", 1)
    builders.prepare("vstar", folder, tmp_path / "prepared", ["test"])
    prepared = list(builders.open_prepared("vstar", tmp_path / "prepared", "test"))
    for row, example in zip(rows, prepared, strict=True):
        picture = Image.open(io.BytesIO(example["image"]))
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.asarray(picture), pixels)
        assert example | {"image": 1} == row


def test_broken_pictures_and_rows_are_skipped_counted_and_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(builders, "SHARD", 2)  # the second shard comes out empty
    folder = _jsonl(tmp_path / "source", "train", 7)
    want = list(open_source("jsonl", folder, "train"))
    (folder / "train2").write_bytes(b"no picture")
    (folder / "train3").unlink()
    whole = (folder / "train5").read_bytes()
    (folder / "train5").write_bytes(whole[: len(whole) // 2])
    with (folder / "train.jsonl").open("a") as file:
        file.write("\n{}\n")
    with caplog.at_level("INFO", logger="absl"):
        builders.prepare("jsonl", folder, tmp_path / "prepared", ["train"])
    assert "jsonl/train: 4 of 8 examples left out" in caplog.text
    source = builders.open_prepared("jsonl", tmp_path / "prepared", "train")
    assert _equal(source, [want[i] for i in (0, 1, 4, 6)])
    named = [f"jsonl/train/{i + 1} (train{i})" for i in (2, 3, 5)]
    assert [line.split(":")[0] for line in source.skipped] == ["line 8 of train.jsonl", *named]
    for line in source.skipped[:3]:
        assert line in caplog.text
    assert "; and 1 more" in caplog.text


def test_lost_boxes_are_remembered(tmp_path):
    folder = _jsonl(tmp_path / "source", "train", 2)
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    lines[1]["box"] = [0, 0, 0, 0]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    builders.prepare("jsonl", folder, tmp_path / "prepared", ["train"])
    source = builders.open_prepared("jsonl", tmp_path / "prepared", "train")
    assert len(source) == 2 and source.skipped == [] and "box" not in source[1]
    assert "line 2 of train.jsonl: box [0, 0, 0, 0] is empty" in source.lost_boxes[0]


def test_nothing_is_left_of_what_fails(tmp_path):
    folder = _jsonl(tmp_path / "source", "train", 2)
    for i in range(2):
        (folder / f"train{i}").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="jsonl/train: no usable example: jsonl/train/1"):
        builders.prepare("jsonl", folder, tmp_path / "prepared", ["train"])
    with pytest.raises(FileNotFoundError, match="jsonl has not been prepared"):
        builders.open_prepared("jsonl", tmp_path / "prepared", "train")
    _jsonl(folder, "train", 2)
    builders.prepare("jsonl", folder, tmp_path / "prepared", ["train"])
    assert len(builders.open_prepared("jsonl", tmp_path / "prepared", "train")) == 2


def test_what_is_prepared_stays(tmp_path):
    folder = _jsonl(tmp_path / "source", "train", 3)
    builders.prepare("jsonl", folder, tmp_path / "prepared", ["train"])
    _jsonl(_jsonl(folder, "train", 2), "val", 2)
    builders.prepare("jsonl", folder, tmp_path / "prepared", ["train"])
    assert len(builders.open_prepared("jsonl", tmp_path / "prepared", "train")) == 3
    with pytest.raises(ValueError, match="holds the splits train without val: delete it"):
        builders.prepare("jsonl", folder, tmp_path / "prepared", ["train", "val"])
    with pytest.raises(ValueError, match="prepared with train, not val"):
        builders.open_prepared("jsonl", tmp_path / "prepared", "val")


def test_another_folder_is_refused(tmp_path, caplog):
    folder = _jsonl(tmp_path / "source", "train", 3)
    builders.prepare("jsonl", folder, tmp_path / "prepared", ["train"])
    other = _jsonl(tmp_path / "other", "train", 2)
    with pytest.raises(ValueError, match=f"was prepared from {folder}, not from {other}: delete"):
        builders.prepare("jsonl", other, tmp_path / "prepared", ["train"])
    (tmp_path / "alias").symlink_to(folder)
    with caplog.at_level("INFO", logger="absl"):
        builders.prepare("jsonl", tmp_path / "alias", tmp_path / "prepared", ["train"])
    assert "kept as it is" in caplog.text
    assert len(builders.open_prepared("jsonl", tmp_path / "prepared", "train")) == 3


def test_errors_name_what_is_wrong(tmp_path):
    folder = _jsonl(tmp_path / "source", "train", 1)
    with pytest.raises(FileNotFoundError, match="'val'.* is not in"):
        builders.prepare("jsonl", folder, tmp_path / "prepared", ["train", "val"])
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        builders.prepare("jsonl", tmp_path / "nowhere", tmp_path / "prepared", ["train"])
    with pytest.raises(ValueError, match="unknown data set 'json': use one of .*jsonl"):
        builders.prepare("json", folder, tmp_path / "prepared", ["train"])
    with pytest.raises(ValueError, match="unknown data set"):
        builders.open_prepared("json", tmp_path / "prepared", "train")


def test_builders_work_as_any_other_of_tfds(tmp_path):
    folder = _jsonl(_jsonl(tmp_path / "source", "train", 4), "test", 2)
    builder = tfds.builder("jsonl", data_dir=tmp_path / "prepared")
    assert isinstance(builder, builders.Jsonl)
    manual = tfds.download.DownloadConfig(manual_dir=folder)
    builder.download_and_prepare(download_config=manual)
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        "train": 4,
        "test": 2,
    }
    source = tfds.data_source("jsonl", split="train", data_dir=tmp_path / "prepared")
    want = open_source("jsonl", folder, "train")
    assert source[1]["question"].decode() == want[1]["question"]
    np.testing.assert_array_equal(
        source[0]["image"], np.asarray(Image.open(io.BytesIO(want[0]["image"])))
    )


def test_tensorflow_is_never_imported(tmp_path):
    folder = _jsonl(tmp_path / "source", "train", 3)
    script = """
import importlib.util, sys

class Installed:  # but not to be imported
    def find_spec(self, name, *_):
        if name.split(".")[0] == "tensorflow":
            return importlib.util.spec_from_loader(name, self)
    def create_module(self, spec):
        raise AssertionError(f"{spec.name} is imported")

sys.meta_path.insert(0, Installed())
import grain
from absl import flags
from cropvlm_jax.apps import prepare
from cropvlm_jax.data import builders
folder, prepared = sys.argv[1:]
arguments = ["--source=jsonl", f"--folder={folder}", f"--data_dir={prepared}", "--splits=train"]
flags.FLAGS(["prepare", *arguments])
prepare.main(["prepare"])
source = builders.open_prepared("jsonl", prepared, "train")
print(len([example for example in grain.MapDataset.source(source)]))
assert "tensorflow" not in sys.modules
"""
    command = [sys.executable, "-c", script, str(folder), str(tmp_path / "prepared")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "3"
