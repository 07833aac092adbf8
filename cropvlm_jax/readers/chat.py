# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Models behind OpenAI-compatible chat endpoints as readers."""

import asyncio
import concurrent.futures
import email.utils
import json
import os
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from cropvlm_jax import texts
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.base import EMPTY, REFUSAL, ReaderUnavailable, Reply, reply_from
from cropvlm_jax.readers.inputs import Shown, as_arrays
from cropvlm_jax.readers.pictures import PictureFormat
from cropvlm_jax.readers.reply_cache import ReplyCache
from cropvlm_jax.readers.server_health import IN_A_ROW, ServerHealth

CACHE = "~/.cache/cropvlm_jax/replies"
ANSWER_BRIEFLY = "Answer the question using a single word or phrase."
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


class ChatReader:
    """Any model behind an OpenAI-compatible chat endpoint: GPT-4.1 nano, vLLM, llama.cpp.

    Requests that meet a limit (429), a failing server (5xx), a timeout or a broken body are sent
    again, later each time. Replies are kept on disk by the content of their request, so that a run
    that is started again asks for nothing twice. Keys are neither logged nor kept. A server that is
    not there, that refuses every request or says nothing is an error, not an answer.

    Attributes:
        name: the model, and the pictures' size where it is limited.
        settings: what replies depend on, for reports and records.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        longest_edge: int | None = None,
        picture_format: str = "",
        max_tokens: int = 64,
        concurrency: int = 8,
        timeout: float = 60.0,
        attempts: int = 6,
        backoff: float = 1.0,
        cache: str | os.PathLike = CACHE,
    ):
        """Prepares the client; nothing is sent yet.

        Args:
            model: as the server names it.
            base_url: up to and including "/v1"; None takes the environment's OPENAI_BASE_URL, and
                OpenAI's own where there is none.
            api_key: None takes the environment's OPENAI_API_KEY; local servers need none.
            longest_edge: pixels that larger pictures' longest sides are reduced to; None sends them
                as they are.
            picture_format: "png", or "jpeg" with a quality, such as "jpeg85", of all pictures; ""
                sends small ones without loss, as `PictureFormat` does.
            max_tokens: longest reply.
            concurrency: requests under way at once.
            timeout: seconds from sending a request to the last byte of its reply.
            attempts: requests sent for an item before it is given up.
            backoff: seconds before the second one, twice as long before the third, and so on, up
                to 60, unless the server says when. Half of it is random, so that items that failed
                together do not come back together.
            cache: folder of the replies.

        Raises:
            ImportError: the client is not installed.
            ValueError: there is no key for OpenAI's own endpoint, the address is none, or there is
                no such format of pictures.
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
        self._loop, self.timeout = asyncio.new_event_loop(), timeout
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.model, self.longest_edge, self.max_tokens = model, longest_edge, max_tokens
        self.format = PictureFormat.named(picture_format) if picture_format else PictureFormat()
        limits = [str(longest_edge)] * bool(longest_edge) + [picture_format] * bool(picture_format)
        self.name = "@".join([model, *limits])
        self.concurrency, self.attempts, self.backoff = concurrency, attempts, backoff
        self.cache, self.health, self.traffic = ReplyCache(cache), ServerHealth(), _Traffic()
        self._spoke, self._blank = False, 0  # whether there was a text; how many replies had none
        address = self._client.base_url.copy_with(userinfo=b"", query=None)
        self.address = str(address)
        self.settings = {
            "base_url": self.address,
            "max_tokens": max_tokens,
            "says": ANSWER_BRIEFLY,
            "pictures": str(self.format),
        }

    def answer(self, images: Sequence[Shown], questions: Sequence[str]) -> list[Reply]:
        """Answers each question, as `Reader.answer`; several requests are under way at once.

        Args:
            images: of each question, a picture, or a list of the picture and a crop of it.
            questions: the questions.

        Raises:
            ReaderUnavailable: nobody is there, the server refuses every request alike, such as for
                a wrong key or an unknown model, or it says nothing.
        """
        shown = as_arrays(images, questions)
        stop = threading.Event()  # or the requests that wait would be sent all the same
        files: dict[int, concurrent.futures.Future[str]] = {}
        tasks = []
        with concurrent.futures.ThreadPoolExecutor(self.concurrency) as pool:
            for pictures, question in zip(shown, questions, strict=True):
                for picture in pictures:  # of which the rollouts of a group share one
                    if id(picture) not in files:
                        files[id(picture)] = pool.submit(self._data_url, picture)
                mine = [files[id(picture)] for picture in pictures]
                tasks.append(pool.submit(self._answer, mine, question, stop))
            try:
                replies = [task.result() for task in tasks]
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        self._check(replies)
        return replies

    def _check(self, replies: Sequence[Reply]) -> None:
        """Tells of replies that failed; raises ReaderUnavailable where nothing else is to come."""
        if self.traffic.has_doubled():
            logging.info("%s: %s", self.name, str(self.traffic))
        failed = [reply for reply in replies if reply.unanswered]
        if failed:
            logging.warning(
                "%s: no answer to %d of %d questions, the first: %s",
                self.name,
                len(failed),
                len(replies),
                failed[0].failure,
            )
        if failed and len(failed) == len(replies) and self.health.never_answered():
            raise self._unavailable(f"no answer to {len(failed)} questions: {failed[0].failure}")
        blank = [reply.failure for reply in replies if reply.kind == EMPTY]
        self._spoke |= any(reply.text for reply in replies)
        self._blank += len(blank)
        if blank and not self._spoke and self._blank >= IN_A_ROW:
            raise self._unavailable(
                f"all its {self._blank} replies so far have no text: {blank[0]}"
            )

    def _unavailable(self, reason: str) -> ReaderUnavailable:
        """The error that says that there is no use in asking on."""
        return ReaderUnavailable(f"{self.name} at {self.address}: {reason}")

    def _data_url(self, picture: np.ndarray) -> str:
        """A picture as it is sent, at most `longest_edge` px long."""
        if self.longest_edge:
            picture = host.shrink_to_fit(picture, self.longest_edge, self.longest_edge)
        return self.format.data_url(picture)

    def _answer(
        self,
        pictures: Sequence[concurrent.futures.Future[str]],
        question: str,
        stop: threading.Event,
    ) -> Reply:
        """The reply to one item, from the disk if it has been given before."""
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": picture.result()}} for picture in pictures
        ]
        content.append({"type": "text", "text": f"{question}\n{ANSWER_BRIEFLY}"})
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }
        identity = json.dumps(
            [str(self._client.base_url), request], sort_keys=True, allow_nan=False
        )
        if kept := self.cache.get(identity):
            return kept
        self.traffic.add(len(identity))
        try:
            reply = self._ask(request, stop)
        except ReaderUnavailable:
            stop.set()
            raise
        if not reply.unanswered and reply.kind != EMPTY:  # a server says nothing by accident
            self.cache.put(identity, reply)
        return reply

    def _ask(self, request: dict[str, Any], stop: threading.Event) -> Reply:
        """Sends a request until it is answered, given up, or `stop` is set."""
        failure, pause = "", 0.0
        for attempt in range(self.attempts):
            if stop.wait(pause):
                return Reply("", "not asked: another request has ended it")
            pause = min(self.backoff * 2**attempt, 60.0) * random.uniform(0.5, 1.0)
            try:
                reply = self._read(self._send(request))
                self.health.answered()
                return reply
            except self._openai.APIStatusError as error:
                failure = self._said_by(error)
                if _is_hopeless(error):
                    raise self._unavailable(failure) from None
                if error.status_code < 500 and error.status_code not in (408, 409, 429):
                    self.health.answered()
                    return Reply("", failure)  # the same request would fail again
                self.health.responded()
                pause = max(pause, self._asked_to_wait(error))
            except (TimeoutError, self._openai.APIConnectionError) as error:
                failure = self._not_reached(error)
                if self.health.is_absent(attempt + 1):
                    raise self._unavailable(f"it cannot be reached: {failure}") from None
            except (
                ValueError,
                TypeError,
                AttributeError,
                LookupError,
                self._openai.APIError,
            ) as error:
                failure = self._hidden(f"broken body: {error}")
                self.health.responded()
            line = f"{self.name}: attempt {attempt + 1} of {self.attempts}: {failure}"
            logging.log_every_n_seconds(logging.INFO, "%s", 10, line)
        if self.health.gave_up():
            raise self._unavailable(f"{IN_A_ROW} requests in a row were given up: {failure}")
        return Reply("", failure)

    def _send(self, request: dict[str, Any]) -> Any:
        """The completion, or a TimeoutError; called from several threads."""
        reply = self._client.chat.completions.create(**request)
        return asyncio.run_coroutine_threadsafe(
            asyncio.wait_for(reply, self.timeout), self._loop
        ).result()

    def _read(self, completion: Any) -> Reply:
        """What a completion says; raises where it is none."""
        choice = completion.choices[0]
        message = choice.message
        if message.refusal or choice.finish_reason == "content_filter":
            return Reply("", texts.mend(f"{REFUSAL}: {message.refusal or 'content filter'}"))
        if message.content is not None and not isinstance(message.content, str):
            raise ValueError(f"the content is {message.content!r:.80}, not text")
        reply = reply_from(message.content or "")
        if reply.failure and choice.finish_reason == "length":
            return Reply("", f"{EMPTY}: cut off at {self.max_tokens} tokens, before it said a word")
        return reply

    def _not_reached(self, error: Exception) -> str:
        """Why there is no response, from the error."""
        if isinstance(error, TimeoutError):
            return f"timeout: no answer within {self.timeout} s"
        cause = error.__cause__ or error
        if type(cause).__name__ in BEGAN:
            self.health.responded()
        return self._hidden(f"connection: {_root(cause)}")

    def _asked_to_wait(self, error: Any) -> float:
        """Seconds that the server asks to wait; one that fails from the start may ask for less."""
        failing = error.status_code >= 500 and self.health.never_answered()
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
