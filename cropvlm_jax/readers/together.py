# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Questions about one picture read together: the picture once, then crops with their question.

A picture that several questions share goes through the tower once, and the decoder reads it once:
every question goes on from the same keys and values. The tower sees tiles of all pictures in small
batches of its own, so that few shapes are compiled whatever the pictures' shapes.

Shape letters: K tiles of a batch, I tokens of a tile, B pictures, W tiles of a picture, G questions
about each, g of them at a time, M tiles of the crops of one; tokens: P up to the end of the
picture, S from there to the reply, C of a given reply, T of a written one; V vocabulary.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from cropvlm_jax.data import batching
from cropvlm_jax.models.decode import Greedy, greedy_decode
from cropvlm_jax.models.llama import KVCache
from cropvlm_jax.models.vlm import VLM, ImageTokens
from cropvlm_jax.readers.batches import (
    PROMPT_MULTIPLE,
    REPLY_MULTIPLE,
    TILE_BYTES,
    TILES,
    concatenate,
    power_of_two,
    round_up,
)
from cropvlm_jax.readers.loaded import LoadedModel

TOWER_TILES = 8  # that the tower sees at once, on a device
QUESTIONS = 8  # about a picture that are read at once, which bounds memory
TILE_MULTIPLE = 16  # more tiles than that are padded to a multiple of so many
LONG, LONG_MULTIPLE = 256, 128  # tokens; longer texts are padded to a coarser multiple


class Question(NamedTuple):
    """A question about a picture.

    Attributes:
        number: of the question among all that were asked.
        crops: the tiles of the crops, numbers among those of the group; empty where there is none.
        prompt: token ids `[S]` from the end of the picture to the reply.
        completion: token ids `[C]` of the reply to score; empty where a reply is to be written.
    """

    number: int
    crops: Sequence[int]
    prompt: np.ndarray
    completion: np.ndarray


class Group(NamedTuple):
    """All questions about a picture.

    Attributes:
        images: what the model sees of the picture and then of its crops, leaves `[tiles, ...]`.
        whole: how many of the tiles are the picture's.
        prefix: token ids `[P]` up to the end of the picture.
        questions: at least one.
    """

    images: Any
    whole: int
    prefix: np.ndarray
    questions: list[Question]

    @property
    def tiles(self) -> int:
        """Tiles of the picture and its crops."""
        return len(jax.tree.leaves(self.images)[0])


class Lengths(NamedTuple):
    """How long the arrays about a question are: S, C and M."""

    prompt: int
    completion: int
    crop: int


class Asked(NamedTuple):
    """What is asked about pictures, as arrays.

    Attributes:
        crop: int32 `[B, G, M]`, the tiles of the crops; what is too many repeats tile 0.
        prompt: token ids `[B, G, S]`, padded on the left.
        prompt_valid: bool `[B, G, S]`, False for padding.
        completion: token ids `[B, G, C]`, padded on the right.
        completion_valid: bool `[B, G, C]`.
    """

    crop: Any
    prompt: Any
    prompt_valid: Any
    completion: Any
    completion_valid: Any


class GroupBatch(NamedTuple):
    """Groups as arrays; tiles are numbers among the K tiles of the batch.

    Attributes:
        whole: int32 `[B, W]`, the tiles of each picture; what is too many repeats the first.
        prefix: token ids `[B, P]`, padded on the left.
        prefix_valid: bool `[B, P]`, False for padding.
        asked: the questions.
    """

    whole: Any
    prefix: Any
    prefix_valid: Any
    asked: Asked


@functools.partial(jax.jit, static_argnums=0)
def encode_tiles(graphdef: nnx.GraphDef, params: Any, images: Any) -> ImageTokens:
    """Image tokens `[K, I, ...]` of tiles, leaves `[K, ...]`."""
    model = nnx.merge(graphdef, params)
    tokens = model.encode_images(jax.tree.map(lambda x: x[:, None], images))
    return jax.tree.map(lambda x: x[:, 0], tokens)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def greedy_answers(
    graphdef: nnx.GraphDef,
    params: Any,
    tokens: ImageTokens,
    batch: GroupBatch,
    end_token: int,
    max_tokens: int,
) -> Float[Array, "B G {max_tokens}+1"]:
    """The tokens of greedy replies, and then the log-probability of each; fp32.

    What follows an end token is end tokens. Decoding stops once the replies to all questions that
    are read at once have ended.
    """
    model = nnx.merge(graphdef, params)
    picture = _read_picture(model, tokens, batch)

    def answer(asked: Asked) -> jax.Array:
        # The decoding reads the last token, which the first one of the answer follows.
        crops = _tokens_of(tokens, asked.crop)
        prompt, valid = asked.prompt[..., :-1], asked.prompt_valid[..., :-1]
        replies = greedy_decode(
            model,
            picture,
            asked.prompt[..., -1],
            end_token=end_token,
            max_tokens=max_tokens,
            own=model.read(prompt, valid, crops, picture)[1],
        )
        return with_log_probs(replies)

    return _few_at_a_time(answer, batch.asked)


