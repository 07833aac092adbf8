# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""launch/colab.ipynb runs from top to bottom; its install cell here with a pretended pip.

`tests/launch/fresh_environments.py` runs that cell with the real one.
"""

import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import tomllib
import types

import nbclient
import nbformat
import numpy as np
import pytest
from packaging.requirements import Requirement

from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.training.config import default_config

ROOT = pathlib.Path(__file__).parents[2]


def read():
    """The notebook and its cells by id."""
    notebook = nbformat.read(ROOT / "launch" / "colab.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook, {cell.id: cell for cell in notebook.cells}


def test_it_is_committed_without_outputs_and_its_settings_are_known_ones():
    notebook, cells = read()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
    names: dict = {}
    exec(cells["settings"].source, names)
    for settings in (names["TINY"], names["SMOLVLM_256M"]):
        default_config().lock().update_from_flattened_dict(settings)  # raises where one is unknown
    assert names["SETTINGS"] is names["TINY"]


def test_it_runs_top_to_bottom(tmp_path):
    notebook, cells = read()
    fewer = f"STEPS, SCENES, WORKDIR = 2, 1, {str(tmp_path / 'run')!r}"
    cells["settings"].source += f"\n{fewer}"
    cells["config"].source += "\nconfig.batch_size, config.grpo.num_generations = 2, 2"
    resources = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()

    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]
    exported = Pretrained.open(tmp_path / "run" / "export")
    assert json.loads((exported.folder / "config.json").read_text())["dtype"] == "bfloat16"
    trained = Pretrained.open(tmp_path / "run" / "cropper").load().text.head[...]
    np.testing.assert_allclose(exported.load().text.head[...], trained, rtol=2**-8)
    (told,) = cells["surer"].outputs
    assert "the crop); log-odds" in told["text"]
    for name in ("zoom", "train", "compare", "panels"):
        shown = [output.get("data", {}) for output in cells[name].outputs]
        assert sum("image/png" in data for data in shown) == 1, name


class Killed(Exception):
    """The kernel has ended itself."""


class Pretended:
    """An installed package by another name and version."""

    def __init__(self, real: importlib.metadata.Distribution, name: str, version: str):
        self.real, self.name, self.version = real, name, version

    def __getattr__(self, attribute: str):
        return getattr(self.real, attribute)


@pytest.fixture
def session(tmp_path, monkeypatch):
    """A pretended Colab: what is installed, by name, and what pip was asked for.

    Its kernel has loaded what the tests have; `versions` are those before pip.
    """
    found = {one.name: one for one in importlib.metadata.distributions()}
    real = {name: one.version for name, one in found.items()}
    old = {"jax": "0.7.2", "jaxlib": "0.7.2", "flax": "0.11.2"}
    made = types.SimpleNamespace(versions=real | old, asked=[])
    del made.versions["cropvlm-jax"]

    def pip(command, **_):
        if command[:4] == [sys.executable, "-m", "pip", "install"]:
            made.asked.append(command[4:])
            made.versions = dict(real)
        return types.SimpleNamespace(returncode=0)

    def kill(process, _):
        assert process == os.getpid()
        raise Killed

    def distributions(**_):
        return [Pretended(found.get(n, found["six"]), n, v) for n, v in made.versions.items()]

    modules = importlib.metadata.packages_distributions()
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: modules)
    monkeypatch.setattr(importlib.metadata, "distributions", distributions)
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return made


def install(package: str) -> None:
    """Runs the cell, with where the package comes from."""
    source = read()[1]["install"].source
    assert source.count('PACKAGE = ""\n') == 1
    exec(source.replace('PACKAGE = ""\n', f"PACKAGE = {package!r}\n"), {})


def test_without_a_package_nothing_is_installed(session):
    with pytest.raises(ValueError, match="PACKAGE is not set: write at the top of this cell"):
        install("")
    with pytest.raises(ValueError, match="PACKAGE='no/such': no such file or folder"):
        install("no/such")
    assert not session.asked


def test_a_kernel_that_has_loaded_older_versions_ends_once(session, capsys):
    with pytest.raises(Killed):
        install("git+https://example.org/it")
    assert "flax, jax, jaxlib" in capsys.readouterr().out
    (asked,) = session.asked
    assert "cropvlm-jax @ git+https://example.org/it" in asked
    assert f"numpy=={session.versions['numpy']}" in asked
    for _ in range(2):
        install("git+https://example.org/it")
        assert f"jax {session.versions['jax']}" in capsys.readouterr().out
    assert len(session.asked) == 1


def test_a_kernel_that_comes_back_with_other_versions_is_not_ended_again(session, monkeypatch):
    session.versions["cropvlm-jax"] = "1"
    with pytest.raises(Killed):  # of which jax was replaced by hand
        install("")
    with pytest.raises(RuntimeError, match="restart the session: other versions are loaded of fl"):
        install("")
    assert not session.asked


@pytest.mark.parametrize(
    ("there", "extra"), [({"libtpu": "0"}, "[tpu]"), ({"jax-cuda12-plugin": "0.7.2"}, "[cuda12]")]
)
def test_the_accelerator_and_an_old_numpy_decide_what_is_installed(session, there, extra):
    session.versions.pop("libtpu", None)
    session.versions |= there | {"numpy": "1.26.4"}
    with pytest.raises(Killed):
        install(str(ROOT))
    (asked,) = session.asked
    assert f"cropvlm-jax @ {ROOT.as_uri()}" in asked
    assert any(one.startswith(f"jax{extra}==") for one in asked)
    (least,) = [one for one in asked if one.startswith("numpy")]
    assert re.fullmatch(r"numpy==2\.[01]\.\*", least)


def test_the_pinned_versions_are_allowed_ones():
    pins = re.findall(r'JAX, FLAX, LEAST_NUMPY = "(.+)", "(.+)", ', read()[1]["install"].source)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for python, (jax, flax) in zip(("3.13", "3.11"), pins, strict=True):
        for one in map(Requirement, project["dependencies"]):
            if one.marker is None or one.marker.evaluate({"python_version": python}):
                pinned = {"jax": jax, "flax": flax}.get(one.name)
                assert pinned is None or pinned in one.specifier
