# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""`cropvlm serve` under load, beside a loop of single calls from Python, on this machine.

    pip install -e '.[serve]'
    python experiments/bench_serve.py --json=serve.json --minutes=10

The models are those that come with the package, the scenes those of the test split. One after the
other:

1. A loop of single calls of the Python API, which also says what the right answers are.
2. A server with a local target: `--burst` requests at once, of which the calls of the device are
   counted; then `--clients` of them, each with one request at a time, for `--minutes`, while the
   server's memory is watched; then SIGTERM in the middle of it.
3. A server in front of an upstream that answers at once: what a request that gets no crop takes
   more than one that goes to the upstream itself, one at a time, at the median.

The clients run beside the server, on the same CPUs, and their time counts.
"""

import asyncio
import base64
import collections
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import httpx2
import numpy as np
from absl import flags, logging
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from cropvlm_jax import CropVLM, apps
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits

CROPPER, READER = "zoom_digits/cropper", "zoom_digits/target"
START_S, END_S = 900, 120  # most seconds for compiling, and for finishing requests
SAMPLES = 200  # of memory, evenly over the load
PAGE = os.sysconf("SC_PAGE_SIZE")

JSON = flags.DEFINE_string("json", None, "File to write.")
MINUTES = flags.DEFINE_float("minutes", 10.0, "Length of the load.", 0.01)
CLIENTS = flags.DEFINE_integer("clients", 64, "Clients of the load.", 1)
BURST = flags.DEFINE_integer("burst", 32, "Requests at once.", 1)
SCENES = flags.DEFINE_integer("scenes", 200, "Scenes, and calls of the loop.", 1)
PROBES = flags.DEFINE_integer("probes", 200, "Requests that measure the proxy itself.", 1)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A scene as a file, as a request, and what the Python API answers.

    Attributes:
        file: PNG.
        question: about it.
        body: of a request for a chat completion.
        answer: of the API; None before it was asked.
        box: of the API, percent.
    """

    file: bytes
    question: str
    body: bytes
    answer: str | None = None
    box: tuple[int, ...] = ()


@dataclasses.dataclass
class Tally:
    """What clients got.

    Attributes:
        seconds: of each request that was answered.
        statuses: of responses, and how often.
        wrong: answers or boxes that are not the API's.
        lost: requests that were sent and got no response.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    statuses: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    wrong: int = 0
    lost: int = 0

    def report(self, elapsed: float) -> dict[str, Any]:
        """Rates and percentiles, as JSON."""
        return {
            "requests": sum(self.statuses.values()),
            "requests_a_second": len(self.seconds) / elapsed,
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "p50_ms": percentile(self.seconds, 50),
            "p99_ms": percentile(self.seconds, 99),
            "wrong": self.wrong,
            "lost": self.lost,
        }


def percentile(seconds: Sequence[float], percent: float) -> float | None:
    """A percentile in milliseconds; None of nothing."""
    return 1000 * float(np.percentile(seconds, percent)) if seconds else None


def read_scenes(count: int) -> list[Asked]:
    """Scenes of the test split as requests."""
    source = ZoomDigits("test", count)
    found = []
    for number in range(count):
        scene = source[number]
        file = io.BytesIO()
        Image.fromarray(np.asarray(scene["image"])).save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": scene["question"]},
        ]
        request = {"model": READER, "messages": [{"role": "user", "content": content}]}
        body = json.dumps(request, allow_nan=False).encode()
        found.append(Asked(file.getvalue(), scene["question"], body))
    return found


def loop_of_calls(scenes: Sequence[Asked]) -> tuple[list[Asked], dict[str, Any]]:
    """The API's answers, one call after the other, and the rate."""
    model = CropVLM.from_pretrained(CROPPER, READER)
    for scene in scenes[:8]:  # compiles
        model(scene.file, scene.question, compare=False)
    seconds, answered = [], []
    for scene in scenes:
        begun = time.perf_counter()
        zoom = model(scene.file, scene.question, compare=False)
        seconds.append(time.perf_counter() - begun)
        answered.append(dataclasses.replace(scene, answer=zoom.answer or "", box=zoom.box))
    report = {"calls_a_second": len(seconds) / sum(seconds)}
    return answered, report | {"p50_ms": percentile(seconds, 50), "p99_ms": percentile(seconds, 99)}


