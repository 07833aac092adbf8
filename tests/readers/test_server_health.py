# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A chat endpoint that answers nothing ends the work early, and one that answers is asked on."""

import socket
import time

import numpy as np
import pytest
from chat_server import KEY, endpoint, picture, serving

from cropvlm_jax.readers import chat
from cropvlm_jax.readers.base import ReaderUnavailable, Reply
from cropvlm_jax.readers.chat import ChatReader
from cropvlm_jax.readers.server_health import FIRST_ATTEMPTS, IN_A_ROW, ServerHealth


@pytest.fixture
def server():
    with serving() as server:
        yield server


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:{port}/v1", "refused|Connect call failed"),
        ("https://127.0.0.1:{port}/v1", "refused|Connect call failed"),
        ("http://localhost:{port}/v1", ""),
        ("http://[::1]:{port}/v1", ""),
        ("http://no-such-host.invalid/v1", ""),  # DNS; in what words depends on the network
        ("https://no-such-host.invalid:8000/v1", ""),
        ("http://-.invalid/v1", ""),
    ],
)
def test_an_address_with_nobody_behind_it_ends_within_seconds(tmp_path, address, reason):
    url = address.format(port=unused_port())
    reader = ChatReader("m", base_url=url, api_key=KEY, cache=tmp_path)
    began = time.monotonic()
    with pytest.raises(ReaderUnavailable, match=f"m at .*be reached: connection: .*({reason})"):
        reader.answer([[picture()]] * 40, ["ok"] * 40)
    assert time.monotonic() - began < 10
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8000/v1",
        "no-scheme/v1",
        "ftp://localhost/v1",
        "http://localhost:99999/v1",
        "http://localhost:0/v1",
        "http://localhost:port/v1",
        "http:///v1",
        "http://[::1/v1",
        "http:localhost/v1",
        "http://me:secret@:8000/v1",
    ],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="http://localhost:8000/v1: set OPENAI_BASE_URL") as raised:
        ChatReader("m", base_url=address, api_key=KEY)
    assert "secret" not in str(raised.value)


def test_a_server_that_never_says_a_word_ends_after_two_time_outs(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        reader = ChatReader("m", base_url=url, timeout=0.3, backoff=0.01, cache=tmp_path)
        began = time.monotonic()
        with pytest.raises(ReaderUnavailable, match="timeout: no answer within 0.3 s"):
            reader.answer([[picture()]] * 40, ["ok"] * 40)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("401", "HTTP 401"),
        ("402", "HTTP 402"),
        ("403", "HTTP 403"),
        ("404", "HTTP 404"),
        ("405", "HTTP 405"),
        ("410", "HTTP 410"),
        ("429quota", "HTTP 429"),
        ("400model", "HTTP 400"),
        ("422model", "HTTP 422"),
    ],
)
def test_what_the_server_says_to_every_request_ends_at_once(server, tmp_path, word, reason):
    began = time.monotonic()
    with pytest.raises(ReaderUnavailable, match=f"m at http://127.*: {reason}") as raised:
        endpoint(server, tmp_path, attempts=6, backoff=1).answer([[picture()]] * 40, [word] * 40)
    assert time.monotonic() - began < 5 and len(server.requests) < 40
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("word", ["500", "503", "429", "html", "invalid", "shapeless", "half"])
def test_a_server_that_answers_nothing_ends_the_first_call(server, tmp_path, word):
    for count in (1, 40):
        with pytest.raises(ReaderUnavailable, match=r"no answer to 1 |16 requests in a row"):
            endpoint(server, tmp_path).answer([[picture()]] * count, [word] * count)


def test_a_server_that_fails_from_the_start_does_not_say_how_long_to_wait(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr("cropvlm_jax.readers.endpoint.STARTING", 0.02)
    reader = endpoint(server, tmp_path, attempts=2)
    with pytest.raises(ReaderUnavailable, match="no answer to 1 questions: HTTP 503"):
        reader.answer([[picture()]], ["503after"])
    assert reader.answer([[picture()]], ["ok"]) == [Reply("said ok.")]
    reader.answer([[picture()]], ["503after "])  # it has answered before, and may say so
    waits = {question: np.diff(times)[0] for question, times in server.times.items() if times[1:]}
    first, later = (waits[f"{word}\n{chat.ANSWER_BRIEFLY}"] for word in ("503after", "503after "))
    assert first < 0.25 and later >= 0.3


@pytest.mark.parametrize(
    ("word", "reason"),
    [("empty", "empty"), ("nothing", "empty"), ("thinks", "cut off at 64 tokens")],
)
def test_a_server_that_says_nothing_ends_the_work(server, tmp_path, word, reason):
    reader = endpoint(server, tmp_path)
    few = reader.answer([[picture()]] * (IN_A_ROW - 1), [word] * (IN_A_ROW - 1))
    assert all(reply.kind == "empty" and not reply.unanswered for reply in few)
    with pytest.raises(ReaderUnavailable, match=f"16 replies so far have no text: .*{reason}"):
        reader.answer([[picture()]], [word])


def test_a_server_that_goes_away_is_noticed_and_one_that_comes_back_is_asked_on(server, tmp_path):
    reader = endpoint(server, tmp_path)
    assert reader.answer([[picture()]], ["ok"]) == [Reply("said ok.")]
    few = reader.answer([[picture(i)] for i in range(5)], ["500"] * 5)
    assert all(reply.unanswered for reply in few)  # it may be back in a moment
    assert reader.answer([[picture()]], ["500 ok"]) == [Reply("said ok.")]
    server.gone = True
    images = [[picture(i)] for i in range(40)]
    (lost,) = reader.answer(images[:1], ["ok then"])
    assert lost.kind == "connection" and lost.unanswered
    with pytest.raises(ReaderUnavailable, match="in a row were given up: connection"):
        reader.answer(images, ["ok"] * 40)
    server.gone = False
    assert reader.answer(images, ["ok"] * 40) == [Reply("said ok.")] * 40


def test_items_that_the_server_refuses_alone_do_not_end_the_work(server, tmp_path):
    questions = [f"400 {i}" for i in range(2 * IN_A_ROW)] + ["413 a", "422 b", "ok"]
    images = [[picture(i)] for i in range(len(questions))]
    *failed, last = endpoint(server, tmp_path).answer(images, questions)
    assert all(reply.unanswered and reply.kind.startswith("HTTP 4") for reply in failed)
    assert [reply.kind for reply in failed if "@jpeg75" in reply.failure] == ["HTTP 413"]
    assert last == Reply("said ok.")


def test_health_by_hand():
    health = ServerHealth()
    assert not health.is_absent(FIRST_ATTEMPTS - 1) and health.is_absent(FIRST_ATTEMPTS)
    health.responded()
    assert not health.is_absent(99) and health.never_answered()
    assert [health.gave_up() for _ in range(IN_A_ROW)] == [False] * (IN_A_ROW - 1) + [True]
    health.answered()
    assert not health.gave_up() and not health.never_answered()
