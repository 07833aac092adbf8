# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
r"""Serves the cropper as an OpenAI-compatible endpoint: clients change their base URL, and zoom.

POST /v1/chat/completions: the cropper looks at each picture of the last user turn, and the request
goes on with crops of the original pixels, to --upstream, or to a --target in this process. All else
of the request stays as it is. Replies say in a field `cropvlm` what was done. There are also
GET /v1/models, /health, /ready and /metrics. docs/serve.md explains settings, limits and errors.

Environment: CROPVLM_AUTH_TOKEN, where it is set, must be sent by clients as their API key.
CROPVLM_UPSTREAM_KEY is the key that the upstream gets. Without both, the client's key goes to the
upstream.

Examples, the first with the models that come with the package:

    cropvlm serve --cropper=zoom_digits/cropper --target=zoom_digits/target --port=8000

    cropvlm serve --cropper=runs/mine/grpo/cropper --upstream=https://api.openai.com/v1
"""

import asyncio
import contextlib
import os
from typing import Any

from absl import app, flags, logging

from cropvlm_jax import apps, settings
from cropvlm_jax.apps import budget_flag
from cropvlm_jax.apps.secrets import TOKEN, secret
from cropvlm_jax.readers.endpoint import check_address
from cropvlm_jax.readers.registry import open_reader
from cropvlm_jax.readers.vlm import VLMReader
from cropvlm_jax.serving import demo
from cropvlm_jax.serving.engine import Engine
from cropvlm_jax.serving.limits import Limits
from cropvlm_jax.serving.looks import Policy
from cropvlm_jax.serving.pictures import PictureReader
from cropvlm_jax.serving.server import Server, bound, leave_signals_to_uvicorn
from cropvlm_jax.serving.service import Service
from cropvlm_jax.serving.target import LocalTarget
from cropvlm_jax.serving.upstream import Upstream
from cropvlm_jax.serving.web import LOOPBACK, make_app

UPSTREAM_KEY = "CROPVLM_UPSTREAM_KEY"  # that the upstream gets; an environment variable

CROPPER = flags.DEFINE_string(
    "cropper",
    None,
    "The cropper: a folder, such as a run's cropper/ or that of a PEFT adapter, a Hugging Face id, "
    "or zoom_digits/cropper, which comes with the package.",
    required=True,
)
BUDGET = budget_flag.define()
UPSTREAM = flags.DEFINE_string(
    "upstream",
    None,
    "The server that answers: the base URL of an OpenAI-compatible one, with /v1.",
)
TARGET = flags.DEFINE_string(
    "target",
    None,
    "Instead of --upstream, a VLM that answers in this process: a folder, a Hugging Face id, or "
    "zoom_digits/target. It answers questions about one picture.",
)
HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to serve at; 0.0.0.0 is all of this machine's."
)
PORT = flags.DEFINE_integer("port", 8000, "Port to serve at; 0 takes a free one.", 0, 65_535)
CROPS = flags.DEFINE_enum(
    "crops",
    "append",
    ["append", "replace"],
    "Whether a crop follows its picture or takes its place. A request may say otherwise.",
)
AREA_SCALE = flags.DEFINE_float(
    "area_scale",
    1.0,
    "What the area of each box is multiplied with. A request may say otherwise.",
)
KEEP_IF_SURER = flags.DEFINE_bool(
    "keep_if_surer",
    False,
    "With --target, harm control: it also answers without the crops, and that answer is given "
    "where it is surer of it. Twice as many answers. A request may say otherwise.",
)
ALLOW_HOSTS = flags.DEFINE_list(
    "allow_hosts",
    [],
    "Hosts from which pictures are fetched that a request gives by http(s) address, such as "
    "images.example.com or *.example.com, with :PORT where that is unusual. Private addresses are "
    "never connected to. Pictures of other hosts pass without a crop.",
)
TIMEOUT_S = flags.DEFINE_float("timeout_s", 300, "Most seconds for a request; then it gets 504.")
MAX_REQUESTS = flags.DEFINE_integer(
    "max_requests", 256, "Most requests that are worked on at once; others get 429."
)
MAX_BODY_MB = flags.DEFINE_float(
    "max_body_mb", 32, "Largest request, millions of bytes; others get 413."
)
MAX_PICTURES = flags.DEFINE_integer(
    "max_pictures", 16, "Most pictures of a turn that are looked at; others pass without a crop."
)
MAX_PICTURE_MB = flags.DEFINE_float(
    "max_picture_mb", 20, "Largest file of a picture, millions of bytes."
)
MAX_MEGAPIXELS = flags.DEFINE_float("max_megapixels", 50, "Most pixels of a picture, millions.")
FETCH_S = flags.DEFINE_float("fetch_s", 5, "Most seconds for fetching a picture.")
QUEUE = flags.DEFINE_integer(
    "queue", 256, "Most pictures that wait for the device at once; more get 429."
)
WAIT_MS = flags.DEFINE_float(
    "wait_ms", 3, "Milliseconds for which an idle device waits for more requests to run together."
)
BATCH_SIZES = flags.DEFINE_list(
    "batch_sizes", ["1", "4", "16", "32"], "Sizes of the batches that are compiled at the start."
)


