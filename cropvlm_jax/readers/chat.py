# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Models behind OpenAI-compatible chat endpoints as readers."""

import asyncio
import base64
import concurrent.futures
import email.utils
import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from cropvlm_jax.pixels import host
from cropvlm_jax.readers.base import REFUSAL, Reply, png, reply_from

CACHE = "~/.cache/cropvlm_jax/replies"
ANSWER_BRIEFLY = "Answer the question using a single word or phrase."


class ChatReader:
    """Any model behind an OpenAI-compatible chat endpoint: GPT-4.1 nano, vLLM, llama.cpp.

    Requests that meet a limit (429), a failing server (5xx), a timeout or a broken body are sent
    again, later each time. Replies are kept on disk by the content of their request, so that a run
    that is started again asks for nothing twice. Keys are neither logged nor kept.

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
            ValueError: there is no key for OpenAI's own endpoint.
        """
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                "chat endpoints take the openai client: pip install 'cropvlm-jax[targets]'"
            ) from error
        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        key = api_key or os.environ.get("OPENAI_API_KEY")
        if not key and not base_url:
            raise ValueError(
                "set OPENAI_API_KEY to your key, or OPENAI_BASE_URL to the endpoint of a local "
                "server, which needs none"
            )
        self._openai, self._key = openai, key or "none"
        # The client's own timeout bounds each silence: of a server that trickles, there is no end.
        self._client = openai.AsyncOpenAI(
            api_key=self._key, base_url=base_url, timeout=None, max_retries=0
        )
        self._loop, self.timeout = asyncio.new_event_loop(), timeout
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.model, self.longest_edge, self.max_tokens = model, longest_edge, max_tokens
        self.name = model + (f"@{longest_edge}" if longest_edge else "")
        self.concurrency, self.attempts, self.backoff = concurrency, attempts, backoff
        self.cache = Path(cache).expanduser()
        address = self._client.base_url.copy_with(userinfo=b"", query=None)
        self.settings = {"base_url": str(address), "max_tokens": max_tokens, "says": ANSWER_BRIEFLY}

    def answer(
        self, images: Sequence[Sequence[np.ndarray]], questions: Sequence[str]
    ) -> list[Reply]:
        """Answers each question, as `Reader.answer`; several requests are under way at once.

        Raises:
            RuntimeError: the server refuses every request alike: a wrong key or an unknown model.
        """
        refused = threading.Event()

        def answer_one(pictures: Sequence[np.ndarray], question: str) -> Reply:
            if refused.is_set():
                raise RuntimeError(f"{self.name}: not asked, as the server refuses every request")
            try:
                return self._answer(pictures, question)
            except RuntimeError:
                refused.set()  # or the requests that wait would be sent all the same
                raise

        with concurrent.futures.ThreadPoolExecutor(self.concurrency) as pool:
            tasks = [
                pool.submit(answer_one, pictures, question)
                for pictures, question in zip(images, questions, strict=True)
            ]
            try:
                replies = [task.result() for task in tasks]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        failed = [reply for reply in replies if reply.failure]
        if failed:
            logging.warning(
                "%s: no answer to %d of %d questions, the first: %s",
                self.name,
                len(failed),
                len(replies),
                failed[0].failure,
            )
        return replies

    def _answer(self, pictures: Sequence[np.ndarray], question: str) -> Reply:
        """The reply to one item, from the disk if it has been given before."""
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _data_url(picture, self.longest_edge)}}
            for picture in pictures
        ]
        content.append({"type": "text", "text": f"{question}\n{ANSWER_BRIEFLY}"})
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }
        identity = json.dumps([str(self._client.base_url), request], sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()
        path = self.cache / digest[:2] / f"{digest}.json"
        try:
            return Reply(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            pass  # not there, or not to be read: it is written anew
        reply = self._ask(request)
        if not reply.unanswered:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
            part.write_text(json.dumps(reply._asdict()), encoding="utf-8")
            part.replace(path)  # at once, so that no other process reads half of it
        return reply

    def _ask(self, request: dict[str, Any]) -> Reply:
        """Sends a request until it is answered or given up."""
        failure, pause = "", 0.0
        for attempt in range(self.attempts):
            time.sleep(pause)
            pause = min(self.backoff * 2**attempt, 60.0) * random.uniform(0.5, 1.0)
            try:
                return _read(self._send(request))
            except (
                self._openai.AuthenticationError,
                self._openai.PermissionDeniedError,
                self._openai.NotFoundError,
            ) as error:
                address = self._client.base_url
                raise RuntimeError(f"{self.name} at {address}: {self._said_by(error)}") from None
            except self._openai.APIStatusError as error:
                failure = self._said_by(error)
                if error.status_code < 500 and error.status_code not in (408, 409, 429):
                    break  # the same request would fail again
                pause = max(pause, _retry_after(error.response.headers.get("retry-after")))
            except TimeoutError:
                failure = f"timeout: no answer within {self.timeout} s"
            except self._openai.APIConnectionError as error:
                failure = self._hidden(f"connection: {error.__cause__ or error}")
            except (
                ValueError,
                TypeError,
                AttributeError,
                LookupError,
                self._openai.APIError,
            ) as error:
                failure = self._hidden(f"broken body: {error}")
            line = f"{self.name}: attempt {attempt + 1} of {self.attempts}: {failure}"
            logging.log_every_n_seconds(logging.INFO, "%s", 10, line)
        return Reply("", failure)

    def _send(self, request: dict[str, Any]) -> Any:
        """The completion, or a TimeoutError; called from several threads."""
        reply = self._client.chat.completions.create(**request)
        return asyncio.run_coroutine_threadsafe(
            asyncio.wait_for(reply, self.timeout), self._loop
        ).result()

    def _said_by(self, error: Any) -> str:
        """What a server's error says, with its status."""
        return self._hidden(f"HTTP {error.status_code}: {error.message}")

    def _hidden(self, text: str) -> str:
        """The first words of a message; servers like to repeat the key they were given."""
        return " ".join(text.replace(self._key, "***").split())[:200]


def _read(completion: Any) -> Reply:
    """What a completion says; raises where it is none."""
    choice = completion.choices[0]
    message = choice.message
    if message.refusal or choice.finish_reason == "content_filter":
        return Reply("", f"{REFUSAL}: {message.refusal or 'content filter'}")
    if message.content is not None and not isinstance(message.content, str):
        raise ValueError(f"the content is {message.content!r:.80}, not text")
    return reply_from(message.content or "")


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


def _data_url(picture: np.ndarray, longest_edge: int | None) -> str:
    """A picture as it is sent, at most `longest_edge` px long."""
    if longest_edge:
        picture = host.shrink_to_fit(picture, longest_edge, longest_edge)
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()
