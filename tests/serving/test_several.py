# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Replies of no box and of several behind the endpoint and the tool; answers that are kept."""

import asyncio
import base64
import dataclasses

import chat_server
import numpy as np
import openai
import pytest
import several_boxes
from mcp import Client
from served import QUESTION, FakeEngine, ask, file_of, picture_part, pixels_of, serving
from upstream_server import Server

from cropvlm_jax.api import CropVLM
from cropvlm_jax.hub.replies import Replies
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.vlm import VLMReader
from cropvlm_jax.serving.engine import Engine, Policy
from cropvlm_jax.serving.limits import Limits
from cropvlm_jax.serving.mcp_crops import Budget
from cropvlm_jax.serving.mcp_folders import Folders
from cropvlm_jax.serving.mcp_tool import META, ZoomTool, make_server
from cropvlm_jax.serving.pictures import PictureReader

TWO = ((0, 0, 25, 50), (25, 50, 75, 100))
SCENES = 5


@pytest.fixture(scope="module")
def upstream():
    with chat_server.serving(Server()) as server:
        yield server


def test_the_upstream_sees_all_crops_in_the_order_of_the_reply(upstream):
    with serving(upstream.url, engine=FakeEngine(TWO)) as served:
        raw = ask(served)
        told = raw.parse().cropvlm
        picture, *crops, text = upstream.turn()
        assert picture == picture_part() and text["text"] == QUESTION
        for crop, box in zip(crops, TWO, strict=True):
            np.testing.assert_array_equal(pixels_of(crop), host.cut(pixels_of(picture), box))
        assert [box["percent"] for box in told["boxes"]] == [list(box) for box in TWO]
        assert raw.headers["x-cropvlm-boxes"] == "[[0, 0, 25, 50], [25, 50, 75, 100]]"
        assert "not_needed" not in told and "kept" not in told
        ask(served, extra_body={"cropvlm": {"looks": 1, "crops": "replace"}})
        crop, _ = upstream.turn()
        np.testing.assert_array_equal(pixels_of(crop), host.cut(pixels_of(picture), TWO[0]))


def test_where_no_crop_is_needed_the_request_goes_on_as_it_came(upstream):
    with serving(upstream.url, engine=FakeEngine(())) as served:
        raw = ask(served)
    told = raw.parse().cropvlm
    assert [part["type"] for part in upstream.turn()] == ["image_url", "text"]
    assert told["boxes"] == [] and told["not_needed"] == [0] and told["confidence"] == 0.75
    assert told["warnings"] == [] and raw.headers["x-cropvlm-not-needed"] == "[0]"


def test_a_local_target_keeps_the_answer_that_it_is_surer_of():
    keep = {"extra_body": {"cropvlm": {"keep_if_surer": True}}}
    with serving(engine=FakeEngine(TWO)) as served:
        raw = ask(served, **keep)
        plain = ask(served).parse()
    reply = raw.parse()
    assert reply.choices[0].message.content == "one"  # -1 nat alone, -3 with two crops
    assert reply.cropvlm["kept"] is False and raw.headers["x-cropvlm-kept"] == "false"
    margins = reply.cropvlm["margins"]
    assert margins == {"with": pytest.approx(-2.949), "without": pytest.approx(-0.541)}
    assert reply.usage.prompt_tokens == 60 and reply.cropvlm["image_tokens"] == 40
    assert plain.choices[0].message.content == "seven" and plain.cropvlm["image_tokens"] == 30
    with serving(engine=FakeEngine(()), policy=Policy(keep_if_surer=True)) as served:
        reply = ask(served).parse()
    assert reply.choices[0].message.content == "one" and "kept" not in reply.cropvlm


def test_an_upstream_does_not_say_how_sure_it_is(upstream):
    with serving(upstream.url) as served, pytest.raises(openai.BadRequestError) as error:
        ask(served, extra_body={"cropvlm": {"keep_if_surer": True}})
    assert "keep_if_surer is for a server with --target" in error.value.body["message"]


def call(engine, image):
    """What a client of the tool gets."""
    limits, folders = Limits(), Folders([])
    options = {"limits": limits, "budget": Budget(min_edge=0), "policy": Policy()}
    made = ZoomTool(engine, PictureReader(limits), folders, **options)

    async def work():
        async with made.at_work(), Client(make_server(made, "1")) as client:
            return await client.call_tool("zoom", {"image": image, "question": QUESTION})

    return asyncio.run(work())


def test_the_tool_returns_all_crops_or_says_that_none_is_needed():
    image = "data:image/png;base64," + base64.b64encode(file_of()).decode()
    text, *crops = call(FakeEngine(TWO), image).content
    assert "Crop 1: left 0, top 0, right 20" in text.text and "Crop 2: left 20" in text.text
    assert len(crops) == 2
    result = call(FakeEngine(()), image)
    (text,) = result.content
    assert text.text == "No place of the 80 x 40 px picture stands out: look at all of it."
    assert result.meta[META]["boxes"] == [] and result.meta[META]["confidence"] == 0.75


def test_an_engine_looks_twice_as_python_does():
    cropper = CropVLM.from_pretrained("zoom_digits/cropper")
    cropper.second_grammar = dataclasses.replace(
        cropper.source, replies=Replies(looks=2)
    ).second_grammar()
    pictures, questions = several_boxes.scenes(SCENES)

    async def served():
        engine = Engine(cropper, batch_sizes=(1,), question_tokens=(20,))
        await engine.start()
        looks = [await engine.look(*asked) for asked in zip(pictures, questions, strict=True)]
        await engine.close()
        return looks

    zooms = cropper.zoom(pictures, questions)
    for zoom, look in zip(zooms, asyncio.run(served()), strict=True):
        assert look.boxes == zoom.boxes and look.reply.count("]") == 2
        np.testing.assert_array_equal(look.crops[0], zoom.crop)
        np.testing.assert_allclose(look.confidence, zoom.confidence, rtol=1e-4)


def test_an_engine_says_what_python_says():
    target = VLMReader.from_pretrained("zoom_digits/target")
    source = several_boxes.source()
    cropper = CropVLM(source, several_boxes.model(), source.longest_edge, target)
    pictures, questions = several_boxes.scenes(SCENES)

    async def served():
        engine = Engine(cropper, target, batch_sizes=(1,), question_tokens=(20,), answer_tokens=4)
        await engine.start()
        found = []
        for picture, question in zip(pictures, questions, strict=True):
            look = await engine.look(picture, question)
            shown = [picture, *map(np.asarray, look.crops)]
            found.append((look, await engine.answer(shown, question, max_tokens=4)))
        await engine.close()
        return found

    zooms = cropper.zoom(pictures, questions, compare=False)
    assert len({len(zoom.boxes) for zoom in zooms}) == 3
    shown = [[picture, *zoom.crops] for picture, zoom in zip(pictures, zooms, strict=True)]
    replies = target.answer(shown, questions, 4)
    for zoom, reply, (look, answer) in zip(zooms, replies, asyncio.run(served()), strict=True):
        assert look.boxes == zoom.boxes and len(look.crops) == len(zoom.crops)
        for one, other in zip(look.crops, zoom.crops, strict=True):
            np.testing.assert_array_equal(one, other)
        assert answer.text == reply.text
        np.testing.assert_allclose(answer.nats, reply.nats, rtol=1e-3)
