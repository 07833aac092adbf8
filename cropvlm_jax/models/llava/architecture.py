# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""LLaVA-1.5 as the rest of the package sees it."""

from cropvlm_jax.models import logical_axes
from cropvlm_jax.models.architecture import Architecture
from cropvlm_jax.models.llava import image_processing
from cropvlm_jax.models.llava.config import MODEL_TYPE, LlavaConfig
from cropvlm_jax.models.llava.conversations import END, IMAGE, LlavaConversations
from cropvlm_jax.models.llava.model import Llava
from cropvlm_jax.models.llava.weights import WEIGHTS

ARCHITECTURE = Architecture(
    model_types=(MODEL_TYPE,),
    config=LlavaConfig,
    model=Llava,
    weights=WEIGHTS,
    logical_axes=(*logical_axes.LAYERS, *logical_axes.EMBEDDINGS, *logical_axes.PROJECTOR),
    conversations=LlavaConversations,
    image_token=IMAGE,
    end_token=END,
    tower=("vision", "projector"),
    configure=image_processing.configure,
    image_settings=image_processing.image_settings,
    processor_config=image_processing.processor_config,
    see=image_processing.see,
    grid=image_processing.grid,
    image_tokens=image_processing.image_tokens,
    fewer_tokens="show fewer pictures",
    processor_settings=("do_pad",),
    load_over_mesh=True,
)
