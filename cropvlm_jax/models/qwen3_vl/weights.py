# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL's weights, under Hugging Face's names and ours."""

import dataclasses

from cropvlm_jax.models.weight_table import (
    VIDEO_CONV,
    Table,
    Weight,
    layer_norm,
    linear,
    llama_decoder,
)

_TOWER, _DECODER = "model.visual.", "model.language_model."
_LAYER, _STACKED = f"{_TOWER}blocks.{{}}.", "vision.layers."


def _merger(hf: str, ours: str) -> Table:
    """What makes one vector of a tile, under the names `hf` and `ours`."""
    return (
        *layer_norm(f"{hf}.norm", f"{ours}.norm"),
        *linear(f"{hf}.linear_fc1", f"{ours}.fc1"),
        *linear(f"{hf}.linear_fc2", f"{ours}.fc2"),
    )


WEIGHTS: Table = (
    Weight(f"{_TOWER}patch_embed.proj.weight", "vision.patch_embedding.kernel", VIDEO_CONV),
    Weight(f"{_TOWER}patch_embed.proj.bias", "vision.patch_embedding.bias"),
    Weight(f"{_TOWER}pos_embed.weight", "vision.position_embedding.embedding"),
    *layer_norm(f"{_LAYER}norm1", f"{_STACKED}attention_norm"),
    *layer_norm(f"{_LAYER}norm2", f"{_STACKED}mlp_norm"),
    *(
        dataclasses.replace(row, part=(i, 3))
        for i, mine in enumerate("qkv")
        for row in linear(f"{_LAYER}attn.qkv", f"{_STACKED}{mine}")
    ),
    *linear(f"{_LAYER}attn.proj", f"{_STACKED}o"),
    *linear(f"{_LAYER}mlp.linear_fc1", f"{_STACKED}fc1"),
    *linear(f"{_LAYER}mlp.linear_fc2", f"{_STACKED}fc2"),
    *_merger(f"{_TOWER}merger", "projector"),
    *_merger(f"{_TOWER}deepstack_merger_list.{{}}", "deepstack"),
    *llama_decoder(_DECODER, "text."),
    Weight(f"{_DECODER}layers.{{}}.self_attn.q_norm.weight", "text.layers.q_norm.scale"),
    Weight(f"{_DECODER}layers.{{}}.self_attn.k_norm.weight", "text.layers.k_norm.scale"),
)
