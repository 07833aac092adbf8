# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The process that serves: it starts the engine, and ends without losing an accepted request."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Sequence
from typing import Any

import uvicorn
from absl import logging
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cropvlm_jax.serving.engine import Engine
from cropvlm_jax.serving.service import Service

KEEP_ALIVE_S = 75  # longer than clients keep a connection, so that they are the ones who end it
DRAIN_S = 1.0  # for requests that are on their way on connections that are open


class Server(uvicorn.Server):
    """A server that finishes what it has accepted before it ends.

    Told to end, by SIGTERM or `should_exit`, it accepts no more connections and is not ready. What
    still comes on open connections is answered, and each response is the last of its connection.
    """

    def __init__(self, app: ASGIApp, service: Service, graceful_s: float = 600.0):
        """Takes an application.

        Args:
            app: that is served.
            service: of which it learns that the server is about to end.
            graceful_s: most seconds for finishing requests.
        """
        self._app, self._service = app, service
        super().__init__(
            uvicorn.Config(
                self._answer,
                interface="asgi3",
                lifespan="off",
                ws="none",
                http="h11",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=int(graceful_s) + 1,
            )
        )

    async def run_until_told(
        self,
        engine: Engine,
        listening: socket.socket,
        contexts: Sequence[contextlib.AbstractAsyncContextManager[Any]] = (),
    ) -> bool:
        """Serves until it is told to end.

        Args:
            engine: that is started, while the server says that it is not ready, and closed.
            listening: bound to the address of the server.
            contexts: that are entered as long as it serves.

        Returns:
            Whether the engine had started, and is closed. A compilation cannot be interrupted: a
            thread still works on it where not.

        Raises:
            Exception: what kept the engine from starting.
        """
        async with contextlib.AsyncExitStack() as stack:
            for context in contexts:
                await stack.enter_async_context(context)
            starting = asyncio.create_task(self._start(engine))
            await self.serve(sockets=[listening])
            if not starting.done():
                starting.cancel()
                return False
            await starting
            await engine.close()
            return True

    async def _start(self, engine: Engine) -> None:
        """Starts the engine; where that fails, the server ends."""
        try:
            await engine.start()
            logging.info("ready")
        except BaseException:
            self.should_exit = True
            raise

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends; see the base class."""
        self._service.closing = True
        logging.info("finishing the requests that were accepted")
        for server in self.servers:
            server.close()
        await asyncio.sleep(DRAIN_S)
        await super().shutdown(sockets)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers with the application; on its way out, each response ends its connection."""

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start" and self._service.closing:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, send_last)


def leave_signals_to_uvicorn() -> None:
    """Has SIGTERM and SIGINT do nothing but what a running server does about them.

    Uvicorn raises a signal that it got once more when it has ended, which would end the process
    with a status of that signal.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: None)


def bound(host: str, port: int) -> socket.socket:
    """A socket of an address, which listens once a server serves it.

    Raises:
        OSError: the address cannot be had, such as one that another program serves.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends small packets at once. Without, a response waits for up
    # to 40 ms between its head and its body: Nagle's algorithm and delayed acknowledgements.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise OSError(f"--host={host} --port={port}: {error.strerror}") from error
    return listening
