# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The vision-language models of this package as readers: answers, likelihoods and logits.

Shape letters: n questions, B rows of a batch, N pictures or tiles of a row, S pixels of a tile's
side, T tokens, V vocabulary.
"""

import collections
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from cropvlm_jax.data.batching import SupervisedBatch
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.models.conversations import Conversation
from cropvlm_jax.models.decode import greedy_decode, read_prompt
from cropvlm_jax.models.vlm import VLM, ImageTokens
from cropvlm_jax.pixels import host
from cropvlm_jax.readers import together
from cropvlm_jax.readers.ahead import ahead
from cropvlm_jax.readers.base import Likelihood, Reply, reply_from
from cropvlm_jax.readers.batches import PROMPT_MULTIPLE, concatenate, power_of_two, round_up
from cropvlm_jax.readers.inputs import Picture, Shown, as_lists, blamed_on_item, check_texts
from cropvlm_jax.readers.loaded import LoadedModel
from cropvlm_jax.readers.together import Group, GroupBatch, Question


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def greedy_replies(
    graphdef: nnx.GraphDef,
    params: Any,
    batch: SupervisedBatch,
    end_token: int,
    max_tokens: int,
    limits: Int[Array, "B 1"] | None = None,
) -> Int[Array, "B {max_tokens}"]:
    """Greedy replies of at most `limits` tokens; what follows an end token is end tokens."""
    replies = scored_replies(graphdef, params, batch, end_token, max_tokens, limits)
    return replies[:, :-1].astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def scored_replies(
    graphdef: nnx.GraphDef,
    params: Any,
    batch: SupervisedBatch,
    end_token: int,
    max_tokens: int,
    limits: Int[Array, "B 1"] | None = None,
) -> Float[Array, "B {max_tokens}+1"]:
    """The tokens of `greedy_replies`, and then the log-probability of each reply; fp32."""
    model = nnx.merge(graphdef, params)
    image_tokens = model.encode_images(batch.images)
    prefix = read_prompt(model, image_tokens, batch.prompt, batch.prompt_valid)
    last_token = batch.prompt[:, -1:]
    replies = greedy_decode(
        model, prefix, last_token, end_token=end_token, max_tokens=max_tokens, limits=limits
    )
    return together.with_log_probs(replies)[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def _logits(
    graphdef: nnx.GraphDef,
    params: Any,
    inputs: tuple[Int[Array, "B T"], Bool[Array, "B T"], Float[Array, "B N S S 3"]],
) -> Float[Array, "B T V"]:
    """Logits of whole sequences, fp32, from token ids, which are real, and pictures."""
    ids, valid, images = inputs
    return nnx.merge(graphdef, params)(ids, valid, images)


class VLMReader(LoadedModel):
    """A vision-language model that answers questions about one picture, or it and crops of it.

    Attributes:
        name: for reports.
        settings: what replies depend on, for reports and records.
    """

    def __init__(
        self,
        source: Pretrained,
        model: VLM,
        longest_edge: int,
        mesh: Mesh | None = None,
        name: str | None = None,
    ):
        """Wraps a model that is loaded.

        Args:
            source: where it comes from.
            model: its weights.
            longest_edge: pixels that pictures' longest sides are resized to before they are split.
            mesh: whose devices hold the weights; None where one does.
            name: for reports; None takes the folder.
        """
        super().__init__(source, model, longest_edge, mesh)
        self.name = str(source.folder) if name is None else name
        # The config holds the image processor's settings too; a digest of it tells nobody which.
        digest = hashlib.sha256(repr(source.config).encode()).hexdigest()[:16]
        self.settings: dict[str, Any] = {"config": digest}
        if source.changes:
            self.settings["processor"] = dict(source.changes)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: Any = jnp.float32,
        longest_edge: int | None = None,
        processor: Mapping[str, Any] | None = None,
        mesh: Mesh | None = None,
    ) -> "VLMReader":
        """Loads a model.

        Args:
            name: a folder, a bundled model or a model of the Hugging Face Hub.
            dtype: of the computation and the weights.
            longest_edge: for models that split pictures into tiles, pixels that pictures' longest
                sides are resized to; None takes one tile, the model's input size.
            processor: settings of the image processor, as `Pretrained.open` takes them.
            mesh: whose devices share the weights and the rows of batches, from
                `parallel.make_mesh`; None takes the first device.
        """
        source = Pretrained.open(name, processor=processor)
        reported = str(name) if longest_edge is None else f"{name}@{longest_edge}"
        if source.architecture.splits_pictures:
            longest_edge = source.tile_size if longest_edge is None else longest_edge
        elif longest_edge is not None:
            kind = source.config.model_type
            raise ValueError(f"longest_edge={longest_edge}: a {kind} does not split pictures")
        else:
            longest_edge = source.longest_edge
        return cls(source, source.load(mesh, dtype=dtype), longest_edge, mesh, reported)

    def answer(
        self, images: Sequence[Shown], questions: Sequence[str], max_tokens: int = 32
    ) -> list[Reply]:
        """Greedy answers.

        Args:
            images: of each question, a picture, or a list of the picture and crops of it.
            questions: the questions.
            max_tokens: longest answer.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens} must be at least 1")
        groups, end = self._groups(images, questions, None, max_tokens), self.source.end_token_id

        def ask(tokens: ImageTokens, batch: GroupBatch) -> jax.Array:
            return together.greedy_answers(
                self.graphdef, self.params, tokens, batch, end, max_tokens
            )

        told = together.run(self, ask, groups)
        replies = [row[:-1].astype(np.int32) for row in told]
        for reply in replies:
            self.work["tokens"] += min(int((reply != end).sum()) + 1, max_tokens)
        return [
            reply_from(self.text_of(reply), float(row[-1]))
            for reply, row in zip(replies, told, strict=True)
        ]

    def check_likelihoods(self) -> None:
        """Does nothing: a model in memory can always tell likelihoods."""

    def likelihoods(
        self,
        images: Sequence[Shown],
        questions: Sequence[str],
        answers: Sequence[str],
    ) -> list[Likelihood]:
        """How likely answers are, summed over their tokens and the end token.

        Args:
            images: of each question, a picture, or a list of the picture and crops of it.
            questions: the questions.
            answers: an answer to each; the model's conversations say how it is written.
        """
        tell = functools.partial(together.log_likelihoods, self.graphdef, self.params)
        told = together.run(self, tell, self._groups(images, questions, answers, 0))
        return [Likelihood(float(nats), int(tokens)) for nats, tokens in told]

    def log_likelihood(
        self,
        images: Sequence[Shown],
        questions: Sequence[str],
        answers: Sequence[str],
    ) -> np.ndarray:
        """The nats of `likelihoods`, fp32 `[n]`."""
        told = self.likelihoods(images, questions, answers)
        return np.array([each.nats for each in told], np.float32)

    def image_tokens(self, images: Sequence[Shown]) -> int:
        """How many tokens all these pictures take together."""
        sizes = [host.picture_size(picture) for shown in as_lists(images) for picture in shown]
        return sum(self.tokens_of(height, width) for height, width in sizes)

    def logits(
        self,
        input_ids: np.ndarray,
        pixel_values: np.ndarray,
        attention_mask: np.ndarray | None = None,
    ) -> np.ndarray:
        """Logits of what a Hugging Face processor returned, where it returns square pictures.

        Args:
            input_ids: int `[B, T]`.
            pixel_values: normalised floats `[B, N, 3, S, S]`; pictures that are all zero are
                padding, the others take the `<image>` tokens of their row in order.
            attention_mask: `[B, T]`, 0 for padding; None where there is none.

        Returns:
            fp32 `[B, T, V]`, meaningless in the padding.
        """
        ids, pixels = np.asarray(input_ids, np.int32), np.asarray(pixel_values, np.float32)
        valid = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask)
        real = self._check_inputs(ids, pixels, valid)
        # The real pictures of a row come first, channels last.
        order = np.argsort(~real, axis=-1, kind="stable")
        pixels = pixels[np.arange(len(ids))[:, None], order].transpose(0, 1, 3, 4, 2)
        length = ids.shape[1]
        rows = (0, power_of_two(len(ids)) - len(ids))
        columns = (0, round_up(length, PROMPT_MULTIPLE) - length)
        padded = (
            np.pad(ids, (rows, columns)),
            np.pad(valid.astype(bool), (rows, columns)),
            np.pad(pixels, (rows, (0, 0), (0, 0), (0, 0), (0, 0))),
        )
        return self.call(_logits, padded)[: len(ids), :length]

    def _check_inputs(self, ids: np.ndarray, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Which pictures are real, bool `[B, N]`, after checking that the arrays fit together."""
        config = self.source.config
        if not self.source.architecture.reads_pixel_values:
            kind = config.model_type
            raise ValueError(f"pixel_values of the processor of a {kind} are not supported")
        side = self.source.tile_size
        if ids.ndim != 2 or valid.shape != ids.shape:
            raise ValueError(f"input_ids {ids.shape} and attention_mask {valid.shape}: not [B, T]")
        if pixels.ndim != 5 or pixels.shape != (len(ids), pixels.shape[1], 3, side, side):
            raise ValueError(f"pixel_values {pixels.shape}: not [{len(ids)}, N, 3, {side}, {side}]")
        real = np.asarray(pixels.any(axis=(2, 3, 4)))
        places = (ids == config.image_token_id).sum(-1)
        if (places != real.sum(-1) * config.image_seq_len).any():
            raise ValueError(
                f"rows with {real.sum(-1)} pictures of {config.image_seq_len} tokens each have "
                f"{places} <image> tokens"
            )
        return real

    def _groups(
        self,
        images: Sequence[Shown],
        questions: Sequence[str],
        answers: Sequence[str] | None,
        max_tokens: int,
    ) -> Iterator[Group]:
        """The conversations, with `answers` or with room for a reply of `max_tokens`.

        Those whose first picture is the same object are put together.
        """
        check_texts(images, questions=questions)
        if answers is not None:
            check_texts(images, answers=answers)
        nested = as_lists(images)
        same: dict[int, list[int]] = collections.defaultdict(list)
        for number, pictures in enumerate(nested):
            same[id(pictures[0])].append(number)

        def group(numbers: Sequence[int]) -> Group:
            seen = _Seen(self)
            asked = []
            for number in numbers:
                with blamed_on_item(number + 1, len(nested)):
                    looks = [seen.look(picture) for picture in nested[number]]
                    conversation = self.conversations.answer(
                        questions[number],
                        len(looks),
                        None if answers is None else answers[number],
                        [grid for _, grid in looks],
                    )
                    reply = conversation.completion
                    self.check_length(conversation, max_tokens or reply.stop - reply.start)
                crops = [tile for tiles, _ in looks[1:] for tile in tiles]
                asked.append((number, crops, conversation))
            return _group(seen, asked)

        return ahead(group, same.values())


class _Seen:
    """What a model sees of pictures, each of which it looks at once.

    Attributes:
        images: of all pictures, leaves `[tiles, ...]`.
    """

    def __init__(self, model: LoadedModel):
        self.images: list[Any] = []
        self._model, self._tiles = model, 0
        self._known: dict[int, tuple[range, Any]] = {}  # the caller keeps the pictures alive

    def look(self, picture: Picture) -> tuple[range, Any]:
        """The numbers of a picture's tiles among all, and its grid."""
        if id(picture) not in self._known:
            images, (grid,) = self._model.see([picture])
            self.images.append(images)
            start = self._tiles
            self._tiles += len(jax.tree.leaves(images)[0])
            self._known[id(picture)] = range(start, self._tiles), grid
        return self._known[id(picture)]


def _group(seen: _Seen, asked: Sequence[tuple[int, list[int], Conversation]]) -> Group:
    """Questions about one picture.

    Args:
        seen: the picture and its crops.
        asked: numbers of the questions, the tiles of their crops, and their conversations, which
            are the same up to the end of the picture.
    """
    first = asked[0][2]
    end = first.images[0].stop
    return Group(
        images=concatenate(seen.images),
        whole=len(jax.tree.leaves(seen.images[0])[0]),
        prefix=first.ids[:end],
        questions=[
            Question(
                number=number,
                crops=crops,
                prompt=conversation.ids[end : conversation.completion.start],
                completion=conversation.ids[conversation.completion],
            )
            for number, crops, conversation in asked
        ],
    )
