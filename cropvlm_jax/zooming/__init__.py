# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Zooming into many pictures: what is asked, results that survive a kill, a page of them all."""
