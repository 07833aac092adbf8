# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Says in one line what is wrong with a config file, or with the settings on a command line.

`ml_collections` reads both. Its errors do not say which settings there are, what values they take,
or, without a traceback, where in a file the mistake is.
"""

import dataclasses
import os
import re
import runpy
import traceback
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from cropvlm_jax import settings
from cropvlm_jax.apps import config_flag


def explanation(argv: list[str], message: str = "") -> str:
    """What is wrong with the config files and the settings that a command line names.

    Args:
        argv: the program's name and its arguments.
        message: of absl, where it refused a flag.

    Returns:
        The mistake; "" where there is none.
    """
    for path, variant in config_files(argv):
        if not os.path.isfile(path):
            return f"--config={path}: no such file"
        try:
            given = runpy.run_path(path)["get_config"](*variant)
        except Exception as error:  # whatever the file raises
            return in_file(error, path)
        if not isinstance(given, Mapping | ConfigDict):
            return f"{path}: get_config() returns {given!r}, not what default_config() makes"
        try:
            config_flag.add_sources(given, config_flag.overrides(argv))
        except ValueError as error:
            return str(error)
        for name in config_flag.overrides(argv):
            if wrong := unknown_setting(given, name):
                return wrong
    return wrong_value(message)


def config_files(argv: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The config files that a command line names, each with the variant after its colon, if any."""
    for place, argument in enumerate(argv):
        if match := re.fullmatch(r"--?config(=.*)?", argument, re.DOTALL):
            value = match[1][1:] if match[1] else "".join(argv[place + 1 : place + 2])
            path, *variant = value.split(":", 1)
            yield path, variant


def unknown_setting(given: Any, name: str) -> str:
    """Says which settings there are, where `name` is none of `given`; otherwise ""."""
    section, path = given, ""
    for part in name.split("."):
        there = list(section) if isinstance(section, Mapping | ConfigDict) else []
        if part not in there:
            return settings.unknown(f"{path}{part}", there)
        section, path = section[part], f"{path}{part}."
    return ""


def wrong_value(message: str) -> str:
    """Says what a setting takes, where absl's message is about its value; otherwise ""."""
    found = re.match(r"flag --config\.([\w.]+)=(.*?): ", message, re.DOTALL)
    if not found:
        return ""
    from cropvlm_jax.training.config import TrainConfig  # takes seconds: it imports jax

    kind = settings.kind_of(TrainConfig, found[1].split("."))
    if kind is None:
        return ""
    kind = settings.optional(kind) or kind
    if dataclasses.is_dataclass(kind):
        there = ", ".join(sorted(settings.fields(typing.cast(type, kind))))
        return f"--config.{found[1]} is a section; the settings in it are: {there}"
    return f"--config.{found[1]}={found[2]} is not {settings.expected(kind)}"


def in_file(error: Exception, path: str) -> str:
    """What a config file raised, with the line of the file."""
    frames = list(traceback.walk_tb(error.__traceback__))
    lines = [line for frame, line in frames if frame.f_code.co_filename == path]
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        lines, text = [error.lineno or 1], error.msg
    where = f"{path}:{lines[-1]}: " if lines else f"{path}: "
    values = frames[-1][0].f_locals  # of `ConfigDict`, where that refuses a name
    if isinstance(error, KeyError) and text == "'get_config'":
        return f"{path}: there is no function get_config() in it"
    if isinstance(error, AttributeError | KeyError) and isinstance(values.get("self"), ConfigDict):
        name = values.get("key", values.get("attribute"))
        return where + settings.unknown(str(name), list(values["self"]))
    if wrong := re.match(r"source\(\) got an unexpected keyword argument '(\w+)'", text):
        from cropvlm_jax.training.config import SourceConfig  # the file has imported it

        return where + settings.unknown(wrong[1], settings.fields(SourceConfig))
    return where + (text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}")
