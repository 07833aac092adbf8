# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""LLaVA-1.5's weights, under Hugging Face's names and ours."""

import dataclasses

from cropvlm_jax.models.weight_table import (
    Table,
    Weight,
    layer_norm,
    linear,
    llama_decoder,
    vit_tower,
)


def _clip(hf: str, ours: str, also: str) -> Table:
    """A CLIP tower under the prefixes `hf` and `ours`, which may also be stored under `also`."""
    rows = (
        *vit_tower(hf, ours),
        Weight(f"{hf}embeddings.class_embedding", f"{ours}class_embedding"),
        *layer_norm(f"{hf}pre_layrnorm", f"{ours}pre_norm"),  # so spelled
    )
    return tuple(dataclasses.replace(r, also=also + r.hf.removeprefix(hf)) for r in rows)


WEIGHTS: Table = (
    # The names of the released models; transformers 5 leaves "vision_model." out.
    *_clip("vision_tower.vision_model.", "vision.", also="vision_tower."),
    *linear("multi_modal_projector.linear_1", "projector.fc1"),
    *linear("multi_modal_projector.linear_2", "projector.fc2"),
    *llama_decoder("language_model.model.", "text.", head="language_model.lm_head"),
)
