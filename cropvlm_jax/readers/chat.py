# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Models behind OpenAI-compatible chat endpoints as readers."""

import concurrent.futures
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from cropvlm_jax import texts
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.base import EMPTY, REFUSAL, Likelihood, Reply, reply_from
from cropvlm_jax.readers.endpoint import Asked, Endpoint
from cropvlm_jax.readers.inputs import Shown, as_arrays, check_texts
from cropvlm_jax.readers.pictures import PictureFormat
from cropvlm_jax.readers.prompt_likelihoods import PromptLikelihoods
from cropvlm_jax.readers.server_health import IN_A_ROW

CACHE = "~/.cache/cropvlm_jax/replies"
ANSWER_BRIEFLY = "Answer the question using a single word or phrase."


class ChatReader:
    """Any model behind an OpenAI-compatible chat endpoint: GPT-4.1 nano, vLLM, llama.cpp.

    Failed requests are sent again and replies are kept on disk, as `Endpoint` says. A server that
    says nothing is an error, not an answer.

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
        instruction: str = ANSWER_BRIEFLY,
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
            instruction: the line after each question, which asks for a short answer; "" where the
                question says all.
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
                no such format of pictures; or `max_tokens` is below 1.
        """
        if max_tokens < 1:
            raise ValueError(f"{model}: max_tokens={max_tokens} must be at least 1")
        self.model, self.longest_edge, self.max_tokens = model, longest_edge, max_tokens
        self.instruction, self.concurrency = instruction, concurrency
        self.format = PictureFormat.named(picture_format) if picture_format else PictureFormat()
        limits = [str(longest_edge)] * bool(longest_edge) + [picture_format] * bool(picture_format)
        self.name = "@".join([model, *limits])
        self.endpoint = Endpoint(
            self.name,
            base_url=base_url,
            api_key=api_key,
            timeout=timeout,
            attempts=attempts,
            backoff=backoff,
            cache=cache,
        )
        self._likelihoods = PromptLikelihoods(self.endpoint, self._send)
        self._spoke, self._blank = False, 0  # whether there was a text; how many replies had none
        self.settings = {
            "base_url": self.endpoint.address,
            "max_tokens": max_tokens,
            "says": instruction,
            "pictures": str(self.format),
        }

    def answer(self, images: Sequence[Shown], questions: Sequence[str]) -> list[Reply]:
        """Answers each question, as `Reader.answer`; several requests are under way at once.

        Args:
            images: of each question, a picture, or a list of the picture and crops of it.
            questions: the questions.

        Raises:
            ReaderUnavailable: nobody is there, the server refuses every request alike, such as for
                a wrong key or an unknown model, or it says nothing.
        """
        fields = {"max_tokens": self.max_tokens, "temperature": 0}
        replies = self._send(
            [
                Asked(pictures, question, None, fields, self._read)
                for pictures, question in zip(as_arrays(images, questions), questions, strict=True)
            ]
        )
        self._check_spoken(replies)
        return replies

    def check_likelihoods(self) -> None:
        """Asks the server, the first time, whether it can tell likelihoods.

        Raises:
            ReaderUnavailable: it answers nothing.
            ValueError: it cannot.
        """
        self._likelihoods.frame()

    def likelihoods(
        self,
        images: Sequence[Shown],
        questions: Sequence[str],
        answers: Sequence[str],
    ) -> list[Likelihood]:
        """How likely given answers are, as `LikelihoodReader.likelihoods`.

        This takes a server that tells log-probabilities of prompts, such as vLLM's; its chat
        template says how an answer is written and ended. An answer is sent as it is given, without
        outer spaces. Distinct answers cost one small request more each.

        Raises:
            ReaderUnavailable: as `answer`.
            ValueError: the server tells no likelihoods.
        """
        check_texts(images, answers=answers)
        return self._likelihoods.of(as_arrays(images, questions), questions, answers)

    def log_likelihood(
        self,
        images: Sequence[Shown],
        questions: Sequence[str],
        answers: Sequence[str],
    ) -> np.ndarray:
        """The nats of `likelihoods`, fp32 `[n]`; NaN where there are none, as the log says."""
        told = self.likelihoods(images, questions, answers)
        return np.array([each.nats for each in told], np.float32)

    def _send(self, asked: Sequence[Asked]) -> list[Reply]:
        """The replies to requests, several of which are under way at once."""
        stop = threading.Event()  # or the requests that wait would be sent all the same
        files: dict[int, concurrent.futures.Future[str]] = {}
        tasks = []
        with concurrent.futures.ThreadPoolExecutor(self.concurrency) as pool:
            for each in asked:
                for picture in each.pictures:  # of which the rollouts of a group share one
                    if id(picture) not in files:
                        files[id(picture)] = pool.submit(self._data_url, picture)
                mine = [files[id(picture)] for picture in each.pictures]
                tasks.append(pool.submit(self._reply, each, mine, stop))
            try:
                replies = [task.result() for task in tasks]
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        self.endpoint.check(replies)
        return replies

    def _data_url(self, picture: np.ndarray) -> str:
        """A picture as it is sent, at most `longest_edge` px long."""
        if self.longest_edge:
            picture = host.shrink_to_fit(picture, self.longest_edge, self.longest_edge)
        return self.format.data_url(picture)

    def _reply(
        self,
        asked: Asked,
        pictures: Sequence[concurrent.futures.Future[str]],
        stop: threading.Event,
    ) -> Reply:
        """The reply to one request."""
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": picture.result()}} for picture in pictures
        ]
        text = "\n".join([asked.question, *filter(None, [self.instruction])])
        content.append({"type": "text", "text": text})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if asked.answer is not None:
            messages.append({"role": "assistant", "content": asked.answer})
        request = {"model": self.model, "messages": messages, **asked.fields}
        return self.endpoint.reply(request, asked.read, stop, kept=asked.kept, fresh=asked.fresh)

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

    def _check_spoken(self, replies: Sequence[Reply]) -> None:
        """Raises ReaderUnavailable where the server has said nothing in many replies."""
        blank = [reply.failure for reply in replies if reply.kind == EMPTY]
        self._spoke |= any(reply.text for reply in replies)
        self._blank += len(blank)
        if blank and not self._spoke and self._blank >= IN_A_ROW:
            raise self.endpoint.unavailable(
                f"all its {self._blank} replies so far have no text: {blank[0]}"
            )
