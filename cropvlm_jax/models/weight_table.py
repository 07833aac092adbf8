# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of weight tables: how Hugging Face names and lays out a parameter, and how we do.

An architecture has one table, `weights.py` in its folder, which loading and saving read in both
directions (`hub.weights`). What decoders and towers share is here.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Layout(NamedTuple):
    """How an array differs between the two sides."""

    load: Callable[[Any], Any]
    save: Callable[[Any], Any]


def _conv_to_linear(x: Any) -> Any:
    """`[D, 3, p, p]` to `[p * p * 3, D]`: rows of pixels, then columns, then channels."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def _linear_to_conv(x: Any) -> Any:
    """`[p * p * 3, D]` to `[D, 3, p, p]`."""
    side = math.isqrt(x.shape[0] // 3)
    return x.reshape(side, side, 3, x.shape[1]).transpose(3, 2, 0, 1)


def _video_conv_to_linear(x: Any) -> Any:
    """`[D, 3, 2, p, p]` to `[2 * p * p * 3, D]`: frames, rows of pixels, columns, channels."""
    return x.transpose(2, 3, 4, 1, 0).reshape(-1, x.shape[0])


def _linear_to_video_conv(x: Any) -> Any:
    """`[2 * p * p * 3, D]` to `[D, 3, 2, p, p]`."""
    side = math.isqrt(x.shape[0] // 6)
    return x.reshape(2, side, side, 3, x.shape[1]).transpose(4, 3, 0, 1, 2)


SAME = Layout(lambda x: x, lambda x: x)
TRANSPOSE = Layout(lambda x: x.T, lambda x: x.T)
CONV = Layout(_conv_to_linear, _linear_to_conv)
VIDEO_CONV = Layout(_video_conv_to_linear, _linear_to_video_conv)


@dataclasses.dataclass(frozen=True)
class Weight:
    """One row of a weight table.

    Attributes:
        hf: Hugging Face's name; `{}` is the layer, whose weights are stacked on our leading axis.
        ours: dotted path of our parameter.
        layout: how the arrays differ.
        tied_to: path of the parameter that a model uses instead where it has no `ours`.
        also: another name that is read where `hf` is absent, never written.
        part: (i, n) where `ours` is the i-th of n equal parts of Hugging Face's array along its
            first axis. The rows of the n parts stand together in the table, in order.
    """

    hf: str
    ours: str
    layout: Layout = SAME
    tied_to: str | None = None
    also: str | None = None
    part: tuple[int, int] = (0, 1)

    def names(self, leaf: Any) -> list[str]:
        """Hugging Face's names of the arrays that make up `leaf`."""
        return self._numbered(self.hf, leaf)

    def aliases(self, leaf: Any) -> dict[str, str]:
        """From the alternative names of the arrays, by `also`, to their `names`."""
        also = self._numbered(self.also, leaf) if self.also else []
        return dict(zip(also, self.names(leaf), strict=False))

    @staticmethod
    def _numbered(name: str, leaf: Any) -> list[str]:
        return [name.format(i) for i in range(leaf.shape[0])] if "{}" in name else [name]

    def parts(self, leaf: Any) -> list[Any]:
        """The arrays of `names`, or this row's part of them, in Hugging Face's layout."""
        return [self.layout.save(part) for part in (leaf if "{}" in self.hf else [leaf])]

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The inverse of `parts`."""
        loaded = [self.layout.load(part) for part in parts]
        return np.stack(loaded) if "{}" in self.hf else loaded[0]


Table = tuple[Weight, ...]


def linear(hf: str, ours: str) -> Table:
    """A linear layer with a bias, under the names `hf` and `ours`."""
    return (
        Weight(f"{hf}.weight", f"{ours}.kernel", TRANSPOSE),
        Weight(f"{hf}.bias", f"{ours}.bias"),
    )


def layer_norm(hf: str, ours: str) -> Table:
    """A layer norm, under the names `hf` and `ours`."""
    return Weight(f"{hf}.weight", f"{ours}.scale"), Weight(f"{hf}.bias", f"{ours}.bias")


def llama_decoder(hf: str, ours: str, head: str = "lm_head", biased: str = "") -> Table:
    """A Llama decoder.

    Args:
        hf: prefix of Hugging Face's names, but for the output head.
        ours: prefix of our paths.
        head: Hugging Face's name of the output head.
        biased: our names of the linear layers that have biases, one letter each.
    """
    layer, stacked = hf + "layers.{}.", ours + "layers."
    kernels = {
        "self_attn.q_proj": "q",
        "self_attn.k_proj": "k",
        "self_attn.v_proj": "v",
        "self_attn.o_proj": "o",
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
    }
    embedding = f"{ours}embedding.embedding"
    return (
        Weight(f"{hf}embed_tokens.weight", embedding),
        Weight(f"{layer}input_layernorm.weight", f"{stacked}attention_norm.scale"),
        Weight(f"{layer}post_attention_layernorm.weight", f"{stacked}mlp_norm.scale"),
        *(
            Weight(f"{layer}{theirs}.weight", f"{stacked}{mine}.kernel", TRANSPOSE)
            for theirs, mine in kernels.items()
        ),
        *(
            Weight(f"{layer}{theirs}.bias", f"{stacked}{mine}.bias")
            for theirs, mine in kernels.items()
            if mine in biased
        ),
        Weight(f"{hf}norm.weight", f"{ours}norm.scale"),
        Weight(f"{head}.weight", f"{ours}head", tied_to=embedding),
    )


def vit_tower(hf: str, ours: str) -> Table:
    """What SigLIP's and CLIP's towers share, under the prefixes `hf` and `ours`."""
    layer, stacked = hf + "encoder.layers.{}.", ours + "layers."
    linears = {
        "self_attn.q_proj": "q",
        "self_attn.k_proj": "k",
        "self_attn.v_proj": "v",
        "self_attn.out_proj": "o",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
    }
    patches = "embeddings.patch_embedding"
    positions = "embeddings.position_embedding"
    return (
        Weight(f"{hf}{patches}.weight", f"{ours}patch_embedding.kernel", CONV),
        Weight(f"{hf}{positions}.weight", f"{ours}position_embedding.embedding"),
        *layer_norm(f"{layer}layer_norm1", f"{stacked}attention_norm"),
        *layer_norm(f"{layer}layer_norm2", f"{stacked}mlp_norm"),
        *(
            row
            for theirs, mine in linears.items()
            for row in linear(f"{layer}{theirs}", f"{stacked}{mine}")
        ),
        *layer_norm(f"{hf}post_layernorm", f"{ours}norm"),
    )


LLAMA: Table = llama_decoder("model.", "")  # a decoder alone, such as SmolLM2
