# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Requests to an OpenAI-compatible endpoint, sent until they are answered or given up."""

import asyncio
import dataclasses
import email.utils
import json
import os
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from cropvlm_jax import texts
from cropvlm_jax.readers.base import EMPTY, ReaderUnavailable, Reply
from cropvlm_jax.readers.reply_cache import ReplyCache
from cropvlm_jax.readers.server_health import IN_A_ROW, ServerHealth

# What a server says of every request alike: by status, by OpenAI's code, or in words.
HOPELESS_STATUSES = (401, 402, 403, 404, 405, 410)
HOPELESS_CODES = ("insufficient_quota", "invalid_api_key", "model_not_found")
UNKNOWN_MODEL = re.compile(
    r"model\b.{0,80}(does not exist|not found|is not available|not supported)"
    r"|(unknown|invalid|no such) model",
    re.IGNORECASE,
)
STARTING = 10.0  # most seconds that a server that fails from the start is waited for at once
BEGAN = ("ReadError", "RemoteProtocolError", "WriteError")  # errors of a server that is there

Read = Callable[[Any], Reply]  # what a completion says; raises a ValueError where it is broken


@dataclasses.dataclass(frozen=True)
class Asked:
    """What one request is about, before its pictures are files.

    Attributes:
        pictures: that the question is about, uint8 RGB `[H, W, 3]`.
        question: without the instruction that a reader adds to it.
        answer: what the model is taken to have answered; None where it is to answer.
        fields: of the request, besides model and messages.
        read: what its completion says.
        kept: what of the completion that is; "" is the text.
        fresh: whether the server is asked also where the reply is on disk.
    """

    pictures: Sequence[np.ndarray]
    question: str
    answer: str | None
    fields: Mapping[str, Any]
    read: Read
    kept: str = ""
    fresh: bool = False


class Endpoint:
    """The chat completions of a server, for one model.

    Requests that meet a limit (429), a failing server (5xx), a timeout or a broken body are sent
    again, later each time. Replies are kept on disk by the content of their request, so that a run
    that is started again asks for nothing twice. Keys are neither logged nor kept. A server that is
    not there or that refuses every request is an error, not an answer.

    Attributes:
        name: of the reader that asks, for messages.
        address: of the server, without what is secret in it.
    """

    def __init__(
        self,
        name: str,
        *,
        base_url: str | None,
        api_key: str | None,
        timeout: float,
        attempts: int,
        backoff: float,
        cache: str | os.PathLike,
    ):
        """Prepares the client; nothing is sent yet. `ChatReader` says what the arguments are.

        Raises:
            ImportError: the client is not installed.
            ValueError: there is no key for OpenAI's own endpoint, or the address is none.
        """
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                "chat endpoints take the openai client: pip install openai"
            ) from error
        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        key = api_key or os.environ.get("OPENAI_API_KEY")
        if not key and not base_url:
            raise ValueError(
                "set OPENAI_API_KEY to your key, or OPENAI_BASE_URL to the endpoint of a local "
                "server, which needs none"
            )
        if base_url:
            check_address(base_url)
        self._openai, self._key = openai, key or "none"
        # The client's own timeout bounds each silence: of a server that trickles, there is no end.
        self._client = openai.AsyncOpenAI(
            api_key=self._key, base_url=base_url, timeout=None, max_retries=0
        )
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.name, self.timeout, self.attempts, self.backoff = name, timeout, attempts, backoff
        self._cache, self._health, self._traffic = ReplyCache(cache), ServerHealth(), _Traffic()
        self.address = str(self._client.base_url.copy_with(userinfo=b"", query=None))

    def reply(
        self,
        request: dict[str, Any],
        read: Read,
        stop: threading.Event,
        *,
        kept: str = "",
        fresh: bool = False,
    ) -> Reply:
        """The reply to a request, from the disk if it has been given before.

        Args:
            request: arguments of the client's `chat.completions.create`.
            read: finds the reply in the completion.
            stop: ends the waiting; set where a request has shown that there is no use in others.
            kept: what of the completion is read; of one request, several things may be.
            fresh: whether to ask also where the reply is on disk.

        Raises:
            ReaderUnavailable: nobody is there, or the server refuses every request alike, such as
                for a wrong key or an unknown model.
        """
        content = [str(self._client.base_url), request, *([kept] if kept else [])]
        identity = json.dumps(content, sort_keys=True, allow_nan=False)
        if not fresh and (known := self._cache.get(identity)) is not None:
            return known
        self._traffic.add(len(identity))
        try:
            reply = self._ask(request, read, stop)
        except ReaderUnavailable:
            stop.set()
            raise
        if not reply.unanswered and reply.kind != EMPTY:  # a server says nothing by accident
            self._cache.put(identity, reply)
        return reply

    def check(self, replies: Sequence[Reply]) -> None:
        """Tells of requests that failed.

        Raises:
            ReaderUnavailable: all have failed, and none was ever answered.
        """
        if self._traffic.has_doubled():
            logging.info("%s: %s", self.name, str(self._traffic))
        failed = [reply for reply in replies if reply.unanswered]
        if failed:
            logging.warning(
                "%s: no answer to %d of %d questions, the first: %s",
                self.name,
                len(failed),
                len(replies),
                failed[0].failure,
            )
        if failed and len(failed) == len(replies) and self._health.never_answered():
            raise self.unavailable(f"no answer to {len(failed)} questions: {failed[0].failure}")

    def unavailable(self, reason: str) -> ReaderUnavailable:
        """The error that says that there is no use in asking on."""
        return ReaderUnavailable(f"{self.name} at {self.address}: {reason}")

    def _ask(self, request: dict[str, Any], read: Read, stop: threading.Event) -> Reply:
        """Sends a request until it is answered, given up, or `stop` is set."""
        failure, pause = "", 0.0
        for attempt in range(self.attempts):
            if stop.wait(pause):
                return Reply("", "not asked: another request has ended it")
            pause = min(self.backoff * 2**attempt, 60.0) * random.uniform(0.5, 1.0)
            try:
                reply = read(self._send(request))
                self._health.answered()
                return reply
            except self._openai.APIStatusError as error:
                failure = self._said_by(error)
                if _is_hopeless(error):
                    raise self.unavailable(failure) from None
                if error.status_code < 500 and error.status_code not in (408, 409, 429):
                    self._health.answered()
                    return Reply("", failure)  # the same request would fail again
                self._health.responded()
                pause = max(pause, self._asked_to_wait(error))
            except (TimeoutError, self._openai.APIConnectionError) as error:
                failure = self._not_reached(error)
                if self._health.is_absent(attempt + 1):
                    raise self.unavailable(f"it cannot be reached: {failure}") from None
            except (
                ValueError,
                TypeError,
                AttributeError,
                LookupError,
                self._openai.APIError,
            ) as error:
                failure = self._hidden(f"broken body: {error}")
                self._health.responded()
            line = f"{self.name}: attempt {attempt + 1} of {self.attempts}: {failure}"
            logging.log_every_n_seconds(logging.INFO, "%s", 10, line)
        if self._health.gave_up():
            raise self.unavailable(f"{IN_A_ROW} requests in a row were given up: {failure}")
        return Reply("", failure)

    def _send(self, request: dict[str, Any]) -> Any:
        """The completion, or a TimeoutError; called from several threads."""
        reply = self._client.chat.completions.create(**request)
        return asyncio.run_coroutine_threadsafe(
            asyncio.wait_for(reply, self.timeout), self._loop
        ).result()

    def _not_reached(self, error: Exception) -> str:
        """Why there is no response, from the error."""
        if isinstance(error, TimeoutError):
            return f"timeout: no answer within {self.timeout} s"
        cause = error.__cause__ or error
        if type(cause).__name__ in BEGAN:
            self._health.responded()
        return self._hidden(f"connection: {_root(cause)}")

    def _asked_to_wait(self, error: Any) -> float:
        """Seconds that the server asks to wait; one that fails from the start may ask for less."""
        failing = error.status_code >= 500 and self._health.never_answered()
        seconds = _retry_after(error.response.headers.get("retry-after"))
        return min(seconds, STARTING) if failing else seconds

    def _said_by(self, error: Any) -> str:
        """What a server's error says, with its status, and what helps where that is known."""
        said = self._hidden(f"HTTP {error.status_code}: {error.message}")
        if error.status_code == 413:  # content too large
            said += "; @PIXELS and @jpeg75 after the reader's name make pictures smaller"
        return said

    def _hidden(self, text: str) -> str:
        """The first words of a message; servers like to repeat the key they were given."""
        return " ".join(texts.mend(text).replace(self._key, "***").split())[:200]


