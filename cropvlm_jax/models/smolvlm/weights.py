# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""SmolVLM's weights, under Hugging Face's names and ours."""

from cropvlm_jax.models.weight_table import TRANSPOSE, Table, Weight, llama_decoder, vit_tower

WEIGHTS: Table = (
    *vit_tower("model.vision_model.", "vision."),
    Weight("model.vision_model.embeddings.patch_embedding.bias", "vision.patch_embedding.bias"),
    Weight("model.connector.modality_projection.proj.weight", "connector.kernel", TRANSPOSE),
    *llama_decoder("model.text_model.", "text."),
)
