# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is asked: pictures in folders and lines of files, however they are named and written."""

import json
import os
from pathlib import Path

import pytest

from cropvlm_jax.zooming.questions import of_folder, of_jsonl


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_pictures_of_a_folder_and_of_folders_in_it(tmp_path, caplog):
    names = ["a.jpg", "a/a.jpg", "a/b/a.JPEG", "a/b/ünï 写真.png", "iphone.HEIC", "z.tiff"]
    touch(tmp_path, *names, "notes.txt", "a/labels.json", ".hidden.png", ".git/x.png")
    touch(tmp_path, "out/crops/a.png", "older/results.jsonl", "older/crops/a.png")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    asked = of_folder(tmp_path, "What?", tmp_path / "out")
    assert sorted(q.id for q in asked) == sorted([*names, "gone.jpg"])
    assert all(Path(q.path) == tmp_path / q.image and q.question == "What?" for q in asked)
    assert "5 files or folders left out" in caplog.text and "loop (a link to" in caplog.text
    assert "older (results)" in caplog.text and "and 2 more" in caplog.text


def test_a_name_that_is_not_utf_8_is_a_fault(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb"):
        (question,) = of_folder(tmp_path, "What?", tmp_path / "out")
    assert question.id == "caf\\xe9.png" and "not UTF-8" in question.fault


@pytest.mark.parametrize("files", [[], ["notes.txt"], [".hidden.png"], ["out/crops/a.png"]])
def test_a_folder_without_pictures_is_refused(tmp_path, files):
    touch(tmp_path, *files)
    with pytest.raises(ValueError, match="there is no picture in"):
        of_folder(tmp_path, "What?", tmp_path / "out")


def test_wrong_folders_are_refused(tmp_path):
    touch(tmp_path, "a.jpg")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        of_folder(tmp_path / "gone", "What?", tmp_path / "out")
    with pytest.raises(ValueError, match="write results to another"):
        of_folder(tmp_path, "What?", tmp_path / "x" / "..")


def lines(path: Path, *rows: object) -> Path:
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_with_and_without_ids(tmp_path):
    picture = {"image": "sub/a.png", "question": "One?"}
    file = lines(
        tmp_path / "q.jsonl",
        picture | {"id": "first", "answers": ["not read"]},
        "\n",
        picture | {"example_id": 7},
        picture | {"id": None, "question": "ünï?"},
        {"image": "/elsewhere/b.png"},
    )
    asked = of_jsonl(file, "Default?")
    assert [q.id for q in asked] == ["first", "7", "line 4", "line 5"]
    assert [q.question for q in asked] == ["One?", "One?", "ünï?", "Default?"]
    assert asked[0].path == str(tmp_path / "sub/a.png") and asked[3].path == "/elsewhere/b.png"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"image": "a.png", "quest', "no JSON object"),
        ('["a.png", "What?"]', "a list"),
        ('{"question": "What?"}', "no image"),
        ('{"image": "a.png"}', "no question"),
        ('{"image": 3, "question": "What?"}', "image is 3"),
        ('{"image": "a.png", "question": " "}', "no question"),
        ('{"image": "a.png", "question": "\\ud800?"}', "UTF-8"),
        ('{"image": "a.png", "question": "What?", "id": 1.5}', "id is 1.5"),
    ],
)
def test_a_faulty_line_is_known_by_its_number(tmp_path, line, fault):
    file = lines(tmp_path / "q.jsonl", {"image": "a.png", "question": "One?"}, line + "\n")
    sound, faulty = of_jsonl(file, None)
    assert not sound.fault and faulty.id == "line 2" and fault in faulty.fault
    with pytest.raises(ValueError, match="no line of .* can be asked: line 1"):
        of_jsonl(lines(tmp_path / "q.jsonl", line), None)


def test_wrong_files_are_refused(tmp_path):
    row = {"image": "a.png", "question": "One?", "id": "x"}
    with pytest.raises(ValueError, match="2 lines of .* have the id 'x'"):
        of_jsonl(lines(tmp_path / "q.jsonl", row, row), None)
    with pytest.raises(ValueError, match="it is empty"):
        of_jsonl(lines(tmp_path / "q.jsonl", "\n"), None)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        of_jsonl(tmp_path / "gone.jsonl", None)
