# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The endpoint in front of a real upstream, asked by the official client."""

import asyncio
import json

import chat_server
import httpx2
import numpy as np
import openai
import pytest
from served import (
    BOX,
    QUESTION,
    ask,
    data_url,
    file_of,
    picture_part,
    pixels_of,
    post,
    serving,
    turn,
)
from upstream_server import Server

from cropvlm_jax.pixels import host
from cropvlm_jax.serving.upstream import _returned

TELLING = {"x-cropvlm-boxes": "[[25, 50, 75, 100]]", "x-cropvlm-pixels": "[[20, 20, 60, 40]]"}


@pytest.fixture(scope="module")
def upstream():
    with chat_server.serving(Server()) as server:
        yield server


@pytest.fixture(scope="module")
def served(upstream):
    with serving(upstream.url) as server:
        yield server


def test_the_upstream_sees_the_picture_and_its_crop(served, upstream):
    raw = ask(served)
    reply = raw.parse()
    assert reply.choices[0].message.content == "fine"
    picture, crop, text = upstream.turn()
    assert picture == picture_part() and text["text"] == QUESTION
    np.testing.assert_array_equal(pixels_of(crop), host.cut(pixels_of(picture), BOX))
    assert served.engine.questions[-1] == QUESTION
    told = reply.cropvlm
    assert told["boxes"] == [
        {"picture": 0, "percent": [25, 50, 75, 100], "pixels": [20, 20, 60, 40]}
        | {"size": [80, 40], "confidence": 0.75}
    ]
    assert told["confidence"] == 0.75 and told["warnings"] == [] and told["image_tokens"] is None
    stages = {"read", "queue", "cropper", "crop", "encode", "upstream", "total"}
    assert set(told["milliseconds"]) == stages
    assert TELLING.items() <= dict(raw.headers).items()
    assert raw.headers["x-cropvlm-confidence"] == "0.75"
    assert raw.headers["x-request-id"] == "request-7" and "set-cookie" not in raw.headers


def test_everything_else_passes_unchanged(served, upstream):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    system = {"role": "system", "content": "Be brief. <image> \u00e9\u4e2d \U0001f600"}
    earlier = [
        {"role": "user", "content": [picture_part(), {"type": "text", "text": "Before?"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ]
    audio = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    last = turn(QUESTION, picture_part(detail="low", uuid="u"), audio)
    body = {
        "model": "m",
        "messages": [system, *earlier, *last],
        "tools": tools,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
        "seed": 12345678901234567890,
        "temperature": 0.1,
        "mine": {"deep": [1, 2.50, None, True, "\ud83d"]},
    }
    assert post(served, body).status_code == 200
    got = upstream.last
    parts = got["messages"][-1]["content"]
    crop = parts.pop(1)
    assert got == body
    assert crop["image_url"].keys() == {"url", "detail"} and crop["image_url"]["detail"] == "low"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Hello"}],
        [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        [
            *turn("Before?"),
            {"role": "assistant", "content": "7"},
            {"role": "user", "content": "So"},
        ],
        [{"role": "system", "content": "Hello"}],
    ],
)
def test_without_pictures_the_bytes_are_the_same(served, upstream, messages):
    body = b'{ "model":"m",\n "x": 1.50, "messages": ' + json.dumps(messages).encode() + b"}"
    reply = post(served, body)
    assert reply.status_code == 200 and upstream.bodies[-1] == body
    assert reply.json()["cropvlm"]["boxes"] == [] and reply.json()["other"] == 1e22


@pytest.mark.parametrize("asked", [{"looks": 0}, None])
def test_our_field_does_not_go_on(served, upstream, asked):
    ask(served, [{"role": "user", "content": QUESTION}], extra_body={"cropvlm": asked})
    assert upstream.turn() == QUESTION and "cropvlm" not in upstream.last


def test_no_look_leaves_the_picture_as_it_is(served, upstream):
    ask(served, extra_body={"cropvlm": {"looks": 0}})
    assert upstream.turn() == turn(QUESTION)[0]["content"]


def test_a_request_says_what_its_crops_are_like(served, upstream):
    asked = {"cropvlm": {"crops": "replace", "area_scale": 0.25}}
    reply = ask(served, extra_body=asked).parse()
    assert reply.cropvlm["boxes"][0]["pixels"] == [30, 25, 50, 35]
    crop, text = upstream.turn()
    assert pixels_of(crop).shape == (10, 20, 3) and text["text"] == QUESTION


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"area_scal": 1}, "cropvlm.area_scal; there are: area_scale, crops, keep_if_surer"),
        ({"area_scale": "big"}, "cropvlm.area_scale='big' is not a number"),
        ({"area_scale": -1}, "cropvlm.area_scale=-1"),
        ({"crops": "delete"}, "cropvlm.crops='delete' is not one of 'append', 'replace'"),
        ({"looks": 5}, "cropvlm.looks=5 must be a whole number from 0 to 4"),
        ([1], "cropvlm must be an object, not [1]"),
    ],
)
def test_what_there_is_not_is_refused(served, asked, told):
    with pytest.raises(openai.BadRequestError) as error:
        ask(served, extra_body={"cropvlm": asked})
    assert told in error.value.body["message"] and error.value.code == "invalid_cropvlm"


