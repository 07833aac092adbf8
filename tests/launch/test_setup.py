# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""launch/setup.sh with a pretended pip, and the versions that it installs."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib

import pytest
from command_lines import ROOT

CONSTRAINTS = ROOT / "launch" / "constraints.txt"


@pytest.fixture
def install(tmp_path):
    """Sources the script in a folder of its own; gives pip's arguments, None if it was not run."""
    (tmp_path / "launch").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "setup.sh", tmp_path / "launch")
    for name in ("pyproject.toml", "launch/constraints.txt", ".venv/bin/activate"):
        (tmp_path / name).touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/usr/bin/env bash\necho "$*" >called\n')
    python.chmod(0o755)

    def run(extras: str, **variables: str) -> list[str] | None:
        command = ["bash", "-euc", f'source launch/setup.sh "{extras}"']
        env = {"PATH": os.environ["PATH"]} | variables
        subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
        called = tmp_path / "called"
        if not called.is_file():
            return None
        arguments = called.read_text().split()
        called.unlink()
        return arguments

    return run


def test_the_tested_versions_are_installed_once(install):
    arguments = install("test")
    assert arguments[:3] == ["-m", "pip", "install"] and arguments[-2:] == ["-e", ".[test]"]
    assert "--constraint launch/constraints.txt" in " ".join(arguments)
    assert install("test") is None
    assert install("")[-2:] == ["-e", "."]


def test_newest_takes_the_newest(install):
    install("test")
    arguments = install("test", NEWEST="1")
    assert "--upgrade" in arguments and "--constraint" not in arguments


def normal(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub("[-_.]+", "-", name).lower()


def test_the_constraints_name_every_dependency_and_what_is_tested_here():
    pinned = dict(
        line.split("==") for line in CONSTRAINTS.read_text().split("\n") if "==" in line[:60]
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    needed = {normal(re.match(r"[\w.-]+", line)[0]) for names in lists for line in names}
    assert needed - set(pinned) == {"cropvlm-jax", "torchvision"}  # which follows torch
    assert pinned["torch"] == "2.13.0" and "libtpu" not in pinned
    if not os.environ.get("NEWEST"):
        for name in needed & set(pinned):
            found = importlib.metadata.version(name).partition("+")[0]
            assert found == pinned[name], name
