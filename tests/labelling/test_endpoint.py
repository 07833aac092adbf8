# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Labels through a chat endpoint: what is sent, in which frame, and what a failure costs."""

import base64
import io
import os
import subprocess
import sys
import time

import forked
import numpy as np
import pytest
from chat_server import KEY, Server, serving
from PIL import Image
from tiny_labellers import QUESTIONS, make_data

from cropvlm_jax.data import seed_boxes
from cropvlm_jax.labelling import plan, replies, run
from cropvlm_jax.labelling.base import prompt
from cropvlm_jax.labelling.endpoint import EndpointLabeller
from cropvlm_jax.readers.base import ReaderUnavailable


class Slow(Server):
    """Takes a while, so that a client can be killed at work."""

    def extras(self, body, word):
        time.sleep(0.03)
        return {}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("asked") / "data", 30)


def open_labeller(server, cache, spec="openai:Qwen/Qwen2.5-VL-7B-Instruct", **options):
    url = f"http://127.0.0.1:{server.server_port}/v1"
    defaults = {"backoff": 0.01, "attempts": 2, "api_key": KEY, "concurrency": 2}
    return EndpointLabeller.open(spec, base_url=url, cache=cache, **defaults | options)


def test_replies_become_labels_in_the_frame_of_the_model(source, tmp_path):
    with serving() as server:
        server.always = "[10,12,24,30]"
        for name, frame in (("Qwen2.5-VL-7B-Instruct", "smart_resized"), ("other", "pixels")):
            path = tmp_path / f"{frame}.jsonl"
            given = None if name[0] == "Q" else frame
            labeller = open_labeller(server, tmp_path, f"openai:{name}@100", frame=given)
            run.label(source, path, lambda indices, labeller=labeller: labeller)
            rows = replies.read(path)
            assert len(rows) == 30 and rows["q0"]["frame"] == frame
            # 90 x 120 px are sent as 75 x 100.
            size = {"smart_resized": [84, 112], "pixels": [75, 100]}[frame]
            assert rows["q0"]["resized"] == size
            label = seed_boxes.make_labels(source, rows)[0]
            high, wide = size
            expected = [1000 / wide, 1200 / high, 2400 / wide, 3000 / high]
            np.testing.assert_allclose(label["seed"], expected)
    bodies = [body for _, _, body in server.requests]
    contents = [body["messages"][0]["content"] for body in bodies]
    assert {text["text"] for _, text in contents} == {prompt(text) for text in QUESTIONS}
    assert {(body["temperature"], body["max_tokens"]) for body in bodies} == {(0, 128)}
    urls = [picture["image_url"]["url"] for picture, _ in contents]
    files = [io.BytesIO(base64.b64decode(url.partition(",")[2])) for url in urls]
    sizes = {Image.open(file).size for file in files}
    assert (100, 75) in sizes and max(map(max, sizes)) == 100


def test_the_frame_is_known_by_name_or_asked_for(tmp_path):
    with serving() as server:
        assert open_labeller(server, tmp_path, "openai:qwen2.5vl:7b").frame == "smart_resized"
        assert open_labeller(server, tmp_path, "openai:m", frame="percent").frame == "percent"
        with pytest.raises(ValueError, match="that openai:gpt-4.1-nano writes .* say --frame="):
            open_labeller(server, tmp_path, "openai:gpt-4.1-nano")
        with pytest.raises(ValueError, match="--frame=pixels contradicts openai:qwen2.5vl:7b"):
            open_labeller(server, tmp_path, "openai:qwen2.5vl:7b", frame="pixels")


def test_what_fails_is_asked_again_by_the_next_run_and_nothing_else(source, tmp_path, caplog):
    path = tmp_path / "replies.jsonl"
    with serving() as server:
        server.always = "500"
        labeller = open_labeller(server, tmp_path / "cache")
        with pytest.raises(ReaderUnavailable, match="Replies so far are in .*the same command"):
            run.label(source, path, lambda indices: labeller)
        assert replies.read(path) == {}
        server.always = ""  # each question's first try says its first word, which is no box
        run.label(source, path, lambda indices: open_labeller(server, tmp_path / "cache"))
        assert len(path.read_text().splitlines()) == 30
        sent = len(server.requests)
        run.label(source, path, lambda indices: pytest.fail("there is nothing to ask"))
        path.unlink()  # replies are on disk as well
        run.label(source, path, lambda indices: open_labeller(server, tmp_path / "cache"))
        assert len(replies.read(path)) == 30 and len(server.requests) == sent


def test_requests_and_hours_are_told():
    told = dict(plan.of_endpoint("openai:m", 36_000, 16))
    assert told["requests"].startswith("36,000 to openai:m, each with one picture, 16 at once")
    assert told["hours"] == "0.62 where a reply takes 1 s, 3.1 where it takes 5 s"


def test_a_killed_command_goes_on_and_asks_nothing_twice(source, tmp_path):
    path, out = tmp_path / "replies.jsonl", tmp_path / "labels.jsonl"
    folder = source.read_image.args[0]
    command = [sys.executable, "-m", "cropvlm_jax.apps.label", "--source=jsonl"]
    command += [f"--folder={folder}", f"--replies={path}", f"--out={out}", "--concurrency=1"]
    command += ["--model=openai:Qwen2.5-VL-72B-Instruct"]
    with serving(Slow()) as server:
        server.always = "[10,12,24,30]"
        environment = os.environ | {
            "OPENAI_BASE_URL": f"http://127.0.0.1:{server.server_port}/v1",
            "HOME": str(tmp_path),
        }
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            while not (path.exists() and path.read_text().count("\n") >= 8):
                assert process.poll() is None
                time.sleep(0.005)
            process.kill()
        asked = path.read_text().count("\n")
        assert 8 <= asked < 30 and not out.exists()
        planned = forked.python(*command[1:], "--dry_run", env=environment)
        assert f"{30 - asked} of 30 have no reply yet" in planned.stdout, planned.stderr
        done = forked.python(*command[1:], env=environment)
    assert done.returncode == 0, done.stderr
    rows = path.read_text().splitlines()
    assert len(rows) == 30 == len(replies.read(path))
    assert "30 labels are in" in done.stderr and f"requests   {30 - asked} to" in done.stderr
    assert len(server.requests) <= 31  # one may have been under way
