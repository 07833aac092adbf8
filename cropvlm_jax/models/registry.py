# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The architectures there are: the only place outside of their folders that names them."""

import re

from cropvlm_jax.models.architecture import Architecture
from cropvlm_jax.models.config import VLMConfig
from cropvlm_jax.models.llava.architecture import ARCHITECTURE as LLAVA
from cropvlm_jax.models.qwen2_5_vl.architecture import ARCHITECTURE as QWEN2_5_VL
from cropvlm_jax.models.qwen3_vl.architecture import ARCHITECTURE as QWEN3_VL
from cropvlm_jax.models.smolvlm.architecture import ARCHITECTURE as SMOLVLM

# By `model_type` of a `config.json`.
ARCHITECTURES: dict[str, Architecture] = {
    model_type: architecture
    for architecture in (SMOLVLM, LLAVA, QWEN2_5_VL, QWEN3_VL)
    for model_type in architecture.model_types
}


def architecture_of(config: VLMConfig) -> Architecture:
    """The architecture of a model's shape."""
    return ARCHITECTURES[config.model_type]


def architecture_named(name: str) -> Architecture | None:
    """The architecture of which a served model's name tells, such as "Qwen/Qwen2.5-VL-7B-Instruct".

    The name must hold a `model_type`; capitals and all but letters and digits do not matter.
    """

    def letters(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    # The longest one counts: a longer name says more.
    for model_type in sorted(ARCHITECTURES, key=len, reverse=True):
        if letters(model_type) in letters(name):
            return ARCHITECTURES[model_type]
    return None
