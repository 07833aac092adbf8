# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""launch/tpu_vm.sh against a pretended gcloud, whose two workers are folders of this machine."""

import contextlib
import os
import pathlib
import signal
import subprocess
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"

# `tpu-vm` and `queued-resources` hold the states that descriptions walk through, to the last one.
GCLOUD = r"""
echo "$*" >>calls
case "$3 $4" in
  *" describe")
    [ ! -e denied ] || { echo "ERROR: PERMISSION_DENIED" >&2; exit 1; }
    [ -e "$3" ] || { echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; }
    head -1 "$3"
    [ "$(wc -l <"$3")" = 1 ] || sed -i 1d "$3" ;;
  "queued-resources create")
    printf 'WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n' >queued-resources
    printf 'CREATING\nREADY\n' >tpu-vm
    mkdir worker0 worker1 ;;
  *" delete") rm -rf tpu-vm queued-resources worker0 worker1 ;;
  "tpu-vm scp") for home in worker?; do (cd "$repo" && cp "$5" "$6" "$fake/$home"); done ;;
  "tpu-vm ssh")
    for flag; do case $flag in
      --command=*) command=${flag#*=} ;;
      --output-directory=*) logs=$repo/${flag#*=} ;;
    esac; done
    for i in 0 1; do
      (cd worker$i && HOME=$PWD exec bash -c "$command" >"${logs:-$PWD}/$i.log" 2>&1) &
      pids="${pids:-} $!"
    done
    for pid in $pids; do wait "$pid" || code=$?; done
    exit "${code:-0}" ;;
esac
"""

# Stands for training: the exit codes of its starts are lines of `exits`.
PYTHON = r"""
worker=$(basename ~)
echo "$worker: $PWD: $*"
echo start >>"$fake/starts.$worker"
outcome=$(sed -n "$(wc -l <"$fake/starts.$worker")p" "$fake/exits")
case $outcome in
  hang)
    trap 'echo "$worker" >>"$fake/saved"; exit 143' TERM
    echo >"$fake/hangs.$worker"
    while :; do /bin/sleep 0.02; done ;;
  preempted) echo PREEMPTED >"$fake/tpu-vm" && exit 255 ;;
  *) exit "$outcome" ;;
esac
"""

