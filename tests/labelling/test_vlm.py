# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Labels by our models are those by `transformers`, whole, broken off, and on several hosts.

LABELLED_PICTURES=200 compares so many.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_folder
import tiny_labellers
from PIL import Image
from tiny_labellers import PIXELS, SIDE, make_data, make_labeller

from cropvlm_jax.data import seed_boxes
from cropvlm_jax.labelling import plan, replies, run, vlm
from cropvlm_jax.labelling.base import Told
from cropvlm_jax.labelling.vlm import VLMLabeller, open_labeller
from cropvlm_jax.pixels import host

ROOT = pathlib.Path(__file__).parents[2]
COUNT = int(os.environ.get("LABELLED_PICTURES", "200" if os.environ.get("FULL") else "14"))
FRAMES = sorted(tiny_labellers.KINDS)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("labelled") / "data", COUNT)


@pytest.fixture(scope="module", params=FRAMES)
def folder(request, tmp_path_factory):
    return make_labeller(tmp_path_factory.mktemp("labellers") / request.param, request.param)


@pytest.fixture(scope="module")
def two_rooms():
    """Pictures of half the tokens have a room of their own, and a batch is soon full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vlm, "SMALLEST_ROOM", PIXELS // SIDE**2 // 2)
        patch.setattr(vlm, "MOST_ROWS", 2)
        yield


@pytest.fixture(scope="module")
def labeller(folder, two_rooms):
    opened, frame = open_labeller(str(folder))
    return VLMLabeller(opened, opened.load(), frame)


@pytest.fixture(scope="module")
def told(source, labeller, tmp_path_factory):
    """The replies of an unbroken run."""
    path = tmp_path_factory.mktemp("replies") / "replies.jsonl"
    run.label(source, path, lambda indices: labeller)
    return replies.read(path)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_replies_and_labels_are_those_of_transformers(source, folder, labeller, told):
    theirs = tiny_labellers.Transformers(folder, labeller.frame)
    expected = {}
    for example in source:
        picture = Image.fromarray(host.to_rgb(example["image"]))
        reply, resized = theirs.reply(picture, example["question"])
        name = example["example_id"]
        expected[name] = {"example_id": name, "reply": reply.strip(), "resized": resized}
    assert {name: row["reply"] for name, row in told.items()} == {
        name: row["reply"] for name, row in expected.items()
    }
    assert {row["frame"] for row in told.values()} == {labeller.frame}
    for name, row in told.items():
        resized = expected[name]["resized"] if labeller.frame == "smart_resized" else None
        assert row.get("resized") == resized
    assert len({row["reply"] for row in told.values()}) > COUNT / 2
    ours = seed_boxes.make_labels(source, told)
    assert ours == seed_boxes.make_labels(source, expected, labeller.frame)
    assert len(ours) > COUNT / 2


class Killed:
    """A labeller whose process is killed after some replies."""

    def __init__(self, labeller, after: int):
        self.frame, self.prepare, self._labeller = labeller.frame, labeller.prepare, labeller
        self._after = after

    def ask(self, prepared):
        for number, told in enumerate(self._labeller.ask(prepared)):
            if number == self._after:
                raise KeyboardInterrupt
            yield told


def test_a_killed_run_loses_and_doubles_nothing(source, labeller, told, tmp_path):
    path = tmp_path / "replies.jsonl"
    for after in (0, 3, 4):
        with pytest.raises(KeyboardInterrupt):
            run.label(source, path, lambda indices, after=after: Killed(labeller, after))
        with path.open("a") as file:
            file.write('{"example_id": "q13", "re')
    assert len(replies.read(path)) == 7
    asked = []
    run.label(source, path, lambda indices: asked.extend(indices) or labeller)
    assert len(asked) == COUNT - 7 and len(lines_of(path)) == COUNT
    got = replies.read(path)
    assert {name: got[name]["reply"] for name in told} == {n: r["reply"] for n, r in told.items()}
    run.label(source, path, lambda indices: pytest.fail("there is nothing to ask"))


@pytest.mark.parametrize("folder", FRAMES[:1], indirect=True)
def test_two_hosts_with_two_devices_each_are_as_one(source, folder, told, tmp_path):
    """The first host was killed before, and left a part of another run of three hosts."""
    path, out = tmp_path / "replies.jsonl", tmp_path / "labels.jsonl"
    rows = [{k: v for k, v in row.items() if k != "line"} for row in told.values()]
    path.write_text(json.dumps(rows[3]) + '\n{"example_id": "q5", "rep')
    path.with_name("replies.jsonl.part-2").write_text(json.dumps(rows[8]) + '\n{"exa')
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "cropvlm_jax.apps.label", "--source=jsonl", "--fsdp=2"]
    command += [f"--folder={source_folder(source)}", f"--model={folder}"]
    command += [f"--replies={path}", f"--out={out}", "--dtype=float32", "--num_processes=2"]
    command += [f"--coordinator_address=127.0.0.1:{port}"]
    processes = [
        subprocess.Popen(
            [*command, f"--process_id={number}"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "questions" in said[0] and "questions" not in said[1]  # one process tells
    assert [file.name for file in tmp_path.iterdir() if "part" in file.name] == []
    assert len(lines_of(path)) == COUNT
    got = replies.read(path)
    assert {name: got[name]["reply"] for name in told} == {n: r["reply"] for n, r in told.items()}
    assert lines_of(out) == seed_boxes.make_labels(source, told)


def source_folder(source) -> str:
    """Where `make_data` has written."""
    return source.read_image.args[0]


def test_the_limit_of_pictures_is_that_of_the_folder_unless_it_is_given(folder):
    assert open_labeller(str(folder))[0].config.limits.max_pixels == PIXELS
    opened, frame = open_labeller(str(folder), max_pixels=PIXELS // 2 + 1)
    assert opened.config.limits.max_pixels == PIXELS // 2 and frame in FRAMES
    with pytest.raises(ValueError, match="min_pixels=256 is over max_pixels=64"):
        open_labeller(str(folder), max_pixels=100)


def test_a_picture_lies_in_the_smallest_room_that_leaves_its_size(folder, monkeypatch):
    monkeypatch.setattr(vlm, "SMALLEST_ROOM", 8)
    sources = vlm.rooms(open_labeller(str(folder))[0])
    assert [each.config.limits.max_pixels // SIDE**2 for each in sources] == [8, 16, 32, 64, 96]
    rng = np.random.default_rng(0)
    for height, width in rng.integers(8, 300, (40, 2)):
        room = vlm.room_of(sources, height, width)
        picture = np.zeros((height, width, 3), np.uint8)
        own, grid = sources[room].see(picture, 0)
        largest, whole = sources[-1].see(picture, 0)
        assert grid == whole and own.tiles.shape[1] <= largest.tiles.shape[1]
        if room:
            assert vlm.room_of([*sources[:room], sources[-1]], height, width) == room
    with pytest.raises(ValueError, match="over 200 times the other"):
        vlm.room_of(sources, 2, 900)


def test_the_frame_is_the_model_s(folder, tmp_path):
    _, frame = open_labeller(str(folder))
    assert open_labeller(str(folder), frame=frame)[1] == frame
    with pytest.raises(ValueError, match=f"--frame=percent contradicts .* are in {frame}: leave"):
        open_labeller(str(folder), frame="percent")
    other = tiny_folder.make_folder(tmp_path / "smol", 0)
    with pytest.raises(ValueError, match="smol writes count[?] .* not known for them: say --frame"):
        open_labeller(str(other))
    assert open_labeller(str(other), frame="percent")[1] == "percent"
    with pytest.raises(ValueError, match="--max_pixels=900: a .* has no such setting"):
        open_labeller(str(other), frame="percent", max_pixels=900)


def test_batches_are_as_large_as_memory_allows(monkeypatch):
    monkeypatch.setattr(vlm, "MOST_ROWS", 64)

    def rows(tokens: int, devices: int) -> int:
        row = vlm.Row(None, np.zeros(tokens, np.int32), np.zeros(0, np.int32))
        return vlm.most_rows(row, heads=28, devices=devices)

    assert [rows(tokens, 1) for tokens in (300, 1152, 4224, 16512)] == [64, 8, 1, 1]
    assert [rows(1152, devices) for devices in (4, 8, 6)] == [32, 64, 64]


def test_hours_are_told_where_the_chip_is_known(source, folder):
    class Chip:
        device_kind = "TPU v5 lite"

    opened, _ = open_labeller(str(folder))
    told = dict(plan.of_model(opened, source, range(COUNT), [Chip()] * 8, np.float32))
    assert told["devices"] == "8 x TPU v5 lite"
    assert f"{COUNT}, of " in told["pictures"] and "computed and not measured" in told["hours"]
    told = dict(plan.of_model(opened, source, range(COUNT), jax.devices(), np.float32))
    assert told["hours"].startswith("not known: 'cpu' has no peak rate")


@pytest.mark.parametrize("folder", FRAMES[:1], indirect=True)
def test_what_cannot_be_asked_is_named_and_left_out(source, labeller, tmp_path, caplog):
    class Broken:
        name, rows = "broken", source.rows[:3]

        def __getitem__(self, index):
            thin = np.zeros((2, 900, 3), np.uint8)
            return source[index] | [{}, {"image": thin}, {"image": b"no picture"}][index]

        ids = staticmethod(lambda: source.ids()[:3])
        name_of = staticmethod(source.name_of)

    run.label(Broken(), tmp_path / "r.jsonl", lambda indices: labeller)
    assert list(replies.read(tmp_path / "r.jsonl")) == ["q0"]
    assert "no reply for 2 of 3 examples" in caplog.text
    assert "over 200 times the other" in caplog.text
    assert isinstance(next(labeller.ask([("a", labeller.prepare(source[0]["image"], "?"))])), Told)