def with_log_probs(replies: Greedy) -> Float[Array, "B G T+1"]:
    """Tokens and log-probabilities as one array; numbers of tokens are exact in fp32."""
    return jnp.concatenate([replies.tokens, replies.log_probs[..., None]], -1)


@functools.partial(jax.jit, static_argnums=0)
def log_likelihoods(
    graphdef: nnx.GraphDef, params: Any, tokens: ImageTokens, batch: GroupBatch
) -> Float[Array, "B G 2"]:
    """Summed log-probabilities of the completions, and how many tokens they have, fp32."""
    model = nnx.merge(graphdef, params)
    picture = _read_picture(model, tokens, batch)

    def tell(asked: Asked) -> jax.Array:
        # The last token of a completion is only ever predicted.
        ids = jnp.concatenate([asked.prompt, asked.completion[..., :-1]], -1)
        valid = jnp.concatenate([asked.prompt_valid, asked.completion_valid[..., :-1]], -1)
        hidden, _ = model.read(ids, valid, _tokens_of(tokens, asked.crop), picture)
        logits = model.text.logits(hidden[:, :, asked.prompt.shape[-1] - 1 :])
        log_probs = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_probs, asked.completion[..., None], -1)[..., 0]
        real = asked.completion_valid
        return jnp.stack([jnp.where(real, chosen, 0.0).sum(-1), real.sum(-1, jnp.float32)], -1)

    return _few_at_a_time(tell, batch.asked)


def _read_picture(model: VLM, tokens: ImageTokens, batch: GroupBatch) -> KVCache:
    """The decoder reads each whole picture: the prefix cache of P tokens, G = 1."""
    whole = _tokens_of(tokens, batch.whole[:, None])
    return model.read(batch.prefix[:, None], batch.prefix_valid[:, None], whole)[1]


def _tokens_of(tokens: ImageTokens, tiles: Int[Array, "B G M"]) -> ImageTokens | None:
    """Image tokens of tiles, one after the other: `[B, G, M * I, ...]`; None where M is 0."""
    if not tiles.shape[-1]:
        return None
    return jax.tree.map(lambda x: x[tiles].reshape((*tiles.shape[:2], -1, *x.shape[2:])), tokens)


