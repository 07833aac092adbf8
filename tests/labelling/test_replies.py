# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The file of replies, wherever a process that adds to it is killed."""

import json

import pytest

from cropvlm_jax.labelling import replies

TEXT = "é [1, 2, 30, 40]"
ROWS = [{"example_id": f"q{i}", "reply": TEXT, "frame": "percent"} for i in range(4)]


def encoded(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def test_lines_that_are_no_reply_are_named_and_skipped(tmp_path, caplog):
    lines = [
        {"example_id": 7, "reply": "first"},
        {"example_id": "b", "reply": "", "resized": [28, 56], "frame": "smart_resized"},
        "",
        {"example_id": "c"},
        {"example_id": "d", "reply": [1, 2, 3, 4]},
        {"example_id": "e", "reply": "", "resized": [28]},
        {"example_id": "f", "reply": "", "resized": [28, 0]},
        {"example_id": "f", "reply": "", "resized": [28, 2**20]},
        {"example_id": "f", "reply": "", "frame": "millimetres"},
        {"reply": "whose?"},
        [1],
        {"example_id": "7", "reply": "last"},
        '{"example_id": "g", "rep',
    ]
    path = tmp_path / "replies.jsonl"
    path.write_text("\n".join(each if type(each) is str else json.dumps(each) for each in lines))
    found = replies.read(path)
    assert {name: row["reply"] for name, row in found.items()} == {"7": "last", "b": ""}
    (skipped,) = (message for message in caplog.messages if "skipped" in message)
    assert "9 of 12 lines skipped: line 4 of replies.jsonl: the reply is None" in skipped
    assert skipped.endswith("; and 6 more")
    assert replies.unanswered(["a", "7", "b", "c"], path) == [0, 3]
    assert replies.unanswered(["a"], tmp_path / "none.jsonl") == [0]


def test_a_line_torn_anywhere_is_cut_off(tmp_path):
    path, whole = tmp_path / "runs" / "replies.jsonl", encoded(ROWS)
    for cut in range(len(whole) + 1):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(whole[:cut])
        left = replies.unanswered([row["example_id"] for row in ROWS], path)
        with replies.adding(path) as file:
            file.add(ROWS[index] for index in left)
        assert path.read_bytes() == whole


def test_a_line_without_an_end_that_was_written_by_hand_counts(tmp_path):
    path = tmp_path / "replies.jsonl"
    path.write_bytes(encoded(ROWS[:1])[:-1])
    with replies.adding(path) as file:
        file.add(ROWS[1:])
    assert path.read_bytes() == encoded(ROWS)


def test_parts_are_taken_over_once_wherever_that_is_broken_off(tmp_path, monkeypatch):
    path = tmp_path / "replies.jsonl"
    for number, rows in ((1, ROWS[1:3]), (2, ROWS[3:])):
        with replies.adding(path, number) as file:
            file.add(rows)
    part = tmp_path / "replies.jsonl.part-2"
    part.write_bytes(part.read_bytes() + b'{"example_id": "q0", "re')
    kept = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    whole = encoded(ROWS[:1]) + kept["replies.jsonl.part-1"] + encoded(ROWS[3:])
    for cut in range(len(encoded(ROWS[:1])), len(whole) + 1, 7):
        for name, content in kept.items():
            (tmp_path / name).write_bytes(content)
        path.write_bytes(whole[:cut])
        with replies.adding(path) as file:
            file.take_over_parts()
        assert path.read_bytes() == whole
        assert [file.name for file in tmp_path.iterdir()] == ["replies.jsonl"]


def test_two_runs_do_not_write_to_one_file(tmp_path):
    with replies.adding(tmp_path / "replies.jsonl"):
        with pytest.raises(ValueError, match="another process adds to .*replies.jsonl: wait until"):
            with replies.adding(tmp_path / "replies.jsonl"):
                pass
        with replies.adding(tmp_path / "replies.jsonl", 1):
            pass
