# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The engine, on tiny models whose pictures are of one to five tiles."""

import asyncio
import io
import time

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image
from served import data_url, file_of, picture_part, post, serving, turn
from tiny_folder import PICTURES, make_folder

from cropvlm_jax.api import CropVLM
from cropvlm_jax.readers.vlm import VLMReader
from cropvlm_jax.serving.engine import Busy, Closed, DeadlineExceeded, Engine, Policy

QUESTIONS = ["what?", "Which digit is it?", " Who signed, and when? "] * 2
TOKENS = 12  # of the longest answer
HANG = 60  # seconds after which a test has failed


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(cropper, target)."""
    root = tmp_path_factory.mktemp("models")
    folders = make_folder(root / "cropper", 1), make_folder(root / "target", 2)
    return CropVLM.from_pretrained(folders[0]), VLMReader.from_pretrained(folders[1])


@pytest.fixture(scope="module")
def run(models):
    """Runs `scenario(engine)` of an engine that has started, whose shapes all tests share."""

    def runs(scenario, **options):
        async def whole():
            engine = Engine(
                models[0],
                models[1],
                batch_sizes=(1, 4),
                question_tokens=(40,),
                answer_tokens=TOKENS,
                **options,
            )
            await engine.start()
            try:
                return await asyncio.wait_for(scenario(engine), HANG)
            finally:
                await engine.close()

        return asyncio.run(whole())

    return runs


def png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def count(engine, name, **labels):
    """A metric's value."""
    return engine.metrics.registry.get_sample_value(name, labels) or 0


def test_what_comes_at_once_is_as_from_python(models, run):
    cropper, target = models

    async def both(engine, picture, question):
        look = await engine.look(png(picture), question)
        answer = await engine.answer([look.pixels, look.crops[0]], question, max_tokens=TOKENS)
        return look, answer

    async def scenario(engine):
        asked = zip(PICTURES, QUESTIONS, strict=True)
        return await asyncio.gather(*(both(engine, *each) for each in asked))

    served = run(scenario)
    zooms = cropper.zoom(PICTURES, QUESTIONS)
    shown = [[p, zoom.crop] for p, zoom in zip(PICTURES, zooms, strict=True)]
    replies = target.answer(shown, QUESTIONS, TOKENS)
    for (look, answer), zoom, reply, picture in zip(served, zooms, replies, PICTURES, strict=True):
        assert look.boxes == (zoom.box,)
        np.testing.assert_array_equal(look.crops[0], zoom.crop)
        np.testing.assert_allclose(look.confidence, zoom.confidence, rtol=1e-4)
        assert 0 < look.confidence < 1
        assert look.size == picture.size
        assert answer.text == reply.text
        assert answer.image_tokens == target.image_tokens([[picture, zoom.crop]])
        assert answer.prompt_tokens > answer.image_tokens
        assert set(look.milliseconds) == {"prepare", "queue", "cropper", "crop"}
        assert set(answer.milliseconds) == {"prepare", "queue", "target"}


def test_nothing_is_compiled_after_the_start(run):
    compiled = []
    rng = np.random.default_rng(0)

    def listen(name, *_, **__):
        compiled.append(name)

    async def scenario(engine):
        jax.monitoring.register_event_duration_secs_listener(listen)
        compiled.clear()
        tasks = []
        for number in range(24):
            size = rng.integers(1, 200, 2)
            picture = rng.integers(0, 256, (*size, 3), np.uint8)
            question = "why " * (1 + number % 9)
            tasks.append(engine.look(picture, question))
            tasks.append(
                engine.answer([picture] * (1 + number % 2), question, max_tokens=number + 1)
            )
        await asyncio.gather(*tasks)

    try:
        run(scenario)
        assert not [name for name in compiled if "compile" in name]
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_answers_end_where_the_request_says(run):
    async def scenario(engine):
        asked = [engine.answer([PICTURES[0]], "What?", max_tokens=n) for n in (1, 2, 5, TOKENS, 99)]
        return await asyncio.gather(*asked)

    found = run(scenario)
    for answer, most in zip(found, (1, 2, 5, TOKENS, TOKENS), strict=True):
        assert 1 <= answer.completion_tokens <= most
        assert found[-1].text.startswith(answer.text)
        if answer.finish_reason == "length":
            assert answer.completion_tokens == most
    assert found[0].finish_reason == "length"


def test_a_picture_is_turned_and_its_box_enlarged(run):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    PICTURES[0].save(file, "PNG", exif=exif)

    async def scenario(engine):
        plain = await engine.look(file.getvalue(), "What?")
        whole = await engine.look(file.getvalue(), "What?", policy=Policy(area_scale=10_000))
        none = await engine.look(file.getvalue(), "What?", policy=Policy(looks=0))
        return plain, whole, none

    plain, whole, none = run(scenario)
    width, height = PICTURES[0].height, PICTURES[0].width  # turned
    assert plain.size == whole.size == none.size == (width, height)
    left, top, right, bottom = plain.pixel_boxes[0]
    assert plain.crops[0].size == (right - left, bottom - top)
    assert whole.boxes == ((0, 0, 100, 100),) and whole.crops[0].size == (width, height)
    assert whole.reply == plain.reply == "[{}, {}, {}, {}].".format(*plain.boxes[0])
    assert none.boxes == none.crops == () and none.reply == ""


