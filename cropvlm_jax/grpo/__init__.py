# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""GRPO in one jitted step; `step.py` reads top to bottom."""
