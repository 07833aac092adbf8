# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A vision-language model of this package as the labeller, on all devices of a mesh.

Arrays have room for the largest picture of a batch, so pictures are put into a few *rooms*: of
256, 512, 1024 tokens and so on, up to what the model may see. A picture is resized as the largest
room says and lies in the smallest one that holds it so.

Shape letters: B rows of a batch, T tokens of a reply.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jax.sharding import Mesh

from cropvlm_jax import geometry
from cropvlm_jax.hub.pretrained import Pretrained, processor_folder
from cropvlm_jax.hub.processors import ProcessorFiles
from cropvlm_jax.labelling.base import MAX_NEW_TOKENS, Told, resolve_frame
from cropvlm_jax.models.vlm import VLM
from cropvlm_jax.pixels import host
from cropvlm_jax.pixels.host import Picture
from cropvlm_jax.readers.base import Reply
from cropvlm_jax.readers.batches import Row
from cropvlm_jax.readers.loaded import LoadedModel
from cropvlm_jax.readers.vlm import greedy_replies

SMALLEST_ROOM = 256  # tokens of a picture
MOST_TOKENS = 4096  # of a picture, unless the user allows more: attention takes their square
LIMIT = "max_pixels"  # the setting of an image processor that says how large pictures may be
MOST_ROWS = 64  # of a batch, on a device
LOGITS_BYTES = 2 * 2**30  # of a layer's fp32 attention logits over prompts, on a device
PROMPT_MULTIPLE = 128  # as the rest of a prompt differs little in length, one program serves a room


class _Prepared(NamedTuple):
    """A picture and what is asked about it.

    Attributes:
        row: of a batch.
        resized: `Told.resized`.
    """

    row: Row
    resized: tuple[int, int] | None


class _Room(LoadedModel):
    """The model for pictures of up to some size, whose questions say all that is asked."""

    def __init__(self, source: Pretrained, model: VLM, mesh: Mesh | None):
        super().__init__(source, model, source.longest_edge, mesh)
        self.conversations = source.conversations(instruction="")


class VLMLabeller:
    """A vision-language model of this package that says boxes; its replies are greedy.

    Attributes:
        frame: what the numbers of its boxes count.
    """

    def __init__(self, source: Pretrained, model: VLM, frame: str, mesh: Mesh | None = None):
        """Wraps a model that is loaded.

        Args:
            source: where it comes from, from `open_labeller`.
            model: its weights.
            frame: what the numbers of its boxes count.
            mesh: whose devices hold the weights and share batches; None where one does.
        """
        self.frame = frame
        self._rooms = [_Room(sized, model, mesh) for sized in rooms(source)]
        self._most_rows = functools.partial(
            most_rows,
            heads=source.config.text.num_attention_heads,
            devices=mesh.size if mesh else 1,
        )

    def prepare(self, picture: Picture, text: str) -> _Prepared:
        """A row of a batch; see `Labeller.prepare`."""
        image = host.to_rgb(picture)
        height, width = image.shape[:2]
        sources = [room.source for room in self._rooms]
        room = self._rooms[room_of(sources, height, width)]
        seen, grids = room.see([image])
        conversation = room.conversations.answer(text, 1, None, grids)
        row = room.row(seen, conversation, MAX_NEW_TOKENS)
        return _Prepared(row, frame_size(room.source, self.frame, height, width))

    def ask(self, prepared: Iterable[tuple[str, _Prepared]]) -> Iterator[Told]:
        """Greedy replies, batch by batch; see `Labeller.ask`."""
        waiting: dict[int, tuple[str, tuple[int, int] | None]] = {}

        def rows() -> Iterator[Row]:
            for number, (example_id, each) in enumerate(prepared):
                waiting[number] = example_id, each.resized
                yield each.row

        model = self._rooms[-1]
        for number, reply in model.stream(
            greedy_replies,
            rows(),
            (model.source.end_token_id, MAX_NEW_TOKENS),
            most_rows=self._most_rows,
            prompt_multiple=PROMPT_MULTIPLE,
        ):
            example_id, resized = waiting.pop(number)
            yield Told(example_id, Reply(model.text_of(reply).strip()), resized)


