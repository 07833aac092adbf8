# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What goes wrong: each fault has its status, and the server goes on."""

import asyncio
import base64
import concurrent.futures
import contextlib
import io
import json
import logging
import time
import weakref
import zlib

import chat_server
import httpx2
import openai
import pytest
from PIL import Image
from served import QUESTION, FakeEngine, ask, data_url, file_of, picture_part, post, serving, turn
from upstream_server import Server

from cropvlm_jax.serving.limits import Limits
from cropvlm_jax.serving.looks import Busy, Closed, DeadlineExceeded
from cropvlm_jax.serving.pictures import PictureReader
from cropvlm_jax.serving.report import Report
from cropvlm_jax.serving.upstream import Stream

LIMITS = Limits(
    timeout_s=1.5, max_body_mb=4, max_pictures=2, max_picture_mb=1, max_megapixels=2, max_requests=8
)


@pytest.fixture(scope="module")
def upstream():
    with chat_server.serving(Server()) as server:
        yield server


@pytest.fixture(scope="module")
def served(upstream):
    with serving(upstream.url, limits=LIMITS) as server:
        yield server
        assert ask(server).parse().cropvlm["boxes"]  # after all that is asked here


def refused(served, question=QUESTION, **fields) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as error:
        ask(served, turn(question), **fields)
    return error.value


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_errors_of_the_upstream_pass(served, status, stream):
    error = refused(served, f"{status}after", stream=stream)
    assert error.status_code == status and chat_server.KEY in str(error.body)
    assert error.response.headers["retry-after"] == "0.3"
    assert error.response.headers["x-cropvlm-boxes"]


def test_an_error_s_body_is_the_same_to_the_byte(served, upstream):
    body = {"messages": turn("500quota")}
    direct = httpx2.post(f"{upstream.url}/chat/completions", content=json.dumps(body))
    assert post(served, body).content == direct.content


@pytest.mark.parametrize(
    ("question", "status", "code"),
    [
        ("slow", 504, "deadline_exceeded"),
        ("invalid", 502, "upstream_invalid_json"),
        ("html", 502, "upstream_invalid_json"),
        ("cut", 502, "upstream_failed"),
    ],
)
def test_an_upstream_that_fails(served, question, status, code):
    error = refused(served, question)
    assert (error.status_code, error.code) == (status, code)


def test_an_upstream_that_is_dead():
    with serving("http://127.0.0.1:1/v1") as served:
        error = refused(served)
        assert (error.status_code, error.code) == (502, "upstream_unreachable")
        with pytest.raises(openai.InternalServerError):
            served.client().models.list()


@pytest.mark.parametrize(
    ("question", "code"), [("cutstream", "upstream_failed"), ("slowstream", "deadline_exceeded")]
)
def test_a_stream_that_is_cut_says_so(served, question, code):
    stream, said = ask(served, turn(question), stream=True).parse(), []
    with pytest.raises(openai.APIError) as error:
        said += [chunk.choices[0].delta.content for chunk in stream]
    assert error.value.code == code


def truncated() -> str:
    return data_url(file_of(200, 200)[:-1000])


def bomb() -> str:
    """100 megapixels in a few hundred bytes."""
    head = file_of()[:16]
    size = (10_000).to_bytes(4, "big")
    header = b"IHDR" + size + size + bytes([1, 0, 0, 0, 0])
    chunk = header + zlib.crc32(header).to_bytes(4, "big")
    return data_url(head[:12] + chunk + file_of()[33:])


