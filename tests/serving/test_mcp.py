# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The tool of `cropvlm mcp`, called by the official SDK's client."""

import asyncio
import base64
import contextlib
import io
import os
import sys
import threading
import zlib
from pathlib import Path

import httpx2
import numpy as np
import pytest
import uvicorn
from mcp import Client, StdioServerParameters
from PIL import Image
from served import BOX, FakeEngine, data_url, file_of

from cropvlm_jax import geometry
from cropvlm_jax.api import CropVLM
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.pixels import host
from cropvlm_jax.serving.limits import Limits
from cropvlm_jax.serving.looks import Busy, DeadlineExceeded, Policy
from cropvlm_jax.serving.mcp_crops import Budget, encoded
from cropvlm_jax.serving.mcp_folders import Folders
from cropvlm_jax.serving.mcp_tool import (
    META,
    PATH,
    ZoomTool,
    make_server,
    over_http,
)
from cropvlm_jax.serving.pictures import PictureReader
from cropvlm_jax.serving.server import bound

QUESTION = "What is the total?"
LIMITS = Limits(max_picture_mb=1.0, max_megapixels=1.0, max_body_mb=2.0)


@pytest.fixture
def allowed(tmp_path) -> Path:
    """A folder that may be read, in one that may not."""
    (tmp_path / "secret.png").write_bytes(file_of())
    folder = tmp_path / "allowed"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.png").write_bytes(file_of())
    return folder


def tool(*folders: Path, engine: FakeEngine | None = None, **budget: int) -> ZoomTool:
    return ZoomTool(
        engine or FakeEngine(),
        PictureReader(LIMITS),
        Folders(folders),
        limits=LIMITS,
        budget=Budget(**budget),
        policy=Policy(),
    )


def call(made: ZoomTool, image: object, question: object = QUESTION):
    """What a client gets, in the same process."""

    async def work():
        async with made.at_work(), Client(make_server(made, "1")) as client:
            return await client.call_tool("zoom", {"image": image, "question": question})

    return asyncio.run(work())


def refused(result) -> str:
    """Why a call failed, in one line."""
    assert result.is_error
    (said,) = result.content
    assert "\n" not in said.text and len(said.text) < 600
    return said.text.removeprefix("Error executing tool zoom: ")


def picture_of(content) -> np.ndarray:
    return host.to_rgb(base64.b64decode(content.data))


def test_a_crop_comes_in_its_own_pixels_with_all_that_there_is_to_know(allowed):
    result = call(tool(allowed, min_edge=0), "deep/a.png")
    text, image = result.content
    assert not result.is_error and image.mime_type == "image/png"
    picture = host.to_rgb(file_of())
    np.testing.assert_array_equal(picture_of(image), host.cut(picture, np.array(BOX)))
    assert result.meta[META]["size"] == [80, 40]
    (box,) = result.meta[META]["boxes"]
    assert box == {"pixels": [20, 20, 60, 40], "percent": list(BOX), "shown_size": [40, 20]}
    assert result.meta[META]["confidence"] == 0.75
    assert text.text.splitlines() == [
        "The picture is 80 x 40 px.",
        "Crop 1: left 20, top 20, right 60, bottom 40 px of the original (25% to 75% of its width, "
        "50% to 100% of its height), 40 x 20 px.",
        "Confidence: 93%, which is how likely each edge is to be at its very percent.",
        "Read the answer in the crop. If it is not there, look at the whole picture.",
    ]
    # Some clients show a model nothing else where this is given.
    assert result.structured_content is None


def test_how_the_tool_is_described():
    async def listed():
        async with Client(make_server(tool(), "1")) as client:
            return (await client.list_tools()).tools, client.instructions

    (zoom,), instructions = asyncio.run(listed())
    assert zoom.name == "zoom" and zoom.annotations.read_only_hint and zoom.output_schema is None
    assert set(zoom.input_schema["required"]) == {"image", "question"}
    assert all(each["description"] for each in zoom.input_schema["properties"].values())
    assert "zoom" in instructions and "data: URL" in str(zoom.input_schema)


def test_paths_inside_are_read_however_they_are_written(allowed, tmp_path):
    (allowed / "link.png").symlink_to(allowed / "deep" / "a.png")
    (tmp_path / "door").symlink_to(allowed)
    other = tmp_path / "other"
    other.mkdir()
    (other / "b c.png").write_bytes(file_of())
    (other / "ünï.png").write_bytes(file_of())
    made = Folders([tmp_path / "door", other])  # a folder may be given by a link to it
    for path in (
        allowed / "deep" / "a.png",
        tmp_path / "door" / "deep" / "a.png",
        "deep/../deep/./a.png",
        "link.png",
        other / "b c.png",
        "b c.png",
        "ünï.png",
        "../other/b c.png",  # out of one folder that is allowed, and into another
    ):
        assert made.read(str(path), 10**6) == file_of()