def test_each_picture_of_the_turn_gets_its_crop(served, upstream):
    pictures = [picture_part(data_url(file_of(seed=seed))) for seed in range(3)]
    content = [pictures[0], {"type": "text", "text": "First."}, *pictures[1:]]
    content.append({"type": "text", "text": "Second."})
    reply = ask(served, [{"role": "user", "content": content}]).parse()
    assert [box["picture"] for box in reply.cropvlm["boxes"]] == [0, 1, 2]
    kinds = [part["type"] for part in upstream.turn()]
    image = "image_url"
    assert kinds == [image, image, "text", image, image, image, image, "text"]
    assert served.engine.questions[-1] == "First.\nSecond."


def test_a_stream_comes_as_it_is(served, upstream):
    raw = ask(served, turn("stream it"), stream=True)
    assert TELLING.items() <= dict(raw.headers).items()
    chunks = list(raw.parse())
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "fine"
    assert chunks[0].cropvlm["boxes"][0]["percent"] == list(BOX)
    assert not any("cropvlm" in chunk.model_extra for chunk in chunks[1:])
    reply = post(served, {"model": "m", "stream": True, "messages": turn("stream it")})
    direct = httpx2.post(f"{upstream.url}/chat/completions", content=upstream.bodies[-1])
    passed, sent = reply.text.split("\n"), direct.text.split("\n")
    assert passed[:2] == sent[:2] and passed[3:] == sent[3:]
    assert passed[2].startswith(sent[2][:-1] + ',"cropvlm":{"boxes"')


def test_a_stream_is_not_held_back(served):
    """The first words are there while the upstream still waits."""
    stream = ask(served, turn("slowstream"), stream=True).parse()
    first = next(iter(stream))
    assert first.cropvlm["milliseconds"]["upstream"] < 1000
    stream.close()


def test_many_clients_at_once(served):
    async def all_of_them():
        client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="k", max_retries=0)
        create = client.chat.completions.create

        async def streamed(number):
            stream = await create(model="m", messages=turn(f"Is it {number}?"), stream=True)
            return "".join([chunk.choices[0].delta.content async for chunk in stream])

        whole = [create(model="m", messages=turn(f"Is it {n}?")) for n in range(8)]
        streams = [streamed(number) for number in range(8)]
        replies = await asyncio.gather(*whole, *streams)
        await client.close()
        return replies

    replies = asyncio.run(all_of_them())
    assert [reply.choices[0].message.content for reply in replies[:8]] == ["fine"] * 8
    assert replies[8:] == ["fine"] * 8


