# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The replies on disk: a folder that is of no use costs no reply."""

import errno
import json
import pathlib

import pytest
from chat_server import endpoint, picture, serving

from cropvlm_jax.readers.base import Reply
from cropvlm_jax.readers.reply_cache import ReplyCache

REPLY = Reply("yes")


def a_file(folder):
    (folder / "there").write_text("a file")
    return folder / "there"


def below_a_file(folder):
    return a_file(folder) / "replies"


def a_full_disk(folder):
    return pathlib.Path("/dev/full")


def no_device(folder):
    return pathlib.Path("/dev/null/replies")


def in_proc(folder):
    return pathlib.Path("/proc/replies")


def a_name_too_long(folder):
    return folder / ("x" * 300)


def a_broken_link(folder):
    (folder / "link").symlink_to("/proc/none/replies")
    return folder / "link"


def a_link_to_itself(folder):
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


USELESS = [
    a_file, below_a_file, a_full_disk, no_device, in_proc, a_name_too_long, a_broken_link,
    a_link_to_itself,
]  # fmt: skip


@pytest.mark.parametrize("place", USELESS)
def test_a_folder_that_cannot_be_written_is_warned_of_once(tmp_path, caplog, place):
    with serving() as server:
        reader = endpoint(server, place(tmp_path))
        for _ in range(3):
            replies = reader.answer([[picture(i)] for i in range(4)], ["ok"] * 4)
            assert replies == [Reply("said ok.")] * 4
    warnings = [r.getMessage() for r in caplog.records if "replies kept in" in r.getMessage()]
    assert len(warnings) == 1 and "the run goes on" in warnings[0]


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO]
)
@pytest.mark.parametrize("call", ["mkdir", "write_text", "replace"])
def test_whatever_the_disk_says_the_reply_counts(tmp_path, caplog, monkeypatch, number, call):
    def fail(*args, **options):
        raise OSError(number, "the disk says no")

    cache = ReplyCache(tmp_path)
    monkeypatch.setattr(pathlib.Path, call, fail)
    cache.put("a", REPLY)
    cache.put("b", REPLY)
    assert sum("the disk says no" in r.getMessage() for r in caplog.records) == 1
    monkeypatch.undo()
    assert cache.get("a") is None
    cache.put("a", REPLY)  # there is room again
    assert cache.get("a") == REPLY
    assert [p.suffix for p in tmp_path.rglob("*") if p.is_file()] == [".json"]  # no part is left


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_replies_that_cannot_be_read_are_asked_for_again(tmp_path, caplog, monkeypatch, number):
    cache = ReplyCache(tmp_path)
    cache.put("a", REPLY)

    def fail(*args, **options):
        raise OSError(number, "no reading")

    monkeypatch.setattr(pathlib.Path, "read_text", fail)
    assert cache.get("a") is None and cache.get("a") is None
    assert sum("cannot be read" in r.getMessage() for r in caplog.records) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"", b'{"text": "sai', b"null", b"[]", b"7", b'{"text": 5, "failure": ""}',
        b'{"text": "a"}', b'{"failure": ""}', b'"yes"', b"\xff\xfe",
        b'{"text": null, "failure": null}', b"\x00" * 40,
    ],
)  # fmt: skip
def test_what_is_no_reply_is_written_anew(tmp_path, content):
    cache = ReplyCache(tmp_path)
    cache.put("a", REPLY)
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(content)
    assert cache.get("a") is None
    cache.put("a", REPLY)
    assert cache.get("a") == REPLY and json.loads(path.read_bytes())["text"] == "yes"


def test_a_folder_that_was_removed_is_made_again(tmp_path):
    cache = ReplyCache(tmp_path / "replies")
    for _ in range(2):
        cache.put("a", REPLY)
        (path,) = tmp_path.rglob("*.json")
        assert cache.get("a") == REPLY
        path.unlink()
        path.parent.rmdir()
        (tmp_path / "replies").rmdir()


def test_no_home_is_no_reason_to_stop(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as of a user without a home
    cache = ReplyCache("~/replies")
    cache.put("a", REPLY)
    assert cache.get("a") == REPLY