def _few_at_a_time(function: Callable[[Asked], jax.Array], asked: Asked) -> jax.Array:
    """`function` of at most `QUESTIONS` questions about each picture at a time: `[B, G, ...]`."""
    count, questions = asked.prompt.shape[:2]
    parts = -(-questions // QUESTIONS)
    if parts == 1:
        return function(asked)
    divided = jax.tree.map(
        lambda x: x.reshape((count, parts, questions // parts, *x.shape[2:])).swapaxes(0, 1),
        asked,
    )
    told = jax.lax.map(function, divided).swapaxes(0, 1)
    return told.reshape((count, questions, *told.shape[3:]))


def run(
    model: LoadedModel, ask: Callable[[ImageTokens, GroupBatch], jax.Array], groups: Iterable[Group]
) -> list[np.ndarray]:
    """Asks a model, batch by batch; the host prepares a batch while the devices read another.

    Args:
        model: is asked. Its `work` counts what it reads.
        ask: `greedy_answers` or `log_likelihoods` with the model's weights.
        groups: the questions.

    Returns:
        The result of each question, by its number.
    """
    results: dict[int, np.ndarray] = {}
    waiting: list[tuple[list[Group], jax.Array]] = []
    devices = 1 if model.mesh is None else model.mesh.size
    for batch in make_batches(groups, devices):
        with model.on_mesh():
            encoded = [
                encode_tiles(model.graphdef, model.params, model.on_devices(tiles))
                for tiles in tower_batches(batch, devices)
            ]
            tokens = concatenate(encoded, _padded_tiles)
            waiting.append((batch, ask(tokens, model.on_devices(stack_groups(batch)))))
        model.work.update(work_of(batch))
        if len(waiting) > 1:
            results |= _by_number(waiting.pop(0))
    for each in waiting:
        results |= _by_number(each)
    return [results[number] for number in range(len(results))]


def _padded_tiles(parts: Sequence[jax.Array]) -> jax.Array:
    """Arrays of tiles one after the other, with zeros up to one of few numbers of tiles."""
    total = sum(map(len, parts))
    few = total <= TILE_MULTIPLE
    missing = (power_of_two(total) if few else round_up(total, TILE_MULTIPLE)) - total
    if len(parts) == 1 and not missing:
        return parts[0]
    return jnp.concatenate([*parts, jnp.zeros((missing, *parts[0].shape[1:]), parts[0].dtype)])


def _by_number(asked: tuple[list[Group], jax.Array]) -> dict[int, np.ndarray]:
    """Results of a batch `[B, G, ...]` by the numbers of the questions."""
    groups, told = asked
    return {
        question.number: row[i]
        for group, row in zip(groups, np.asarray(told), strict=False)
        for i, question in enumerate(group.questions)
    }


def work_of(groups: Sequence[Group]) -> dict[str, int]:
    """What a model reads to answer groups of questions: pictures, tiles and tokens."""
    questions = [question for group in groups for question in group.questions]
    return {
        "pictures": len(groups),
        "tiles": sum(group.tiles for group in groups),
        "tokens": sum(len(group.prefix) for group in groups)
        + sum(len(question.prompt) + len(question.completion) for question in questions),
    }


def make_batches(groups: Iterable[Group], devices: int = 1) -> Iterator[list[Group]]:
    """Puts groups together whose pictures take about as many tokens.

    Groups are taken one by one, so that only a few batches of pictures are in memory.

    Args:
        groups: the questions.
        devices: that share a batch.
    """
    waiting: dict[int, list[Group]] = {}
    for group in groups:
        length = padded(len(group.prefix))
        batch = waiting.setdefault(length, [])
        batch.append(group)
        if len(batch) >= full_batch(batch[0], devices):
            yield waiting.pop(length)
    yield from waiting.values()


def full_batch(group: Group, devices: int) -> int:
    """How many groups like this one make a full batch: a power of two."""
    nbytes = jax.tree.leaves(group.images)[0].nbytes
    # Where pictures are not cut into tiles, a picture may be as large as many tiles.
    tiles = max(group.tiles, -(-nbytes // TILE_BYTES))
    return power_of_two(max(TILES * devices // tiles, 1) + 1) // 2


def padded(length: int) -> int:
    """To how many tokens a text of so many is padded."""
    return round_up(length, PROMPT_MULTIPLE if length <= LONG else LONG_MULTIPLE)


def stack_groups(groups: Sequence[Group]) -> GroupBatch:
    """Groups as NumPy arrays, their tiles numbered one group after the other.

    There are a power of two of groups then, and as many questions about each: copies of the last
    ones are added, so that no padding takes longer to answer than a real question.
    """
    first = np.cumsum([0, *(group.tiles for group in groups)])
    most = max(len(group.questions) for group in groups)
    count = round_up(most, -(-most // QUESTIONS))
    every = [question for group in groups for question in group.questions]
    lengths = Lengths(
        prompt=padded(max(len(question.prompt) for question in every)),
        completion=round_up(max(len(question.completion) for question in every), REPLY_MULTIPLE),
        crop=max(len(question.crops) for question in every),
    )
    prefix_length = padded(max(len(group.prefix) for group in groups))
    most_whole = max(group.whole for group in groups)
    rows = []
    for group, start in zip(groups, first, strict=False):
        questions = [_question_row(question, start, lengths) for question in group.questions]
        questions += questions[-1:] * (count - len(questions))
        prefix, prefix_valid = batching.pad(group.prefix, prefix_length, "left")
        whole = np.full(most_whole, start, np.int32)
        whole[: group.whole] += np.arange(group.whole, dtype=np.int32)
        rows.append(GroupBatch(whole, prefix, prefix_valid, batching.stack(questions)))
    rows += rows[-1:] * (power_of_two(len(rows)) - len(rows))
    batch: GroupBatch = batching.stack(rows)
    return batch


def _question_row(question: Question, start: int, lengths: Lengths) -> Asked:
    """A question as NumPy arrays.

    Args:
        question: the question.
        start: number of its group's first tile.
        lengths: of the arrays.
    """
    crop = np.zeros(lengths.crop, np.int32)
    crop[: len(question.crops)] = np.asarray(question.crops, np.int32) + start
    prompt, prompt_valid = batching.pad(question.prompt, lengths.prompt, "left")
    completion, completion_valid = batching.pad(question.completion, lengths.completion, "right")
    return Asked(crop, prompt, prompt_valid, completion, completion_valid)


def tower_batches(groups: Sequence[Group], devices: int = 1) -> Iterator[Any]:
    """The tiles of groups, in the order of their numbers, in batches for `encode_tiles`.

    A batch has `TOWER_TILES` a device. The last one may have fewer, a power of two of them, which
    copies of its last tile fill up.

    Args:
        groups: the groups.
        devices: that share a batch.
    """
    images = concatenate([group.images for group in groups])
    total = len(jax.tree.leaves(images)[0])
    step = TOWER_TILES * devices
    for start in range(0, total, step):
        size = min(step, max(power_of_two(total - start), devices))
        rows = np.minimum(np.arange(start, start + size), total - 1)
        yield jax.tree.map(lambda x, rows=rows: x[rows], images)
