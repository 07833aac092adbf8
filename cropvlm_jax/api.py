# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The models from Python: ask a target, propose where to look, zoom.

Calls of any sizes become batches of few shapes, so that they compile few times.

Shape letters: n questions, B rows of a batch, N pictures or tiles of a row, S pixels of a tile's
side, P prompt tokens, C reply tokens, T tokens, V vocabulary.
"""

import collections
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from PIL import Image

from cropvlm_jax import geometry, parallel
from cropvlm_jax.data import batching
from cropvlm_jax.data.batching import SupervisedBatch
from cropvlm_jax.grpo import rollout
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.models.conversations import Prompt
from cropvlm_jax.models.decode import greedy
from cropvlm_jax.models.qwen2_5_vl import QwenConfig
from cropvlm_jax.models.smolvlm import SmolVLM, SmolVLMConfig
from cropvlm_jax.models.vlm import VLM
from cropvlm_jax.pixels import host
from cropvlm_jax.training.sft import completion_logits

Picture = Image.Image | np.ndarray | str | os.PathLike

TILES = 64  # of a batch; bounds the memory of the vision tower
TILE_BYTES = 3 * 512**2  # of the largest tile
PROMPT_MULTIPLE = 32  # tokens
REPLY_MULTIPLE = 8  # tokens; fewer, because each has logits over the whole vocabulary


# What runs on the device --------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _answer(
    graphdef: nnx.GraphDef, params: Any, batch: SupervisedBatch, end_token: int, max_tokens: int
) -> jax.Array:
    """Greedy replies, int32 `[B, max_tokens]`."""
    model = nnx.merge(graphdef, params)
    pictures = model.encode_images(batch.images)
    prefix = rollout.read_prompt(model, pictures, batch.prompt, batch.prompt_valid)
    return greedy(model, prefix, batch.prompt[:, -1], end_token, max_tokens)


@functools.partial(jax.jit, static_argnums=0)
def _log_likelihood(graphdef: nnx.GraphDef, params: Any, batch: SupervisedBatch) -> jax.Array:
    """Summed log-probabilities of the completions, fp32 `[B]`."""
    logits = completion_logits(nnx.merge(graphdef, params), batch)
    log_probs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_probs, batch.completion[..., None], -1)[..., 0]
    return jnp.where(batch.completion_valid, chosen, 0.0).sum(-1)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _propose(
    graphdef: nnx.GraphDef, params: Any, batch: SupervisedBatch, grammar: geometry.Grammar
) -> jax.Array:
    """Greedy boxes, int32 `[B, 4]`."""
    model = nnx.merge(graphdef, params)
    image_tokens = model.encode_images(batch.images)
    prefix = rollout.read_prompt(model, image_tokens, batch.prompt, batch.prompt_valid)
    unused = jax.random.key(0)
    return rollout.sample(
        model, grammar, prefix, batch.prompt[:, -1], unused, group=1, temperature=0.0
    ).boxes[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def _logits(
    graphdef: nnx.GraphDef, params: Any, inputs: tuple[jax.Array, jax.Array, jax.Array]
) -> jax.Array:
    """Logits of whole sequences, fp32 `[B, T, V]`, from token ids, which are real, and pictures."""
    return nnx.merge(graphdef, params)(*inputs)


# Batches of few shapes ----------------------------------------------------------------------------


class _Row(NamedTuple):
    """A conversation: what the model sees, leaves `[N, ...]`, token ids `[P]` and `[C]`."""

    tiles: Any
    prompt: np.ndarray
    completion: np.ndarray


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _power_of_two(value: int) -> int:
    """The smallest power of two that is not less than `value`."""
    return 1 << (value - 1).bit_length()


def _batches(rows: Iterable[_Row]) -> Iterator[tuple[list[int], SupervisedBatch]]:
    """Rows of equally many tiles together, each batch with its rows' indices.

    Rows are taken one by one, so that only a few batches of pictures are in memory.
    """
    groups: dict[Any, list[tuple[int, _Row]]] = collections.defaultdict(list)
    for index, row in enumerate(rows):
        leaves = jax.tree.leaves(row.tiles)
        shapes = tuple(x.shape for x in leaves)
        groups[shapes].append((index, row))
        # A picture of another architecture may be as large as many tiles.
        tiles = max(shapes[0][0], -(-leaves[0].nbytes // TILE_BYTES))
        most = _power_of_two(max(TILES // tiles, 1) + 1) // 2  # the power of two that still fits
        if len(groups[shapes]) == most:
            yield _batch(groups.pop(shapes))
    for group in groups.values():
        yield _batch(group)


def _batch(group: list[tuple[int, _Row]]) -> tuple[list[int], SupervisedBatch]:
    """Pads the rows; the batch is filled with copies of the last one, which end when it ends."""
    indices, rows = zip(*group, strict=True)
    rows = [*rows, *[rows[-1]] * (_power_of_two(len(rows)) - len(rows))]
    prompt = _round_up(max(len(row.prompt) for row in rows), PROMPT_MULTIPLE)
    completion = _round_up(max(len(row.completion) for row in rows), REPLY_MULTIPLE)
    batch = batching.stack(
        [
            SupervisedBatch(
                row.tiles,
                *batching.pad(row.prompt, prompt, "left"),
                *batching.pad(row.completion, completion, "right"),
            )
            for row in rows
        ]
    )
    return list(indices), jax.tree.map(jnp.asarray, batch)


def _check(images: Sequence[Any], **texts: Sequence[str]) -> None:
    for name, values in texts.items():
        if isinstance(values, str) or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{name} must be a list of strings, got {values!r:.80}")
        if len(values) != len(images):
            raise ValueError(f"{len(images)} images but {len(values)} {name}")


class _Model:
    """A loaded model and what turns pictures and questions into its batches.

    Args:
        source: where the model comes from.
        model: its weights.
        longest_edge: pixels that pictures' longest sides are resized to before they are split.
        mesh: whose devices hold the weights; None where one does.
    """

    def __init__(self, source: Pretrained, model: VLM, longest_edge: int, mesh: Mesh | None = None):
        if longest_edge < 1:
            raise ValueError(f"longest_edge={longest_edge} must be at least 1 px")
        self.source, self.longest_edge, self.prompts = source, longest_edge, source.prompts()
        self.mesh = mesh
        self.graphdef, self.params = nnx.split(model)

    def _tiles(self, pictures: Sequence[Picture]) -> tuple[Any, list[Any]]:
        """What the model sees of pictures in a row, leaves `[N, ...]`, and each one's grid."""
        tiles, grids = [], []
        for picture in pictures:
            if not isinstance(picture, Picture):
                kind = type(picture).__name__
                raise ValueError(f"a picture is a PIL image, an array or a path, not {kind}")
            cut, grid = self.source.see(host.to_rgb(picture), self.longest_edge)
            tiles.append(cut)
            grids.append(grid)
        return jax.tree.map(lambda *parts: np.concatenate(parts), *tiles), grids

    def _row(self, tiles: Any, prompt: Prompt, reply_tokens: int) -> _Row:
        ids, start = prompt.ids, prompt.completion.start
        limit = self.source.config.text.max_position_embeddings
        if start + reply_tokens > limit:
            raise ValueError(
                f"{start} prompt tokens and {reply_tokens} for the reply are over the model's "
                f"{limit} positions: shorten the texts or use a smaller longest_edge"
            )
        return _Row(tiles, ids[:start], ids[prompt.completion])

    def _run(self, function: Callable[..., jax.Array], rows: Iterable[_Row], *options: Any) -> list:
        """What jitted `function` returns for each row, in their order."""
        results: dict[int, np.ndarray] = {}
        for indices, batch in _batches(rows):
            outputs = self._call(function, batch, *options)
            results |= zip(indices, outputs[: len(indices)], strict=True)
        return [results[index] for index in range(len(results))]

    def _call(self, function: Callable[..., jax.Array], batch: Any, *options: Any) -> np.ndarray:
        """What jitted `function` returns for a batch, on the devices that hold the weights."""
        if self.mesh is None:
            return np.asarray(function(self.graphdef, self.params, batch, *options))
        with jax.set_mesh(self.mesh):
            batch = parallel.put_batch(self.mesh, batch)
            return np.asarray(function(self.graphdef, self.params, batch, *options))


