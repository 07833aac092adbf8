# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A target of this process as a chat endpoint: it answers a question about one picture."""

import asyncio
import dataclasses
import functools
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from starlette.responses import Response

from cropvlm_jax.pixels import host
from cropvlm_jax.readers.asking import keeps_crops
from cropvlm_jax.readers.base import reply_from
from cropvlm_jax.serving.chat import FIELD, Chat
from cropvlm_jax.serving.engine import Engine
from cropvlm_jax.serving.faults import Fault
from cropvlm_jax.serving.looks import Answer
from cropvlm_jax.serving.report import Report
from cropvlm_jax.serving.sse import END
from cropvlm_jax.serving.zoomer import Seen

JSON = "application/json"
MAX_TOKENS = 32  # of an answer, where the request does not say: as the Python API
# What a request may have, and such a target does not do.
_UNKNOWN = ("tools", "functions", "response_format", "logprobs", "stop", "audio")


class LocalTarget:
    """Answers chats with the engine's target: greedily, from the last user turn."""

    def __init__(self, engine: Engine, name: str):
        """Takes the engine, and the model's name for replies."""
        self._engine, self._name = engine, name
        self._started = int(time.time())

    def model(self) -> dict[str, Any]:
        """The target, as `/v1/models` lists it."""
        return {"id": self._name, "object": "model", "created": self._started, "owned_by": "local"}

    async def complete(
        self, chat: Chat, seen: Sequence[Seen], report: Report, deadline: float
    ) -> Response:
        """Answers a request for a chat completion.

        Args:
            chat: the request.
            seen: its pictures.
            report: what was done, which the reply tells.
            deadline: `time.monotonic()` after which nobody waits.

        Raises:
            Busy: too many requests wait.
            DeadlineExceeded: the deadline has passed.
            Fault: the request is not about one picture that can be read, or asks for no tokens.
        """
        whole, crops = _shown(chat, seen, report)
        put = functools.partial(self._put, chat.question, _max_tokens(chat), deadline)
        report.warnings += _ignored(chat)
        shown = [*crops] if crops and chat.policy.crops == "replace" else [whole, *crops]
        if crops and chat.policy.keep_if_surer:
            answer = _surer(*await asyncio.gather(put(shown), put([whole])), report)
        else:
            answer = await put(shown)
        report.image_tokens = answer.image_tokens
        for stage, spent in answer.milliseconds.items():
            report.milliseconds[stage] = report.milliseconds.get(stage, 0.0) + spent
        if chat.streams:
            body, kind = self._events(chat, answer, report), "text/event-stream"
        else:
            body, kind = _json(self._completion(answer) | {FIELD: report.field()}), JSON
        return Response(body, 200, report.headers(), kind)

    async def _put(
        self, question: str, tokens: int, deadline: float, shown: Sequence[host.Picture]
    ) -> Answer:
        """Puts the question about pictures to the target."""
        try:
            return await self._engine.answer(shown, question, max_tokens=tokens, deadline=deadline)
        except (OSError, ValueError) as error:
            raise Fault(400, "invalid_question", str(error)) from None

    def _head(self, kind: str) -> dict[str, Any]:
        """What completions and chunks begin with."""
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self._name,
        }

    def _completion(self, answer: Answer) -> dict[str, Any]:
        """An answer as a completion."""
        message = {"role": "assistant", "content": answer.text}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
        choice["logprobs"] = None
        return self._head("chat.completion") | {"choices": [choice], "usage": _usage(answer)}

    def _events(self, chat: Chat, answer: Answer, report: Report) -> bytes:
        """An answer as the events of a stream."""
        head = self._head("chat.completion.chunk")
        steps: list[tuple[dict[str, str], str | None]] = [
            ({"role": "assistant", "content": ""}, None),
            ({"content": answer.text}, None),
            ({}, answer.finish_reason),
        ]
        chunks = [
            head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
            for delta, reason in steps
        ]
        chunks[0][FIELD] = report.field()
        options = chat.fields.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            chunks.append(head | {"choices": [], "usage": _usage(answer)})
        return b"".join(b"data: " + _json(chunk) + b"\n\n" for chunk in chunks) + END


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _usage(answer: Answer) -> dict[str, Any]:
    """The tokens of an answer, in OpenAI's form."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


def _surer(closer: Answer, whole: Answer, report: Report) -> Answer:
    """The answer that the target is surer of, with the tokens and times of both.

    Args:
        closer: to the picture and its crops.
        whole: to the picture alone.
        report: takes note of it.
    """
    replies = [reply_from(answer.text, answer.nats) for answer in (closer, whole)]
    report.kept = keeps_crops(*replies)
    report.margins = {
        name: None if reply.margin is None else round(reply.margin, 3)
        for name, reply in zip(("with", "without"), replies, strict=True)
    }
    return dataclasses.replace(
        closer if report.kept else whole,
        image_tokens=closer.image_tokens + whole.image_tokens,
        prompt_tokens=closer.prompt_tokens + whole.prompt_tokens,
        completion_tokens=closer.completion_tokens + whole.completion_tokens,
        milliseconds={
            stage: max(spent, whole.milliseconds.get(stage, 0.0))
            for stage, spent in closer.milliseconds.items()
        },
    )


def _shown(
    chat: Chat, seen: Sequence[Seen], report: Report
) -> tuple[host.Picture, list[np.ndarray]]:
    """The picture, and its crops."""
    if len(seen) != 1:
        raise Fault(
            400,
            "one_picture",
            f"this server's target answers questions about one picture, and the last user turn "
            f"has {len(seen)}; start the server with --upstream for other requests",
        )
    file, look, crops = seen[0].file, seen[0].look, seen[0].crops
    if file is None:
        raise Fault(400, "unreadable_picture", "; ".join(report.warnings))
    return file if look is None or look.pixels is None else look.pixels, crops


def _max_tokens(chat: Chat) -> int:
    """How many tokens a request asks for."""
    for name in ("max_completion_tokens", "max_tokens"):
        tokens = chat.fields.get(name)
        if tokens is not None:
            if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
                raise Fault(400, "invalid_value", f"{name}={tokens!r:.40} must be at least 1")
            return tokens
    return MAX_TOKENS


def _ignored(chat: Chat) -> Iterator[str]:
    """What of a request such a target does not do."""
    names = [name for name in _UNKNOWN if chat.fields.get(name)]
    names += ["n"] if chat.fields.get("n") not in (None, 1) else []
    if names:
        yield f"this server's target does not know: {', '.join(names)}"
    if len(chat.fields.get("messages", ())) > 1:
        yield "this server's target reads the last user turn only"
