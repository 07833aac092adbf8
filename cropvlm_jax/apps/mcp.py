# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Offers the cropper as a tool of the Model Context Protocol (MCP): zoom(image, question).

A program that runs a language model starts this command and talks to it over its standard input
and output; or it is served by --http. The tool takes the path of a picture, in a folder that
--folder allows, or a data: URL. It returns crops of the original pixels, their boxes in pixels and
percent, and how sure the cropper is. docs/serve.md shows how programs are set up for it.

Environment: CROPVLM_AUTH_TOKEN, where it is set, must be sent by clients of --http as a bearer
token.

Example, with the cropper that comes with the package:

    cropvlm mcp --cropper=zoom_digits/cropper --folder=pictures

    cropvlm mcp --cropper=runs/mine/grpo/cropper --http --port=8001
"""

import asyncio
import socket

import uvicorn
from absl import app, flags, logging
from mcp.server import MCPServer
from starlette.types import ASGIApp

import cropvlm_jax
from cropvlm_jax import apps
from cropvlm_jax.apps import budget_flag
from cropvlm_jax.apps.secrets import TOKEN, secret
from cropvlm_jax.serving.engine import Engine
from cropvlm_jax.serving.limits import Limits
from cropvlm_jax.serving.looks import Policy
from cropvlm_jax.serving.mcp_crops import Budget
from cropvlm_jax.serving.mcp_folders import Folders
from cropvlm_jax.serving.mcp_tool import PATH, ZoomTool, make_server, over_http
from cropvlm_jax.serving.pictures import PictureReader
from cropvlm_jax.serving.server import bound, leave_signals_to_uvicorn
from cropvlm_jax.serving.web import LOOPBACK

CROPPER = flags.DEFINE_string(
    "cropper",
    None,
    "The cropper: a folder, such as a run's cropper/ or that of a PEFT adapter, a Hugging Face id, "
    "or zoom_digits/cropper, which comes with the package.",
    required=True,
)
BUDGET = budget_flag.define()
FOLDER = flags.DEFINE_multi_string(
    "folder",
    [],
    "A folder whose pictures may be read, with all that is in it; may be given several times. "
    "Links and .. are resolved first: what is outside is refused. Without it, the tool takes "
    "data: URLs only.",
)
HTTP = flags.DEFINE_bool("http", False, "Serve HTTP instead of standard input and output.")
HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "With --http, the address to serve at; 0.0.0.0 is all of this machine's."
)
PORT = flags.DEFINE_integer("port", 8001, "With --http, the port; 0 takes a free one.", 0, 65_535)
AREA_SCALE = flags.DEFINE_float("area_scale", 1.0, "What the area of each box is multiplied with.")
MAX_EDGE = flags.DEFINE_integer(
    "max_edge", 1024, "Longest edge of a returned crop, px; larger ones are shrunk."
)
MIN_EDGE = flags.DEFINE_integer(
    "min_edge",
    448,
    "Longest edge to which smaller crops are enlarged, px: models see little in tiny pictures. 0 "
    "leaves them as they are.",
)
MAX_KB = flags.DEFINE_integer(
    "max_kb",
    700,
    "Most of all crops of an answer, thousands of bytes of base64: many programs refuse answers of "
    "a million. PNG becomes JPEG, and then smaller.",
)
MAX_PICTURE_MB = flags.DEFINE_float(
    "max_picture_mb", 20, "Largest file of a picture that is read, millions of bytes."
)
MAX_MEGAPIXELS = flags.DEFINE_float("max_megapixels", 50, "Most pixels of a picture, millions.")
TIMEOUT_S = flags.DEFINE_float("timeout_s", 60, "Most seconds for a call, once the model is ready.")


def main(argv: list[str]) -> None:
    """Serves the tool as the flags say, until its client leaves or it is told to end."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    token, folders, limits = secret(TOKEN), Folders(FOLDER.value), read_limits()
    if HTTP.value and HOST.value not in LOOPBACK and not token:
        raise app.UsageError(
            f"--host={HOST.value}: everybody who reaches this server could use it. Set {TOKEN}"
        )
    tool = ZoomTool(
        Engine(
            budget_flag.open_cropper(str(CROPPER.value), BUDGET.value),
            batch_sizes=(1,),
            wait_ms=0.0,
        ),
        PictureReader(limits),
        folders,
        limits=limits,
        budget=read_budget(),
        policy=Policy(area_scale=AREA_SCALE.value),
    )
    server = make_server(tool, cropvlm_jax.__version__)
    if not HTTP.value:
        asyncio.run(on_stdio(tool, server))
        return
    with bound(HOST.value, PORT.value) as listening:
        web = over_http(server, host=HOST.value, token=token, max_body_mb=limits.max_body_mb)
        logging.info("serving at http://%s:%d%s", HOST.value, listening.getsockname()[1], PATH)
        leave_signals_to_uvicorn()
        asyncio.run(on_http(tool, web, listening))


async def on_stdio(tool: ZoomTool, server: MCPServer) -> None:
    """Serves until the standard input ends."""
    async with tool.at_work():
        await server.run_stdio_async()


async def on_http(tool: ZoomTool, web: ASGIApp, listening: socket.socket) -> None:
    """Serves until the process is told to end."""
    config = uvicorn.Config(web, access_log=False, log_config=None, server_header=False)
    async with tool.at_work():
        await uvicorn.Server(config).serve(sockets=[listening])


def read_limits() -> Limits:
    """The limits of the flags; a request has room for a picture as base64."""
    try:
        return Limits(
            timeout_s=TIMEOUT_S.value,
            max_body_mb=1.4 * MAX_PICTURE_MB.value + 1,
            max_picture_mb=MAX_PICTURE_MB.value,
            max_megapixels=MAX_MEGAPIXELS.value,
        )
    except ValueError as error:
        raise app.UsageError(f"limits: {error}") from None


def read_budget() -> Budget:
    """The budget of the flags."""
    try:
        return Budget(max_edge=MAX_EDGE.value, min_edge=MIN_EDGE.value, max_kb=MAX_KB.value)
    except ValueError as error:
        raise app.UsageError(f"budget: {error}") from None


if __name__ == "__main__":
    apps.run(main)
