# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""LLaVA-1.5 (arXiv 2310.03744): CLIP tower, two-layer projector, Llama decoder."""
