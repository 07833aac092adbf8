# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Several processes and devices share the items of an evaluation, and record what one would."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_evals import Reader, questions, run, without_seconds

from cropvlm_jax import parallel
from cropvlm_jax.api import CropVLM
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.evals import shares, study
from cropvlm_jax.evals.best_scale import open_validation
from cropvlm_jax.evals.records import PART, open_records, read_records
from cropvlm_jax.evals.run import evaluate
from cropvlm_jax.evals.shares import CHUNK
from cropvlm_jax.evals.statistics import throughput
from cropvlm_jax.json_lines import encode
from cropvlm_jax.readers.base import Reply
from cropvlm_jax.readers.vlm import VLMReader

TESTS = pathlib.Path(__file__).parents[1]
ITEMS = 2 * CHUNK  # one for each of two processes


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(command, devices=1):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def evaluation(out, *arguments):
    return [
        *("-m", "cropvlm_jax.apps.evaluate", "--targets=zoom_digits/target", f"--out={out}"),
        *("--croppers=sft=zoom_digits/cropper", f"--limit={ITEMS}", *arguments),
    ]


def test_two_processes_and_eight_devices_record_what_one_does(tmp_path):
    """The two processes go on from what three have left when they were killed."""
    alone, together, devices = (tmp_path / name for name in ("alone", "together", "devices"))
    several = start(evaluation(devices), devices=8)
    target = VLMReader.from_pretrained("zoom_digits/target")
    croppers = {"sft": CropVLM.from_pretrained("zoom_digits/cropper")}
    source = ZoomDigits("test", 10**6)
    validation = open_validation("zoom_digits", source, None)
    expected = evaluate(
        "zoom_digits", source, [target], croppers, alone, limit=ITEMS, validation=validation
    )
    path = alone / expected["records"]
    records, lines = read_records(path), path.read_text().splitlines(keepends=True)

    together.mkdir()
    (together / path.name).write_text("".join(lines[:4]) + lines[4][:20])
    part = encode([records[CHUNK + 1], records[CHUNK]]) + lines[9][:30].encode()
    (together / f"{path.name}{PART}2").write_bytes(part)
    (together / f"{path.name}{PART}0").write_bytes(encode(records[3:5]))
    meet = f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2"
    hosts = [start(evaluation(together, *meet, f"--process_id={i}")) for i in range(2)]
    for process in (several, *hosts):
        said, log = process.communicate(timeout=400)
        assert process.returncode == 0, log[-3000:]
        assert ("items a second" in said) == (process is not hosts[1])

    for out, processes, count in ((devices, 1, 8), (together, 2, 2)):
        results = json.loads((out / "results.json").read_text())
        assert results["throughput"]["processes"] == processes
        assert results["throughput"]["devices"] == count
        del results["trained_with"]
        assert without_seconds(results) == without_seconds(json.loads(json.dumps(expected)))
        found = read_records(out / results["records"])
        assert [without_seconds(row) for row in found] == [without_seconds(row) for row in records]
        (name,) = (file.name for file in out.iterdir() if file.name.startswith("zoom_digits."))
        assert name == path.name  # no part is left
    assert read_records(together / path.name)[:5] == records[:5]  # not asked again
    pace = expected["throughput"]
    assert min(pace["items_per_second"], pace["tokens_per_second"]) > 0
    stage = pace["stages"]["answer/zoom_digits/target"]
    assert stage["items_per_second"] > pace["items_per_second"] and stage["tokens_per_second"]
    assert pace["stages"]["read"]["tokens_per_second"] is None


FAILING = """
import pathlib, sys
import tiny_evals
from cropvlm_jax import parallel
from cropvlm_jax.apps import command
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.readers.base import ReaderUnavailable
class Reader(tiny_evals.Reader):
    def answer(self, images, questions):
        raise ReaderUnavailable("the server is gone")
out, address, number = sys.argv[1:]
with parallel.joined(address, 2, int(number), explain=command.explain):
    reader = Reader() if number == "1" else tiny_evals.Reader(pause=3)
    tiny_evals.run(pathlib.Path(out), ZoomDigits("test", 1000), readers=[reader], limit=130)
"""