def main(argv: list[str]) -> None:
    """Serves as the flags say, until it is told to end."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    if bool(UPSTREAM.value) == bool(TARGET.value):
        raise app.UsageError("give --upstream or --target: one of them answers")
    if UPSTREAM.value and KEEP_IF_SURER.value:
        raise app.UsageError(
            "--keep_if_surer is for --target: an --upstream does not say how sure it is"
        )
    token, key = secret(TOKEN), secret(UPSTREAM_KEY)
    at_home = HOST.value in LOOPBACK
    if key and not token and not at_home:
        raise app.UsageError(
            f"--host={HOST.value} and {UPSTREAM_KEY}: everybody who reaches this server would "
            f"spend your key. Set {TOKEN}, too"
        )
    limits, policy = read_limits(), read_policy()
    reader = PictureReader(limits, ALLOW_HOSTS.value)
    contexts: list[contextlib.AbstractAsyncContextManager[Any]] = [reader]
    upstream = None
    if UPSTREAM.value:
        check_upstream(UPSTREAM.value)
        upstream = Upstream(UPSTREAM.value, key=key, own_token=bool(token))
        contexts.append(upstream)
    with bound(HOST.value, PORT.value) as listening:
        engine = open_engine()
        answers = upstream or LocalTarget(engine, str(TARGET.value))
        service = Service(engine, answers, reader, policy=policy, limits=limits)
        web = make_app(
            service,
            token=token,
            public=demo.routes(),
            hosts=LOOPBACK if at_home and not token else None,
        )
        logging.info("serving at http://%s:%d/v1", HOST.value, listening.getsockname()[1])
        leave_signals_to_uvicorn()
        server = Server(web, service, limits.timeout_s)
        if not asyncio.run(server.run_until_told(engine, listening, contexts)):
            logging.info("ended before it was ready")
            logging.flush()
            os._exit(0)  # without waiting for a compilation


def check_upstream(url: str) -> None:
    """Checks the address of the upstream."""
    try:
        check_address(url)
    except ValueError:
        raise app.UsageError(
            "--upstream is not of the form http://localhost:9000/v1 or https://HOST/v1"
        ) from None


def read_policy() -> Policy:
    """What crops are like where requests do not say."""
    flags_of_policy = (AREA_SCALE, CROPS, KEEP_IF_SURER)
    return settings.read(Policy, {flag.name: flag.value for flag in flags_of_policy}, "--")


def read_limits() -> Limits:
    """The limits of the flags, whose names are those of the settings."""
    values = {
        "max_requests": MAX_REQUESTS.value,
        "timeout_s": TIMEOUT_S.value,
        "max_body_mb": MAX_BODY_MB.value,
        "max_pictures": MAX_PICTURES.value,
        "max_picture_mb": MAX_PICTURE_MB.value,
        "max_megapixels": MAX_MEGAPIXELS.value,
        "fetch_s": FETCH_S.value,
    }
    return settings.read(Limits, values, "--")


def open_engine() -> Engine:
    """The cropper, and the target where it is in this process."""
    try:
        sizes = [int(size) for size in BATCH_SIZES.value]
    except ValueError:
        raise app.UsageError(
            f"--batch_sizes={','.join(BATCH_SIZES.value)} are not whole numbers"
        ) from None
    cropper = budget_flag.open_cropper(str(CROPPER.value), BUDGET.value)
    target = open_reader(TARGET.value) if TARGET.value else None
    if target is not None and not isinstance(target, VLMReader):
        raise app.UsageError(
            f"--target={TARGET.value} is no VLM of this process; a chat endpoint is an --upstream"
        )
    return Engine(cropper, target, batch_sizes=sizes, wait_ms=WAIT_MS.value, queue=QUEUE.value)


if __name__ == "__main__":
    apps.run(main)
