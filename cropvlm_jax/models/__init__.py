# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Vision-language models as Flax NNX modules: common parts here, and one folder an architecture.

`registry.py` names the architectures; `architecture.py` says what the rest of the package may ask
of one. Nothing is imported here: data workers read conversations and must not import jax.
"""
