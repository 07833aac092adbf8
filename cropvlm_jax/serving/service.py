# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a request goes through.

A request for a chat completion is read, its pictures are looked at, and it goes on with the crops
to whoever answers. It ends early where its client leaves or its deadline passes.
"""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Coroutine
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, Counter, generate_latest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from cropvlm_jax.serving.chat import Chat
from cropvlm_jax.serving.engine import Closed, Engine
from cropvlm_jax.serving.faults import Fault, fault_of
from cropvlm_jax.serving.limits import Limits
from cropvlm_jax.serving.looks import Policy
from cropvlm_jax.serving.pictures import PictureReader
from cropvlm_jax.serving.report import Report
from cropvlm_jax.serving.target import LocalTarget
from cropvlm_jax.serving.upstream import Stream, Upstream
from cropvlm_jax.serving.zoomer import Zoomer

JSON = "application/json"
_NAME = re.compile(r"(?!.*\.\.)[\w./:@-]+")  # of a model, in an address


class Service:
    """What the addresses do.

    Attributes:
        limits: of sizes and times.
        working: how many requests are worked on; streams are until they end.
        closing: whether the server is about to end, and only finishes what it has accepted.
    """

    def __init__(
        self,
        engine: Engine,
        answers: Upstream | LocalTarget,
        reader: PictureReader,
        *,
        policy: Policy,
        limits: Limits,
    ):
        """Takes what it works with.

        Args:
            engine: has the cropper.
            answers: answers what was asked.
            reader: of pictures.
            policy: what crops are like where a request does not say.
            limits: of sizes and times.
        """
        self._engine, self._answers, self._reader = engine, answers, reader
        self._policy, self.limits = policy, limits
        self._zoomer = Zoomer(engine, reader, limits.max_pictures)
        self.working, self.closing = 0, False
        self._responses = Counter(
            "cropvlm_http_responses",
            "Responses to requests for chat completions, by status",
            ["status"],
            registry=engine.metrics.registry,
        )

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        try:
            response = await self._admitted(request)
        except Exception as error:
            response = fault_of(error, self.limits.timeout_s).response()
        self._responses.labels(response.status_code).inc()
        return response

    async def _admitted(self, request: Request) -> Response:
        """The response to a request, if not too many are worked on."""
        if self.working >= self.limits.max_requests:
            raise Fault(429, "too_many_requests", "too many requests at once", retry_after=1)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON:  # so that no web page can send one without asking (CORS)
            raise Fault(415, "not_json", f"the content-type must be {JSON}")
        with contextlib.ExitStack() as place:
            self.working += 1
            place.callback(self._ended)
            report = Report()
            deadline = report.begun + self.limits.timeout_s
            async with asyncio.timeout_at(deadline):
                body = await self._body(request)
                work = self._respond(request, body, report, deadline)
                response = await unless_left(request, work)
            if isinstance(response, Stream):
                response.keep(place.pop_all())
            return response

    def _ended(self) -> None:
        self.working -= 1

    async def _body(self, request: Request) -> bytes:
        """The body of a request."""
        most, body = int(self.limits.max_body_mb * 1e6), bytearray()
        declared = request.headers.get("content-length", "")
        if not (declared.isdigit() and int(declared) > most):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    break
            else:
                return bytes(body)
        raise Fault(413, "too_large", f"the request is larger than {self.limits.max_body_mb:g} MB")

    async def _respond(
        self, request: Request, body: bytes, report: Report, deadline: float
    ) -> Response:
        """The response to a request whose body is there."""
        chat = Chat.read(body, self._policy)
        if isinstance(self._answers, LocalTarget):
            seen = await self._zoomer.look(chat, report, deadline)
            return await self._answers.complete(chat, seen, report, deadline)
        if chat.policy.keep_if_surer:
            raise Fault(
                400,
                "invalid_cropvlm",
                "cropvlm.keep_if_surer is for a server with --target: an --upstream does not say "
                "how sure it is of its answers",
            )
        urls: list[list[str]] = []
        if chat.policy.looks:  # what was seen is not kept while the upstream answers
            urls = await self._zoomer.urls(await self._zoomer.look(chat, report, deadline), report)
        body = chat.with_crops(urls)
        return await self._answers.complete(body, request, report, deadline)

    async def models(self, request: Request) -> Response:
        """GET /v1/models and /v1/models/NAME."""
        name = request.path_params.get("name")
        if name is not None and not _NAME.fullmatch(name):
            raise _no_model()
        if isinstance(self._answers, Upstream):
            deadline = time.monotonic() + self.limits.timeout_s
            path = "/models" if name is None else f"/models/{name}"
            return await self._answers.get(path, request, deadline)
        model = self._answers.model()
        if name not in (None, model["id"]):
            raise _no_model()
        return _json(model if name else {"object": "list", "data": [model]})

    async def health(self, request: Request) -> Response:
        """GET /health: whether the process is alive."""
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """GET /ready: whether requests are taken."""
        if not self._engine.ready or self.closing:
            raise Closed("the server is starting or shutting down")
        return _json({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, in the format of Prometheus."""
        text = generate_latest(self._engine.metrics.registry)
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})


async def unless_left(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The response to a request, on which work ends where its client leaves.

    Args:
        request: whose body has been read.
        work: on the response.

    Raises:
        ClientDisconnect: the client has left.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect()
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _no_model() -> Fault:
    return Fault(404, "model_not_found", "there is no such model")


def _json(value: Any) -> Response:
    return Response(json.dumps(value, allow_nan=False), media_type=JSON)
