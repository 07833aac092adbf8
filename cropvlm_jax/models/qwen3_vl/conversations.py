# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL's conversation; no jax import."""

from cropvlm_jax.models.qwen2_5_vl.conversations import QwenConversations


class Qwen3Conversations(QwenConversations):
    """The answer conversation of Qwen3-VL's Instruct models: Qwen2.5-VL's without a system turn."""

    opening = ""
