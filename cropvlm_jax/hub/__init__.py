# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face edge: weights, tokenizers and processors in and out."""