def open_labeller(
    name: str, *, frame: str | None = None, max_pixels: int | None = None, weights: bool = True
) -> tuple[Pretrained, str]:
    """Opens a model that is to say boxes; its weights are not read yet.

    Args:
        name: a folder or a Hugging Face id.
        frame: of its boxes, where the kind of model does not tell; None is none.
        max_pixels: most pixels of a picture after its processor has resized it; None takes what the
            processor in its folder says, and `MOST_TOKENS` at most.
        weights: whether to download them too.

    Returns:
        The model, and what the numbers of its boxes count.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: its parts contradict each other, the setting does not fit it, or its frame is
            not known.
    """
    source = Pretrained.open(name, weights)
    known = resolve_frame(source.architecture.box_frame, frame, name)
    if LIMIT not in source.architecture.processor_settings:
        if max_pixels is not None:
            kind = source.config.model_type
            raise ValueError(f"--max_pixels={max_pixels}: a {kind} has no such setting")
        return source, known
    token = _limits(source).factor ** 2
    if max_pixels is None:
        files = ProcessorFiles.read(processor_folder(source.folder, source.adapter))
        stored = source.architecture.image_settings(
            source.config, source.longest_edge, files.images
        )
        max_pixels = min(stored.get(LIMIT, token * MOST_TOKENS), token * MOST_TOKENS)
    return _limited(source, max_pixels // token * token), known  # limits are whole tokens


def rooms(source: Pretrained) -> list[Pretrained]:
    """The model with room for pictures of several sizes, the smallest first; the last is `source`.

    Where the size of pictures is no setting of the model, there is one room.
    """
    if LIMIT not in source.architecture.processor_settings:
        return [source]
    limits, smaller = _limits(source), []
    pixels = SMALLEST_ROOM * limits.factor**2
    while pixels < limits.max_pixels:
        if pixels >= limits.min_pixels:
            smaller.append(_limited(source, pixels))
        pixels *= 2
    return [*smaller, source]


def _limited(source: Pretrained, max_pixels: int) -> Pretrained:
    """The model with another limit of pictures' sizes."""
    config: Any = source.config
    limits = dataclasses.replace(_limits(source), max_pixels=max_pixels)
    return dataclasses.replace(source, config=dataclasses.replace(config, limits=limits))


def _limits(source: Pretrained) -> geometry.PixelLimits:
    """The limits of pictures' sizes, of a model that has some."""
    config: Any = source.config
    limits: geometry.PixelLimits = config.limits
    return limits


def room_of(sources: list[Pretrained], height: int, width: int) -> int:
    """Which of `rooms` a picture of this size lies in.

    Raises:
        ValueError: no model sees such a picture, one side of which is far longer than the other.
    """

    def grid(source: Pretrained) -> Any:
        return source.architecture.grid(source.config, height, width, source.longest_edge)

    wanted = grid(sources[-1])
    return next(number for number, source in enumerate(sources) if grid(source) == wanted)


def frame_size(source: Pretrained, frame: str, height: int, width: int) -> tuple[int, int] | None:
    """Height and width of a picture in a frame of pixels; None in other frames."""
    if frame == "pixels":
        return height, width
    if frame != "smart_resized":
        return None
    limits = _limits(source)
    return geometry.smart_resize(height, width, limits.factor, limits.min_pixels, limits.max_pixels)


def most_rows(row: Row, *, heads: int, devices: int) -> int:
    """How many rows like this one make a full batch: a power of two.

    Args:
        row: whose prompt bounds the attention logits of a batch.
        heads: of the decoder.
        devices: that share a batch.
    """
    tokens = len(row.prompt) + MAX_NEW_TOKENS
    rows = min(max(LOGITS_BYTES // (4 * heads * tokens**2), 1), MOST_ROWS)
    return 1 << ((rows * devices).bit_length() - 1)
