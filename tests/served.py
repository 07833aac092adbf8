# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A server of this package in a thread, with an engine that needs no device."""

import asyncio
import base64
import contextlib
import dataclasses
import io
import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import numpy as np
import openai
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.pixels import host
from cropvlm_jax.serving.limits import Limits
from cropvlm_jax.serving.looks import Answer, Closed, Look, Policy
from cropvlm_jax.serving.metrics import Metrics
from cropvlm_jax.serving.pictures import PictureReader
from cropvlm_jax.serving.server import Server, bound
from cropvlm_jax.serving.service import Service
from cropvlm_jax.serving.target import LocalTarget
from cropvlm_jax.serving.upstream import Upstream
from cropvlm_jax.serving.web import make_app

BOX = (25, 50, 75, 100)
QUESTION = "What is the total?"


class FakeEngine:
    """An engine that always sees the same boxes, or raises what it is told to."""

    def __init__(self, boxes: Sequence[tuple[int, int, int, int]] = (BOX,)) -> None:
        self.boxes = boxes
        self.ready, self.metrics = False, Metrics()
        self.fails: Exception | None = None
        self.waits = 0.0  # seconds for a look
        self.questions: list[str] = []
        self.cancelled = 0

    async def start(self) -> None:
        self.ready = True

    async def close(self) -> None:
        self.ready = False

    def check_room(self, pictures: Any) -> None:
        pass

    def expecting(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    async def look(
        self, picture: host.Picture, question: str, *, policy: Policy, deadline: float | None
    ) -> Look:
        if not self.ready:
            raise Closed("starting")
        self.questions.append(question)
        if self.fails is not None:
            raise self.fails
        try:
            await asyncio.sleep(self.waits)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        image = host.to_rgb(picture)
        size = np.array(image.shape[:2])
        shown = self.boxes[: policy.looks]
        boxes = [geometry.expand_reply(np.array(box), policy.area_scale) for box in shown]
        return Look(
            boxes=tuple(tuple(box.tolist()) for box in boxes),
            pixel_boxes=tuple(tuple(geometry.to_pixels(box, size).tolist()) for box in boxes),
            crops=tuple(Image.fromarray(host.cut(image, box)) for box in boxes),
            reply=geometry.reply_text(self.boxes),
            confidence=0.75,
            size=(image.shape[1], image.shape[0]),
            milliseconds={"queue": 0.5, "cropper": 2.0, "crop": 0.25},
            pixels=image,
        )

    async def answer(
        self, pictures: Any, question: str, *, max_tokens: int, deadline: float | None
    ) -> Answer:
        count = len(pictures)
        spent = {"queue": 0.5, "target": 3.0}
        return Answer("seven" if count > 1 else "one", "stop", 10 * count, 30, 2, spent, -count)


@dataclasses.dataclass
class Served:
    """A server that is at work."""

    url: str
    engine: Any
    service: Service
    server: Server

    def client(self, **options: Any) -> openai.OpenAI:
        options = {"api_key": "sk-client", "max_retries": 0} | options
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)


@contextlib.contextmanager
def serving(
    upstream: str | None = None,
    *,
    engine: Any = None,
    limits: Limits | None = None,
    policy: Policy | None = None,
    reader: dict[str, Any] | None = None,
    key: str | None = None,
    ready: bool = True,
    **web: Any,
) -> Iterator[Served]:
    """A server in a thread, which is ready; without an upstream, the engine's target answers."""
    engine, limits = engine or FakeEngine(), limits or Limits()
    answers = (
        Upstream(upstream, key=key, own_token=web.get("token") is not None)
        if upstream
        else LocalTarget(engine, "local")
    )
    pictures = PictureReader(limits, **(reader or {}))
    service = Service(engine, answers, pictures, policy=policy or Policy(), limits=limits)
    server = Server(make_app(service, **web), service)
    with bound("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        contexts = [pictures, answers] if upstream else [pictures]
        run = server.run_until_told(engine, listening, contexts)
        thread = threading.Thread(target=asyncio.run, args=(run,))
        thread.start()
        try:
            while not (server.started and engine.ready >= ready) and thread.is_alive():
                time.sleep(0.005)
            yield Served(f"http://127.0.0.1:{port}", engine, service, server)
        finally:
            server.should_exit = True
            thread.join()


def file_of(height: int = 40, width: int = 80, kind: str = "PNG", seed: int = 0) -> bytes:
    """A picture's file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def data_url(file: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(file).decode()}"


def picture_part(url: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url or data_url(file_of())} | fields}


def turn(question: str, *pictures: dict[str, Any]) -> list[dict[str, Any]]:
    """Messages of one user turn: pictures, and a question about them."""
    content = [*(pictures or [picture_part()]), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def pixels_of(part: dict[str, Any]) -> np.ndarray:
    """The picture of a part of a message."""
    return host.to_rgb(base64.b64decode(part["image_url"]["url"].partition(",")[2]))


def ask(served, messages=None, **fields):
    """The official client's reply, with its headers."""
    create = served.client().chat.completions.with_raw_response.create
    return create(model="m", messages=messages or turn(QUESTION), **fields)


def post(served, body, **options):
    """A request with a body of bytes or of JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body)
    headers = {"content-type": "application/json"} | options.pop("headers", {})
    url = f"{served.url}/v1/chat/completions"
    return httpx2.post(url, content=content, headers=headers, timeout=20, **options)
