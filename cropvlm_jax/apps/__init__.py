# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The doors: what a user runs, with absl flags."""

import logging as standard_logging
import os
from collections.abc import Callable
from typing import Any

import jax
from absl import app, logging

PACKAGE = os.path.dirname(os.path.dirname(__file__))
CACHE = "~/.cache/cropvlm_jax/xla"


def run(main: Callable[[list[str]], Any]) -> None:
    """Runs an app: logs on, compiled programs kept for the next run.

    Args:
        main: of the app; gets the arguments that are no flags.
    """
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(is_told)
    use_compilation_cache()
    app.run(main)


def is_told(record: standard_logging.LogRecord) -> bool:
    """Whether a line is logged: of other packages warnings and errors, all with `--verbosity=1`.

    Orbax writes forty lines a save.
    """
    ours = record.pathname.startswith(PACKAGE)
    return ours or record.levelno >= standard_logging.WARNING or logging.level_debug()


def use_compilation_cache() -> None:
    """Keeps compiled programs in `CACHE`, unless JAX_COMPILATION_CACHE_DIR says where.

    JAX keeps what took more than a second to compile, tells CPUs apart by their features, and
    merely warns where it cannot write.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(CACHE))
