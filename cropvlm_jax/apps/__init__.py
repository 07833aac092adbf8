# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The commands that users run: `cropvlm COMMAND`, or `python -m cropvlm_jax.apps.COMMAND`.

Each module here is one command. It defines its flags with absl and has a `main`, which `run` calls.
No other room of the package knows of absl's flags.
"""

from cropvlm_jax.apps.command import run, run_script

__all__ = ["run", "run_script"]
