# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The bundled models behind the endpoint answer held-out scenes as they do from Python."""

import asyncio
import base64
import io
import threading
import types

import chat_server
import openai
import pytest
from PIL import Image
from served import data_url, picture_part, serving, turn
from starlette.routing import Mount
from upstream_server import Server, said

from cropvlm_jax.api import CropVLM
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.serving.engine import Engine
from cropvlm_jax.serving.limits import Limits
from cropvlm_jax.serving.looks import Policy
from cropvlm_jax.serving.metrics import Metrics
from cropvlm_jax.serving.pictures import PictureReader
from cropvlm_jax.serving.service import Service
from cropvlm_jax.serving.target import LocalTarget
from cropvlm_jax.serving.web import make_app

SCENES = 12


@pytest.fixture(scope="module")
def model() -> CropVLM:
    return CropVLM.from_pretrained("zoom_digits/cropper", "zoom_digits/target")


@pytest.fixture(scope="module")
def scenes() -> list[tuple[bytes, str]]:
    found = []
    source = ZoomDigits("test", SCENES)
    for index in range(SCENES):
        file = io.BytesIO()
        Image.fromarray(source[index]["image"]).save(file, "PNG", compress_level=1)
        found.append((file.getvalue(), source[index]["question"]))
    return found


@pytest.fixture(scope="module")
def expected(model, scenes) -> list[tuple[tuple[int, ...], str]]:
    """Boxes and answers of the Python API."""
    files, questions = [file for file, _ in scenes], [question for _, question in scenes]
    return [(zoom.box, zoom.answer) for zoom in model.zoom(files, questions, compare=False)]


@pytest.fixture(scope="module")
def upstream(model):
    """A server with the bundled target, which reads the pictures that it is sent."""
    lock, target = threading.Lock(), model.target

    def answered(body: dict) -> str:
        parts = body["messages"][-1]["content"]
        files = [
            base64.b64decode(part["image_url"]["url"].partition(",")[2])
            for part in parts
            if part["type"] == "image_url"
        ]
        with lock:
            return target.answer([files], [said(body)])[0].text

    with chat_server.serving(Server(answered)) as server:
        yield server


def messages(scene: tuple[bytes, str]) -> list[dict]:
    return turn(scene[1], picture_part(data_url(scene[0])))


@pytest.fixture(scope="module")
def served(model, upstream):
    """One engine behind two endpoints: /v1 asks the upstream, and /local/v1 the engine's target."""
    engine = Engine(model, model.target, batch_sizes=(1,))  # the shapes of the page's tests
    shared = types.SimpleNamespace(
        ready=True,
        check_room=engine.check_room,
        expecting=engine.expecting,
        look=engine.look,
        answer=engine.answer,
        metrics=Metrics(),
    )
    limits = Limits()
    local = Service(
        shared, LocalTarget(shared, "m"), PictureReader(limits), policy=Policy(), limits=limits
    )
    with serving(upstream.url, engine=engine, public=[Mount("/local", make_app(local))]) as server:
        yield server


@pytest.mark.parametrize("path", ["/v1", "/local/v1"])
def test_answers_are_those_of_python(served, scenes, expected, path):
    url = served.url + path
    client = openai.OpenAI(base_url=url, api_key="k", timeout=120)
    create = client.chat.completions.create
    whole = [create(model="m", messages=messages(scene)) for scene in scenes[:3]]
    boxes, answers = asyncio.run(at_once(url, scenes))
    streamed = [
        "".join(
            chunk.choices[0].delta.content or ""
            for chunk in create(model="m", messages=messages(scene), stream=True)
        )
        for scene in scenes[:3]
    ]
    assert list(zip(boxes, answers, strict=True)) == expected
    assert [reply.choices[0].message.content for reply in whole] == answers[:3] == streamed
    assert (whole[0].cropvlm["image_tokens"] is None) == (path == "/v1")
    assert 0 < whole[0].cropvlm["confidence"] <= 1


async def at_once(url: str, scenes) -> tuple[list[tuple[int, ...]], list[str]]:
    """Boxes and answers of scenes that are all asked about at the same time."""
    async with openai.AsyncOpenAI(base_url=url, api_key="k", timeout=120) as client:
        create = client.chat.completions.create
        replies = await asyncio.gather(
            *(create(model="m", messages=messages(scene)) for scene in scenes)
        )
    boxes = [tuple(reply.cropvlm["boxes"][0]["percent"]) for reply in replies]
    return boxes, [reply.choices[0].message.content for reply in replies]


@pytest.mark.parametrize("token", ["<image>", "<end_of_utterance>", "<|im_start|>", "<global-img>"])
def test_special_tokens_in_a_question_are_left_as_they_are(served, scenes, upstream, token):
    upstream.answer = said
    question = f"What does {token} mean in the red frame?"
    create = served.client().chat.completions.create
    reply = create(model="m", messages=messages((scenes[0][0], question)))
    assert reply.choices[0].message.content == question
    (warning,) = reply.cropvlm["warnings"]
    assert f"the special token {token}" in warning
    local = openai.OpenAI(base_url=f"{served.url}/local/v1", api_key="k", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="the special token"):
        local.chat.completions.create(model="m", messages=messages((scenes[0][0], question)))
