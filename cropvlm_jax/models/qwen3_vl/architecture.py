# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL as the rest of the package sees it: what differs from Qwen2.5-VL."""

import dataclasses

from cropvlm_jax.models.qwen2_5_vl.architecture import ARCHITECTURE as QWEN2_5_VL
from cropvlm_jax.models.qwen3_vl import image_processing
from cropvlm_jax.models.qwen3_vl.config import MODEL_TYPE, Qwen3Config
from cropvlm_jax.models.qwen3_vl.conversations import Qwen3Conversations
from cropvlm_jax.models.qwen3_vl.model import Qwen3VL
from cropvlm_jax.models.qwen3_vl.weights import WEIGHTS

ARCHITECTURE = dataclasses.replace(
    QWEN2_5_VL,
    model_types=(MODEL_TYPE,),
    config=Qwen3Config,
    model=Qwen3VL,
    weights=WEIGHTS,
    logical_axes=(
        *QWEN2_5_VL.logical_axes,
        (r"deepstack/fc1/kernel", (None, "embed", "mlp")),
        (r"deepstack/fc1/bias", (None, "mlp")),
        (r"deepstack/fc2/kernel", (None, "mlp", "embed")),
    ),
    conversations=Qwen3Conversations,
    tower=("vision", "projector", "deepstack"),
    configure=image_processing.configure,
    image_settings=image_processing.image_settings,
    box_frame="thousandths",
)
