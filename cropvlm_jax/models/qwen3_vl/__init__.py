# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL (arXiv 2511.21631): features of several layers of the tower, Qwen3 decoder."""
