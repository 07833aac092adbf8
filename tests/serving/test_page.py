# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The page of `cropvlm serve` in a real Chromium, on a phone and on a desktop.

The pictures of docs/serve.md are made by the last test, where SCREENSHOTS names their folder.
"""

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from chromium import SIZES, browser, check_access, page_at
from PIL import Image
from playwright.sync_api import expect
from served import BOX, FakeEngine, file_of, serving

from cropvlm_jax.pixels import host
from cropvlm_jax.serving import demo
from cropvlm_jax.serving.looks import Busy

CHAT = "**/v1/chat/completions"
BUNDLED = ("--cropper=zoom_digits/cropper", "--target=zoom_digits/target")


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def served():
    with serving(public=demo.routes()) as at_work:
        yield at_work


@pytest.fixture
def desktop(chromium, served):
    with page_at(chromium, served.url, "desktop") as page:
        yield page


def take_sample(page, number: int = 0) -> None:
    page.locator(".sample").nth(number).click()
    expect(page.locator("#about")).to_have_text(f"Sample {number + 1}, 512 × 512 px")


def ask(page, question: str | None = None) -> None:
    if question is not None:
        page.get_by_label("What do you want to know?").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()


def upload(page, file: bytes, name: str = "mine.png") -> None:
    kind = "image/png" if name.endswith("png") else "text/plain"
    page.locator("#file").set_input_files({"name": name, "mimeType": kind, "buffer": file})


def fails(page) -> str:
    """What the page says is wrong."""
    error = page.get_by_role("alert")
    expect(error).to_be_visible()
    expect(page.locator("#result")).to_be_hidden()
    expect(page.locator("#waiting")).to_be_hidden()
    return error.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_sample_is_asked_about(chromium, served, size, scheme):
    with page_at(chromium, served.url, size, color_scheme=scheme) as page:
        check_access(page)
        take_sample(page)
        ask(page)
        expect(page.locator("#said-with")).to_have_text("seven")
        check_access(page)
        box, picture = page.locator(".box"), page.locator("#picture").bounding_box()
        place = box.bounding_box()
        for edge, side, percent in (("x", "width", BOX[0]), ("y", "height", BOX[1])):
            expected = picture[edge] + picture[side] * percent / 100
            assert abs(place[edge] - expected) < 1.5
        assert abs(place["width"] - picture["width"] * (BOX[2] - BOX[0]) / 100) < 1.5
        box.hover()
        tip = page.locator(".tip")
        expect(tip).to_have_css("opacity", "1")
        assert tip.inner_text() == "left, top 128, 256\nright, bottom 384, 512 px"
        inside = tip.bounding_box()
        assert inside["x"] >= picture["x"] and inside["y"] >= picture["y"]
        assert inside["x"] + inside["width"] <= picture["x"] + picture["width"]
        assert "93% an edge" in page.locator(".crop").inner_text()
        assert "20 image tokens" in page.locator("#cost-with").inner_text()
        assert "10 image tokens" in page.locator("#cost-alone").inner_text()
        assert "Wrong, it is 7" in page.locator("#verdict-with").inner_text()
        assert {"queue", "cropper", "crop", "target"} <= set(
            page.locator("#stages dt").all_inner_texts()
        )


def test_the_crop_shows_the_pixels_of_a_picture_turned_by_its_exif(desktop):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(host.to_rgb(file_of(40, 80))).save(file, "PNG", exif=exif)
    upload(desktop, file.getvalue())
    expect(desktop.locator("#about")).to_have_text("mine.png, 40 × 80 px")
    ask(desktop, "What is the total?")
    crop = desktop.locator(".crop canvas")
    expect(crop).to_have_count(1)
    assert "10, 40 to 30, 80" in desktop.locator(".crop").inner_text()
    drawn = crop.evaluate(
        "(canvas) => { const small = document.createElement('canvas'); small.width = 20;"
        "small.height = 40; const context = small.getContext('2d');"
        "context.drawImage(canvas, 0, 0, 20, 40);"
        "return Array.from(context.getImageData(0, 0, 20, 40).data); }"
    )
    drawn = np.array(drawn).reshape(40, 20, 4)[..., :3]
    upright = host.to_rgb(file.getvalue())[40:80, 10:30]
    assert np.corrcoef(drawn.ravel(), upright.ravel())[0, 1] > 0.8


def test_everything_is_done_by_keyboard_and_told_to_a_screen_reader(desktop):
    page, keys, status = desktop, desktop.keyboard, desktop.get_by_role("status")
    focused = "document.activeElement.id || document.activeElement.className"
    page.evaluate("document.body.focus()")
    order = []
    for _ in range(5):
        keys.press("Tab")
        order.append(page.evaluate(focused))
    assert order == ["model", "file", "sample", "sample", "sample"]
    keys.press("Enter")
    expect(status).to_have_text("Sample 3 is shown, 512 by 512 pixels. Now ask a question.")
    assert page.locator(".sample[aria-pressed=true] img").get_attribute("alt") == "Sample 3"
    keys.press("Tab")
    keys.press("Tab")
    assert page.evaluate(focused) == "question"
    keys.press("Enter")
    expect(status).to_contain_text("Answer with the crop: seven. Picture alone: one. Box 1: pixels")
    page.locator(".box").wait_for()
    page.get_by_label("Choose another").focus()
    keys.press("Tab")
    assert page.evaluate(focused) == "box"
    tip = page.locator(".tip")
    expect(tip).to_have_css("opacity", "1")
    keys.press("Escape")
    expect(tip).to_have_css("opacity", "0")
    name = "Box 1: pixels 128, 256 to 384, 512, percent 25, 50 to 75, 100"
    assert page.evaluate("document.activeElement.ariaLabel") == name


def test_pictures_are_dropped_and_pasted(desktop):
    give = (
        "([kind, field, bytes]) => { const data = new DataTransfer();"
        "data.items.add(new File([new Uint8Array(bytes)], 'given.png', {type: 'image/png'}));"
        "const event = kind === 'drop' ? new DragEvent(kind, {[field]: data, bubbles: true})"
        " : new ClipboardEvent(kind, {[field]: data, bubbles: true});"
        "document.body.dispatchEvent(event); }"
    )
    for number, (kind, field) in enumerate([("drop", "dataTransfer"), ("paste", "clipboardData")]):
        desktop.evaluate(give, [kind, field, list(file_of(40, 60 + number))])
        expect(desktop.locator("#about")).to_have_text(f"given.png, {60 + number} × 40 px")


def test_what_is_missing_is_told_and_gets_the_focus(desktop):
    ask(desktop, "What is it?")
    assert fails(desktop) == "Choose a picture first, or take a sample."
    expect(desktop.locator("#file")).to_be_focused()
    upload(desktop, file_of())
    ask(desktop, "  ")
    assert fails(desktop) == "Write a question first."
    expect(desktop.locator("#question")).to_be_focused()
    expect(desktop.locator("#question")).to_have_attribute("aria-invalid", "true")
    check_access(desktop)
    upload(desktop, b"no picture", "notes.txt")
    assert fails(desktop).startswith("notes.txt is not a picture that this browser can show.")
    upload(desktop, file_of())  # and it goes on
    ask(desktop, "What is it?")
    expect(desktop.locator("#said-with")).to_have_text("seven")
    expect(desktop.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"status": 429, "headers": {"Retry-After": "7"}}, "The server is busy. Ask again in 7 s."),
        (
            {"status": 502, "json": {"error": {"message": "the upstream is down"}}},
            "The server refused (502): the upstream is down",
        ),
        (
            {"status": 500, "body": "<html>no JSON</html>"},
            "The server refused (500): <html>no JSON",
        ),
        ({"status": 200, "body": "<html>"}, "The server sent no answer that can be read."),
        (None, "The server cannot be reached. Is cropvlm serve still running?"),
    ],
)
def test_failures_of_the_server_are_told(desktop, answer, message):
    desktop.route(CHAT, lambda route: route.fulfill(**answer) if answer else route.abort())
    take_sample(desktop)
    ask(desktop)
    assert message in fails(desktop)
    desktop.unroute(CHAT)
    ask(desktop)
    expect(desktop.locator("#said-with")).to_have_text("seven")


def test_a_picture_that_cannot_be_looked_at_is_answered_and_said(chromium):
    engine = FakeEngine()
    with serving(engine=engine, public=demo.routes()) as served:
        with page_at(chromium, served.url, "phone") as page:
            take_sample(page)
            engine.fails = ValueError("the question is too long")
            ask(page)
            expect(page.locator("#notice")).to_contain_text("the question is too long")
            expect(page.locator("#said-with")).to_have_text("one")  # of the picture alone
            expect(page.locator("#closer")).to_be_hidden()
            check_access(page)
            engine.fails = Busy(9, 4.0)
            ask(page)
            assert "busy" in fails(page)


def test_asking_can_be_stopped(chromium):
    engine = FakeEngine()
    engine.waits = 30
    with serving(engine=engine, public=demo.routes()) as served:
        with page_at(chromium, served.url, "phone") as page:
            take_sample(page)
            ask(page)
            expect(page.locator("#waiting")).to_be_visible()
            expect(page.locator("#results")).to_have_attribute("aria-busy", "true")
            check_access(page)
            page.get_by_role("button", name="Stop").click()
            expect(page.locator("#waiting")).to_be_hidden()
            expect(page.get_by_role("status")).to_have_text("Stopped.")
            expect(page.locator("#question")).to_be_focused()
            until = time.monotonic() + 10
            while not engine.cancelled and time.monotonic() < until:
                page.wait_for_timeout(50)
            assert engine.cancelled  # by the server, which noticed that nobody waits


def test_a_server_with_a_token_asks_for_it(chromium):
    with serving(public=demo.routes(), token="sk-1") as served:
        with page_at(chromium, served.url, "phone") as page:
            take_sample(page)
            ask(page)
            assert "asks for an access token" in fails(page)
            expect(page.locator("#key")).to_be_focused()
            check_access(page)
            page.locator("#key").fill("sk-1")
            page.keyboard.press("Enter")
            expect(page.locator("#said-with")).to_have_text("seven")
            expect(page.locator("#model")).to_have_value("local")


def test_who_wants_less_motion_gets_none(chromium, served):
    with page_at(chromium, served.url, "desktop", reduced_motion="reduce") as page:
        take_sample(page)
        ask(page)
        expect(page.locator(".box")).to_have_css("transition-property", "none")


def test_the_command_serves_the_page_with_the_bundled_models(chromium):
    command = [sys.executable, "-m", "cropvlm_jax.apps.cli", "serve", *BUNDLED]
    command += ["--port=0", "--batch_sizes=1"]
    program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        said = iter(program.stderr.readline, "")
        (url,) = next(found for line in said if (found := re.findall(r"(http://\S+)/v1", line)))
        assert any(re.search(r"\] ready$", line) for line in said)
        for size in SIZES:
            with page_at(chromium, url, size) as page:
                take_sample(page)
                ask(page)
                expect(page.locator("#verdict-with")).to_have_text("✓ Right")
                expect(page.locator("#verdict-alone")).to_contain_text("Wrong")
                keep_screenshot(page, size)
    finally:
        program.send_signal(signal.SIGTERM)
        program.communicate(timeout=60)
    assert program.returncode == 0


def keep_screenshot(page, size: str) -> None:
    """Writes `page_SIZE.webp` into the folder that SCREENSHOTS names."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.locator(".box").hover()
        check_access(page)
        with Image.open(io.BytesIO(page.screenshot(full_page=True))) as taken:
            taken.save(Path(folder) / f"page_{size}.webp", quality=82, method=6)
