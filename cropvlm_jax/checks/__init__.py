# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `cropvlm check` proves and measures on the machine at hand."""
