# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The models of a server, at the shapes that they are compiled for.

Shape letters: B rows of a batch, T tokens of the longest answer.
"""

import abc
import dataclasses
import time
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np
from absl import logging

from cropvlm_jax import geometry
from cropvlm_jax.api import CropVLM, Reply, likeliest_boxes
from cropvlm_jax.data.batching import SupervisedBatch
from cropvlm_jax.readers.base import reply_from
from cropvlm_jax.readers.batches import Row, full_batch, stack_rows
from cropvlm_jax.readers.loaded import LoadedModel
from cropvlm_jax.readers.vlm import VLMReader, scored_replies
from cropvlm_jax.serving import metrics
from cropvlm_jax.serving.shapes import Room, image_count, make_rooms


class Asked(NamedTuple):
    """What a request asks of a model.

    Attributes:
        row: its conversation.
        limit: most tokens of the reply; a cropper's replies have a limit of their own.
    """

    row: Row
    limit: int = 1


class Spoken(NamedTuple):
    """A reply of the target.

    Attributes:
        text: of it.
        finish_reason: "stop" where the target ended it, "length" where the limit did.
        tokens: that it wrote, the end token included.
        nats: log-probability of what it wrote.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int
    nats: float


class Served(abc.ABC):
    """A model that answers rows of few shapes.

    Attributes:
        kind: of work, for metrics.
        model: it and its weights.
        lanes: its shapes, the smallest first.
        seconds: that the device takes for a full batch of each room, once it is compiled.
    """

    kind: str

    def __init__(self, model: LoadedModel, rooms: Sequence[Room], batch_sizes: Sequence[int]):
        """See `shapes.make_rooms`; of each room the batch sizes that memory is meant for."""
        self.model = model
        self.seconds: dict[Room, float] = {}
        self._small = _in_any_room(self.example())
        most = {room: full_batch(room.fill(self._small.row)) for room in rooms}
        self.lanes = tuple(
            Lane(self, room, tuple(size for size in batch_sizes if size <= most[room]))
            for room in rooms
        )

    @abc.abstractmethod
    def example(self) -> Asked:
        """Any request."""

    @abc.abstractmethod
    def call(self, batch: SupervisedBatch, limits: np.ndarray) -> np.ndarray:
        """The results `[B, ...]` of a batch.

        Args:
            batch: of rows.
            limits: int32 `[B, 1]`, most tokens of their replies.
        """

    def lane(self, row: Row) -> "Lane":
        """The smallest lane that holds a row.

        Raises:
            ValueError: none does.
        """
        found = next((lane for lane in self.lanes if lane.room.holds(row)), None)
        if found is None:
            room = self.lanes[-1].room
            raise ValueError(
                f"{len(row.prompt)} prompt tokens about {image_count(row)} tiles are more than "
                f"this server takes, {room.prompt} about {room.images}: shorten the question"
            )
        return found

    def compile(self) -> None:
        """Runs an example at each shape, so that no later request has to compile one.

        The largest batch of each lane runs twice, the second time by the clock.
        """
        for lane in self.lanes:
            for size in lane.sizes:
                logging.info("%s: compiling %d rows of %s", self.kind, size, lane.room)
                lane.call(lane.assemble([self._small] * size))
            begun = time.monotonic()
            lane.call(lane.assemble([self._small] * lane.most))
            self.seconds[lane.room] = time.monotonic() - begun


def _in_any_room(asked: Asked) -> Asked:
    """A request cut down to one tile and the end of its prompt: only its shapes matter."""
    images = jax.tree.map(lambda leaf: leaf[:1], asked.row.images)
    return asked._replace(row=asked.row._replace(images=images, prompt=asked.row.prompt[-2:]))


@dataclasses.dataclass(frozen=True)
class Lane:
    """Requests of one shape, which may share a call of the device.

    Attributes:
        served: the model.
        room: of each row.
        sizes: rows of the batches that are compiled, ascending from 1.
    """

    served: Served
    room: Room
    sizes: tuple[int, ...]

    @property
    def kind(self) -> str:
        """Of work, for metrics."""
        return self.served.kind

    @property
    def most(self) -> int:
        """Most rows of a batch."""
        return self.sizes[-1]

    @property
    def seconds(self) -> float:
        """That the device takes for a full batch."""
        return self.served.seconds[self.room]

    def assemble(self, asked: Sequence[Asked]) -> tuple[SupervisedBatch, np.ndarray]:
        """A batch of the smallest size that holds all, and the limits of its replies."""
        size = next(size for size in self.sizes if size >= len(asked))
        limits = [each.limit for each in asked] + [1] * (size - len(asked))
        rows = [self.room.fill(each.row) for each in asked]
        return stack_rows(rows, size, self.room.prompt), np.array(limits, np.int32)[:, None]

    def call(self, assembled: tuple[SupervisedBatch, np.ndarray]) -> list[np.ndarray]:
        """What the model says of each row, padding included."""
        batch, limits = assembled
        return list(self.served.call(batch, limits))


