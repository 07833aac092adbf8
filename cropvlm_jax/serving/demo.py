# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The page of a server: its files, and the samples that it offers.

The page needs nothing from elsewhere, and its Content-Security-Policy lets it fetch nothing else.
The samples are scenes of the digits task, drawn when they are asked for.
"""

import functools
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cropvlm_jax.data.sources.zoom_digits import ZoomDigits

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scenes of the test split whose first question the bundled models answer with the crop alone.
SAMPLES = (15, 7, 9, 18)
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def routes() -> list[Route]:
    """The page at `/`, and what it is made of under `/page/`; neither asks for a token."""
    return [
        Route("/", _index),
        Route("/page/samples.json", _samples),
        Route("/page/samples/{scene:int}.png", _sample),
        Route("/page/{name}", _file),
    ]


async def _index(_: Request) -> Response:
    return _page_file("index.html")


async def _file(request: Request) -> Response:
    return _page_file(request.path_params["name"])


async def _samples(_: Request) -> Response:
    """Names, addresses, questions and answers of the samples."""
    return _response(await run_in_threadpool(_listed), "application/json")


async def _sample(request: Request) -> Response:
    scene = request.path_params["scene"]
    if scene not in SAMPLES:
        raise HTTPException(404)
    return _response(await run_in_threadpool(_png, scene), "image/png")


def _page_file(name: str) -> Response:
    """A file of the page; others are not there, whatever their name leads to."""
    if name not in _files():
        raise HTTPException(404)
    return _response(_files()[name], TYPES[Path(name).suffix])


def _response(content: bytes, kind: str) -> Response:
    return Response(content, headers=HEADERS, media_type=kind)


@functools.cache
def _files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in TYPES}


def _scenes() -> ZoomDigits:
    return ZoomDigits("test", max(SAMPLES) + 1)


@functools.cache
def _listed() -> bytes:
    samples: list[dict[str, Any]] = []
    for number, scene in enumerate(SAMPLES, 1):
        asked = _scenes().scene(scene)[1]
        questions = [{"question": question, "answer": answer} for question, answer, _ in asked]
        url = f"page/samples/{scene}.png"
        samples.append({"name": f"Sample {number}", "url": url, "questions": questions})
    return json.dumps(samples, allow_nan=False).encode()


@functools.cache
def _png(scene: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_scenes().scene(scene)[0]).save(file, "PNG")
    return file.getvalue()