def test_a_host_that_fails_is_told_in_one_line_and_its_items_are_asked_later(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    hosts = [start(["-c", FAILING, tmp_path, address, i]) for i in range(2)]
    logs = [host.communicate(timeout=120)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [1, 1], logs
    (line,) = (line for line in logs[0].splitlines() if "process 0 of 2 ends" in line)
    assert "process 1 has failed: the server is gone. Of 130 items, 0 are in" in line
    assert "the same command, on all hosts, goes on from there" in line
    assert "process 1 of 2 ends: the server is gone" in logs[1]
    assert not any("Traceback" in log for log in logs)

    reader, source = Reader(), ZoomDigits("test", 1000)
    results, records = run(tmp_path, source, readers=[reader], limit=130)
    assert reader.asked == questions(records[CHUNK:])  # the first chunk was recorded
    _, unbroken = run(tmp_path / "unbroken", source, limit=130)
    assert [without_seconds(row) for row in records] == [without_seconds(row) for row in unbroken]
    assert not list(tmp_path.glob(f"*{PART}*"))


class SilentOnOne(Reader):
    """Says nothing about one picture."""

    def __init__(self, picture):
        super().__init__()
        self.picture = picture

    def answer(self, images, questions):
        replies = super().answer(images, questions)
        silent = [np.array_equal(pictures[0], self.picture) for pictures in images]
        return [Reply("") if s else reply for s, reply in zip(silent, replies, strict=True)]


def test_a_share_of_one_item_that_gets_no_answer_ends_nothing(tmp_path, monkeypatch):
    """The last item is all that process 1 of 2 has, and process 0 has recorded nothing yet."""
    for module in (shares, study):
        monkeypatch.setattr(module, "CHUNK", 2)
    source = ZoomDigits("test", 3)
    reader = SilentOnOne(source[2]["image"])
    expected, records = run(tmp_path / "alone", source, readers=[reader])
    assert not any(reply["text"] for reply in records[-1]["replies"]["reader"].values())

    path = tmp_path / expected["records"]
    with open_records(path, expected["protocol"]):
        pass
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(parallel, "gather", lambda rows: rows)  # waits for nobody
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(ValueError, match="there is no result"):  # process 0 gathers them
        run(tmp_path, source, readers=[reader])
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    results, found = run(tmp_path, source, readers=[reader])
    assert [without_seconds(row) for row in found] == [without_seconds(row) for row in records]
    assert without_seconds(results) == without_seconds(expected)


def test_the_slowest_share_takes_the_time():
    """Process 0 has 32 items, of 2 s each, process 1 has 8, one of them without a picture."""
    record = {"seconds": {"read": 0.5, "answer/m": 1.5}, "tokens": {"answer/m": 10}}
    pace = throughput([[record] * 32, [record] * 7 + [{"unreadable": "gone"}]], devices=2)
    assert (pace["processes"], pace["devices"]) == (2, 2)
    assert pace["items_per_second"] == 39 / 64 and pace["tokens_per_second"] == 390 / 64
    assert pace["stages"]["answer/m"] == {
        "items_per_second": 39 / 48,
        "tokens_per_second": 390 / 48,
    }
    assert pace["stages"]["read"] == {"items_per_second": 39 / 16, "tokens_per_second": None}


@pytest.mark.parametrize("limit", [40, 100])
def test_what_a_killed_run_of_several_has_left_is_taken_over(tmp_path, limit):
    source = ZoomDigits("test", 1000)
    results, records = run(tmp_path, source, limit=100)
    path = tmp_path / results["records"]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: 1 + 10]))
    parts = {1: records[32:64], 2: records[64:90]}
    for number, part in parts.items():
        path.with_name(f"{path.name}{PART}{number}").write_bytes(encode(part))
    reader = Reader()
    _, again = run(tmp_path, source, readers=[reader], limit=limit)
    missing = records[:32] if limit == 40 else [*records[:32], *records[64:100]]
    assert reader.asked == questions(missing)  # chunks are done as a whole
    assert read_records(path)[: len(records)] == read_records(path)
    assert [without_seconds(row) for row in again[:limit]] == [
        without_seconds(row) for row in records[:limit]
    ]
    assert not list(tmp_path.glob(f"*{PART}*")) and len(read_records(path)) == max(limit, 90)
