# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs one command: help, flags, logging, compilation cache, and errors in one line."""

import functools
import logging as standard_logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict

from cropvlm_jax.apps import config_errors, help_text

PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
CACHE = "~/.cache/cropvlm_jax/xla"
WRONG_COMMAND_LINE = 2  # exit code, as of other programs
FAILED = 1
NO_DEVICE = "Unable to initialize backend"  # how JAX's errors about it begin
INTERRUPTED = 128 + 2  # what a process ended by SIGINT exits with


def run(main: Callable[[list[str]], Any]) -> None:
    """Runs the `main` of a command, with its log and with the cache of compiled programs.

    Args:
        main: gets the program's name and the arguments that are no flags.
    """
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(is_told)
    use_compilation_cache()
    run_script(main)


def run_script(main: Callable[[list[str]], Any]) -> None:
    """Runs a `main` with the flags of the command line, and prints help where it is asked for.

    Args:
        main: gets the program's name and the arguments that are no flags.
    """
    module = sys.modules[main.__module__]
    if any(argument in help_text.REQUESTS for argument in sys.argv[1:]):
        print(help_text.command_help(module))
        return
    app.run(
        functools.partial(run_main, main),
        flags_parser=functools.partial(parse_flags, help_text.command_name(module)),
    )


def run_main(main: Callable[[list[str]], Any], argv: list[str]) -> None:
    """Calls `main`; what the user can put right ends it with one line instead of a traceback.

    `--verbosity=1` shows the traceback all the same.
    """
    name = help_text.command_name(sys.modules[main.__module__])
    try:
        main(argv)
    except KeyboardInterrupt:
        end(f"{name}: interrupted", INTERRUPTED)
    except Exception as error:
        line = explain(error)
        if not line:
            raise
        if is_usage(error):
            end(f"{name}: {sentence(line)} See {name} --help", WRONG_COMMAND_LINE)
        end(f"{name}: {line} (--verbosity=1 shows where)", FAILED)


def is_usage(error: BaseException) -> bool:
    """Whether the command line is wrong."""
    return isinstance(error, app.UsageError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory, or the host's, was too small; XLA has no class of its own."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def explain(error: BaseException) -> str:
    """An error that the user can put right, in one line; "" where a traceback is to be shown."""
    if logging.level_debug() or not is_users(error):
        return ""
    if is_out_of_memory(error):
        first = str(error).partition("\n")[0]
        return f"out of memory: {first}. docs/troubleshooting.md says what takes less"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def is_users(error: BaseException) -> bool:
    """Whether a user, rather than a programmer, can put an error right.

    So it is where the system or a server refuses something, such as a file that is missing, where
    JAX cannot have a device, which another process may hold, and where this package refuses
    something or cannot go on: its messages say what to do. A ValueError that another package raised
    is most likely our bug.
    """
    if is_usage(error) or is_out_of_memory(error) or isinstance(error, OSError):
        return True
    if str(error).startswith(NO_DEVICE):
        return True
    if not isinstance(error, ValueError | ImportError | FloatingPointError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].filename.startswith(PACKAGE)


def end(message: str, code: int) -> NoReturn:
    """Ends the program with a message and an exit code."""
    print(message, file=sys.stderr)
    sys.exit(code)


def parse_flags(name: str, argv: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it ends the program with one line.

    Args:
        name: of the command, as the user types it.
        argv: the program's name and its arguments.

    Returns:
        The program's name and the arguments that are no flags.
    """
    try:
        rest = flags.FLAGS(argv)
    except SystemExit:  # --helpfull and --helpxml have printed, which absl calls a failure
        sys.exit()
    except Exception as error:  # a config file may raise anything
        wrong = config_errors.explanation(argv, str(error))
        if not (wrong or isinstance(error, flags.Error)):
            raise
        wrong_command_line(name, wrong or plain(str(error)))
    if "config" in flags.FLAGS and not isinstance(flags.FLAGS.config, Mapping | ConfigDict):
        wrong_command_line(name, config_errors.explanation(argv))
    return rest


def wrong_command_line(name: str, text: str) -> NoReturn:
    """Ends the program with what is wrong with its command line."""
    end(f"{name}: {sentence(text)} See {name} --help", WRONG_COMMAND_LINE)


def plain(message: str) -> str:
    """absl's message about a flag, as sentences in plain words."""
    if missing := re.match(r"flag --(\S+)=None: .* must have a value other than None", message):
        return f"--{missing[1]}=... is required."
    message = re.sub(r"^Unknown command line flag '(\S+)'", r"unknown flag --\1", message)
    return sentence(message.removeprefix("flag ").replace(" ?", "?"))


def sentence(text: str) -> str:
    """A text with a period at its end, where it has none and is no question."""
    return text if text.endswith((".", "?")) else f"{text}."


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
    import jax  # not earlier: `cropvlm --help` is to be quick

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(CACHE))
