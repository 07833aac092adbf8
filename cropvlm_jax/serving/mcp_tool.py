# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The cropper as a tool of the Model Context Protocol: a language model asks where to look closer.

What a client shows its model is text and pictures: the text tells all that there is to know of
them. The same for programs is in the result's `_meta`, and not in its `structuredContent`, since
there are clients that show their model nothing else where that is given.
"""

import asyncio
import base64
import contextlib
import functools
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ImageContent, TextContent, ToolAnnotations
from pydantic import Field
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount

from cropvlm_jax.serving.engine import Engine
from cropvlm_jax.serving.limits import Limits
from cropvlm_jax.serving.looks import Busy, Closed, DeadlineExceeded, Look, Policy
from cropvlm_jax.serving.mcp_crops import Budget, Encoded, encoded
from cropvlm_jax.serving.mcp_folders import Folders
from cropvlm_jax.serving.pictures import PictureReader, Unreadable
from cropvlm_jax.serving.web import BearerToken

PATH = "/mcp"  # of the tool over HTTP
META = "cropvlm_jax/zoom"  # under which programs find the result
INSTRUCTIONS = (
    "Use zoom when the answer to a question about a picture is small in it: print, labels, signs, "
    "numbers. It returns the part of the picture that most likely holds the answer, in its "
    "original pixels."
)
DESCRIPTION = (
    "Looks closer at a picture: finds the place that most likely answers a question, and returns "
    "it cut from the original pixels, with its position in pixels and percent of the picture and "
    "the confidence in it. It does not answer the question: read the answer in the crop."
)
IMAGE = (
    "The picture: the path of a file in a folder that this server may read, absolute or from that "
    "folder, or a data: URL (data:image/png;base64,...)."
)
QUESTION = "What you want to know, such as: What is the total amount?"


class ZoomTool:
    """Answers calls of the tool `zoom`."""

    def __init__(
        self,
        engine: Engine,
        reader: PictureReader,
        folders: Folders,
        *,
        limits: Limits,
        budget: Budget,
        policy: Policy,
    ):
        """Takes what it works with.

        Args:
            engine: has the cropper.
            reader: of pictures.
            folders: of pictures that are named by paths.
            limits: of pictures and times.
            budget: of the crops that are returned.
            policy: what is cut out.
        """
        self._engine, self._reader, self._folders = engine, reader, folders
        self._limits, self._budget, self._policy = limits, budget, policy
        self._started: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Starts the engine, and closes it when the context is left.

        Clients wait a few seconds only for a server to introduce itself, so that it is calls that
        wait for the engine.

        Raises:
            Exception: what kept the engine from starting, when the context is left.
        """
        async with self._reader:
            self._started = asyncio.create_task(self._engine.start())
            try:
                yield
            finally:
                await self._started
                await self._engine.close()

    async def zoom(
        self,
        image: Annotated[str, Field(description=IMAGE)],
        question: Annotated[str, Field(description=QUESTION)],
    ) -> CallToolResult:
        """Looks at a picture; see `DESCRIPTION`.

        Raises:
            ToolError: the picture may not or cannot be read, or there is no result in time; in one
                line, for the model that called.
        """
        if not question.strip():
            raise ToolError("question: it is empty; say what you want to know about the picture")
        try:
            file = await self._file(image)
            await self._reader.check(file)
            if self._started is not None:
                await asyncio.shield(self._started)  # who gives up does not end it
            deadline = time.monotonic() + self._limits.timeout_s
            look = await self._engine.look(file, question, policy=self._policy, deadline=deadline)
        except DeadlineExceeded:
            raise ToolError(f"not done within {self._limits.timeout_s:g} s") from None
        except (OSError, Unreadable) as error:
            raise ToolError(f"image: {' '.join(str(error).split())}") from None
        except Busy as error:
            raise ToolError(f"{error}; try again in {error.retry_after:.0f} s") from None
        except (Closed, ValueError) as error:
            raise ToolError(" ".join(str(error).split())) from None
        encode = functools.partial(encoded, budget=self._budget, crops=len(look.crops))
        crops = [await self._reader.run(encode, crop) for crop in look.crops]
        return result(look, crops)

    async def _file(self, image: str) -> bytes:
        """The file of a picture.

        Raises:
            Unreadable: it is none that may or can be read.
        """
        scheme = image[:8].lower()
        if scheme.startswith("data:"):
            return await self._reader.file(image)
        if scheme.startswith(("http:", "https:", "file:")):
            raise Unreadable("give the path of a file or a data: URL, not an address")
        most = int(self._limits.max_picture_mb * 1e6)
        return await self._reader.run(functools.partial(self._folders.read, most=most), image)


