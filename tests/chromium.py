# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A real browser that reaches this machine alone, and what is asked of every page in it."""

import contextlib
import re
import shutil
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Nothing but this machine has a name or an address; a root user has no sandbox.
ARGUMENTS = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
# Once transitions are over; what moves forever stands at its beginning.
SETTLED = """() => Promise.allSettled(document.getAnimations().map((each) =>
  each.effect.getComputedTiming().endTime === Infinity ? each.pause() : each.finished))"""
SIZES = {"phone": (390, 844), "desktop": (1440, 900)}


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Chromium, as it is installed; without it the test is skipped."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield opened
        opened.close()


@contextlib.contextmanager
def page_at(opened: Browser, url: str, size: str, **options: object) -> Iterator[Page]:
    """A page that has loaded; errors of its scripts, and what its policy refused, fail the test."""
    width, height = SIZES[size]
    context = opened.new_context(viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(20_000)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if is_wrong(message) else None)
    page.on(
        "request",
        lambda each: None if each.url.startswith((url, "data:")) else wrong.append(each.url),
    )
    page.goto(url)
    page.locator(".sample img").last.wait_for()
    yield page
    context.close()
    assert not wrong


def is_wrong(message) -> bool:
    """Whether a line of the console tells of an error, other than of a refused request."""
    refused = re.match(
        "Failed to load resource: (the server responded|net::ERR_FAILED)", message.text
    )
    return message.type in ("error", "warning") and not refused


def check_access(page: Page) -> None:
    """What keeps people from a page: axe-core finds no fault, and nothing sticks out."""
    page.evaluate(SETTLED)
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    told = [
        (each["id"], each["impact"], [node["html"][:200] for node in each["nodes"]])
        for each in found
    ]
    assert not told
    overhang = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overhang) == 0
