# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""launch/speedrun.sh with pretended programs: its order, where it stops, commands that parse."""

import os
import shlex
import shutil
import subprocess

import pytest
import speedrun_cost
from command_lines import ROOT, refused

TOOLS = ("bash", "date", "dirname", "mkdir", "nproc")  # all that the script may use of the system


@pytest.fixture
def fake(tmp_path):
    """A folder with the script, and programs that write down what they are called with."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "launch" / "speedrun.sh", tmp_path / "launch")
    setup = 'cd "$(dirname "${BASH_SOURCE[0]}")/.."\necho "setup $1" >>calls\n'
    (tmp_path / "launch" / "setup.sh").write_text(setup)
    for name in TOOLS:
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    for name in ("cropvlm", "hf"):
        program(tmp_path, name, f'printf "%q " {name} "$@" >>calls; echo >>calls')
    return tmp_path


def program(fake, name, text):
    """Puts a pretended program on the path."""
    file = fake / "bin" / name
    file.write_text(f"#!{shutil.which('bash')}\n{text}\n")
    file.chmod(0o755)


def run(fake, **variables):
    """Runs the script; gives what it said and what it called."""
    done = subprocess.run(
        ["bash", "launch/speedrun.sh"],
        cwd=fake,
        env={"PATH": str(fake / "bin")} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done, [shlex.split(line) for line in (fake / "calls").read_text().splitlines()]


def test_with_boxes_it_trains_evaluates_and_exports_with_flags_that_exist(fake):
    (fake / "data" / "seed_boxes").mkdir(parents=True)
    (fake / "data" / "seed_boxes" / "textvqa.jsonl").touch()
    done, called = run(fake, PIXELS="1024")
    assert done.returncode == 0, done.stderr
    assert called[0] == ["setup", "tpu,data,report"] and called[1][:2] == ["hf", "download"]
    ours = [(words[1], words[2:]) for words in called if words[0] == "cropvlm"]
    assert [name for name, _ in ours] == ["train", "train", "evaluate", "export"]
    assert not refused(ours)
    # Each stage starts from what the one before it wrote.
    workdirs = [dict(w.split("=", 1) for w in words)["--workdir"] for _, words in ours[:2]]
    assert f"--config.cropper={workdirs[0]}/cropper" in ours[1][1]
    assert f"--model={workdirs[1]}/cropper" in ours[3][1]


def test_without_boxes_a_tpu_is_not_kept_waiting(fake):
    done, called = run(fake)
    assert done.returncode == 3 and "NVIDIA GPU" in done.stderr
    assert "cropvlm" not in [words[0] for words in called]


def test_a_machine_with_a_gpu_makes_the_boxes_and_stops(fake):
    program(fake, "nvidia-smi", "true")
    done, called = run(fake)
    assert done.returncode == 0, done.stderr
    assert called[0] == ["setup", "data,label"]
    (label,) = [words[1:] for words in called if words[0] == "cropvlm"]
    assert label[0] == "label" and not refused([(label[0], label[1:])])
    assert os.path.isdir(fake / "data" / "seed_boxes")


def test_its_head_has_the_computed_costs_and_says_that_they_are():
    head = (ROOT / "launch" / "speedrun.sh").read_text().partition("set -euo")[0]
    assert "COMPUTED, NOT MEASURED" in head and "never ran on a TPU" in head
    for line in speedrun_cost.lines():
        assert f"#     {line}\n" in head
    assert f"{speedrun_cost.UTILISATION:.0%} of the peak" in head
    assert f"${speedrun_cost.DOLLARS['v5e']:.2f} a\n#   chip" in head