def make_server(tool: ZoomTool, version: str) -> MCPServer:
    """A server of the one tool.

    Args:
        tool: that is called.
        version: of this package.
    """
    server: MCPServer = MCPServer("cropvlm", version=version, instructions=INSTRUCTIONS)
    harmless = ToolAnnotations(
        read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
    )
    server.add_tool(
        tool.zoom,
        name="zoom",
        title="Look closer",
        description=DESCRIPTION,
        annotations=harmless,
        structured_output=False,
    )
    return server


def over_http(
    server: MCPServer, *, host: str, token: str | None = None, max_body_mb: float
) -> Starlette:
    """A server as a web application: streamable HTTP, in which each call stands for itself.

    Args:
        server: of the tool.
        host: that it is served at; on loopback, other names in requests are refused, so that no
            web page can reach it by a name of its own that leads here (DNS rebinding).
        token: that clients must send; None asks for none.
        max_body_mb: largest request, millions of bytes.
    """
    web = server.streamable_http_app(
        streamable_http_path=PATH,
        json_response=True,
        stateless_http=True,
        max_request_body_size=int(max_body_mb * 1e6),
        host=host,
    )
    middleware = [] if token is None else [Middleware(BearerToken, token=token)]
    return Starlette(
        routes=[Mount("/", web, middleware=middleware)],
        lifespan=lambda _: server.session_manager.run(),
    )


def result(look: Look, crops: list[Encoded]) -> CallToolResult:
    """What the tool returns: a text for a language model, then the crops.

    Args:
        look: what the cropper says.
        crops: its crops as files.
    """
    images = [
        ImageContent(
            type="image",
            data=base64.b64encode(crop.file).decode(),
            mime_type=f"image/{crop.kind}",
        )
        for crop in crops
    ]
    text = TextContent(type="text", text=told(look, crops))
    return CallToolResult(content=[text, *images], _meta={META: facts(look, crops)})


def facts(look: Look, crops: list[Encoded]) -> dict[str, Any]:
    """The result for programs."""
    boxes = [
        {"pixels": list(pixels), "percent": list(box), "shown_size": list(crop.size)}
        for box, pixels, crop in zip(look.boxes, look.pixel_boxes, crops, strict=True)
    ]
    return {
        "size": list(look.size),
        "boxes": boxes,
        "confidence": float(f"{look.confidence:.3g}"),
        "milliseconds": {stage: round(spent, 2) for stage, spent in look.milliseconds.items()},
    }


def told(look: Look, crops: list[Encoded]) -> str:
    """The result for a language model."""
    width, height = look.size
    if not crops:
        return f"No place of the {width} x {height} px picture stands out: look at all of it."
    lines = [f"The picture is {width} x {height} px."]
    for number, (box, pixels, crop) in enumerate(
        zip(look.boxes, look.pixel_boxes, crops, strict=True), 1
    ):
        left, top, right, bottom = pixels
        cut, shown = (right - left, bottom - top), crop.size
        scaled = "" if shown == cut else f", shown at {shown[0]} x {shown[1]} px"
        lines.append(
            f"Crop {number}: left {left}, top {top}, right {right}, bottom {bottom} px of the "
            f"original ({box[0]:g}% to {box[2]:g}% of its width, {box[1]:g}% to {box[3]:g}% of its "
            f"height), {cut[0]} x {cut[1]} px{scaled}."
        )
    sure = look.confidence ** (1 / (4 * len(crops)))  # the geometric mean of the edges
    lines += [
        f"Confidence: {sure:.0%}, which is how likely each edge is to be at its very percent.",
        "Read the answer in the crop. If it is not there, look at the whole picture.",
    ]
    return "\n".join(lines)
