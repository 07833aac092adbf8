# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Frozen readers that answer questions about pictures: VLMs, chat endpoints, OCR engines."""
