# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The web application: which addresses there are, and who may ask."""

import functools
import hmac
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cropvlm_jax.serving.faults import Fault, fault_of
from cropvlm_jax.serving.looks import Closed
from cropvlm_jax.serving.service import Service

LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")  # what this machine calls itself


class BearerToken:
    """Lets nobody through who does not send the server's token."""

    def __init__(self, app: ASGIApp, token: str):
        """Stands in front of an application."""
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        right = hmac.compare_digest(given, self._token)  # takes as long for any wrong token
        if right and scheme.lower() == b"bearer":
            await self._app(scope, receive, send)
        else:
            refusal = Fault(401, "invalid_api_key", "this server asks for its token as the API key")
            await refusal.response()(scope, receive, send)


def make_app(
    service: Service,
    *,
    token: str | None = None,
    hosts: Sequence[str] | None = None,
    guarded: Sequence[BaseRoute] = (),
    public: Sequence[BaseRoute] = (),
) -> Starlette:
    """The application of a server.

    Args:
        service: what the addresses do.
        token: that clients must send to all but /health, /ready and `public`; None asks for none.
        hosts: names under which the server may be addressed, so that no web page can reach it by a
            name of its own that leads here (DNS rebinding); None allows all.
        guarded: more routes that do what costs something, such as a tool's.
        public: more routes for everybody, such as a page.
    """
    routes = [
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.models),
        Route("/metrics", service.metrics),
        *guarded,
    ]
    middleware = [] if token is None else [Middleware(BearerToken, token=token)]
    told = functools.partial(_told, service)
    return Starlette(
        routes=[
            Route("/health", service.health),
            Route("/ready", service.ready),
            *public,
            Mount("/", routes=routes, middleware=middleware),
        ],
        middleware=[Middleware(TrustedHostMiddleware, list(hosts))] if hosts else [],
        exception_handlers=dict.fromkeys((Fault, Closed, TimeoutError, HTTPException), told),
    )


async def _told(service: Service, request: Request, error: Exception) -> Response:
    """An error as a response."""
    return fault_of(error, service.limits.timeout_s).response()
