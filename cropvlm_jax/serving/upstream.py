# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The server that answers: any that speaks OpenAI's protocol."""

import asyncio
import contextlib
import logging as standard_logging
import time
from collections.abc import AsyncIterator
from http import cookiejar

import httpx2
from absl import logging
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from cropvlm_jax.serving.faults import Fault
from cropvlm_jax.serving.report import PREFIX, Report, is_object, with_member
from cropvlm_jax.serving.sse import FirstEvent

CONNECT_S = 10.0
LINGER_S = 5.0  # after its deadline, for the last event of a stream to get to the client
ENCODING = "latin-1"  # of headers: what came as bytes goes on as the same bytes
# Of one connection (RFC 9110, 7.6.1), or of a body that is written anew.
_OF_A_CONNECTION = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "content-encoding",
}
# What a client tells this server only.
_OF_A_REQUEST = _OF_A_CONNECTION | {"host", "accept-encoding", "expect", "cookie", "authorization"}
_OF_A_RESPONSE = _OF_A_CONNECTION | {"set-cookie", "date", "server"}


class Upstream:
    """Passes requests on, and what is said to them back."""

    def __init__(self, url: str, *, key: str | None = None, own_token: bool = False):
        """Prepares a client.

        Args:
            url: up to and with `/v1`.
            key: that the upstream gets; None passes the client's on.
            own_token: whether clients send a token that is for this server, and no one else's.
        """
        self._url, self._key, self._own_token = url.rstrip("/"), key, own_token
        timeout = httpx2.Timeout(None, connect=CONNECT_S)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=256)
        # No jar: what the upstream tells one client is not for the next one.
        jar = cookiejar.CookieJar(cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self._client = httpx2.AsyncClient(timeout=timeout, limits=limits, cookies=jar)
        for name in ("httpx2", "httpcore2"):  # at DEBUG they log headers, of which keys are some
            standard_logging.getLogger(name).setLevel(standard_logging.WARNING)

    async def __aenter__(self) -> "Upstream":
        return self

    async def __aexit__(self, *error: object) -> None:
        """Closes all connections."""
        await self._client.aclose()

    async def complete(
        self, body: bytes, request: Request, report: Report, deadline: float
    ) -> Response:
        """What the upstream says to a request for a chat completion.

        Args:
            body: of the request, with the crops.
            request: as it came, for its headers.
            report: what was done, which the reply tells.
            deadline: `time.monotonic()` of the end of the response.

        Raises:
            Fault: it cannot be reached, or breaks off, or its reply cannot be read.
            TimeoutError: the deadline has passed.
        """
        begun = time.monotonic()
        reply = await self._send("POST", "/chat/completions", request, body, deadline)
        kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
        if reply.is_success and kind == "text/event-stream":
            report.took("upstream", begun)
            return Stream(reply, report, deadline)
        text = await _read(reply, deadline)
        report.took("upstream", begun)
        if reply.is_success:
            if not is_object(text):
                raise Fault(502, "upstream_invalid_json", "the upstream's reply is no JSON object")
            text = with_member(text, report.json_member())
        return Response(text, reply.status_code, _returned(reply) | report.headers())

    async def get(self, path: str, request: Request, deadline: float) -> Response:
        """What the upstream says to a GET request, as it is.

        Args:
            path: after `/v1`.
            request: as it came, for its headers.
            deadline: `time.monotonic()` of the end of the response.

        Raises:
            Fault: as of `complete`.
            TimeoutError: the deadline has passed.
        """
        reply = await self._send("GET", path, request, None, deadline)
        return Response(await _read(reply, deadline), reply.status_code, _returned(reply))

    async def _send(
        self, method: str, path: str, request: Request, body: bytes | None, deadline: float
    ) -> httpx2.Response:
        """The head of the upstream's response."""
        query = request.scope["query_string"].decode("latin-1")
        url = self._url + path + (f"?{query}" if query else "")
        sent = self._client.build_request(method, url, headers=self._headers(request), content=body)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._client.send(sent, stream=True)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _failed(error) from None

    def _headers(self, request: Request) -> httpx2.Headers:
        """What the upstream gets of a request's headers."""
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name not in _OF_A_REQUEST and not name.startswith(PREFIX)
        ]
        if self._key is not None:
            headers.append(("authorization", f"Bearer {self._key}"))
        elif not self._own_token and "authorization" in request.headers:
            headers.append(("authorization", request.headers["authorization"]))
        headers.append(("accept-encoding", "identity"))
        return httpx2.Headers(headers, encoding=ENCODING)


class Stream(StreamingResponse):
    """A stream of the upstream, passed on as it comes, with the report in its first event."""

    def __init__(self, reply: httpx2.Response, report: Report, deadline: float):
        """Takes the reply, of which nothing has been read."""
        headers = _returned(reply) | report.headers()
        super().__init__(self._lines(report, deadline), reply.status_code, headers)
        self._reply, self._deadline = reply, deadline
        self._place = contextlib.ExitStack()

    def keep(self, place: contextlib.ExitStack) -> None:
        """Takes what is to be closed when the stream has ended."""
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream; whatever ends it, the connection to the upstream is given back.

        A client that does not read what it is sent is not waited for beyond the deadline.
        """
        with self._place, contextlib.suppress(TimeoutError):
            try:
                async with asyncio.timeout_at(self._deadline + LINGER_S):
                    await super().__call__(scope, receive, send)
            finally:
                await self._reply.aclose()

    async def _lines(self, report: Report, deadline: float) -> AsyncIterator[bytes]:
        first = FirstEvent(report.json_member)
        parts = aiter(self._reply.aiter_bytes())
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    part = await anext(parts, None)
                if part is None:
                    yield first.rest()
                    return
                yield first.feed(part)
        except TimeoutError:
            late = Fault(504, "deadline_exceeded", "the stream was not complete in time")
            yield b"\n" + late.event()
        except httpx2.HTTPError as error:
            yield b"\n" + _failed(error).event()


async def _read(reply: httpx2.Response, deadline: float) -> bytes:
    """All of a response's body."""
    try:
        async with asyncio.timeout_at(deadline):
            return await reply.aread()
    except httpx2.HTTPError as error:
        raise _failed(error) from None
    finally:
        await reply.aclose()


def _returned(reply: httpx2.Response) -> dict[str, str]:
    """What the client gets of a response's headers."""
    reply.headers.encoding = ENCODING
    return {
        name: value
        for name, value in reply.headers.items()
        if name not in _OF_A_RESPONSE and not name.startswith(PREFIX)
    }


def _failed(error: Exception) -> Fault:
    """The fault of an upstream that does not answer."""
    logging.warning("the upstream failed: %s", type(error).__name__)
    if isinstance(error, httpx2.ConnectTimeout | httpx2.ConnectError):
        return Fault(502, "upstream_unreachable", "the upstream cannot be reached")
    return Fault(502, "upstream_failed", f"the upstream broke off: {type(error).__name__}")
