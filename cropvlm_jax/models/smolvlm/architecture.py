# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""SmolVLM as the rest of the package sees it."""

from cropvlm_jax.models import logical_axes
from cropvlm_jax.models.architecture import Architecture
from cropvlm_jax.models.smolvlm import image_processing
from cropvlm_jax.models.smolvlm.config import MODEL_TYPES, SmolVLMConfig
from cropvlm_jax.models.smolvlm.conversations import END, IMAGE, SmolVLMConversations
from cropvlm_jax.models.smolvlm.model import TOWER, SmolVLM
from cropvlm_jax.models.smolvlm.processor_files import ASK_FOR_BOX, processor_files
from cropvlm_jax.models.smolvlm.weights import WEIGHTS

ARCHITECTURE = Architecture(
    model_types=MODEL_TYPES,
    config=SmolVLMConfig,
    model=SmolVLM,
    weights=WEIGHTS,
    logical_axes=(
        *logical_axes.LAYERS,
        *logical_axes.EMBEDDINGS,
        (r"connector/kernel", (None, "embed")),
        (r"connector/lora_a", (None, "rank")),
        (r"connector/lora_b", (None, "embed")),
    ),
    conversations=SmolVLMConversations,
    image_token=IMAGE,
    end_token=END,
    tower=TOWER,
    configure=image_processing.configure,
    image_settings=image_processing.image_settings,
    processor_config=image_processing.processor_config,
    see=image_processing.see,
    grid=image_processing.grid,
    image_tokens=image_processing.image_tokens,
    plan=image_processing.plan,
    fewer_tokens="use a smaller longest_edge",
    splits_pictures=True,
    can_crop=True,
    ask_for_box=ASK_FOR_BOX,
    processor_files=processor_files,
)