def test_what_cannot_be_used_fails_alone(run):
    async def scenario(engine):
        asked = [
            engine.look(PICTURES[0], "What?"),
            engine.look(png(PICTURES[1])[:-60], "What?"),
            engine.look(b"<svg/>", "What?"),
            engine.look(PICTURES[2], ""),
            engine.look(PICTURES[2], "<image>"),
            engine.look(PICTURES[2], "why " * 200),
            engine.look(None, "What?"),
            engine.answer([], "What?"),
            engine.answer([PICTURES[0]] * 3, "What?"),
            engine.answer([PICTURES[0]], "What?", max_tokens=0),
            engine.answer([PICTURES[0]], "What?"),
        ]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert count(engine, "cropvlm_engine_requests_total", kind="look", outcome="ok") == 1
        assert count(engine, "cropvlm_waiting", kind="look") == 0
        return found

    first, *wrong, last = run(scenario)
    assert first.boxes and last.text is not None
    patterns = ["decode|open", "SVG|No picture", "empty", "special", "tokens", "NoneType"]
    patterns += ["0 pictures", "3 pictures", "max_tokens=0"]
    for error, pattern in zip(wrong, patterns, strict=True):
        assert isinstance(error, (ValueError, OSError)), error
        pytest.raises(type(error), lambda e=error: (_ for _ in ()).throw(e)).match(pattern)


def test_a_full_queue_refuses(run):
    async def scenario(engine):
        asked = (engine.look(PICTURES[0], "What?") for _ in range(9))
        found = await asyncio.gather(*asked, return_exceptions=True)
        refused = count(engine, "cropvlm_engine_requests_total", kind="look", outcome="refused")
        return found, refused

    found, refused = run(scenario, queue=6)
    busy = [each for each in found if isinstance(each, Busy)]
    assert len(busy) == refused == 3 and all(each.retry_after > 0 for each in busy)


def test_pictures_that_memory_is_not_meant_for_are_refused(run):
    async def scenario(engine):
        large = np.zeros((300, 300, 3), np.uint8)
        asked = (engine.look(large, "What?") for _ in range(3))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, *others = run(scenario, picture_bytes=400_000)
    assert first.boxes and [type(each) for each in others] == [Busy, Busy]


class Idle(Engine):
    """Takes requests, and has compiled nothing."""

    async def start(self) -> None:
        self.ready = True

    async def close(self) -> None:
        self.ready = False


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"picture_bytes": 500_000}, "2 pictures take 0.5 MB once decoded, over the limit of"),
        ({"queue": 1}, "2 pictures to look at, and 1 may wait at once"),
    ],
)
def test_a_request_that_can_never_fit_is_told_not_to_come_again(models, options, told):
    picture = picture_part(data_url(file_of(300, 300)))
    with serving(engine=Idle(models[0], batch_sizes=(1,), **options)) as served:
        reply = post(served, {"messages": turn("What?", picture, picture)})
        unseen = post(
            served, {"messages": turn("What?", picture, picture), "cropvlm": {"looks": 0}}
        )
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (413, "too_large")
    assert error["message"].startswith("the request") and told in error["message"]
    assert "retry-after" not in reply.headers and unseen.json()["error"]["code"] == "one_picture"


def test_a_deadline_ends_the_wait(run):
    async def scenario(engine):
        asked = [
            engine.look(PICTURES[0], "What?", deadline=time.monotonic() + late)
            for late in (-1, 0.0, HANG)
        ]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert count(engine, "cropvlm_engine_requests_total", kind="look", outcome="deadline") == 2
        return found

    past, now, later = run(scenario)
    assert isinstance(past, DeadlineExceeded) and isinstance(now, DeadlineExceeded)
    assert later.boxes


def test_closing_finishes_what_was_accepted_and_takes_no_more(models, run):
    async def scenario(engine):
        accepted = [asyncio.create_task(engine.look(PICTURES[n], "What?")) for n in range(6)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        with pytest.raises(Closed):
            await engine.look(PICTURES[0], "What?")
        await closing
        return await asyncio.gather(*accepted)

    assert all(look.boxes for look in run(scenario))
    with pytest.raises(Closed):
        asyncio.run(Engine(models[0], batch_sizes=(1,)).look(PICTURES[0], "What?"))


@pytest.mark.parametrize("options", [{"batch_sizes": (2, 4)}, {"batch_sizes": ()}, {"queue": 0}])
def test_settings_that_cannot_be_are_refused(models, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Engine(models[0], **options)


@pytest.mark.parametrize(
    "wrong",
    [
        {"looks": 5},
        {"looks": True},
        {"keep_if_surer": 1},
        {"area_scale": 0},
        {"area_scale": "1"},
        {"crops": ""},
    ],
)
def test_policies_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Policy(**wrong)
