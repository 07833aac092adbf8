# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads pages for commands of ours, and asks their real flags whether they accept them."""

import json
import os
import pathlib
import re
import shlex
import textwrap
from collections.abc import Iterator

import forked

from cropvlm_jax.apps import cli

ROOT = pathlib.Path(__file__).parents[1]
ENDS = {"&&", "||", ";", "|", "&"}
TRAINS = ("local.sh", "multihost_local.sh")  # which hand their arguments to `cropvlm train`

# Parses each command line of one command in a process of its own: absl's flags are global.
PARSE = """
import importlib, json, os, sys
from absl import flags
from cropvlm_jax.apps import command
from cropvlm_jax.training import config
name = sys.argv[1]
module = importlib.import_module(f"cropvlm_jax.apps.{name}")
for arguments in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        sys.argv, code = [name, *arguments], 0
        try:
            rest = command.parse_flags(" ".join(sys.argv), sys.argv)
            if "config" in flags.FLAGS:
                config.load_config(flags.FLAGS.config)
            if len(rest) > 1:
                sys.exit(f"{sys.argv}: unexpected {rest[1:]}")
        except BaseException as ended:
            print(*sys.argv, getattr(ended, "code", ended), file=sys.stderr)
            code = 2
        sys.stderr.flush()
        os._exit(code)
    os.waitpid(child, 0)
"""


def blocks(page: pathlib.Path) -> Iterator[tuple[int, str, str]]:
    """The line, language and text of each fenced block of a page."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL):
        yield text[: found.start()].count("\n") + 1, found[2], textwrap.dedent(found[3])


def commands(text: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell text, without the variables set before it."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if word in ENDS:
                while command and re.match(r"\w+=", command[0]):
                    command.pop(0)
                if command:
                    yield command
                command = []
            else:
                command.append(word)


def calls(command: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The name and the arguments of the commands of ours that a shell command runs."""
    match command:
        case ["cropvlm", name, *arguments]:
            yield name, arguments
        case ["python", "-m", module, *arguments] if module.startswith("cropvlm_jax.apps."):
            yield module.rpartition(".")[2], arguments
        case ["bash", script, *arguments]:
            assert (ROOT / script).is_file(), f"there is no {script}"
            if os.path.basename(script) in TRAINS:
                needed = ["--config=experiments/zoom_digits.py", "--workdir=x"]
                yield "train", arguments if "multihost" in script else [*needed, *arguments]
            else:
                yield from calls(arguments)
        case ["python", script, *_] if script.endswith(".py"):
            assert (ROOT / script).is_file(), f"there is no {script}"


def refused(found: list[tuple[str, list[str]]]) -> str:
    """What the real flags say against command lines, given as names and arguments."""
    unknown = {name for name, _ in found} - set(cli.COMMANDS) - {"--help", "--version"}
    said = [f"there is no command {name}" for name in unknown]
    for name in cli.COMMANDS:
        lines = [arguments for called, arguments in found if called == name]
        lines = [arguments for arguments in lines if "--help" not in arguments]
        if lines:
            done = forked.python("-c", PARSE, name, input=json.dumps(lines), cwd=ROOT)
            wrong = [line for line in done.stderr.splitlines() if line.startswith(name)]
            said += wrong if done.returncode == 0 else [done.stderr]
    return "\n".join(said)
