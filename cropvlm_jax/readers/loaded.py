# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A vision-language model in memory, run on conversations about pictures of any sizes."""

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from cropvlm_jax import parallel
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.models.conversations import Conversation
from cropvlm_jax.models.vlm import VLM
from cropvlm_jax.readers.batches import Row, concatenate, make_batches
from cropvlm_jax.readers.inputs import Picture, as_array


class LoadedModel:
    """A loaded model with what prepares its inputs: the base of `VLMReader` and `api.CropVLM`.

    Attributes:
        source: where the model comes from: its configuration, tokenizer and image processing.
        graphdef: the structure of the model, from `nnx.split`.
        params: its weights, from `nnx.split`.
        longest_edge: pixels that pictures' longest sides are resized to before they are split.
        conversations: how questions become token ids.
        mesh: whose devices hold the weights; None where one does.
        work: what it has read and written in all: "pictures" that the decoder read, "tiles" that
            the tower read, and the decoder's "tokens".
    """

    def __init__(self, source: Pretrained, model: VLM, longest_edge: int, mesh: Mesh | None = None):
        if longest_edge < 1:
            raise ValueError(f"longest_edge={longest_edge} must be at least 1 px")
        source.log_cost(longest_edge)
        self.source, self.longest_edge, self.mesh = source, longest_edge, mesh
        self.conversations = source.conversations()
        self.graphdef, self.params = nnx.split(model)
        self.work: collections.Counter[str] = collections.Counter()

    def see(self, pictures: Sequence[Picture]) -> tuple[Any, list[Any]]:
        """What the model sees of the pictures of a conversation.

        Returns:
            Arrays `[N, ...]` of all pictures one after the other, and the grid of each picture,
            which its conversation must know.
        """
        seen, grids = [], []
        for picture in pictures:
            images, grid = self.source.see(as_array(picture), self.longest_edge)
            seen.append(images)
            grids.append(grid)
        return concatenate(seen), grids

    def tokens_of(self, height: int, width: int) -> int:
        """How many tokens the model reads of a picture of this size."""
        return self.source.image_tokens(height, width, self.longest_edge)

    def row(self, images: Any, conversation: Conversation, reply_tokens: int) -> Row:
        """A conversation as a row of a batch.

        Args:
            images: what the model sees of its pictures, from `see`.
            conversation: its token ids and spans.
            reply_tokens: longest reply, which must find room after the prompt.
        """
        self.check_length(conversation, reply_tokens)
        start = conversation.completion.start
        return Row(
            images=images,
            prompt=conversation.ids[:start],
            completion=conversation.ids[conversation.completion],
        )

    def check_length(self, conversation: Conversation, reply_tokens: int) -> None:
        """Checks that a conversation and a reply of at most `reply_tokens` have room.

        Raises:
            ValueError: the model has fewer positions.
        """
        start = conversation.completion.start
        limit = self.source.config.text.max_position_embeddings
        if start + reply_tokens > limit:
            raise ValueError(
                f"{start} prompt tokens and {reply_tokens} for the reply are over the model's "
                f"{limit} positions: shorten the texts or {self.source.architecture.fewer_tokens}"
            )

    def run(
        self, function: Callable[..., jax.Array], rows: Iterable[Row], *options: Any
    ) -> list[np.ndarray]:
        """Runs the model on rows, batch by batch.

        Args:
            function: jitted, `(graphdef, params, batch, *options)` to an array `[B, ...]`.
            rows: the conversations.
            *options: what `function` takes besides.

        Returns:
            The result of each row, in the order of the rows.
        """
        results = dict(self.stream(function, rows, options))
        return [results[index] for index in range(len(results))]

    def stream(
        self,
        function: Callable[..., jax.Array],
        rows: Iterable[Row],
        options: Sequence[Any],
        **batching: Any,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Results of rows as they come, batch by batch, each with the number of its row.

        Args:
            function: as of `run`.
            rows: the conversations, taken as they are needed.
            options: as of `run`.
            **batching: most_rows and prompt_multiple, as of `make_batches`.
        """
        for indices, batch in make_batches(map(self._counted, rows), **batching):
            outputs = self.call(function, batch, *options)
            yield from zip(indices, outputs[: len(indices)], strict=True)

    def _counted(self, row: Row) -> Row:
        """The same row, added to what the model has read."""
        tiles = len(jax.tree.leaves(row.images)[0])
        tokens = len(row.prompt) + len(row.completion)
        self.work.update(pictures=1, tiles=tiles, tokens=tokens)
        return row

    def text_of(self, reply: np.ndarray) -> str:
        """What the tokens of a reply say, int `[T]`, the end tokens left out."""
        return self.source.tokenizer.decode(reply[reply != self.source.end_token_id].tolist())

    def call(self, function: Callable[..., jax.Array], batch: Any, *options: Any) -> np.ndarray:
        """What jitted `function` returns for a batch, run on the devices that hold the weights."""
        with self.on_mesh():
            batch = self.on_devices(batch)
            return np.asarray(function(self.graphdef, self.params, batch, *options))

    def on_devices(self, batch: Any) -> Any:
        """A batch; where several devices hold the weights, split over them by its rows."""
        return batch if self.mesh is None else parallel.put_batch(self.mesh, batch)

    def on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        """In which jitted functions are called that take the weights."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)
