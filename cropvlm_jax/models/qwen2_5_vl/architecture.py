# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL as the rest of the package sees it."""

from cropvlm_jax.models import logical_axes
from cropvlm_jax.models.architecture import Architecture
from cropvlm_jax.models.qwen2_5_vl import image_processing
from cropvlm_jax.models.qwen2_5_vl.config import MODEL_TYPE, QwenConfig
from cropvlm_jax.models.qwen2_5_vl.conversations import END, IMAGE, QwenConversations
from cropvlm_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from cropvlm_jax.models.qwen2_5_vl.weights import WEIGHTS

ARCHITECTURE = Architecture(
    model_types=(MODEL_TYPE,),
    config=QwenConfig,
    model=Qwen2_5_VL,
    weights=WEIGHTS,
    logical_axes=(*logical_axes.LAYERS, *logical_axes.EMBEDDINGS, *logical_axes.PROJECTOR),
    conversations=QwenConversations,
    image_token=IMAGE,
    end_token=END,
    tower=("vision", "projector"),
    configure=image_processing.configure,
    image_settings=image_processing.image_settings,
    processor_config=image_processing.processor_config,
    see=image_processing.see,
    grid=image_processing.grid,
    image_tokens=image_processing.image_tokens,
    fewer_tokens="use a smaller max_pixels of its image processor",
    processor_settings=("max_pixels",),
    box_frame="smart_resized",
    load_over_mesh=True,
    reads_pixel_values=False,
)