UV = r"""
echo "uv $*" >>"$fake/calls"
mkdir -p venv/bin && cp "$fake/python" venv/bin/python
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A folder of the pretended cloud beside a checkout in `repo`."""
    folder, repo, commands = (tmp_path / name for name in ("fake", "repo", "bin"))
    for new in (folder, commands, repo / "launch"):
        new.mkdir(parents=True)
    scripts = {
        commands / "gcloud": f"cd {folder}{GCLOUD}",
        commands / "sleep": "exec /bin/sleep 0.02",
        commands / "curl": 'mkdir -p .local/bin && cp "$fake/uv" .local/bin/uv',
        commands / "mountpoint": "exit 1",
        commands / "gcsfuse": 'echo "gcsfuse $*" >>"$fake/calls"',
        commands / "sudo": '[ "$1" != tee ] || cat >/dev/null',
        commands / "lsb_release": "echo jammy",
        folder / "python": PYTHON,
        folder / "uv": UV,
    }
    for path, text in scripts.items():
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    for name in ("tpu_vm.sh", "tpu_worker.sh"):
        (repo / "launch" / name).write_bytes((LAUNCH / name).read_bytes())
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    for name, value in {"fake": folder, "repo": repo, "POLL": 0, "NAME": "mine"}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("ZONE", "TYPE", "SPOT", "BUCKET", "QUICK", "RUNTIME"):
        monkeypatch.delenv(name, raising=False)
    git = ["git", "-C", repo, "-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for name, text in {".gitignore": "ignored\nruns/\n", "changed": "", "removed": ""}.items():
        (repo / name).write_text(text)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message=first"], check=True)
    return folder


def command(*arguments):
    return ["bash", "launch/tpu_vm.sh", *arguments]


def launch(fake, *arguments, exits=""):
    (fake / "exits").write_text("\n".join(exits.split()) + "\n")
    return subprocess.run(
        command(*arguments),
        cwd=fake.parent / "repo",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(fake, kind):
    file = fake / "calls"
    return [line for line in file.read_text().splitlines() if kind in line] if file.exists() else []


def wait_for(file):
    for _ in range(500):
        if file.exists() and file.read_text():
            return
        time.sleep(0.02)
    raise TimeoutError(f"no {file}")


def test_it_makes_a_tpu_and_runs_the_checkout_as_it_is_on_all_workers(fake, monkeypatch):
    monkeypatch.setenv("BUCKET", "my-bucket")
    repo = fake.parent / "repo"
    (repo / "changed").write_text("since the commit")
    (repo / "removed").unlink()
    for name in ("ignored", "new"):
        (repo / name).write_text("")
    arguments = ("python", "-m", "app", "--config.name=two words, $HOME", "--x='")
    done = launch(fake, *arguments, exits="0")
    assert done.returncode == 0, done.stderr
    (create,) = calls(fake, "create")
    assert "--accelerator-type=v5litepod-8" in create and "--spot" in create
    assert "--node-id=mine" in create and "--runtime-version=v2-alpha-tpuv5-lite" in create
    for worker in ("worker0", "worker1"):
        code = fake / worker / "cropvlm_jax"
        assert sorted(path.name for path in code.iterdir()) == [
            *(".gitignore", "changed", "data", "launch", "new", "runs")
        ]
        assert (code / "changed").read_text() == "since the commit"
        assert (code / "runs").resolve() == fake / worker / "storage" / "runs"
        (log,) = repo.glob(f"runs/tpu_vm/mine/*/{worker[-1]}.log")
        assert log.read_text() == f"{worker}: {code}: {' '.join(arguments[1:])}\n"
    assert "worker0" in done.stdout and "worker1" not in done.stdout
    mounts = calls(fake, "gcsfuse")
    assert len(mounts) == 2 and all(mount.endswith(" my-bucket storage") for mount in mounts)
    status = subprocess.run(["git", "status", "--short"], cwd=repo, capture_output=True, text=True)
    assert status.stdout == " M changed\n D removed\n?? new\n"  # the checkout's index is as it was


@pytest.mark.parametrize(
    ("settings", "port"),
    [({}, 8482), ({"TYPE": "v6e-16"}, 8476), ({"TYPE": "v6e-16", "PORT": "8490"}, 8490)],
)
def test_the_processes_meet_at_a_port_that_is_open_or_asked_for(fake, monkeypatch, settings, port):
    monkeypatch.delenv("PORT", raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert launch(fake, "env").returncode == 0
    (log,) = fake.parent.glob("repo/runs/tpu_vm/mine/*/1.log")
    assert f"JAX_COORDINATOR_PORT={port}\n" in log.read_text()


def test_a_run_that_was_told_to_stop_or_preempted_goes_on(fake):
    done = launch(fake, "python", exits="143 143 143 143 143 143 preempted 0")
    assert done.returncode == 0, done.stderr
    assert len(calls(fake, "create")) == 2  # of which one after the preemption
    assert len(calls(fake, "queued-resources delete")) == 1


@pytest.mark.parametrize("quick, starts", [("600", 5), ("0", 7)])
def test_only_quick_failures_in_a_row_end_it(fake, monkeypatch, quick, starts):
    monkeypatch.setenv("QUICK", quick)
    done = launch(fake, "python", exits="3 3 3 3 3 3 0")
    assert done.returncode == (3 if starts == 5 else 0), done.stderr
    assert len((fake / "starts.worker0").read_text().splitlines()) == starts
    assert len(calls(fake, "create")) == 1


def test_a_tpu_that_is_there_is_used(fake):
    (fake / "tpu-vm").write_text("READY\n")
    for worker in ("worker0", "worker1"):
        (fake / worker).mkdir()
    assert launch(fake, "python", exits="0").returncode == 0
    assert not calls(fake, "create") and not calls(fake, "delete") and not calls(fake, "gcsfuse")


def test_a_request_that_failed_is_made_anew(fake):
    (fake / "queued-resources").write_text("FAILED\n")
    assert launch(fake, "python", exits="0").returncode == 0
    assert len(calls(fake, "delete")) == len(calls(fake, "create")) == 1


@pytest.mark.parametrize("requested", [True, False])
def test_delete(fake, requested):
    (fake / "tpu-vm").write_text("READY\n")
    if requested:
        (fake / "queued-resources").write_text("ACTIVE\n")
    assert launch(fake, "delete").returncode == 0
    (deleted,) = calls(fake, "delete")
    kind = "queued-resources" if requested else "tpu-vm"
    assert f"{kind} delete mine" in deleted and ("--force" in deleted) == requested


@pytest.mark.parametrize("arguments", [("delete",), ("python",)])
def test_without_access_it_says_so_at_once(fake, arguments):
    (fake / "denied").write_text("")
    done = launch(fake, *arguments)
    assert done.returncode != 0 and "PERMISSION_DENIED" in done.stderr
    assert len(calls(fake, "")) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_is_saved_when_its_launcher_is_interrupted_or_was_lost(fake, number):
    (fake / "exits").write_text("hang\n")
    process = subprocess.Popen(
        command("python"),
        cwd=fake.parent / "repo",
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for worker in ("worker0", "worker1"):
            wait_for(fake / worker / "run.pid")
            wait_for(fake / f"hangs.{worker}")
        process.send_signal(number)
        assert process.wait(30) == (130 if number == signal.SIGINT else -number)
        if number == signal.SIGKILL:
            assert not (fake / "saved").exists()
            done = launch(fake, "python", exits="hang 0")
            assert done.returncode == 0, done.stderr
        assert sorted((fake / "saved").read_text().split()) == ["worker0", "worker1"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
