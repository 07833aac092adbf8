# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every command that the pages and the help show is one that the real flags accept.

Commands are taken out of the shell blocks of README.md, BUILD.md and docs/*.md, out of the help of
the commands, and out of what launch/speedrun.sh calls. They are parsed, config files and overrides
included, and not run. Python blocks compile.
"""

import ast
import doctest
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from cropvlm_jax.apps import cli

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "BUILD.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("bash", "sh", "shell", "console")
ENDS = {"&&", "||", ";", "|", "&"}
TRAINS = ("local.sh", "multihost_local.sh")  # which hand their arguments to `cropvlm train`

# Parses each command line of one command in a process of its own: absl's flags are global.
PARSE = """
import importlib, json, os, sys
from cropvlm_jax.apps import command
name = sys.argv[1]
module = importlib.import_module(f"cropvlm_jax.apps.{name}")
for arguments in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        sys.argv, code = [name, *arguments], 0
        try:
            rest = command.parse_flags(" ".join(sys.argv), sys.argv)
            if len(rest) > 1:
                sys.exit(f"{sys.argv}: unexpected {rest[1:]}")
        except SystemExit as ended:
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
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
            done = subprocess.run(
                [sys.executable, "-c", PARSE, name],
                input=json.dumps(lines),
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            wrong = [line for line in done.stderr.splitlines() if line.startswith(name)]
            said += wrong if done.returncode == 0 else [done.stderr]
    return "\n".join(said)


def test_the_pages_show_commands_that_parse():
    found = [
        call
        for page in PAGES
        for _, language, text in blocks(page)
        if language in SHELL
        for command in commands(text)
        for call in calls(command)
    ]
    assert {"train", "evaluate"} <= {name for name, _ in found}
    assert not refused(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_compile(page):
    for line, language, text in blocks(page):
        if language in ("python", "py"):
            code = doctest.script_from_examples(text) if ">>>" in text else text
            compile(code, f"{page.name}:{line}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_examples_of_the_help_parse():
    found = [call for c in cli.COMMANDS.values() for w in commands(c.example) for call in calls(w)]
    for name in cli.COMMANDS:
        module = ast.parse((ROOT / "cropvlm_jax" / "apps" / f"{name}.py").read_text())
        example = (ast.get_docstring(module) or "").partition("\n    cropvlm ")[2].split("\n\n")[0]
        found += [call for words in commands(f"cropvlm {example}") for call in calls(words)]
    assert len(found) == 2 * len(cli.COMMANDS)
    assert not refused(found)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cropvlm train --config=experiments/zoom_digits.py --workdir=x --config.no=1", "'no'"),
        ("A=1 bash launch/tpu_vm.sh cropvlm train --config=nope.py --workdir=x", "no such file"),
        ("pip install x && cropvlm zoom --cropper=a --question=b \\\n  --image=c --box", "--box"),
        ("python -m cropvlm_jax.apps.learn --x", "no command learn"),
        ("bash launch/local.sh --config.no=1  # comment", "'no'"),
    ],
)
def test_a_wrong_command_would_be_noticed(line, message):
    found = [call for command in commands(line) for call in calls(command)]
    assert message in refused(found)