@contextlib.asynccontextmanager
async def serving(
    *flags_: str,
) -> AsyncIterator[tuple[subprocess.Popen[bytes], httpx2.AsyncClient]]:
    """A server in a process of its own that is ready, and a client of it."""
    port = free_port()
    command = [sys.executable, "-m", "cropvlm_jax.apps.cli", "serve", f"--cropper={CROPPER}"]
    server = subprocess.Popen([*command, f"--port={port}", *flags_], stderr=subprocess.DEVNULL)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    client = httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=600, limits=limits, trust_env=False
    )
    try:
        async with client:
            await until_ready(server, client)
            yield server, client
    finally:
        server.kill()
        server.wait()


async def until_ready(server: subprocess.Popen[bytes], client: httpx2.AsyncClient) -> None:
    """Returns when a server takes requests.

    Raises:
        RuntimeError: it has ended, or is not ready in time.
    """
    for _ in range(START_S * 4):
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}")
        with contextlib.suppress(httpx2.TransportError):
            if (await client.get("/ready")).status_code == 200:
                return
        await asyncio.sleep(0.25)
    raise RuntimeError(f"the server was not ready within {START_S} s")


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


async def post(client: httpx2.AsyncClient, asked: Asked, tally: Tally) -> None:
    """Sends one request, and notes what comes of it.

    Raises:
        httpx2.ConnectError: nobody listens any more.
    """
    begun = time.perf_counter()
    try:
        reply = await client.post(
            "/v1/chat/completions",
            content=asked.body,
            headers={"content-type": "application/json"},
        )
    except httpx2.ConnectError:
        raise
    except httpx2.TransportError:
        tally.lost += 1
        return
    tally.statuses[reply.status_code] += 1
    if reply.status_code != 200:
        return
    tally.seconds.append(time.perf_counter() - begun)
    found = reply.json()
    if asked.answer is not None:
        text = found["choices"][0]["message"]["content"]
        box = tuple(found["cropvlm"]["boxes"][0]["percent"])
        tally.wrong += (text, box) != (asked.answer, asked.box)


async def device_calls(client: httpx2.AsyncClient) -> dict[str, int]:
    """How many batches the device has worked on, by kind."""
    text = (await client.get("/metrics")).text
    found = re.findall(r'^cropvlm_batch_rows_count{kind="(\w+)"} ([\d.]+)$', text, re.MULTILINE)
    return {kind: int(float(count)) for kind, count in found}


async def burst(client: httpx2.AsyncClient, scenes: Sequence[Asked]) -> dict[str, Any]:
    """Requests at once, and the calls of the device that they cost."""
    before, tally, begun = await device_calls(client), Tally(), time.perf_counter()
    await asyncio.gather(*(post(client, scene, tally) for scene in scenes))
    elapsed, after = time.perf_counter() - begun, await device_calls(client)
    calls = {kind: after[kind] - before.get(kind, 0) for kind in after}
    return tally.report(elapsed) | {"device_calls": calls, "seconds": elapsed}


async def load(
    client: httpx2.AsyncClient, scenes: Sequence[Asked], until: asyncio.Event, clients: int
) -> Tally:
    """Clients with one request at a time each, until told to stop or nobody listens."""
    tally = Tally()

    async def one(number: int) -> None:
        with contextlib.suppress(httpx2.ConnectError):
            while not until.is_set():
                await post(client, scenes[number % len(scenes)], tally)
                number += clients

    await asyncio.gather(*(one(number) for number in range(clients)))
    return tally


async def sustained(
    server: subprocess.Popen[bytes], client: httpx2.AsyncClient, scenes: Sequence[Asked]
) -> dict[str, Any]:
    """The load, and what it does to the server's memory."""
    seconds = 60 * MINUTES.value
    before, stop, begun = await device_calls(client), asyncio.Event(), time.perf_counter()
    loading = asyncio.create_task(load(client, scenes, stop, CLIENTS.value))
    memory = []
    for _ in range(SAMPLES):
        await asyncio.sleep(seconds / SAMPLES)
        memory.append(resident(server.pid))
    stop.set()
    tally = await loading
    report = tally.report(time.perf_counter() - begun)
    after = await device_calls(client)
    rows = report["requests"] / max(1, after["look"] - before.get("look", 0))
    tenth = SAMPLES // 10  # the first of which warms up
    start, end = np.mean(memory[tenth : 2 * tenth]), np.mean(memory[-tenth:])
    return report | {
        "clients": CLIENTS.value,
        "minutes": MINUTES.value,
        "looks_a_device_call": rows,
        "memory_mib": {"start": start / 2**20, "end": end / 2**20, "most": max(memory) / 2**20},
        "memory_growth": end / start - 1,
    }


