# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A model behind a chat endpoint as the labeller: many requests under way, replies kept on disk."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from cropvlm_jax import geometry
from cropvlm_jax.labelling.base import MAX_NEW_TOKENS, Told, resolve_frame
from cropvlm_jax.models.registry import architecture_named
from cropvlm_jax.pixels import host
from cropvlm_jax.pixels.host import Picture
from cropvlm_jax.readers.asking import ask
from cropvlm_jax.readers.chat import ChatReader
from cropvlm_jax.readers.registry import open_chat

CONCURRENCY = 16  # requests under way at once
AT_ONCE = 8  # times as many pictures are handed to the endpoint together
PIXELS = 2**26  # most pixels of these pictures


class _Prepared(NamedTuple):
    """A picture and what is asked about it.

    Attributes:
        picture: as it is sent, uint8 `[H, W, 3]`.
        text: what to ask.
        resized: `Told.resized`.
    """

    picture: np.ndarray
    text: str
    resized: tuple[int, int] | None


class EndpointLabeller:
    """A model behind an OpenAI-compatible chat endpoint that says boxes.

    Replies are kept on disk by the content of their requests, so that what was answered once costs
    nothing again. What the server refuses or fails to answer has no reply.

    Attributes:
        frame: what the numbers of its boxes count.
        reader: which asks.
    """

    def __init__(self, reader: ChatReader, frame: str, max_pixels: int = geometry.MAX_PIXELS):
        """Wraps a reader.

        Args:
            reader: which asks, with no instruction of its own.
            frame: what the numbers of its boxes count.
            max_pixels: to which the server's processor resizes larger pictures; it matters where
                the frame is "smart_resized".
        """
        self.reader, self.frame, self._max_pixels = reader, frame, max_pixels

    @classmethod
    def open(
        cls, spec: str, *, frame: str | None = None, max_pixels: int | None = None, **options: Any
    ) -> "EndpointLabeller":
        """Prepares to ask a model; nothing is sent yet.

        Args:
            spec: its name, "openai:MODEL"; "@" and pixels after it reduce the pictures.
            frame: of its boxes, where its name does not tell.
            max_pixels: as of the class; None takes what Qwen's released processors say.
            **options: as `ChatReader` takes them.

        Raises:
            ImportError: the client is not installed.
            ValueError: the frame is not known, or there is no key or address.
        """
        known = named_frame(spec, frame)
        reader = open_chat(
            spec,
            **{"concurrency": CONCURRENCY} | options,
            instruction="",
            max_tokens=MAX_NEW_TOKENS,
        )
        return cls(reader, known, max_pixels or geometry.MAX_PIXELS)

    def prepare(self, picture: Picture, text: str) -> _Prepared:
        """A picture as it is sent; see `Labeller.prepare`."""
        image, edge = host.to_rgb(picture), self.reader.longest_edge
        if edge:
            image = host.shrink_to_fit(image, edge, edge)
        resized = None
        if self.frame in ("pixels", "smart_resized"):
            height, width = image.shape[:2]
            resized = geometry.frame_size(self.frame, height, width, self._max_pixels)
        return _Prepared(image, text, resized)

    def ask(self, prepared: Iterable[tuple[str, _Prepared]]) -> Iterator[Told]:
        """Replies, several requests under way at once; see `Labeller.ask`."""
        part: list[tuple[str, _Prepared]] = []
        pixels, most = 0, AT_ONCE * self.reader.concurrency
        for example_id, each in prepared:
            part.append((example_id, each))
            pixels += each.picture.size // 3
            if len(part) == most or pixels >= PIXELS:
                yield from self._ask(part)
                part, pixels = [], 0
        yield from self._ask(part)

    def _ask(self, part: Sequence[tuple[str, _Prepared]]) -> Iterator[Told]:
        """The replies about pictures that are in memory."""
        replies = ask(self.reader, [[p.picture] for _, p in part], [p.text for _, p in part])
        for (example_id, each), reply in zip(part, replies, strict=True):
            yield Told(example_id, reply, each.resized)


def named_frame(spec: str, given: str | None) -> str:
    """The frame of the boxes of a model behind an endpoint, from its name.

    Args:
        spec: its name.
        given: by the user; None where nothing was.

    Raises:
        ValueError: the name does not tell and the user did not say, or they contradict each other.
    """
    architecture = architecture_named(spec)
    return resolve_frame(architecture.box_frame if architecture else None, given, spec)
