# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures as they are sent: PNG or JPEG, and how large."""

import base64
import io
import logging
import re

import numpy as np
import pytest
from chat_server import KEY, endpoint, picture, serving
from PIL import Image

from cropvlm_jax.readers.base import Reply
from cropvlm_jax.readers.pictures import PictureFormat, png
from cropvlm_jax.readers.registry import open_reader


def photo(height: int, width: int) -> np.ndarray:
    """Smooth shapes and the noise of a sensor, of which PNG makes little."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (24, 32, 3)).astype(np.uint8))
    large = small.resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 4, (height, width, 3))
    return np.clip(np.asarray(large) + noise, 0, 255).astype(np.uint8)


def screenshot(height: int, width: int) -> np.ndarray:
    """Flat areas and edges."""
    picture = np.full((height, width, 3), 250, np.uint8)
    picture[::40, : width // 2], picture[:, ::60] = (20, 60, 200), (0, 0, 0)
    return picture


def opened(url: str) -> tuple[str, np.ndarray, int]:
    head, data = url.split(",")
    file = base64.b64decode(data)
    image = Image.open(io.BytesIO(file))
    assert head == f"data:image/{image.format.lower()};base64"
    return image.format, np.asarray(image.convert("RGB")), len(file)


@pytest.mark.parametrize(
    ("make", "size", "name", "kind"),
    [
        (photo, (1500, 2000), "", "JPEG"),
        (photo, (1000, 1000), "", "PNG"),
        (photo, (1100, 1000), "", "JPEG"),
        (screenshot, (1100, 1000), "", "PNG"),
        (screenshot, (2000, 3000), "", "PNG"),
        (screenshot, (10, 10), "", "PNG"),
        (photo, (1100, 1000), "png", "PNG"),
        (photo, (300, 400), "png", "PNG"),
        (photo, (300, 400), "jpeg85", "JPEG"),
        (photo, (1100, 1000), "jpeg1", "JPEG"),
        (photo, (1100, 1000), "jpeg100", "JPEG"),
        (screenshot, (300, 400), "jpeg85", "PNG"),
        (photo, (1, 1), "", "PNG"),
        (photo, (2, 66_000), "jpeg85", "PNG"),  # JPEG has no such edge
    ],
)
def test_the_format_fits_the_picture(make, size, name, kind):
    pixels = make(*size)
    chosen = PictureFormat.named(name) if name else PictureFormat()
    found, seen, length = opened(chosen.data_url(pixels))
    assert found == kind and seen.shape == pixels.shape
    error = np.abs(seen.astype(int) - pixels).mean()
    assert error == 0 if kind == "PNG" else error < (30 if name == "jpeg1" else 5)
    if kind == "JPEG" and name != "jpeg100":
        assert length < len(png(pixels)) / 2
    if size == (1500, 2000):
        assert length < 1.5e6


@pytest.mark.parametrize(
    "name",
    ["jpeg", "jpeg0", "jpeg101", "jpg85", "webp", "png8", "JPEG85", "jpeg-1", "85", "jpeg85.5"],
)
def test_other_formats_are_refused(name):
    with pytest.raises(ValueError, match="jpeg|JPEG"):
        PictureFormat.named(name)


@pytest.mark.parametrize(
    ("spec", "model", "edge", "said"),
    [
        ("openai:m", "m", None, "PNG up to 1048576 px"),
        ("openai:m@512", "m", 512, "PNG up to 1048576 px"),
        ("openai:m@png", "m", None, "PNG"),
        ("openai:m@jpeg85", "m", None, "JPEG of quality 85"),
        ("openai:m@1024@jpeg85", "m", 1024, "JPEG of quality 85"),
        ("openai:org/m:1@png", "org/m:1", None, "PNG"),
        ("openai:m@v1@512@png", "m@v1", 512, "PNG"),
        ("openai:m@latest", "m@latest", None, "PNG up to"),
    ],
)
def test_the_name_of_a_reader_says_it(spec, model, edge, said):
    reader = open_reader(spec, "http://127.0.0.1:9/v1")
    assert (reader.model, reader.longest_edge) == (model, edge)
    assert reader.settings["pictures"].startswith(said)
    assert reader.name == spec.removeprefix("openai:")


@pytest.mark.parametrize("spec", ["rapidocr:v4@png", "tesseract@jpeg85", "zoom_digits/target@png"])
def test_other_readers_are_not_sent_pictures(spec):
    with pytest.raises(ValueError, match="is for chat endpoints"):
        open_reader(spec)


def test_each_format_is_kept_apart_and_each_picture_encoded_once(tmp_path, monkeypatch):
    encodings = []
    original = PictureFormat.data_url
    monkeypatch.setattr(
        PictureFormat, "data_url", lambda self, p: (encodings.append(1), original(self, p))[1]
    )
    shared = photo(300, 400)
    with serving() as server:
        for name, sent in [
            ("", 3),
            ("", 0),
            ("jpeg85", 3),
            ("jpeg85", 0),
            ("jpeg84", 3),
            ("png", 0),
        ]:
            server.requests.clear()
            encodings.clear()
            reader = endpoint(server, tmp_path, picture_format=name)
            asked = [[shared, picture(i)] for i in range(3)]
            assert reader.answer(asked, ["ok"] * 3) == [Reply("said ok.")] * 3
            assert len(server.requests) == sent and len(encodings) == 4


def test_sizes_are_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with serving() as server:
        reader = endpoint(server, tmp_path)
        reader.answer([[photo(900, 900)], [picture()]], ["ok"] * 2)
        sent = [body["messages"][0]["content"][0]["image_url"] for *_, body in server.requests]
        largest = max(len(part["url"]) for part in sent)
        for i in range(1, 16):
            reader.answer([[picture(i)]], ["ok"])
    said = [r.getMessage() for r in caplog.records if "requests sent" in r.getMessage()]
    found = [
        re.search(r"(\d+) requests sent, ([\d.]+) MB on average, ([\d.]+) MB at most", text)
        for text in said
    ]
    assert [int(match[1]) for match in found] == [2, 4, 8, 16]
    assert all(float(match[3]) == pytest.approx(largest / 1e6, abs=0.01) for match in found)
    assert float(found[0][2]) == pytest.approx(largest / 2e6, abs=0.01)
    assert KEY not in "".join(said)
