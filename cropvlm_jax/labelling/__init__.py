# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A labeller, a large model, is asked to point at the evidence: replies that become seed boxes."""
