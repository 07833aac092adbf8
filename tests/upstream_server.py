# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-compatible server over real HTTP, which streams, misbehaves, and tells what it got."""

import json
import time
from collections.abc import Callable

import chat_server

MODEL = {"id": "m", "object": "model", "created": 1, "owned_by": "tests"}


class Server(chat_server.Server):
    """Behaves as the first word of the question says, as of `chat_server`, and with "stream"."""

    request_queue_size = 128  # clients that connect at once

    def __init__(self, answer: Callable[[dict], str] | None = None):
        super().__init__()
        self.RequestHandlerClass = Handler
        self.answer = answer or (lambda body: "fine")
        self.bodies: list[bytes] = []  # of requests, as they came
        self.heads: list[dict[str, str]] = []  # headers, by their names in lower case
        self.paths: list[str] = []
        self.hung_up = 0  # streams whose reader left

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def last(self) -> dict:
        return json.loads(self.bodies[-1])

    def turn(self) -> list[dict]:
        """The content of the last request's last message."""
        return self.last["messages"][-1]["content"]


def said(body: dict) -> str:
    """The text of the last message."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


class Handler(chat_server.Handler):
    def do_GET(self):
        self.server.paths.append(self.path)
        self.server.heads.append({k.lower(): v for k, v in self.headers.items()})
        self.send(200, json.dumps({"object": "list", "data": [MODEL]}).encode())

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        with self.server.lock:
            self.server.bodies.append(raw)
            self.server.paths.append(self.path)
            self.server.heads.append({k.lower(): v for k, v in self.headers.items()})
        word = (said(body).split() or ["ok"])[0]
        if word == "cut":  # in the middle of a body
            self.send(200, b'{"id": "1", "choices": [', length=1000)
            self.close_connection = True
        elif body.get("stream") and not word[:3].isdigit():
            self.stream(word, body)
        elif word[0].isupper():  # an ordinary question
            self.send(200, json.dumps(self.completion(body)).encode())
        else:
            self.behave(word, body)

    def send(self, status: int, data: bytes, length: int | None = None, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("X-Request-Id", "request-7")
        self.send_header("Set-Cookie", "a=b")
        self.send_header("Content-Length", str(length or len(data)))
        self.end_headers()
        self.wfile.write(data)

    def completion(self, body: dict) -> dict:
        message = {"role": "assistant", "content": self.server.answer(body)}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        head = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        return head | {"choices": choices, "other": 1e22}

    def stream(self, word: str, body: dict):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        self.chunk(b": a comment\n\n")
        pieces = ["", *self.server.answer(body)]
        for number, piece in enumerate(pieces):
            delta = {"content": piece} | ({"role": "assistant"} if not number else {})
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            event = b"data: %s\n\n" % json.dumps(head | {"choices": [choice]}).encode()
            if word == "cutstream" and number == 2:
                self.chunk(event[:20])
                self.close_connection = True
                return
            if word == "slowstream" and number == 2:
                time.sleep(3)
            if word == "endless":
                self.endless(event)
                return
            self.chunk(event[:15])  # events that come in parts
            self.chunk(event[15:])
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def endless(self, event: bytes):
        try:
            for _ in range(1000):
                self.chunk(event)
                time.sleep(0.01)
        except OSError:
            self.server.hung_up += 1
            self.close_connection = True

    def chunk(self, data: bytes):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()
