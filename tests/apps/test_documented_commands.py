# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every command that the pages and the help show is one that the real flags accept.

Commands are taken out of the shell blocks of README.md, BUILD.md and docs/*.md, out of the help of
the commands, and out of what launch/speedrun.sh calls. They are parsed, config files and overrides
included, and not run. Python blocks compile.
"""

import ast
import doctest

import pytest
from command_lines import ROOT, blocks, calls, commands, refused

from cropvlm_jax.apps import cli

PAGES = [ROOT / "README.md", ROOT / "BUILD.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("bash", "sh", "shell", "console")


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
    broken = []
    for line, language, text in blocks(page):
        if language in ("python", "py"):
            code = doctest.script_from_examples(text) if ">>>" in text else text
            try:
                compile(code, f"{page.name}:{line}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            except SyntaxError as error:
                broken.append(str(error))
    assert not broken


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
        (
            "cropvlm train --config=experiments/zoom_digits.py --workdir=x --config.no=1",
            "no setting no;",
        ),
        ("A=1 bash launch/tpu_vm.sh cropvlm train --config=nope.py --workdir=x", "no such file"),
        ("pip install x && cropvlm zoom --cropper=a --question=b \\\n  --image=c --box", "--box"),
        ("python -m cropvlm_jax.apps.learn --x", "no command learn"),
        ("bash launch/local.sh --config.no=1  # comment", "no setting no;"),
    ],
)
def test_a_wrong_command_would_be_noticed(line, message):
    found = [call for command in commands(line) for call in calls(command)]
    assert message in refused(found)
