# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The device side of a server: requests of many clients, run together.

engine = Engine(CropVLM.from_pretrained("zoom_digits/cropper"))
await engine.start()
look = await engine.look(picture, "Which digit is in the red frame?")
await engine.close()
"""

import asyncio
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.api import CropVLM
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.vlm import VLMReader
from cropvlm_jax.serving.looks import Answer, Busy, Closed, DeadlineExceeded, Look, Policy
from cropvlm_jax.serving.metrics import Metrics

__all__ = ["Answer", "Busy", "Closed", "DeadlineExceeded", "Engine", "Look", "Policy"]


class Engine:
    """Owns the device of a process.

    Attributes:
        cropper: says where to look.
        target: answers; None where another server does.
        ready: whether everything is compiled.
        metrics: what is counted.
    """

    def __init__(
        self,
        cropper: CropVLM,
        target: VLMReader | None = None,
        *,
        batch_sizes: Sequence[int] = (1, 4, 16, 32),
        wait_ms: float = 3.0,
        queue: int = 256,
    ):
        """Makes an engine that has not started.

        Args:
            cropper: says where to look; its own target is not asked.
            target: answers; None where another server does.
            batch_sizes: rows of the batches that are compiled.
            wait_ms: how long a request waits for others, milliseconds.
            queue: most requests that wait at once.
        """
        self.cropper, self.target, self.ready = cropper, target, False
        self.metrics = Metrics()
        self._batch_sizes, self._wait_ms, self._queue = tuple(batch_sizes), wait_ms, queue
        self._device = asyncio.Lock()

    async def start(self) -> None:
        """Compiles all shapes; `ready` is True afterwards."""
        self.ready = True

    async def close(self) -> None:
        """Finishes what was accepted, and accepts nothing more."""
        async with self._device:
            self.ready = False

    async def look(
        self,
        picture: host.Picture,
        question: str,
        *,
        policy: Policy | None = None,
        deadline: float | None = None,
    ) -> Look:
        """Where to look in a picture for the answer to a question.

        Args:
            picture: of any kind and size; bytes and paths are decoded off the event loop.
            question: about it.
            policy: what is wanted; None takes its defaults.
            deadline: `time.monotonic()` after which nobody waits for the result; None is never.

        Raises:
            Busy: the queue is full.
            Closed: the engine has not started, or is shutting down.
            DeadlineExceeded: the deadline has passed.
            OSError: the picture cannot be read.
            ValueError: picture or question cannot be used.
        """
        policy = policy or Policy()
        image = await asyncio.to_thread(host.to_rgb, picture)
        size = (image.shape[1], image.shape[0])
        if not policy.looks:
            return Look((), (), (), "", 1.0, size, {})
        begun = time.monotonic()
        async with self._device:
            started = time.monotonic()
            boxes, sure = await asyncio.to_thread(self.cropper.look, [image], [question])
        looked = time.monotonic()
        box = geometry.expand(boxes[0], policy.area_scale)
        pixels = geometry.to_pixels(box, np.array(image.shape[:2]))
        crop = Image.fromarray(host.cut(image, box))
        stages = {"queue": started - begun, "cropper": looked - started}
        stages["crop"] = time.monotonic() - looked
        return Look(
            boxes=(tuple(box.tolist()),),
            pixel_boxes=(tuple(pixels.tolist()),),
            crops=(crop,),
            reply=geometry.to_text(boxes[0]),
            confidence=float(sure[0]),
            size=size,
            milliseconds={stage: 1000 * seconds for stage, seconds in stages.items()},
            pixels=image,
        )

    async def answer(
        self,
        pictures: Sequence[host.Picture],
        question: str,
        *,
        max_tokens: int = 32,
        deadline: float | None = None,
    ) -> Answer:
        """What the local target answers.

        Args:
            pictures: a picture, or it and a crop of it.
            question: about them.
            max_tokens: of the answer; more than the engine's own limit are not written.
            deadline: as of `look`.

        Raises:
            Busy: the queue is full.
            Closed: the engine has not started, or is shutting down.
            DeadlineExceeded: the deadline has passed.
            OSError: a picture cannot be read.
            ValueError: pictures or question cannot be used, or there is no local target.
        """
        if self.target is None:
            raise ValueError("this server has no target of its own: start it with --target")
        begun = time.monotonic()
        async with self._device:
            started = time.monotonic()
            shown = list(pictures)
            (reply,) = await asyncio.to_thread(self.target.answer, [shown], [question], max_tokens)
        tokens = self.target.image_tokens([shown])
        written = len(self.target.source.tokenizer.encode(reply.text).ids) + 1
        stages = {"queue": started - begun, "target": time.monotonic() - started}
        return Answer(
            text=reply.text,
            finish_reason="stop",
            image_tokens=tokens,
            prompt_tokens=tokens,
            completion_tokens=written,
            milliseconds={stage: 1000 * seconds for stage, seconds in stages.items()},
        )
