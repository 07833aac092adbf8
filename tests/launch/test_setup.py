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
from packaging.requirements import Requirement

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


def here(lines) -> list[Requirement]:
    """The requirements that hold for this Python."""
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [one for one in found if one.marker is None or one.marker.evaluate()]


def test_the_constraints_name_every_dependency_and_what_is_tested_here():
    found = here(CONSTRAINTS.read_text().split("\n"))
    pinned = {normal(one.name): str(one.specifier).removeprefix("==") for one in found}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    needed = {normal(one.name) for names in lists for one in here(names)}
    assert needed - set(pinned) == {"cropvlm-jax"}
    assert pinned["torch"] == "2.13.0" and "libtpu" not in pinned
    if not os.environ.get("NEWEST"):
        for name in needed & set(pinned):
            found = importlib.metadata.version(name).partition("+")[0]
            assert found == pinned[name], name


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_no_python_can_have_a_jax_that_breaks_its_flax(python):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = {
        one.name: one.specifier
        for one in map(Requirement, project["dependencies"])
        if one.marker is None or one.marker.evaluate({"python_version": python})
    }
    old = "0.12.8" in allowed["flax"]
    assert old == ("0.10.2" in allowed["jax"]) and old == (python == "3.11")
    for jax in ("0.11.1", "0.11.2", "0.12.0.1"):
        assert not (old and jax in allowed["jax"])
