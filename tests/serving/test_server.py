# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The process that serves: readiness, SIGTERM under load, and what keeps it from starting."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx2
import pytest
from served import QUESTION, FakeEngine, post, serving, turn

from cropvlm_jax.serving.limits import Limits
from cropvlm_jax.serving.looks import Policy
from cropvlm_jax.serving.pictures import PictureReader
from cropvlm_jax.serving.server import Server, bound
from cropvlm_jax.serving.service import Service
from cropvlm_jax.serving.upstream import Upstream
from cropvlm_jax.serving.web import make_app

SCRIPT = """
import asyncio, sys
sys.path.insert(0, "tests")
from served import FakeEngine, Limits, Policy, PictureReader, Service, Server, LocalTarget, bound
from served import make_app
from cropvlm_jax.serving.server import leave_signals_to_uvicorn
engine = FakeEngine()
engine.waits = 0.05
reader = PictureReader(Limits())
service = Service(
    engine, LocalTarget(engine, "m"), reader, policy=Policy(), limits=Limits()
)
server = Server(make_app(service), service)
leave_signals_to_uvicorn()
with bound("127.0.0.1", 0) as listening:
    print(listening.getsockname()[1], flush=True)
    asyncio.run(server.run_until_told(engine, listening, [reader]))
"""


def test_sigterm_under_load_loses_no_accepted_request():
    """Eight clients ask without pause; whatever was sent before the server closed is answered."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
    wait_until_ready(url)
    answered, refused, lost = [], threading.Event(), []

    def ask_on() -> None:
        with httpx2.Client(timeout=20) as client:
            while not refused.is_set():
                try:
                    reply = client.post(
                        f"{url}/v1/chat/completions", json={"messages": turn(QUESTION)}
                    )
                    answered.append(reply.status_code)
                except httpx2.ConnectError:
                    refused.set()
                except httpx2.HTTPError as error:
                    lost.append(error)

    threads = [threading.Thread(target=ask_on) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(answered) < 40:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert process.wait(20) == 0
    assert not lost and set(answered) == {200}


def wait_until_ready(url: str) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if httpx2.get(f"{url}/ready").status_code == 200:
                return
        except httpx2.ConnectError:
            pass
        time.sleep(0.05)
    raise AssertionError("not ready")


class NeverReady(FakeEngine):
    async def start(self) -> None:
        pass


def test_it_is_not_ready_before_the_engine_is():
    with serving(engine=NeverReady(), ready=False) as served:
        assert httpx2.get(f"{served.url}/health").status_code == 200
        early = httpx2.get(f"{served.url}/ready")
        assert early.status_code == 503 and early.headers["retry-after"] == "2"
        assert post(served, {"messages": turn(QUESTION)}).status_code == 503
        served.engine.ready = True
        assert httpx2.get(f"{served.url}/ready").status_code == 200
        assert post(served, {"messages": turn(QUESTION)}).status_code == 200
        served.service.closing = True
        late = httpx2.get(f"{served.url}/ready")
        assert late.status_code == 503 and late.headers["connection"] == "close"


class Compiling(FakeEngine):
    async def start(self) -> None:
        await asyncio.sleep(60)


def test_it_ends_without_waiting_for_the_engine_s_start():
    begun = time.monotonic()
    with serving(engine=Compiling(), ready=False) as served:
        assert httpx2.get(f"{served.url}/ready").status_code == 503
    assert time.monotonic() - begun < 30


class Broken(FakeEngine):
    async def start(self) -> None:
        raise ValueError("no such shape")


def test_an_engine_that_does_not_start_ends_the_server():
    engine = Broken()
    upstream, reader = Upstream("http://127.0.0.1:9/v1"), PictureReader(Limits())
    service = Service(engine, upstream, reader, policy=Policy(), limits=Limits())
    server = Server(make_app(service), service)
    with bound("127.0.0.1", 0) as listening, pytest.raises(ValueError, match="no such shape"):
        asyncio.run(server.run_until_told(engine, listening, [reader, upstream]))


UPSTREAM = "--upstream=http://127.0.0.1:9/v1"
STARTS = """
import json, os, sys
from absl import flags
from cropvlm_jax.apps import serve
told = []
for arguments, environment in json.load(sys.stdin):
    os.environ.update(environment)
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["serve", "--cropper=zoom_digits/cropper", "--port=0", *arguments])
    try:
        serve.main(["serve"])
    except Exception as error:
        told.append([type(error).__name__, str(error)])
    for name in environment:
        del os.environ[name]
json.dump(told, sys.stdout)
"""


def test_what_keeps_it_from_starting():
    """One process tries all, since each would load jax."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        cases = [
            ([], {}, "give --upstream or --target"),
            ([UPSTREAM, "--target=zoom_digits/target"], {}, "give --upstream or --target"),
            ([UPSTREAM, "--keep_if_surer"], {}, "--keep_if_surer is for --target"),
            (["--upstream=localhost:9"], {}, "--upstream is not of the form"),
            ([UPSTREAM], {"CROPVLM_AUTH_TOKEN": ""}, "CROPVLM_AUTH_TOKEN is set, but it is empty"),
            (
                [UPSTREAM, "--host=0.0.0.0"],
                {"CROPVLM_UPSTREAM_KEY": "sk-secret"},
                "everybody who reaches this server would spend your key",
            ),
            ([UPSTREAM, "--max_megapixels=1000"], {}, "--max_megapixels=1000"),
            ([UPSTREAM, "--area_scale=0"], {}, "--area_scale=0"),
            ([UPSTREAM, "--batch_sizes=1,x"], {}, "--batch_sizes=1,x are not whole numbers"),
            ([UPSTREAM, f"--port={port}"], {}, f"--port={port}: Address already in use"),
        ]
        done = subprocess.run(
            [sys.executable, "-c", STARTS],
            input=json.dumps([case[:2] for case in cases]),
            capture_output=True,
            text=True,
        )
    found = json.loads(done.stdout)
    for (arguments, _, expected), (kind, message) in zip(cases, found, strict=True):
        assert expected in message and "sk-secret" not in message, arguments
        assert kind in ("UsageError", "ValueError", "OSError")


def test_responses_do_not_wait_for_acknowledgements():
    """asyncio turns Nagle's algorithm off where the socket names its protocol."""
    with bound("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP
