# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The device side of a server: requests of many clients, run together.

engine = Engine(CropVLM.from_pretrained("zoom_digits/cropper"))
await engine.start()
look = await engine.look(picture, "Which digit is in the red frame?")
await engine.close()

A request goes through three stages. Threads of the host decode its picture and cut it into what the
model sees; the one thread of the device runs it with others (`batcher.py`), at one of few shapes
(`shapes.py`), all of which are compiled before the first request; threads of the host cut the crop.
"""

import asyncio
import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.api import CropVLM, Reply
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.inputs import check_picture
from cropvlm_jax.readers.vlm import VLMReader
from cropvlm_jax.serving import metrics
from cropvlm_jax.serving.batcher import Batcher
from cropvlm_jax.serving.lanes import (
    Asked,
    Lane,
    ServedCropper,
    ServedSecondLook,
    ServedTarget,
)
from cropvlm_jax.serving.looks import (
    Answer,
    Busy,
    Closed,
    DeadlineExceeded,
    Look,
    Policy,
    TooLarge,
)

__all__ = ["Answer", "Busy", "Closed", "DeadlineExceeded", "Engine", "Look", "Policy", "TooLarge"]

CHANNELS = 3  # of a decoded picture, bytes a pixel
Result = TypeVar("Result")


class Engine:
    """Owns the device of a process.

    Attributes:
        cropper: says where to look.
        target: answers; None where another server does.
        ready: whether everything is compiled, and requests are taken.
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
        picture_bytes: int = 2**31,
        question_tokens: Sequence[int] = (20, 256),
        answer_tokens: int = 128,
        answer_pictures: int | None = None,
        threads: int | None = None,
    ):
        """Makes an engine that has not started.

        Args:
            cropper: says where to look; its own target is not asked.
            target: answers; None where another server does.
            batch_sizes: rows of the batches that are compiled, ascending from 1.
            wait_ms: milliseconds for which an idle device waits for one more request.
            queue: most looks, and most answers, that are accepted at once.
            picture_bytes: most bytes of all decoded pictures at once, as RGB; one picture is
                always taken.
            question_tokens: longest questions that are compiled; longer ones are refused.
            answer_tokens: of the longest answer.
            answer_pictures: most pictures of a question to the target, crops included; None is one
                and as many crops as the cropper may name.
            threads: that decode and cut pictures; None is one a CPU, at most 4.
        """
        sizes = list(batch_sizes)
        if not sizes or sizes[0] != 1 or sizes != sorted(set(sizes)):
            raise ValueError(f"batch_sizes={tuple(sizes)} must begin with 1 and ascend")
        if answer_pictures is None:
            answer_pictures = 1 + cropper.grammar.max_boxes
        if queue < 1 or wait_ms < 0 or answer_tokens < 1 or answer_pictures < 1:
            raise ValueError(
                f"queue={queue}, wait_ms={wait_ms}, answer_tokens={answer_tokens} and "
                f"answer_pictures={answer_pictures} must be positive"
            )
        self.cropper, self.target, self.ready = cropper, target, False
        self.metrics = metrics.Metrics()
        self._looks = ServedCropper(cropper, sizes, question_tokens)
        self._second_looks = None
        if cropper.second_grammar is not None:
            self._second_looks = ServedSecondLook(
                cropper, cropper.second_grammar, sizes, question_tokens
            )
        self._answers = None
        if target is not None:
            self._answers = ServedTarget(
                target,
                sizes,
                question_tokens=question_tokens,
                reply_tokens=answer_tokens,
                pictures=answer_pictures,
            )
        self._batcher = Batcher(wait_ms / 1000, self.metrics)
        self._queue, self._picture_bytes = queue, picture_bytes
        self._accepted = {metrics.LOOK: 0, metrics.ANSWER: 0}
        self._seconds = {metrics.LOOK: 1.0, metrics.ANSWER: 1.0}  # that the last request took
        self._bytes = 0  # of the pictures of accepted requests
        self._idle = asyncio.Event()
        self._idle.set()
        workers = threads or min(os.cpu_count() or 1, 4)
        self._before = ThreadPoolExecutor(workers, "pictures")
        self._after = ThreadPoolExecutor(1, "crops")  # never waits for the pictures of others

    async def start(self) -> None:
        """Compiles all shapes; `ready` is True afterwards."""
        await self._batcher.on_device(self._looks.compile)
        if self._second_looks is not None:
            await self._batcher.on_device(self._second_looks.compile)
        if self._answers is not None:
            await self._batcher.on_device(self._answers.compile)
        self._batcher.start()
        self.ready = True

    async def close(self) -> None:
        """Finishes what was accepted, and accepts nothing more.

        A server whose requests need a look and then an answer calls this after its last request.
        """
        self.ready = False
        await self._idle.wait()
        await self._batcher.close()
        self._before.shutdown()
        self._after.shutdown()

    async def look(
        self,
        picture: host.Picture,
        question: str,
        *,
        policy: Policy | None = None,
        deadline: float | None = None,
    ) -> Look:
        """Where to look in a picture for the answer to a question.

        Where the caller is cancelled, the request leaves its place.

        Args:
            picture: of any kind and size; bytes and paths are decoded off the event loop.
            question: about it.
            policy: what is wanted; None takes its defaults.
            deadline: `time.monotonic()` after which nobody waits for the result; None is never.

        Raises:
            Busy: as many requests are accepted as may be.
            Closed: the engine has not started, or is shutting down.
            DeadlineExceeded: the deadline has passed.
            OSError: the picture cannot be read.
            ValueError: picture or question cannot be used.
        """
        policy = policy or Policy()
        async with self._accept(metrics.LOOK, [picture], deadline):
            if not policy.looks:
                height, width = host.picture_size(picture)
                return Look((), (), (), "", 1.0, (width, height), {})
            begun = time.monotonic()
            with self._batcher.coming(metrics.LOOK):
                prepare = functools.partial(self._prepare_look, picture, question)
                image, asked = await _in(self._before, prepare)
                lane = self._looks.lane(asked.row)
            seconds = {"prepare": time.monotonic() - begun, "queue": 0.0, "cropper": 0.0}
            reply = await self._reply(lane, asked, seconds)
            written = geometry.reply_text(reply.boxes)
            if self._second_looks is not None and reply.boxes:
                ask = functools.partial(self._second_looks.ask_again, image, question, reply)
                closer = await _in(self._before, ask)
                second = await self._reply(self._second_looks.lane(closer.row), closer, seconds)
                written += f" {geometry.reply_text(second.boxes)}"
                reply = reply.then(second)
            worked = time.monotonic()
            look = await _in(self._after, functools.partial(_cut, image, reply, written, policy))
            seconds["crop"] = time.monotonic() - worked
            return dataclasses.replace(look, milliseconds=self._observe(metrics.LOOK, seconds))

    async def _reply(self, lane: Lane, asked: Asked, seconds: dict[str, float]) -> Reply:
        """The cropper's reply to a request.

        Args:
            lane: of its shape.
            asked: the request.
            seconds: of the stages queue and cropper, to which those of this request are added.

        Raises:
            ArithmeticError: the probability is not a number.
        """
        done = await self._batcher.submit(lane, asked)
        seconds["queue"] += done.queued
        seconds["cropper"] += done.worked
        if not np.isfinite(done.value).all():
            raise ArithmeticError(
                "the cropper's probabilities are not finite: its weights are broken"
            )
        return Reply.of(done.value)

    async def answer(
        self,
        pictures: Sequence[host.Picture],
        question: str,
        *,
        max_tokens: int = 32,
        deadline: float | None = None,
    ) -> Answer:
        """What the local target answers: as `VLMReader.answer` does, greedily.

        Args:
            pictures: of any kinds and sizes, such as a picture and a crop of it.
            question: about them.
            max_tokens: of the answer; more than the engine's `answer_tokens` are not written.
            deadline: as of `look`.

        Raises:
            Busy: as many requests are accepted as may be.
            Closed: the engine has not started, or is shutting down.
            DeadlineExceeded: the deadline has passed.
            OSError: a picture cannot be read.
            ValueError: pictures or question cannot be used, or there is no local target.
        """
        served = self._answers
        if served is None:
            raise ValueError("this server has no target of its own")
        if max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens} must be at least 1")
        async with self._accept(metrics.ANSWER, pictures, deadline):
            begun = time.monotonic()
            with self._batcher.coming(metrics.ANSWER):
                prepare = functools.partial(_prepare_answer, served, pictures, question, max_tokens)
                asked = await _in(self._before, prepare)
                lane = served.lane(asked.row)
            ready = time.monotonic()
            done = await self._batcher.submit(lane, asked)
            seconds = {"prepare": ready - begun, "queue": done.queued, "target": done.worked}
            spoken = served.read(done.value, asked.limit)
            sizes = (host.picture_size(picture) for picture in pictures)
            image_tokens = sum(served.target.tokens_of(height, width) for height, width in sizes)
            return Answer(
                text=spoken.text,
                finish_reason=spoken.finish_reason,
                image_tokens=image_tokens,
                prompt_tokens=served.prompt_tokens(asked.row, image_tokens),
                completion_tokens=spoken.tokens,
                milliseconds=self._observe(metrics.ANSWER, seconds),
                nats=spoken.nats,
            )

    def check_room(self, pictures: Sequence[host.Picture]) -> None:
        """Checks that there is room for the looks of one request at once, in an idle engine.

        Args:
            pictures: of the request, one a look.

        Raises:
            TooLarge: there never is.
        """
        if len(pictures) > self._queue:
            raise TooLarge(
                f"the request has {len(pictures)} pictures to look at, and {self._queue} may wait "
                f"at once: send fewer, or start the server with --queue={len(pictures)}"
            )
        size = sum(map(_decoded_bytes, pictures))
        if len(pictures) > 1 and size > self._picture_bytes:
            raise TooLarge(
                f"the request's {len(pictures)} pictures take {size / 1e6:,.1f} MB once decoded, "
                f"over the limit of {self._picture_bytes / 1e6:,.1f} MB: send fewer or smaller ones"
            )

    def expecting(self) -> contextlib.AbstractContextManager[None]:
        """Around what a caller does before `look`, so that the device waits a little for it."""
        return self._batcher.coming(metrics.LOOK)

    def _prepare_look(self, picture: host.Picture, question: str) -> tuple[np.ndarray, Asked]:
        """The picture as uint8 RGB `[H, W, 3]`, and what the cropper is asked."""
        image = host.to_rgb(picture)
        return image, self._looks.ask(image, question)

    @contextlib.asynccontextmanager
    async def _accept(
        self, kind: str, pictures: Sequence[host.Picture], deadline: float | None
    ) -> AsyncIterator[None]:
        """Around the work on a request: its place, its deadline, and how it ended."""
        with self._counted(kind), self._place(kind, pictures):
            try:
                left = None if deadline is None else deadline - time.monotonic()
                async with asyncio.timeout(left):
                    yield
            except TimeoutError as error:
                raise DeadlineExceeded from error

    @contextlib.contextmanager
    def _counted(self, kind: str) -> Iterator[None]:
        """Counts how a request ends."""
        outcome = metrics.FAILED
        try:
            yield
            outcome = metrics.OK
        except Busy:
            outcome = metrics.REFUSED
            raise
        except DeadlineExceeded:
            outcome = metrics.LATE
            raise
        except asyncio.CancelledError:
            outcome = metrics.LEFT
            raise
        finally:
            self.metrics.requests.labels(kind, outcome).inc()

    @contextlib.contextmanager
    def _place(self, kind: str, pictures: Sequence[host.Picture]) -> Iterator[None]:
        """Gives a request its place, if there is room for it.

        Raises:
            Busy: there is none.
            Closed: the engine has not started, or is shutting down.
        """
        if not self.ready:
            raise Closed("the server is starting or shutting down")
        for picture in pictures:
            check_picture(picture)
        size = sum(map(_decoded_bytes, pictures))
        full = self._bytes and self._bytes + size > self._picture_bytes
        if full or self._accepted[kind] >= self._queue:
            raise Busy(sum(self._accepted.values()), retry_after=self._seconds[kind])
        self._take(kind, 1, size)
        try:
            yield
        finally:
            self._take(kind, -1, -size)

    def _take(self, kind: str, requests: int, size: int) -> None:
        """Adds to what is accepted: requests, and bytes of their pictures."""
        self._accepted[kind] += requests
        self._bytes += size
        self.metrics.waiting.labels(kind).set(self._accepted[kind])
        if any(self._accepted.values()):
            self._idle.clear()
        else:
            self._idle.set()

    def _observe(self, kind: str, seconds: Mapping[str, float]) -> dict[str, float]:
        """Notes the seconds of the stages of a request that is done; gives milliseconds."""
        self._seconds[kind] = sum(seconds.values())
        for stage, each in seconds.items():
            self.metrics.seconds.labels(kind, stage).observe(each)
        return {stage: 1000 * each for stage, each in seconds.items()}


async def _in(pool: ThreadPoolExecutor, function: Callable[[], Result]) -> Result:
    """What a function returns that runs in a thread of a pool."""
    return await asyncio.get_running_loop().run_in_executor(pool, function)


def _decoded_bytes(picture: host.Picture) -> int:
    """Bytes that a picture takes as RGB."""
    return CHANNELS * math.prod(host.picture_size(picture))


def _prepare_answer(
    served: ServedTarget, pictures: Sequence[host.Picture], question: str, max_tokens: int
) -> Asked:
    """What the target is asked about pictures of any kinds."""
    return served.ask([host.to_rgb(picture) for picture in pictures], question, max_tokens)


def _cut(image: np.ndarray, reply: Reply, written: str, policy: Policy) -> Look:
    """What there is to say of a picture, but for the times.

    Args:
        image: uint8 `[H, W, 3]`.
        reply: the cropper's.
        written: its text.
        policy: how many boxes are cut, and how large.
    """
    boxes = [np.array(box) for box in reply.boxes[: policy.looks]]
    if policy.area_scale != 1:
        boxes = [geometry.expand_reply(box, policy.area_scale) for box in boxes]
    size = np.array(image.shape[:2])
    return Look(
        boxes=tuple(_four(box) for box in boxes),
        pixel_boxes=tuple(_four(geometry.to_pixels(box, size)) for box in boxes),
        crops=tuple(Image.fromarray(host.cut(image, box)) for box in boxes),
        reply=written,
        confidence=reply.confidence,
        size=(image.shape[1], image.shape[0]),
        milliseconds={},
        pixels=image,
    )


def _four(edges: np.ndarray) -> Any:
    """Four numbers of an array."""
    left, top, right, bottom = edges.tolist()
    return left, top, right, bottom