def resident(pid: int) -> int:
    """Bytes of memory of a process, from Linux."""
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, from Linux."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def terminated(
    server: subprocess.Popen[bytes], client: httpx2.AsyncClient, scenes: Sequence[Asked]
) -> dict[str, Any]:
    """What becomes of requests when the server is told to end under load."""
    loading = asyncio.create_task(load(client, scenes, asyncio.Event(), CLIENTS.value))
    await asyncio.sleep(3)
    server.send_signal(signal.SIGTERM)
    begun = time.perf_counter()
    tally = await asyncio.wait_for(loading, END_S)
    code = await asyncio.to_thread(server.wait, END_S)
    report = tally.report(1.0)
    kept = {key: report[key] for key in ("requests", "statuses", "wrong", "lost")}
    return kept | {"exit_code": code, "seconds_to_end": time.perf_counter() - begun}


async def with_target(scenes: Sequence[Asked]) -> dict[str, Any]:
    """Bursts, load and end of a server with a local target."""
    found: dict[str, Any] = {}
    async with serving(f"--target={READER}") as (server, client):
        await burst(client, scenes[:4])  # opens connections
        bursts = [await burst(client, scenes[: BURST.value]) for _ in range(3)]
        found["burst"] = min(bursts, key=lambda each: sum(each["device_calls"].values()))
        found["bursts_device_calls"] = [each["device_calls"] for each in bursts]
        every = await burst(client, scenes)
        found["equal_to_api"] = {key: every[key] for key in ("requests", "statuses", "wrong")}
        found["load"] = await sustained(server, client, scenes)
        found["sigterm"] = await terminated(server, client, scenes)
    return found


async def complete(request: Request) -> JSONResponse:
    """The upstream that answers at once."""
    await request.body()
    message = {"role": "assistant", "content": "7."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return JSONResponse({"object": "chat.completion", "choices": [choice]})


@contextlib.contextmanager
def upstream() -> Iterator[str]:
    """The base URL of an upstream in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "bench_serve:UPSTREAM", f"--port={port}"]
    here = str(pathlib.Path(__file__).parent)
    process = subprocess.Popen([*command, f"--app-dir={here}", "--log-level=error"])
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


async def overhead(scenes: Sequence[Asked]) -> dict[str, Any]:
    """Milliseconds of a request by way of the proxy, and to the upstream itself, in turn."""
    scenes = [dataclasses.replace(scene, answer=None) for scene in scenes]  # not compared
    with upstream() as url:
        async with serving(f"--upstream={url}") as (server, proxied):
            direct = httpx2.AsyncClient(base_url=url.removesuffix("/v1"), trust_env=False)
            async with direct:
                for _ in range(100):
                    with contextlib.suppress(httpx2.TransportError):
                        await post(direct, scenes[0], Tally())
                        break
                    await asyncio.sleep(0.1)
                plain, passed, zoomed, spent = Tally(), Tally(), Tally(), []
                for number in range(PROBES.value):
                    scene = scenes[number % len(scenes)]
                    body = scene.body[:-1] + b', "cropvlm": {"looks": 0}}'
                    await post(direct, scene, plain)
                    begun = cpu_seconds(server.pid)
                    await post(proxied, dataclasses.replace(scene, body=body), passed)
                    spent.append(cpu_seconds(server.pid) - begun)
                    await post(proxied, scene, zoomed)
    p50 = {
        "upstream_ms": percentile(plain.seconds, 50),
        "through_proxy_ms": percentile(passed.seconds, 50),
        "with_crop_ms": percentile(zoomed.seconds, 50),
    }
    extra = [b - a for a, b in zip(plain.seconds, passed.seconds, strict=True)]
    return p50 | {
        "overhead_p50_ms": percentile(extra, 50),
        "overhead_cpu_ms": 1000 * float(np.mean(spent)),
    }


UPSTREAM = Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])


def main(_: list[str]) -> None:
    """Measures, writes and prints."""
    scenes, single = loop_of_calls(read_scenes(SCENES.value))
    report: dict[str, Any] = {"cpus": os.cpu_count(), "single_calls": single}
    report |= asyncio.run(with_target(scenes))
    report["throughput_ratio"] = report["load"]["requests_a_second"] / single["calls_a_second"]
    save(report)
    report["proxy"] = asyncio.run(overhead(scenes))
    print(save(report))


def save(report: dict[str, Any]) -> str:
    """The report as JSON, which is written where that is wanted."""
    text = json.dumps(report, indent=2, allow_nan=False)
    if JSON.value:
        pathlib.Path(JSON.value).write_text(text + "\n")
    return text


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    apps.run_script(main)