def test_headers_and_query_go_on_but_for_those_of_the_connection(served, upstream):
    headers = {"x-mine": "1", "x-cropvlm-boxes": "[]", "cookie": "a=b", "openai-project": "p"}
    reply = post(served, {"messages": turn(QUESTION)}, headers=headers, params={"v": "1 2"})
    assert reply.status_code == 200 and upstream.paths[-1] == "/v1/chat/completions?v=1+2"
    got = upstream.heads[-1]
    assert got["x-mine"] == "1" and got["openai-project"] == "p"
    assert not {"cookie", "x-cropvlm-boxes"} & got.keys() and got["host"] in upstream.url


def test_headers_that_are_not_ascii_go_on_byte_by_byte(served, upstream):
    title = "Cr\u00e8me \u4e2d".encode()
    reply = post(served, {"messages": turn(QUESTION)}, headers={"x-title": title})
    assert reply.status_code == 200
    assert upstream.heads[-1]["x-title"].encode("latin-1") == title
    raw = httpx2.Response(200, headers={b"X-Title": title})
    assert _returned(raw)["x-title"].encode("latin-1") == title


def test_models_are_the_upstream_s(served, upstream):
    assert [model.id for model in served.client().models.list()] == ["m"]
    served.client().models.retrieve("org/model-1:x")
    assert upstream.paths[-1] == "/v1/models/org/model-1:x"
    asked = len(upstream.paths)
    for name in ("..%2Fsecret", "a/../../b", "a%0d%0ab"):
        assert httpx2.get(f"{served.url}/v1/models/{name}").status_code == 404
    assert len(upstream.paths) == asked


def test_the_client_s_key_goes_on_where_the_server_has_none(served, upstream):
    ask(served)
    assert upstream.heads[-1]["authorization"] == "Bearer sk-client"


def test_a_server_with_a_token_keeps_it(upstream):
    with serving(upstream.url, token="own", key="sk-upstream") as served:
        with pytest.raises(openai.AuthenticationError):
            ask(served)
        for path in ("/v1/models", "/metrics", "/v1/nothing"):
            assert httpx2.get(served.url + path).status_code == 401
            wrong = {"authorization": "Bearer owm\u00e9".encode()}
            assert httpx2.get(served.url + path, headers=wrong).status_code == 401
        assert httpx2.get(f"{served.url}/health").status_code == 200
        assert httpx2.get(f"{served.url}/ready").status_code == 200
        served.client(api_key="own").chat.completions.create(model="m", messages=turn(QUESTION))
        assert upstream.heads[-1]["authorization"] == "Bearer sk-upstream"


def test_a_token_of_the_server_is_for_nobody_else(upstream):
    with serving(upstream.url, token="own") as served:
        served.client(api_key="own").chat.completions.create(model="m", messages=turn(QUESTION))
        assert "authorization" not in upstream.heads[-1]


def test_no_web_page_reaches_it_by_a_name_of_its_own(upstream):
    with serving(upstream.url, hosts=["localhost", "127.0.0.1"]) as served:
        assert httpx2.get(f"{served.url}/health").status_code == 200
        evil = {"host": "evil.example:80"}
        assert httpx2.get(f"{served.url}/health", headers=evil).status_code == 400
        plain = post(served, {"messages": turn(QUESTION)}, headers={"content-type": "text/plain"})
        assert plain.status_code == 415


def test_addresses_that_there_are_not(served):
    assert httpx2.get(f"{served.url}/v1/nothing").json()["error"]["code"] == "not_found"
    wrong = httpx2.get(f"{served.url}/v1/chat/completions")
    assert wrong.status_code == 405 and wrong.json()["error"]["type"] == "invalid_request_error"


def test_what_is_counted(served):
    ask(served)
    text = httpx2.get(f"{served.url}/metrics").text
    assert 'cropvlm_http_responses_total{status="200"}' in text
