# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures on the host (PIL), and the same resampling on the device under jit."""
