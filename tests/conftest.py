# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import os

# Torch's threads would fight over the cores with jax's and with the other test process.
os.environ.setdefault("OMP_NUM_THREADS", "1")