class ServedCropper(Served):
    """The cropper, which gives of each row what `likeliest_boxes` does: fp32 `[4 K + 2]`."""

    kind = metrics.LOOK

    def __init__(
        self, cropper: CropVLM, batch_sizes: Sequence[int], question_tokens: Sequence[int]
    ):
        """See `shapes.make_rooms`."""
        self.cropper, self.grammar = cropper, cropper.grammar
        rooms = make_rooms(
            cropper,
            lambda question, grids: cropper.conversations.crop(question, grids[0]),
            pictures=1,
            question_tokens=question_tokens,
            reply_tokens=cropper.grammar.max_length,
        )
        super().__init__(cropper, rooms, batch_sizes)

    def ask(self, picture: np.ndarray, question: str) -> Asked:
        """Where to look in a picture; raises as `CropVLM.crop_row` does."""
        return Asked(self.cropper.crop_row(picture, question))

    def example(self) -> Asked:
        """A small picture and a short question; see `Served.example`."""
        return self.ask(np.zeros((8, 8, 3), np.uint8), "A")

    def call(self, batch: SupervisedBatch, limits: np.ndarray) -> np.ndarray:
        """fp32 `[B, 4 K + 2]`, see `likeliest_boxes`."""
        return self.model.call(likeliest_boxes, batch, self.grammar)


class ServedSecondLook(ServedCropper):
    """The second look of a cropper that looks twice, at crops of one tile."""

    def __init__(
        self,
        cropper: CropVLM,
        grammar: geometry.Grammar,
        batch_sizes: Sequence[int],
        question_tokens: Sequence[int],
    ):
        """See `shapes.make_rooms`; crops take the rooms of the fewest tiles.

        Args:
            cropper: that looks twice.
            grammar: of its second replies.
            batch_sizes: as of `Served`.
            question_tokens: as of `make_rooms`.
        """
        super().__init__(cropper, batch_sizes, question_tokens)
        self.grammar = grammar
        fewest = self.lanes[0].room.images
        self.lanes = tuple(lane for lane in self.lanes if lane.room.images == fewest)

    def ask_again(self, picture: np.ndarray, question: str, reply: Reply) -> Asked:
        """Where to look in the crop of a first reply; raises as `CropVLM.second_row` does."""
        return Asked(self.cropper.second_row(picture, question, reply))


class ServedTarget(Served):
    """A local target, which gives of each row what `scored_replies` does: fp32 `[T + 1]`."""

    kind = metrics.ANSWER

    def __init__(
        self,
        target: VLMReader,
        batch_sizes: Sequence[int],
        *,
        question_tokens: Sequence[int],
        reply_tokens: int,
        pictures: int,
    ):
        """See `shapes.make_rooms`."""
        self.target, self.pictures, self.reply_tokens = target, pictures, reply_tokens
        rooms = make_rooms(
            target,
            lambda question, grids: target.conversations.answer(question, len(grids), None, grids),
            pictures=pictures,
            question_tokens=question_tokens,
            reply_tokens=reply_tokens,
        )
        super().__init__(target, rooms, batch_sizes)

    def ask(self, pictures: Sequence[np.ndarray], question: str, max_tokens: int) -> Asked:
        """A reply of at most `max_tokens`, or T where that is less.

        Raises:
            ValueError: pictures or question cannot be used.
        """
        if not 1 <= len(pictures) <= self.pictures:
            raise ValueError(
                f"{len(pictures)} pictures, crops included: the local target takes 1 to "
                f"{self.pictures}"
            )
        seen, grids = self.target.see(pictures)
        conversation = self.target.conversations.answer(question, len(pictures), None, grids)
        row = self.target.row(seen, conversation, self.reply_tokens)
        return Asked(row, min(max_tokens, self.reply_tokens))

    def example(self) -> Asked:
        """A small picture, a short question and a reply of one token; see `Served.example`."""
        return self.ask([np.zeros((8, 8, 3), np.uint8)], "A", 1)

    def call(self, batch: SupervisedBatch, limits: np.ndarray) -> np.ndarray:
        """fp32 `[B, T + 1]`."""
        end = self.target.source.end_token_id
        return self.model.call(scored_replies, batch, end, self.reply_tokens, limits)

    def read(self, reply: np.ndarray, limit: int) -> Spoken:
        """The reply that a row `[T + 1]` is, of which at most `limit` tokens were wanted."""
        end, wanted = self.target.source.end_token_id, reply[:-1].astype(np.int32)[:limit]
        words, nats = wanted[wanted != end], float(reply[-1])
        text = reply_from(self.target.text_of(words)).text
        if len(words) < limit:
            return Spoken(text, "stop", len(words) + 1, nats)
        return Spoken(text, "length", limit, nats)

    def prompt_tokens(self, row: Row, image_tokens: int) -> int:
        """Tokens of a prompt, of the places for image tokens only those that are filled."""
        places = int((row.prompt == self.target.source.config.image_token_id).sum())
        return len(row.prompt) - places + image_tokens
