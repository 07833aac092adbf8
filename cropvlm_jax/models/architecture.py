# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the rest of the package may ask of a kind of model.

Each architecture is a folder beside this file, whose `architecture.py` fills in one `Architecture`;
`registry.py` lists them. Outside of `models` nothing asks for a config's class.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from cropvlm_jax.models.config import VLMConfig
from cropvlm_jax.models.conversations import Conversations
from cropvlm_jax.models.logical_axes import LogicalAxes
from cropvlm_jax.models.vlm import VLM
from cropvlm_jax.models.weight_table import Table
from cropvlm_jax.pixels.plans import PlannedTiles

HARDLY_SMALLER, FAR_FEWER = 0.95, 0.67  # shares of a longest edge, and of the tokens that it costs


class See(Protocol):
    """What a model sees of a picture."""

    def __call__(self, config: Any, image: np.ndarray, longest_edge: int) -> tuple[Any, Any]:
        """Prepares a picture.

        Args:
            config: shape of the model.
            image: uint8 `[H, W, 3]`.
            longest_edge: pixels that the longest side is resized to; matters only where the
                architecture `splits_pictures`.

        Returns:
            What `VLM.encode_images` takes, leaves `[N, ...]`, and the picture's grid, which is what
            `Conversations` must know of it.
        """


class GridOf(Protocol):
    """The grid that `See` returns for a picture, from its size alone."""

    def __call__(self, config: Any, height: int, width: int, longest_edge: int) -> Any:
        """The grid of a picture of `height` x `width` px."""


class Plan(Protocol):
    """What a device is to cut out of a picture's canvas, so that it need not be `See`n here."""

    def __call__(self, config: Any, height: int, width: int, longest_edge: int) -> PlannedTiles:
        """The plan of a picture of `height` x `width` px, which `VLM.cut_tiles` follows."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A kind of vision-language model.

    `configure`, `see`, `grid`, `plan` and `image_tokens` are functions of modules that do not
    import jax: they can be sent to data workers, which must not either.

    Attributes:
        model_types: `model_type`s of the `config.json`s that it reads.
        config: class of its shapes, which `from_hf` reads from a parsed `config.json`.
        model: builds the module, a `VLM`, with random weights: `(config, *, rngs, dtype,
            param_dtype, remat)`.
        weights: its weights, under Hugging Face's names and ours.
        logical_axes: what the axes of its weights mean.
        conversations: class of its conversations.
        image_token: the token that stands for a piece of a picture.
        end_token: the token that ends a reply.
        tower: names of the model's parts that make image tokens.
        configure: `(config, settings, changes) -> (config, longest_edge)`: the shape that minds the
            settings of the image processor in the folder, and changes that a user makes to them
            under the same names; and the pixels that the longest edge of a picture is resized to.
            It raises a ValueError that names a setting that is not supported: each one that changes
            pixels is minded or refused.
        image_settings: `(config, longest_edge, stored)` to the settings of the image processor that
            make `transformers` see what `see` gives; `stored` are those of the folder that the
            model came from, which stay where they do not matter.
        processor_config: `(config, stored)` to what `processor_config.json` must say of the shape,
            so that `transformers` writes as many image tokens as we do. It raises a ValueError that
            names a setting of the stored one that says otherwise.
        see: what the model sees of a picture.
        grid: how `see` splits a picture of a size.
        plan: what a device is to cut in place of `see`; None where whole pictures of this kind of
            model are seen on the host.
        image_tokens: `(config, height, width, longest_edge)` to the number of tokens that the
            decoder reads of a picture of this size.
        fewer_tokens: what makes pictures cost fewer tokens, for messages.
        processor_settings: the settings of the image processor that a user may change.
        splits_pictures: whether pictures are resized to a longest edge that the user chooses, and
            larger ones are split into tiles.
        can_crop: whether it may be a cropper: its conversations have `crop`.
        ask_for_box: Jinja that stands before the chat template of an exported cropper, "" where it
            may not be one. It replaces `messages`: in a conversation with a picture, each question
            of the user becomes what `Conversations.crop` asks, once. It writes nothing itself.
        box_frame: what the numbers of the boxes that it writes when it is asked to point at
            something count, one of `geometry.FRAMES`; None where it has not learned to. Where that
            is "smart_resized", `config.limits` says how pictures are resized.
        load_over_mesh: whether its models are so large that devices share the weights from the
            moment they are read.
        reads_pixel_values: whether `encode_images` takes what Hugging Face's processor calls
            `pixel_values`, square pictures `[B, N, S, S, 3]` (there with the channels first).
        processor_files: `(config, tokenizer, longest_edge)` to the content of the files that
            `transformers` needs beside the weights of a model that was made here: dicts for JSON,
            text for others, by file name; None where no model is made here.
    """

    model_types: tuple[str, ...]
    config: type[VLMConfig]
    model: Callable[..., VLM]
    weights: Table
    logical_axes: LogicalAxes
    conversations: type[Conversations]
    image_token: str
    end_token: str
    tower: tuple[str, ...]
    configure: Callable[[Any, Mapping[str, Any], Mapping[str, Any]], tuple[Any, int]]
    image_settings: Callable[[Any, int, Mapping[str, Any]], dict[str, Any]]
    processor_config: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    see: See
    grid: GridOf
    image_tokens: Callable[[Any, int, int, int], int]
    fewer_tokens: str
    processor_settings: tuple[str, ...] = ()
    plan: Plan | None = None
    splits_pictures: bool = False
    can_crop: bool = False
    ask_for_box: str = ""
    box_frame: str | None = None
    load_over_mesh: bool = False
    reads_pixel_values: bool = True
    processor_files: Callable[[Any, Tokenizer, int], dict[str, Any]] | None = None

    def splits(self, config: VLMConfig, longest_edge: int) -> bool:
        """Whether pictures that are resized to this longest edge may be of more than one tile."""
        return self.splits_pictures and self.grid(config, 1, 1, longest_edge) != (0, 0)

    def cheaper_edge(self, config: VLMConfig, longest_edge: int) -> int | None:
        """A longest edge that is hardly smaller and costs far fewer tokens; None where none is.

        Pictures are enlarged to whole tiles, so one pixel above a multiple of a tile is expensive.
        """
        if not self.splits_pictures:
            return None

        def tokens(edge: int) -> int:
            return self.image_tokens(config, edge, edge, edge)

        smaller = range(longest_edge - 1, math.ceil(longest_edge * HARDLY_SMALLER) - 1, -1)
        most = tokens(longest_edge) * FAR_FEWER
        return next((edge for edge in smaller if edge > 0 and tokens(edge) <= most), None)
