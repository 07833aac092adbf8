# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What commands take from the environment, since everybody can read a command line."""

import os

from absl import app

TOKEN = "CROPVLM_AUTH_TOKEN"  # that clients of a server must send


def secret(name: str) -> str | None:
    """What an environment variable keeps secret.

    Raises:
        UsageError: it is set, and empty or not sendable in a header.
    """
    value = os.environ.get(name)
    if value is not None and not (value.isascii() and value.isprintable() and value.strip()):
        raise app.UsageError(f"{name} is set, but it is empty or has characters of no key")
    return value
