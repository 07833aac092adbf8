# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every script of experiments/ explains itself, and does nothing else when asked to."""

import pathlib
import subprocess

import forked
import pytest

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
MAIN = 'if __name__ == "__main__"'
SCRIPTS = sorted(path.name for path in EXPERIMENTS.glob("*.py") if MAIN in path.read_text())


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script of experiments/."""
    return forked.python(EXPERIMENTS / arguments[0], *arguments[1:])


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_explains_itself(script):
    if script == "official_step.py":
        pytest.importorskip("peft")
    done = run(script, "--help")
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.startswith("usage: python ") and script in done.stdout.splitlines()[0]


@pytest.mark.parametrize("script", ["make_results.py", "smolvlm_shape.py"])
def test_a_wrong_flag_of_a_script_is_one_line(script):
    done = run(script, "--nonsense")
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("python ") and "unknown flag --nonsense." in line
