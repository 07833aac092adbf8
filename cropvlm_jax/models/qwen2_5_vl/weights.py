# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL's weights, under Hugging Face's names and ours."""

import dataclasses

from cropvlm_jax.models.weight_table import VIDEO_CONV, Table, Weight, linear, llama_decoder


def _qwen(tower: str, decoder: str) -> Table:
    """A Qwen2.5-VL whose two parts are stored under these prefixes."""
    layer, stacked = tower + "blocks.{}.", "vision.layers."
    linears = {
        "attn.proj": "o",
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
    }
    return (
        Weight(f"{tower}patch_embed.proj.weight", "vision.patch_embedding.kernel", VIDEO_CONV),
        Weight(f"{layer}norm1.weight", f"{stacked}attention_norm.scale"),
        Weight(f"{layer}norm2.weight", f"{stacked}mlp_norm.scale"),
        *(
            dataclasses.replace(row, part=(i, 3))
            for i, mine in enumerate("qkv")
            for row in linear(f"{layer}attn.qkv", f"{stacked}{mine}")
        ),
        *(
            row
            for theirs, mine in linears.items()
            for row in linear(f"{layer}{theirs}", f"{stacked}{mine}")
        ),
        Weight(f"{tower}merger.ln_q.weight", "projector.norm.scale"),
        *linear(f"{tower}merger.mlp.0", "projector.fc1"),
        *linear(f"{tower}merger.mlp.2", "projector.fc2"),
        *llama_decoder(decoder, "text.", biased="qkv"),
    )


# The Hub's names, which transformers 5 writes too, and what its modules are called.
WEIGHTS: Table = tuple(
    dataclasses.replace(row, also=other.hf)
    for row, other in zip(
        _qwen("visual.", "model."), _qwen("model.visual.", "model.language_model."), strict=True
    )
)