class _Traffic:
    """How large the requests are that were sent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = self._total = self._largest = self._told = 0

    def add(self, size: int) -> None:
        """Counts a request of `size` bytes."""
        with self._lock:
            self._count += 1
            self._total += size
            self._largest = max(self._largest, size)

    def has_doubled(self) -> bool:
        """Whether twice as many requests were sent as when this was true before."""
        if self._count < max(2 * self._told, 1):
            return False
        self._told = self._count
        return True

    def __str__(self) -> str:
        mean = self._total / max(self._count, 1)
        sizes = f"{mean / 1e6:.2f} MB on average, {self._largest / 1e6:.2f} MB at most"
        return f"{self._count} requests sent, {sizes}"


def check_address(url: str) -> None:
    """Checks that an endpoint's address can be one.

    Raises:
        ValueError: it has no scheme or host, or a port out of range.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of the port, or of a host in brackets
        good = False
    if not good:
        shown = re.sub("//[^/]*@", "//***@", url)
        raise ValueError(
            f"the address {shown!r} of a chat endpoint is not of the form "
            "http://localhost:8000/v1: set OPENAI_BASE_URL"
        )


def _is_hopeless(error: Any) -> bool:
    """Whether every other request would meet the same error of the server."""
    if error.status_code in HOPELESS_STATUSES or error.code in HOPELESS_CODES:
        return True
    return error.status_code in (400, 422) and bool(UNKNOWN_MODEL.search(error.message))


def _root(error: BaseException) -> BaseException:
    """The first of the errors that led to an error, such as the operating system's, with a text."""
    if isinstance(error, BaseExceptionGroup):
        return _root(error.exceptions[0])
    before = error.__cause__ or error.__context__
    first = error if before is None else _root(before)
    return first if str(first) else error


def _retry_after(header: str | None) -> float:
    """Seconds to wait, at most 120: the header has seconds or a date (RFC 9110, 10.2.3)."""
    if not header:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), 120.0)
