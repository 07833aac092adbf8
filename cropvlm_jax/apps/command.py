# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs one command: help, flags, logging, compilation cache, and errors in one line."""

import functools
import logging as standard_logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging

from cropvlm_jax.apps import help_text

PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
CACHE = "~/.cache/cropvlm_jax/xla"
WRONG_COMMAND_LINE = 2  # exit code, as of other programs
FAILED = 1


def run(main: Callable[[list[str]], Any]) -> None:
    """Runs the `main` of a command with the flags of the command line.

    Args:
        main: gets the program's name and the arguments that are no flags.
    """
    module = sys.modules[main.__module__]
    if any(argument in help_text.REQUESTS for argument in sys.argv[1:]):
        print(help_text.command_help(module))
        return
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(is_told)
    use_compilation_cache()
    app.run(
        functools.partial(run_main, main),
        flags_parser=functools.partial(parse_flags, help_text.command_name(module)),
    )


def run_main(main: Callable[[list[str]], Any], argv: list[str]) -> None:
    """Calls `main`; what the user can put right ends it with one line instead of a traceback.

    `--verbosity=1` shows the traceback all the same.
    """
    try:
        main(argv)
    except (app.UsageError, OSError, ValueError, ImportError) as error:
        if logging.level_debug() or not is_users(error):
            raise
        name = help_text.command_name(sys.modules[main.__module__])
        if isinstance(error, app.UsageError):
            end(f"{name}: {error}. See {name} --help", WRONG_COMMAND_LINE)
        end(f"{name}: {in_one_line(error)} (--verbosity=1 shows where)", FAILED)


def is_users(error: Exception) -> bool:
    """Whether a user, rather than a programmer, can put an error right.

    So it is where a file is missing or cannot be written, and where this package refuses something:
    its messages say what to do. A ValueError that another package raised is most likely our bug.
    """
    if isinstance(error, app.UsageError) or (isinstance(error, OSError) and error.filename):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].filename.startswith(PACKAGE)


def in_one_line(error: Exception) -> str:
    """The message of an error; that of the operating system without its number."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


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
    check_config_file(name, argv)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        end(f"{name}: {plain(str(error))} See {name} --help", WRONG_COMMAND_LINE)
    except AttributeError as error:  # of ml_collections, where a setting is unknown
        message = str(getattr(error.args[0], "args", error.args)[0]).replace("\n", ". ")
        where = config_line(error, argv)
        end(
            f"{name}: {where}unknown setting {sentence(message)} "
            "All settings are in docs/config.md",
            WRONG_COMMAND_LINE,
        )


def plain(message: str) -> str:
    """absl's message about a flag, as sentences in plain words."""
    if missing := re.match(r"flag --(\S+)=None: .* must have a value other than None", message):
        return f"--{missing[1]}=... is required."
    message = re.sub(r"^Unknown command line flag '(\S+)'", r"unknown flag --\1", message)
    return sentence(message.removeprefix("flag ").replace(" ?", "?"))


def sentence(text: str) -> str:
    """A text with a period at its end, where it has none and is no question."""
    return text if text.endswith((".", "?")) else f"{text}."


def config_paths(argv: list[str]) -> list[str]:
    """The config files that a command line names, without what follows the colon."""
    found = [re.fullmatch(r"--?config=([^:]*)(:.*)?", argument) for argument in argv]
    return [match[1] for match in found if match]


def check_config_file(name: str, argv: list[str]) -> None:
    """Ends the program where a config file is missing, of which ml_collections says a page."""
    for path in config_paths(argv):
        if not os.path.isfile(path):
            end(f"{name}: --config={path}: no such file. See {name} --help", WRONG_COMMAND_LINE)


def config_line(error: AttributeError, argv: list[str]) -> str:
    """Where in a config file an unknown setting is, as "FILE:LINE: "; "" for the command line."""
    paths = config_paths(argv)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{frame.filename}:{frame.lineno}: " for frame in frames if frame.filename in paths]
    return lines[-1] if lines else ""


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
