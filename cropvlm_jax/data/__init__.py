# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures and questions on the host; jax is never imported here: workers touch no devices."""