# The doors ----------------------------------------------------------------------------------------


class Target(_Model):
    """A vision-language model that answers questions about one picture, or it and a crop of it."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: Any = jnp.float32,
        longest_edge: int | None = None,
        processor: Mapping[str, Any] | None = None,
        mesh: Mesh | None = None,
    ) -> "Target":
        """Loads a model.

        Args:
            name: a folder or a model of the Hugging Face Hub.
            dtype: of the computation and the weights.
            longest_edge: of SmolVLM alone: pixels that pictures' longest sides are resized to; None
                takes one tile, the model's input size, and larger values split pictures into tiles.
            processor: as of `Pretrained.open`.
            mesh: whose devices share the weights and the rows of batches, from
                `parallel.make_mesh`; None takes the first device.
        """
        source = Pretrained.open(name, processor=processor)
        if not isinstance(source.config, SmolVLMConfig):
            if longest_edge is not None:
                raise ValueError(f"longest_edge={longest_edge}: only SmolVLM splits pictures")
            longest_edge = source.longest_edge
        longest_edge = source.tile_size if longest_edge is None else longest_edge
        return cls(source, source.load(mesh, dtype=dtype), longest_edge, mesh)

    def answer(
        self, images: Sequence[Sequence[Picture]], questions: Sequence[str], max_tokens: int = 32
    ) -> list[str]:
        """Greedy answers.

        Args:
            images: the picture of each question, or it and a crop of it.
            questions: the questions.
            max_tokens: longest answer.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens} must be at least 1")
        rows = self._conversations(images, questions, None, max_tokens)
        end = self.source.end_token_id
        replies = self._run(_answer, rows, end, max_tokens)
        decode = self.source.tokenizer.decode
        return [decode(reply[reply != end].tolist()).strip() for reply in replies]

    def log_likelihood(
        self,
        images: Sequence[Sequence[Picture]],
        questions: Sequence[str],
        answers: Sequence[str],
    ) -> np.ndarray:
        """How likely the answers are, in nats, summed over their tokens and the end token.

        Args:
            images: the picture of each question, or it and a crop of it.
            questions: the questions.
            answers: the gold answers; `Prompts.answer` tells how they are written.

        Returns:
            fp32 `[n]`.
        """
        rows = self._conversations(images, questions, answers, 0)
        return np.array(self._run(_log_likelihood, rows), np.float32)

    def logits(
        self,
        input_ids: np.ndarray,
        pixel_values: np.ndarray,
        attention_mask: np.ndarray | None = None,
    ) -> np.ndarray:
        """Logits of what a Hugging Face processor returned; not of Qwen2.5-VL, whose differs.

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
        config = self.source.config
        if isinstance(config, QwenConfig):
            raise ValueError("pixel_values of Qwen2.5-VL's processor are not supported")
        side = self.source.tile_size
        if ids.ndim != 2 or valid.shape != ids.shape:
            raise ValueError(f"input_ids {ids.shape} and attention_mask {valid.shape}: not [B, T]")
        if pixels.ndim != 5 or pixels.shape[::2] != (len(ids), 3, side) or pixels.shape[3] != side:
            raise ValueError(f"pixel_values {pixels.shape}: not [{len(ids)}, N, 3, {side}, {side}]")
        real = pixels.any(axis=(2, 3, 4))
        places = (ids == config.image_token_id).sum(-1)
        if (places != real.sum(-1) * config.image_seq_len).any():
            raise ValueError(
                f"rows with {real.sum(-1)} pictures of {config.image_seq_len} tokens each have "
                f"{places} <image> tokens"
            )
        order = np.argsort(~real, axis=-1, kind="stable")
        pixels = pixels[np.arange(len(ids))[:, None], order].transpose(0, 1, 3, 4, 2)
        length = ids.shape[1]
        rows = (0, _power_of_two(len(ids)) - len(ids))
        columns = (0, _round_up(length, PROMPT_MULTIPLE) - length)
        padded = (
            np.pad(ids, (rows, columns)),
            np.pad(valid.astype(bool), (rows, columns)),
            np.pad(pixels, (rows, *[(0, 0)] * 4)),
        )
        return self._call(_logits, padded)[: len(ids), :length]

    def _conversations(
        self,
        images: Sequence[Sequence[Picture]],
        questions: Sequence[str],
        answers: Sequence[str] | None,
        max_tokens: int,
    ) -> Iterator[_Row]:
        _check(images, questions=questions, **({} if answers is None else {"answers": answers}))
        for pictures in images:
            if not isinstance(pictures, (list, tuple)) or len(pictures) not in (1, 2):
                raise ValueError(
                    f"a question takes a list of 1 or 2 pictures, not {pictures!r:.80}"
                )
        for i, (pictures, question) in enumerate(zip(images, questions, strict=True)):
            tiles, grids = self._tiles(pictures)
            answer = None if answers is None else answers[i]
            prompt = self.prompts.answer(question, len(pictures), answer, grids)
            reply_tokens = max_tokens or prompt.completion.stop - prompt.completion.start
            yield self._row(tiles, prompt, reply_tokens)


class Zoom(NamedTuple):
    """Where the cropper looked at a picture, and what the target says.

    Attributes:
        box: percent of the picture's width and height: left, top, right, bottom.
        crop: what is inside, of the original pixels.
        answer: to the picture and the crop; None without a target.
        answer_without_crop: to the picture alone; None without a target.
    """

    box: tuple[int, int, int, int]
    crop: Image.Image
    answer: str | None
    answer_without_crop: str | None


class CropVLM(_Model):
    """The cropper, which says where to look, in front of a target, which answers.

    Args:
        source: where the cropper comes from.
        model: its weights.
        longest_edge: pixels that pictures' longest sides are resized to for the cropper.
        target: answers; may be None where only boxes are wanted.
        mesh: whose devices hold the weights; None where one does.
    """

    def __init__(
        self,
        source: Pretrained,
        model: SmolVLM,
        longest_edge: int,
        target: Target | None = None,
        mesh: Mesh | None = None,
    ):
        super().__init__(source, model, longest_edge, mesh)
        self.grammar, self.target = geometry.Grammar.from_tokenizer(source.tokenizer), target

    @classmethod
    def from_pretrained(
        cls,
        cropper: str | Path,
        target: "str | Path | Target | None" = None,
        *,
        dtype: Any = jnp.float32,
        longest_edge: int | None = None,
        mesh: Mesh | None = None,
    ) -> "CropVLM":
        """Loads a cropper, and a target where one is named.

        Args:
            cropper: a folder or a model of the Hugging Face Hub.
            target: the same, or a loaded one.
            dtype: of the computation and the weights.
            longest_edge: pixels that pictures' longest sides are resized to for the cropper; None
                takes what its own processor says.
            mesh: as of `Target.from_pretrained`, for both.
        """
        if isinstance(target, (str, Path)):
            target = Target.from_pretrained(target, dtype=dtype, mesh=mesh)
        elif target is not None and not isinstance(target, Target):
            raise ValueError(f"a target is a name, a folder or a Target, not {target!r:.80}")
        source = Pretrained.open(cropper)
        if not isinstance(source.config, SmolVLMConfig):
            kind = type(source.config).__name__.removesuffix("Config")
            raise ValueError(f"{cropper}: a cropper is a SmolVLM, not a {kind}")
        longest_edge = source.longest_edge if longest_edge is None else longest_edge
        return cls(source, source.load(mesh, dtype=dtype), longest_edge, target, mesh)

    def propose(self, images: Sequence[Picture], questions: Sequence[str]) -> np.ndarray:
        """Where to look in each picture for the answer to its question.

        Returns:
            int32 `[n, 4]` percent boxes.
        """
        _check(images, questions=questions)

        def rows() -> Iterator[_Row]:
            for picture, question in zip(images, questions, strict=True):
                tiles, (grid,) = self._tiles([picture])
                prompt = self.prompts.crop(question, grid)
                yield self._row(tiles, prompt, self.grammar.max_length)

        boxes = self._run(_propose, rows(), self.grammar)
        return np.array(boxes, np.int32).reshape(-1, 4)

    def __call__(self, image: Picture, question: str) -> Zoom:
        """Looks closer at one picture, and answers with and without having done so."""
        box = self.propose([image], [question])[0]
        picture = host.to_rgb(image)
        crop = Image.fromarray(host.cut(picture, box))
        zoom = Zoom(tuple(box.tolist()), crop, None, None)
        if self.target is None:
            return zoom
        answer, without = self.target.answer([[picture, crop], [picture]], [question] * 2)
        return zoom._replace(answer=answer, answer_without_crop=without)
