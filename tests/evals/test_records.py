# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluations that are cut short go on where they stopped."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_llava
from tiny_evals import Reader, questions, run, without_seconds

from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.evals import items
from cropvlm_jax.evals.records import open_records
from cropvlm_jax.readers.chat import ChatReader
from cropvlm_jax.readers.vlm import VLMReader


def test_a_longer_evaluation_goes_on_from_a_shorter_one(tmp_path):
    source, reader = ZoomDigits("test", 100), Reader()
    run(tmp_path, source, limit=40, readers=[reader])
    before = reader.asked
    results, records = run(tmp_path, source, limit=80, readers=[reader])
    assert before == questions(records[:40])
    assert reader.asked - before == questions(records[32:])  # its own chunk is done as a whole
    fresh, all_at_once = run(tmp_path / "fresh", source, limit=80)
    assert [without_seconds(r) for r in records] == [without_seconds(r) for r in all_at_once]
    assert without_seconds(results) == without_seconds(fresh)


def test_parts_that_are_recorded_are_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(items, "PIXELS", 1)  # an item a part
    reader = Reader()
    run(tmp_path, ZoomDigits("test", 8), limit=5, readers=[reader])
    before = reader.asked
    _, records = run(tmp_path, ZoomDigits("test", 8), readers=[reader])
    assert reader.asked - before == questions(records[5:])


def test_another_protocol_begins_anew(tmp_path):
    source = ZoomDigits("test", 3)
    files = {run(tmp_path, source, seed=seed)[0]["records"] for seed in (0, 0, 1)}
    files.add(run(tmp_path, source, expansions=(2,))[0]["records"])
    assert len(files) == 3 and {path.name for path in tmp_path.iterdir()} == files


def test_what_a_target_depends_on_is_in_the_protocol(tmp_path):
    source, files = ZoomDigits("test", 2), set()
    for address in ("http://a/v1", "http://b/v1", "http://user:secret@b/v1"):
        reader = Reader()
        reader.settings = ChatReader("m", base_url=address, api_key="k").settings
        results, _ = run(tmp_path, source, readers=[reader])
        files.add(results["records"])
        assert "secret" not in json.dumps(results)
    assert len(files) == 2


def test_other_settings_of_the_image_processor_begin_anew(tmp_path):
    models, source, found = tmp_path / "models", ZoomDigits("test", 2), []
    for name, pad in (("centre", False), ("pad", True)):
        tiny_llava.write_folder(models / name, tiny_llava.make_config(), pad)
    for name, processor in (("centre", {}), ("centre", {"do_pad": True}), ("pad", {})):
        reader = Reader()
        reader.settings = VLMReader.from_pretrained(models / name, processor=processor).settings
        found.append(run(tmp_path / "out", source, readers=[reader])[0])
    assert len({results["records"] for results in found}) == 3
    told = [results["protocol"]["targets"]["reader"] for results in found]
    assert told[1]["processor"] == {"do_pad": True} and "processor" not in told[0]


def test_records_that_were_changed_are_refused(tmp_path):
    source = ZoomDigits("test", 3)
    results, _ = run(tmp_path, source)
    path = tmp_path / results["records"]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(ValueError, match="begin anew"):
        run(tmp_path, source)


KILLED = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import tiny_evals as test
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
reader = test.Reader(pause=float(sys.argv[3]))
test.run(pathlib.Path(sys.argv[2]), ZoomDigits("test", 1000), readers=[reader], limit=300)
"""


def test_an_evaluation_killed_at_any_moment_repeats_and_loses_nothing(tmp_path):
    folder = str(pathlib.Path(__file__).parents[1])
    command = [sys.executable, "-c", KILLED, folder, str(tmp_path)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    rng = np.random.default_rng(0)

    def lines() -> int:
        return sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("*.jsonl"))

    for kill in range(4):
        before = lines()
        process = subprocess.Popen([*command, "0.02"], env=environment)
        deadline = time.monotonic() + 120
        while lines() <= before + 20 * (kill != 1):  # the second one dies as soon as it has begun
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        (path,) = tmp_path.glob("*.jsonl")
        assert 0 < lines() <= 300
        if kill % 2:  # as if the kill had come in the middle of a line
            whole = path.read_bytes()
            path.write_bytes(whole[: rng.integers(whole[:-1].rfind(b"\n") + 2, len(whole))])
    done = lines()
    assert subprocess.run([*command, "0"], env=environment, timeout=120).returncode == 0
    results, records = run(tmp_path, ZoomDigits("test", 1000), limit=300)
    assert [record["index"] for record in records] == list(range(300)) and done < 300
    assert len({record["example_id"] for record in records}) == 300
    unbroken, at_once = run(tmp_path / "unbroken", ZoomDigits("test", 1000), limit=300)
    assert [without_seconds(r) for r in records] == [without_seconds(r) for r in at_once]
    assert without_seconds(results) == without_seconds(unbroken)


def test_two_processes_do_not_write_the_same_records(tmp_path):
    with open_records(tmp_path / "x.jsonl", {}):
        with pytest.raises(BlockingIOError):
            with open_records(tmp_path / "x.jsonl", {}):
                pass
