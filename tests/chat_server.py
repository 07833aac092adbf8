# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A chat endpoint that misbehaves in every way, over real HTTP."""

import collections
import contextlib
import email.utils
import http.server
import json
import threading
import time

import numpy as np

from cropvlm_jax.readers.chat import ChatReader

KEY = "sk-secret-0123456789"


class Server(http.server.ThreadingHTTPServer):
    """Answers chat requests as the question says: "500 429 ok" fails twice and then answers."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.tries = threading.Lock(), collections.Counter()
        self.requests, self.times = [], collections.defaultdict(list)
        self.busy = self.busiest = 0
        self.gone = False  # hangs up on every request
        self.always = ""  # how to answer, whatever the question

    def extras(self, body: dict, word: str) -> dict:
        """What a completion has besides the text."""
        return {}

    def handle_error(self, request, client_address):
        pass  # clients that gave up


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ERRORS = {  # by how the word ends that asks for it
        "quota": {"message": "You exceeded your quota", "code": "insufficient_quota"},
        "model": {"message": "The model `m` does not exist", "code": None},
        "lone": {"message": "no \ud83d"},
    }

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, question = self.server, body["messages"][0]["content"][-1]["text"]
        if server.gone:
            self.close_connection = True
            return
        with server.lock:
            server.requests.append(
                (self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            )
            server.times[question].append(time.monotonic())
            words = question.split("\n")[0].split()
            word = server.always or words[min(server.tries[question], len(words) - 1)]
            server.tries[question] += 1
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
        try:
            self.behave(word, body)
        finally:
            with server.lock:
                server.busy -= 1

    def behave(self, word: str, body: dict):
        if word == "slow":
            time.sleep(3)
        elif word == "pause":
            time.sleep(0.05)
        message, finish = {"role": "assistant", "content": f" said {word}. "}, "stop"
        if word == "refusal":
            message = {"role": "assistant", "content": None, "refusal": "I can't help with that."}
        elif word == "lone":
            message["content"] = "said \ud83d"
        elif word == "lonerefusal":
            message = {"role": "assistant", "content": None, "refusal": "No \ud83d."}
        elif word == "filtered":
            finish = "content_filter"
        elif word == "empty":
            message["content"] = "  \n"
        elif word in ("nothing", "thinks"):
            message["content"] = None
            finish = "length" if word == "thinks" else finish
        choices = [{"index": 0, "message": message, "finish_reason": finish}]
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        headers = {"Content-Type": "application/json"}
        status = int(word[:3]) if word[:3].isdigit() else 200
        if status == 200:
            reply |= self.server.extras(body, word)
        data = json.dumps(reply | {"choices": choices}).encode()
        if status != 200:
            error = self.ERRORS.get(word[3:], {"message": f"no, {KEY} may not"})
            data = json.dumps({"error": error}).encode()
            if word.endswith("after"):
                headers["Retry-After"] = "0.3"
            elif word.endswith("date"):
                headers["Retry-After"] = email.utils.formatdate(time.time() + 1, usegmt=True)
        elif word == "invalid":
            data = b'{"id": "1", "choices": [{"mess'
        elif word == "html":
            data, headers["Content-Type"] = b"<html>busy</html>", "text/html"
        elif word == "shapeless":
            data = json.dumps(reply | {"choices": None}).encode()
        elif word == "choiceless":
            data = json.dumps(reply | {"choices": []}).encode()
        elif word == "wrong":
            message["content"] = [1, 2]
            data = json.dumps(reply | {"choices": choices}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if word == "trickle":  # never silent for long, and never done
            for byte in data:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
            return
        self.wfile.write(data[: len(data) // 2] if word == "half" else data)
        if word == "half":
            self.close_connection = True


@contextlib.contextmanager
def serving(server: Server | None = None):
    """A server that is at work while the context lasts."""
    server = server or Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def endpoint(server: Server, cache, **options) -> ChatReader:
    defaults = dict(backoff=0.01, timeout=2, attempts=4, api_key=KEY)
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return ChatReader("m", base_url=url, cache=cache, **(defaults | options))


def picture(seed: int = 0, height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
