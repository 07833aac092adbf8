# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The files and samples of the page, as a server gives them."""

import io
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.serving import demo

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client():
    return TestClient(Starlette(routes=demo.routes()))


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page/page.js", "text/javascript; charset=utf-8"),
        ("/page/result.js", "text/javascript; charset=utf-8"),
        ("/page/page.css", "text/css; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
        ("/page/samples.json", "application/json"),
        (f"/page/samples/{demo.SAMPLES[0]}.png", "image/png"),
    ],
)
def test_everything_is_sent_with_a_strict_policy(client, address, kind):
    response = client.get(address)
    assert response.status_code == 200 and response.headers["content-type"] == kind
    policy = response.headers["content-security-policy"].split("; ")
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
    assert not any(word in str(policy) for word in ("unsafe", "http", "*"))
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "address",
    [
        "/page/../demo.py",
        "/page/%2e%2e/demo.py",
        "/page/..%2Fdemo.py",
        "/page/%2Fetc%2Fpasswd",
        "/page/page.js%00.css",
        "/page/",
        "/page/nothing.js",
        "/page/samples/0.png",
        "/page/samples/99999999999999999999.png",
        "/page/samples/-1.png",
    ],
)
def test_nothing_else_is_sent(client, address):
    assert client.get(address).status_code == 404


def test_samples_are_scenes_of_the_test_split(client):
    listed = client.get("/page/samples.json").json()
    assert len(listed) == len(demo.SAMPLES) and len({each["name"] for each in listed}) == 4
    scenes = ZoomDigits("test", max(demo.SAMPLES) + 1)
    for number, each in zip(demo.SAMPLES, listed, strict=True):
        picture, questions = scenes.scene(number)
        with Image.open(io.BytesIO(client.get(f"/{each['url']}").content)) as sent:
            np.testing.assert_array_equal(np.asarray(sent), picture)
        asked = [(said["question"], said["answer"]) for said in each["questions"]]
        assert asked == [(question, answer) for question, answer, _ in questions]


def test_the_page_names_nothing_elsewhere_and_no_inline_code():
    for path in demo.FOLDER.iterdir():
        text = re.sub(r'xmlns="[^"]*"', "", path.read_text())
        assert not re.search(r"(https?:)?//[\w.]+\.\w", text), path.name
    page = (demo.FOLDER / "index.html").read_text()
    assert not re.search(r"<style|style=|\son\w+=|javascript:", page)
    assert re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL) == [""]


def test_the_files_are_packed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "serving/page/*" in project["tool"]["setuptools"]["package-data"]["cropvlm_jax"]
