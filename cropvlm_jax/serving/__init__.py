# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The cropper for other programs: an endpoint, a tool and a page."""
