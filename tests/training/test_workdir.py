# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A run's folder: one process at a time, and one run's settings."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from cropvlm_jax.training import workdir
from cropvlm_jax.training.config import default_config
from cropvlm_jax.training.workdir import check_claim, claim, held

CONFIG = {
    "steps": 5,
    "grpo": {"num_generations": 4, "beta": 0.1},
    "mesh": {"data": 8},
    "size": (3, 4),
}


def test_a_folder_takes_one_run(tmp_path):
    check_claim(tmp_path, CONFIG, resume=False)
    claim(tmp_path, CONFIG)
    check_claim(tmp_path, CONFIG | {"mesh": {"data": 1}}, resume=True)  # devices may change
    check_claim(tmp_path, CONFIG | {"steps": 8, "epochs": 1.0}, resume=True)  # see `Trainer`
    other = CONFIG | {"grpo": {"num_generations": 8, "beta": 0.1}, "steps": 6, "new": 1}
    with pytest.raises(ValueError, match="other settings") as error:
        check_claim(tmp_path, other, resume=True)
    lines = str(error.value).splitlines()[1:]
    assert lines == ["grpo.num_generations: 4 there, 8 now", "new: None there, 1 now"]
    with pytest.raises(ValueError, match="holds a run already"):
        check_claim(tmp_path, CONFIG, resume=False)


def test_a_run_does_not_go_on_with_another_image_processor_of_the_target(tmp_path):
    config = default_config()
    claim(tmp_path, config.to_dict())
    check_claim(tmp_path, config.to_dict(), resume=True)
    config.target_processor.max_pixels = 802816
    with pytest.raises(ValueError, match=r"target_processor\.max_pixels: None there, 802816 now"):
        check_claim(tmp_path, config.to_dict(), resume=True)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", "\x00\x00", '{"steps": '])
def test_damaged_settings_are_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        check_claim(tmp_path, CONFIG, resume=True)


def test_settings_that_are_no_text_are_named(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"steps\xff": 3}')
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        check_claim(tmp_path, CONFIG, resume=True)


def test_of_many_starts_one_holds_the_folder_and_the_others_are_told_which(tmp_path):
    folder, held_by, refused = tmp_path / "runs" / "a", [], []
    together, all_tried = threading.Barrier(20), threading.Event()

    def begin(number: int) -> None:
        together.wait()
        try:
            with held(folder):
                held_by.append(number)
                all_tried.wait(30)
        except ValueError as error:
            refused.append(str(error))
            if len(refused) == 19:
                all_tried.set()

    starts = [threading.Thread(target=begin, args=(number,)) for number in range(20)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert len(held_by) == 1 and len(refused) == 19
    words = f"{folder} is in use by process {os.getpid()} on {workdir.socket.gethostname()}, since "
    assert all(message.startswith(words) for message in refused)
    assert not (folder / "lock.json").exists()


HOLD = """
import sys, time
from cropvlm_jax.training.workdir import held
with held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_lock_ends_with_its_holder(tmp_path, ending):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert holder.stdout.readline() == "held\n"
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"in use by process {holder.pid} on"):
        with held(tmp_path):
            raise AssertionError("two hold one folder")
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    holder.send_signal(ending)
    holder.wait()
    with held(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_there_stays(tmp_path):
    with held(tmp_path):
        pass
    assert tmp_path.is_dir()
    with held(tmp_path / "new"):
        (tmp_path / "new" / "metrics.jsonl").write_text("")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["metrics.jsonl"]


def test_an_error_inside_releases_the_folder(tmp_path):
    with pytest.raises(RuntimeError, match="inside"), held(tmp_path):
        raise RuntimeError("inside")
    with held(tmp_path):
        pass


def test_a_lock_that_another_host_left_is_warned_of(tmp_path, caplog):
    left = {"pid": 7, "host": "elsewhere", "since": "2026-01-01"}
    (tmp_path / "lock.json").write_text(json.dumps(left))
    with held(tmp_path):
        pass
    assert "make sure that it has ended (process 7 on elsewhere, since 2026-01-01)" in caplog.text


def test_a_file_system_without_locks_is_warned_of(tmp_path, caplog, monkeypatch):
    def flock(*_: int) -> None:
        raise OSError(workdir.errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(workdir.fcntl, "flock", flock)
    with held(tmp_path):
        pass
    assert "has no locks" in caplog.text


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket/run"])
def test_a_bucket_has_to_be_mounted(path):
    with pytest.raises(ValueError, match="mount the bucket"), held(path):
        pass
    assert not pathlib.Path("gs:").exists()  # nothing was made


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), held(tmp_path / "file"):
        pass
