# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""SmolVLM 1 and 2 (Idefics3, arXiv 2504.05299): SigLIP tower, pixel shuffle, Llama decoder."""
