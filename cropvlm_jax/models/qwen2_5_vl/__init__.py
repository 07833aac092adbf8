# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL (arXiv 2502.13923): a tower for pictures of any size, Qwen2 decoder with M-RoPE."""