def test_paths_outside_are_refused_whether_or_not_they_are_there(allowed, tmp_path):
    (allowed / "out.png").symlink_to(tmp_path / "secret.png")
    (allowed / "up").symlink_to(tmp_path)
    (tmp_path / "allowed_too").mkdir()
    (tmp_path / "allowed_too" / "a.png").write_bytes(file_of())
    for path in (
        tmp_path / "secret.png",
        tmp_path / "not_there.png",
        "../secret.png",
        "../not_there.png",
        "deep/../../secret.png",
        "out.png",
        "up/secret.png",
        tmp_path / "allowed_too" / "a.png",  # begins with the folder's name
        "/etc/passwd",
        "/proc/self/environ",
        "~/x.png" if Path.home() == Path("/") else "/root/x.png",
    ):
        said = refused(call(tool(allowed), str(path)))
        assert f"is outside of the folders that may be read: {allowed}" in said, path
        assert "secret" not in said or "secret" in str(path)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("", "it is no file"),
        (".", "it is no file"),
        ("deep", "it is no file"),
        ("missing.png", "cannot be read: No such file or directory"),
        ("pipe", "it is no file"),
        ("circle", ""),
        ("a\0b.png", "is no path"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("large.png", "is larger than 1 MB"),
        ("text.png", "No picture"),
        ("cut.png", "runcated"),
        ("empty.png", "empty file"),
        ("drawing.svg", "SVG"),
        ("wide.png", "over the limit of 1 megapixels"),
        ("bomb.png", "pixels"),
        ("file:///etc/passwd", "not an address"),
        ("FILE:///etc/passwd", "not an address"),
        ("http://127.0.0.1/a.png", "not an address"),
        ("https://example.com/a.png", "not an address"),
        ("data:text/html;base64,aGk=", "is no picture"),
        ("data:image/png;base64,!!!", "its data: URL is broken"),
        ("data:image/png", "is no picture"),
        ("data:image/png;base64,", "empty file"),
        ("data:image/svg+xml,<svg/>", "SVG"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(allowed, image, message):
    os.mkfifo(allowed / "pipe")
    (allowed / "circle").symlink_to(allowed / "circle")
    (allowed / "large.png").write_bytes(file_of() + bytes(10**6))
    (allowed / "text.png").write_text("no picture")
    (allowed / "cut.png").write_bytes(file_of()[:400])
    (allowed / "empty.png").touch()
    (allowed / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    Image.new("1", (1001, 1000)).save(allowed / "wide.png")
    head = bytearray(file_of())
    head[16:24] = (60_000).to_bytes(4, "big") * 2  # the size, which alone is read
    head[29:33] = zlib.crc32(head[12:29]).to_bytes(4, "big")
    (allowed / "bomb.png").write_bytes(head)
    said = refused(call(tool(allowed), image))
    assert message in said and said.startswith("image: ")


def test_wrong_arguments_and_failures_are_told(allowed):
    def sees(error: Exception) -> str:
        engine = FakeEngine()
        engine.fails = error
        return refused(call(tool(allowed, engine=engine), "deep/a.png"))

    assert "question: it is empty" in refused(call(tool(allowed), "deep/a.png", " \n"))
    assert "no files: start it with --folder" in refused(call(tool(), "deep/a.png"))
    assert "try again in 3 s" in sees(Busy(7, 2.6))
    assert "not done within 300 s" in sees(DeadlineExceeded())
    assert sees(ValueError("<image> is a\nspecial token")) == "<image> is a special token"
    assert sees(RuntimeError("a secret of the server")) == "Error executing tool zoom"
    wrong = call(tool(allowed), 5)
    assert wrong.is_error and "image" in wrong.content[0].text


def test_an_engine_that_cannot_start_is_told_at_the_end(allowed):
    class Broken(FakeEngine):
        async def start(self) -> None:
            raise ValueError("does not fit")

    with pytest.raises(ValueError, match="does not fit"):
        call(tool(allowed, engine=Broken()), "deep/a.png")


def test_a_picture_is_turned_as_its_exif_says():
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(host.to_rgb(file_of(height=40, width=80))).save(file, "PNG", exif=exif)
    result = call(tool(min_edge=0), data_url(file.getvalue()))
    assert result.meta[META]["size"] == [40, 80]
    (box,) = result.meta[META]["boxes"]
    assert box["pixels"] == [10, 40, 30, 80]
    upright = host.to_rgb(file.getvalue())
    np.testing.assert_array_equal(picture_of(result.content[1]), upright[40:80, 10:30])


@pytest.mark.parametrize(
    ("size", "budget", "shown", "kind"),
    [
        ((40, 20), Budget(), (448, 224), "png"),
        ((40, 20), Budget(min_edge=0), (40, 20), "png"),
        ((1, 1), Budget(), (448, 448), "png"),
        ((4000, 3), Budget(max_kb=100), (1024, 1), "png"),
        ((2000, 1000), Budget(max_edge=256, min_edge=0), (256, 128), "png"),
        ((900, 900), Budget(max_kb=2000), (900, 900), "jpeg"),
        ((900, 900), Budget(max_kb=16), None, "jpeg"),
        ((64, 64), Budget(max_edge=16, min_edge=16, max_kb=16), (16, 16), "png"),
    ],
)
def test_crops_fit_their_budget(size, budget, shown, kind):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    crop = encoded(Image.fromarray(noise), budget)
    assert crop.kind == kind and shown in (None, crop.size)
    assert 4 * len(crop.file) / 3 <= 1000 * budget.max_kb
    with Image.open(io.BytesIO(crop.file)) as opened:
        assert opened.size == crop.size and opened.format == kind.upper()
    half = encoded(Image.fromarray(noise), budget, crops=2)
    assert 4 * len(half.file) / 3 <= 1000 * budget.max_kb / 2


def test_a_budget_that_cannot_be_kept_is_refused():
    with pytest.raises(ValueError, match="min_edge=448 must not be more than max_edge=100"):
        Budget(max_edge=100)
    with pytest.raises(ValueError, match="max_kb=1 is not"):
        Budget(max_kb=1)
    with pytest.raises(NotADirectoryError, match="--folder=/no/such is no folder"):
        Folders(["/no/such"])


@contextlib.contextmanager
def serving_http(made: ZoomTool, token: str | None = None):
    """The tool over HTTP, in a thread; gives its address."""
    web = over_http(
        make_server(made, "1"), host="127.0.0.1", token=token, max_body_mb=LIMITS.max_body_mb
    )
    server = uvicorn.Server(uvicorn.Config(web, log_config=None))

    async def work(listening):
        async with made.at_work():
            await server.serve(sockets=[listening])

    with bound("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=asyncio.run, args=(work(listening),))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}{PATH}"
        finally:
            server.should_exit = True
            thread.join()


def test_over_http_many_clients_get_what_is_theirs(allowed):
    async def one(url: str, number: int):
        mode = "auto" if number % 2 else "legacy"  # the handshake of before 2026
        async with Client(url, mode=mode) as client:
            image = data_url(file_of(height=40 + number))
            return await client.call_tool("zoom", {"image": image, "question": QUESTION})

    async def all_of_them(url: str):
        return await asyncio.gather(*(one(url, number) for number in range(6)))

    with serving_http(tool(allowed)) as url:
        results = asyncio.run(all_of_them(url))
    assert [each.meta[META]["size"] for each in results] == [[80, 40 + n] for n in range(6)]


def test_over_http_strangers_are_refused(allowed):
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    headers = {"accept": "application/json, text/event-stream"}
    with serving_http(tool(allowed), token="sk-1") as url:
        for given in ({}, {"authorization": "Bearer sk-2"}):
            assert httpx2.post(url, json=body, headers=headers | given).status_code == 401
        headers |= {"authorization": "Bearer sk-1"}
        assert httpx2.post(url, json=body, headers=headers).status_code == 200
        named = headers | {"host": "rebound.example.com"}
        assert httpx2.post(url, json=body, headers=named).status_code == 421
        foreign = headers | {"origin": "https://example.com"}
        assert httpx2.post(url, json=body, headers=foreign).status_code == 403
        large = httpx2.post(url, content=bytes(3 * 10**6), headers=headers)
        assert large.status_code == 413


def test_the_command_answers_on_stdio_as_python_does(tmp_path):
    scene = ZoomDigits("test", 1)[0]
    Image.fromarray(scene["image"]).save(tmp_path / "scene.png")
    arguments = ["--cropper=zoom_digits/cropper", f"--folder={tmp_path}", "--min_edge=0"]
    command = ["-m", "cropvlm_jax.apps.cli", "mcp", *arguments]
    strange: list[object] = []

    async def heard(message: object) -> None:
        if isinstance(message, Exception):  # a line on the server's standard output that is none
            strange.append(message)

    async def work():
        server = StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))
        async with Client(server, message_handler=heard) as client:
            asked = {"image": "scene.png", "question": scene["question"]}
            found = await client.call_tool("zoom", asked)
            return found, await client.call_tool("zoom", asked | {"image": "/etc/passwd"})

    found, outside = asyncio.run(work())
    assert not strange
    expected = CropVLM.from_pretrained("zoom_digits/cropper")(scene["image"], scene["question"])
    (box,) = found.meta[META]["boxes"]
    assert box["percent"] == list(expected.box) and 0 < found.meta[META]["confidence"] <= 1
    size = np.array(scene["image"].shape[:2])
    assert box["pixels"] == geometry.to_pixels(np.array(expected.box), size).tolist()
    np.testing.assert_array_equal(picture_of(found.content[1]), np.asarray(expected.crop))
    assert "outside of the folders" in refused(outside)
