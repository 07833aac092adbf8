# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The console script: help that explains, and errors that say what to do."""

import os
import subprocess
import sys

import forked
import jax
import numpy as np
import pytest

from cropvlm_jax.apps import cli, command
from cropvlm_jax.data.sources import open_source
from cropvlm_jax.training.actions import check_finite

CONFIG = "--config=experiments/zoom_digits.py"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs `cropvlm ARGUMENTS`."""
    env = os.environ | environment
    return forked.python("-m", "cropvlm_jax.apps.cli", *arguments, env=env)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("help",), ("-h",)])
def test_the_overview_has_each_command_with_a_line_and_an_example(arguments):
    done = run(*arguments)
    assert done.returncode == 0 and not done.stderr
    for name, listed in cli.COMMANDS.items():
        assert f"  {name:<9} {listed.summary}\n      {listed.example}\n" in done.stdout
        assert listed.example.startswith(f"cropvlm {name} ") and len(listed.summary) < 90


def test_the_overview_does_not_wait_for_jax():
    script = (
        "import sys; from cropvlm_jax.apps import cli; sys.argv = ['cropvlm', '--help']\n"
        "cli.main(); heavy = {'jax', 'flax', 'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_command_explains_its_own_flags_and_no_others(name):
    done = run(name, "--help")
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.startswith(f"usage: cropvlm {name} ") and f"cropvlm {name} --" in done.stdout
    assert len(done.stdout.splitlines()) < 80
    assert max(len(line) for line in done.stdout.splitlines()) <= 120
    for foreign in ("--logtostderr", "--jax_", "--pdb", "--alsologtostderr", "--xml_output"):
        assert foreign not in done.stdout
    assert f"cropvlm {name} --helpfull" in done.stdout
    # What the command needs comes first.
    required, _, optional = done.stdout.partition("\nFlags:\n")
    assert ("\nRequired flags:\n" in required) == (name != "check")  # which needs nothing
    if name in ("train", "aot"):
        assert "--config.NAME=VALUE" in optional and "docs/config.md" in optional


def test_help_is_the_same_by_the_module_in_a_process_of_its_own():
    script = run("export", "--help").stdout
    module = [sys.executable, "-m", "cropvlm_jax.apps.export", "--help"]
    assert subprocess.run(module, capture_output=True, text=True).stdout == script


def test_helpfull_has_the_flags_of_the_libraries_too():
    assert "--[no]logtostderr" in run("prepare", "--helpfull").stdout


def test_version():
    done = run("--version")
    assert done.returncode == 0 and done.stdout.startswith("cropvlm ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "cropvlm: there is no command 'trian'. Did you mean train? See cropvlm --help"),
        (["--steps=3"], "cropvlm: there is no command '--steps=3'. See cropvlm --help"),
        (["train", "--workdir=x"], "cropvlm train: --config=... is required. See"),
        (["train", CONFIG], "cropvlm train: --workdir=... is required. See"),
        (["train", CONFIG, "--workdir=x", "--topology=v5e-8"], "--topology is for --dry_run"),
        (["train", CONFIG, "--dry_run", "--distributed"], "--dry_run is one process"),
        (["train", CONFIG, "--workdri=x"], "unknown flag --workdri. Did you mean: workdir? See"),
        (["train", CONFIG, "--workdir=x", "more"], "unexpected arguments ['more']"),
        (["train", "--config=nope.py", "--workdir=x"], "--config=nope.py: no such file"),
        (["train", CONFIG, "--workdir=x", "--config.stpes=3"], "Did you mean steps? See"),
        (["train", CONFIG, "--workdir=x", "--config.steps=a"], "--config.steps=a is not a whole "),
        (["export", "--model=a", "--out=b", "--dtype=int3"], "--dtype=int3"),
        (["zoom", "--cropper=a", "--image=missing.png", "--question=q"], "no such file"),
        (
            ["zoom", "--cropper=a", "--image=docs/zoom.png", "--question=q", "--out=zoom"],
            "--out=zoom: name a picture file",
        ),
        (["evaluate", "--croppers=zoom_digits/cropper", "--out=x"], "name=model"),
        (["check"], "JAX sees no accelerator here, only a CPU."),
        (["check", "--tiny", "--longest_edges=512"], "--tiny has a size of its own"),
        (["check", "--tiny", "--json=no/such/check.json"], "there is no such folder"),
        (["check", "--tiny", "--json=tests"], "--json=tests is a folder: name a file"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("cropvlm") and message in line


def test_an_unknown_setting_in_a_config_file_is_named_with_its_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from cropvlm_jax.training.config import default_config\n\n\n"
        "def get_config():\n    config = default_config().lock()\n    config.stpes = 3\n"
        "    return config\n"
    )
    done = run("train", f"--config={file}", "--workdir=x")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"{file}:6: there is no setting stpes; there are: adam_b2, " in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "--model=no/such-model", "--out=x"], "'no/such-model' is neither"),
        (["prepare", "--source=sroie", "--folder=no/data", "--splits=train", "--data_dir=x"], ""),
        (["train", CONFIG, "--workdir=x", "--config.stage=sfd"], "sfd"),
    ],
)
def test_what_a_user_can_put_right_is_one_line_unless_asked_for_more(arguments, message, tmp_path):
    done = run(*(a.replace("=x", f"={tmp_path / 'x'}") for a in arguments))
    assert done.returncode == 1, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"cropvlm {arguments[0]}: ") and message in line
    assert line.endswith("(--verbosity=1 shows where)")
    assert "Traceback" not in done.stderr


def test_the_traceback_is_shown_when_asked_for():
    done = run("export", "--model=no/such-model", "--out=x", "--verbosity=1")
    assert done.returncode == 1 and "Traceback" in done.stderr and "no/such-model" in done.stderr


def test_errors_that_other_packages_raise_are_bugs_and_keep_their_traceback():
    with pytest.raises(ValueError) as theirs:
        np.zeros(2).reshape(3)
    with pytest.raises(FileNotFoundError) as missing:
        open("missing")
    with pytest.raises(ValueError) as ours:
        open_source("no such kind", "folder", "train")
    with pytest.raises(FloatingPointError) as diverged:
        check_finite({"kernel": np.array([1.0, np.nan])})
    with pytest.raises(ConnectionError) as offline:
        raise ConnectionError("no network")
    found = (theirs, missing, ours, diverged, offline)
    assert [command.is_users(e.value) for e in found] == [False, True, True, True, True]
    assert command.explain(diverged.value).startswith("1 of 1 arrays of weights are not finite")
    assert command.explain(theirs.value) == ""
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes\nmore")
    assert command.explain(full).startswith("out of memory: RESOURCE_EXHAUSTED: Out of memory all")
    assert command.explain(jax.errors.JaxRuntimeError("INTERNAL: a bug")) == ""
    held = "Unable to initialize backend 'tpu': ABORTED: in use by process 9"
    assert command.explain(RuntimeError(held)) == held