def gif_bomb() -> str:
    """An animation of a hundred frames, whose canvas is large."""
    file = io.BytesIO()
    frames = [Image.new("P", (3000, 3000), n) for n in range(3)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return data_url(file.getvalue(), "image/gif")


def growing_gif() -> str:
    """A frame that is larger than the canvas."""
    file = io.BytesIO()
    Image.new("P", (3000, 3000)).save(file, "GIF")
    content = bytearray(file.getvalue())
    content[6:10] = b"\x08\0\x08\0"
    return data_url(bytes(content), "image/gif")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'
BROKEN = {
    "truncated": (truncated(), "no crop: Cannot decode"),
    "bomb": (bomb(), "Too many pixels in the image's"),
    "gif bomb": (gif_bomb(), "3000 x 3000 px are over the limit"),
    "svg": (data_url(SVG, "image/svg+xml"), "it is an SVG drawing"),
    "type": (data_url(file_of(), "text/html"), "'text/html' is no picture"),
    "injected type": ("data:image/png\r\nx-a: b;base64,AAAA", "is no picture"),
    "no picture": (data_url(b"hello"), "No picture in the image's 5 bytes"),
    "empty": (data_url(b""), "an empty file"),
    "base64": ("data:image/png;base64,@@@", "its data: URL is broken"),
    "letters": ("data:image/png;base64,\u00e9\u00e9", "its data: URL is broken"),
    "no comma": ("data:image/png", "is no picture"),
    "large": (data_url(b"\x89PNG" + bytes(1_100_000)), "its file is larger than 1 MB"),
    "loopback": ("http://127.0.0.1/a.png", "127.0.0.1 is not among --allow_hosts"),
    "elsewhere": ("https://images.example/a.png", "images.example is not among --allow_hosts"),
}


@pytest.mark.parametrize("url", [url for url, _ in BROKEN.values()], ids=BROKEN)
def test_a_picture_that_cannot_be_read_passes_as_it_is(served, upstream, url):
    expected = next(text for given, text in BROKEN.values() if given is url)
    raw = ask(served, turn(QUESTION, picture_part(url)))
    (warning,) = raw.parse().cropvlm["warnings"]
    assert warning.startswith("picture 0: ") and expected in warning
    assert expected[:20] in raw.headers["x-cropvlm-warnings"]
    assert upstream.turn() == turn(QUESTION, picture_part(url))[0]["content"]


def test_half_a_letter_in_a_data_url(served):
    """The official client does not send it, but others do."""
    reply = post(served, {"messages": turn(QUESTION, picture_part("data:image/png,\ud83d"))})
    (warning,) = reply.json()["cropvlm"]["warnings"]
    assert "its data: URL is broken" in warning


def test_a_frame_larger_than_its_canvas_harms_nobody(served):
    assert ask(served, turn(QUESTION, picture_part(growing_gif()))).http_response.status_code == 200


def test_a_declared_type_does_not_count(served):
    jpeg = picture_part(data_url(file_of(kind="JPEG"), "image/png"))
    unpadded = picture_part(data_url(file_of()).rstrip("="))
    plain = picture_part("data:image/png," + "".join(f"%{byte:02x}" for byte in file_of()))
    for picture in (jpeg, unpadded, plain):
        assert ask(served, turn(QUESTION, picture)).parse().cropvlm["warnings"] == []


def test_the_good_picture_beside_a_bad_one_gets_its_crop(served, upstream):
    reply = ask(served, turn(QUESTION, picture_part(truncated()), picture_part())).parse()
    assert [box["picture"] for box in reply.cropvlm["boxes"]] == [1]
    assert len(upstream.turn()) == 4


def test_pictures_beyond_the_limit_pass(served, upstream):
    reply = ask(served, turn(QUESTION, picture_part(), picture_part(), picture_part())).parse()
    assert reply.cropvlm["warnings"] == ["only the first 2 pictures were looked at"]
    assert len(upstream.turn()) == 6


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "FILE:///etc/passwd", "ftp://a/b.png", "/etc/passwd", "gopher:x"]
)
def test_addresses_of_other_kinds_are_refused(served, upstream, url):
    asked = len(upstream.bodies)
    with pytest.raises(openai.BadRequestError, match="such as file://, are refused") as error:
        ask(served, turn(QUESTION, picture_part(url)))
    assert error.value.code == "picture_refused" and len(upstream.bodies) == asked


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"nothing",
        b'{"a": NaN}',
        b'{"a": ' + b"[" * 100_000,
        b"\xff\xfe\xff",
        b'{"a": ' + b"1" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": []}], "cropvlm": {}, "x": 1e999}',
    ],
)
def test_what_is_no_json_is_refused(served, body):
    reply = post(served, body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    "messages",
    [None, 3, "text", [], [None], [{"role": "user"}], [{"role": "user", "content": 3}]]
    + [
        [{"role": "user", "content": [part, {"type": "text", "text": "ok"}]}]
        for part in (
            None,
            "text",
            {"type": "image_url"},
            {"type": "image_url", "image_url": None},
            {"type": "image_url", "image_url": {"url": 3}},
            {"type": ["image_url"], "image_url": {"url": "x"}},
            {"type": "text", "text": 7},
        )
    ],
)
def test_messages_of_strange_shapes_pass(served, upstream, messages):
    """It is for the upstream to say what it thinks of them; that of the tests fails."""
    before = len(upstream.bodies)
    assert post(served, {"messages": messages}).status_code in (200, 502)
    assert len(upstream.bodies) == before + 1 and upstream.last["messages"] == messages


def test_a_body_of_50_mb_is_refused(served, upstream):
    asked = len(upstream.bodies)
    error = refused(served, "a" * 50_000_000)
    assert (error.status_code, error.code) == (413, "too_large")
    parts = (b" " * 1_000_000 for _ in range(50))  # of a length that is not told before
    assert post(served, b"".join(parts)).status_code == 413
    assert len(upstream.bodies) == asked


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Busy(3, 4.2), 429, "queue_full"),
        (Closed("starting"), 503, "not_ready"),
        (DeadlineExceeded(), 504, "deadline_exceeded"),
    ],
)
def test_an_engine_that_does_not_take_it(served, error, status, code):
    served.engine.fails = error
    try:
        found = refused(served)
    finally:
        served.engine.fails = None
    assert (found.status_code, found.code) == (status, code)
    retry = found.response.headers.get("retry-after")
    assert retry == {429: "5", 503: "2", 504: None}[status]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("The question contains the special token <image>."), "special token <image>"),
        (RuntimeError("secret"), "the cropper failed"),
        (ArithmeticError("secret"), "the cropper failed"),
    ],
)
def test_a_cropper_that_fails_leaves_the_request_as_it_is(served, upstream, error, told, caplog):
    served.engine.fails = error
    try:
        with caplog.at_level(logging.DEBUG):
            reply = ask(served, turn("Injected\r\nx-evil: 1")).parse()
    finally:
        served.engine.fails = None
    assert told in reply.cropvlm["warnings"][0] and "secret" not in caplog.text
    assert upstream.turn() == turn("Injected\r\nx-evil: 1")[0]["content"]


