# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with a request, and how its client is told: OpenAI's form of an error."""

import http
import json
import math

from absl import logging
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from cropvlm_jax.serving.looks import Busy, Closed, DeadlineExceeded, TooLarge

STARTING_S = 2.0  # seconds after which a client may ask again that came too early
LEFT = 499  # the status, in metrics, of a request whose client left
CLIENT, BUSY, SERVER = "invalid_request_error", "rate_limit_error", "server_error"
UPSTREAM = "upstream_error"


class Fault(Exception):
    """A request that is not answered.

    Attributes:
        status: of the HTTP response.
        code: a word for programs.
        message: for people: what is wrong and what to do.
        retry_after: seconds after which the same request may succeed; None where it will not.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: float | None = None):
        """Takes what the attributes say."""
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    @property
    def kind(self) -> str:
        """OpenAI's `type` of the error."""
        if self.status == http.HTTPStatus.TOO_MANY_REQUESTS:
            return BUSY
        if self.code.startswith("upstream_"):
            return UPSTREAM
        return CLIENT if self.status < 500 else SERVER

    def body(self) -> bytes:
        """The error as JSON."""
        error = {"message": self.message, "type": self.kind, "param": None, "code": self.code}
        return json.dumps({"error": error}, allow_nan=False).encode()

    def event(self) -> bytes:
        """The error as an event of a stream, at which OpenAI's client raises an `APIError`."""
        return b"data: " + self.body() + b"\n\n"

    def response(self) -> Response:
        """The error as a response."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(math.ceil(self.retry_after), 1))
        if self.status == http.HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "Bearer"
        return Response(self.body(), self.status, headers, "application/json")


def fault_of(error: Exception, timeout_s: float) -> Fault:
    """How an error is told to the client.

    Args:
        error: what was raised.
        timeout_s: the deadline of requests, seconds, for the message.
    """
    match error:
        case Fault():
            return error
        case Busy():
            return Fault(429, "queue_full", str(error), error.retry_after)
        case TooLarge():
            return Fault(413, "too_large", str(error))
        case Closed():
            return Fault(503, "not_ready", str(error), STARTING_S)
        case TimeoutError() | DeadlineExceeded():
            message = f"the request was not answered within {timeout_s:g} s"
            return Fault(504, "deadline_exceeded", message)
        case HTTPException():
            code = "not_found" if error.status_code == 404 else "invalid_request"
            return Fault(error.status_code, code, error.detail)
        case ClientDisconnect():
            return Fault(LEFT, "client_left", "the client left")
    # Not its message, which may have something of the request in it.
    logging.error("a request failed: %s", type(error).__name__, exc_info=logging.level_debug())
    return Fault(500, "internal_error", "the server failed; its log says more")