def test_a_cropper_that_is_slow_is_not_waited_for(served):
    served.engine.waits = 5.0
    try:
        begun = time.monotonic()
        assert refused(served).status_code == 504
    finally:
        served.engine.waits = 0.0
    assert time.monotonic() - begun < 3 and served.engine.cancelled


def test_no_header_can_be_injected(served, upstream):
    url = "http://evil\r\nx-evil: 1\r\n\r\n/"
    raw = ask(served, turn(QUESTION, picture_part(url)))
    assert "x-evil" not in raw.headers and "x-evil" not in upstream.heads[-1]


def test_nothing_of_a_request_is_logged(served, caplog):
    with caplog.at_level(logging.DEBUG):
        ask(served, turn("Confidential?", picture_part(truncated())))
        refused(served, "500 Confidential?")
        refused(served, "cut Confidential?")
    said = "\n".join([caplog.text, *(str(record.args) for record in caplog.records)])
    base = base64.b64encode(file_of()).decode()[:40]
    assert not any(word in said for word in ("Confidential", "sk-client", base, chat_server.KEY))
    assert "the upstream failed" in said


def test_a_client_that_leaves_takes_its_request_along(upstream):
    engine = FakeEngine()
    engine.waits = 10.0
    with serving(upstream.url, engine=engine) as served:
        with pytest.raises(openai.APITimeoutError):
            served.client(timeout=0.3).chat.completions.create(model="m", messages=turn(QUESTION))
        until(lambda: engine.cancelled == 1)
        engine.waits = 0.0
        stream = ask(served, turn("endless"), stream=True).parse()
        next(iter(stream))
        stream.close()
        until(lambda: upstream.hung_up == 1 and served.service.working == 0)


def test_more_requests_than_may_be_are_refused(upstream):
    engine = FakeEngine()
    engine.waits = 0.5
    with serving(upstream.url, engine=engine, limits=Limits(max_requests=2)) as served:
        found = outcomes(served, 6)
    assert sorted(found) == [200, 200, 429, 429, 429, 429]


def test_streams_count_until_they_end(upstream):
    with serving(upstream.url, limits=Limits(max_requests=2)) as served:
        streams = [ask(served, turn("endless"), stream=True).parse() for _ in range(2)]
        assert post(served, {"messages": turn(QUESTION)}).status_code == 429
        for stream in streams:
            stream.close()
        until(lambda: served.service.working == 0)
        assert post(served, {"messages": turn(QUESTION)}).status_code == 200


def test_a_client_that_does_not_read_its_stream_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("cropvlm_jax.serving.upstream.LINGER_S", 0.05)

    async def stuck(*_):
        await asyncio.sleep(60)

    async def scenario():
        reply = httpx2.Response(200, content=b"data: {}\n\n")
        stream, ended = Stream(reply, Report(), time.monotonic()), contextlib.ExitStack()
        ended.callback(closed.append, True)
        stream.keep(ended)
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
        await asyncio.wait_for(stream(scope, stuck, stuck), 5)
        assert reply.is_closed

    closed = []
    asyncio.run(scenario())
    assert closed == [True]


def test_what_was_seen_is_not_kept_while_the_upstream_answers():
    """Pictures are large, and an upstream may take minutes."""

    class Remembering(FakeEngine):
        async def look(self, *args, **options):
            look = await super().look(*args, **options)
            pixels.append(weakref.ref(look.pixels))
            return look

    pixels, kept = [], []

    def answer(body: dict) -> str:
        kept.append(pixels[-1]() is not None)
        return "fine"

    with chat_server.serving(Server(answer)) as upstream:
        with serving(upstream.url, engine=Remembering()) as served:
            ask(served)
            ask(served, stream=True).parse()
    assert kept == [False, False]


def test_a_reader_that_fails_leaves_the_request_as_it_is(served, upstream, monkeypatch):
    async def fails(*_):
        raise ArithmeticError("secret")

    monkeypatch.setattr(PictureReader, "file", fails)
    assert ask(served).parse().cropvlm["warnings"] == ["picture 0: it cannot be read"]
    assert upstream.turn() == turn(QUESTION)[0]["content"]


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def outcomes(served, count: int) -> list[int]:
    """The statuses of so many requests at once."""

    def one(_) -> int:
        return post(served, {"messages": turn(QUESTION)}).status_code

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))
