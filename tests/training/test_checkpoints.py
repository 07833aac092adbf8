# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: whole or not there, on any number of devices, and only of the same run."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cropvlm_jax import parallel
from cropvlm_jax.models.logical_axes import LAYERS
from cropvlm_jax.training import checkpoints as module
from cropvlm_jax.training import digests
from cropvlm_jax.training.checkpoints import Checkpoints, Preemption

PLACE = {"data": "0123"}


def make_state(seed: int) -> dict[str, Any]:
    """Weights that a mesh splits, their optimizer state and a key; on all devices there are."""
    devices = jax.device_count()
    mesh = parallel.make_mesh(fsdp=min(2, devices), tensor=min(2, devices))
    kernel = jax.random.normal(jax.random.key(seed), (2, 16, 8))
    params = {"text": {"layers": {"q": {"kernel": kernel}}, "norm": {"scale": jnp.ones(8)}}}
    state = {
        "step": jnp.int32(seed),
        "params": params,
        "opt_state": optax.adam(0.1).init(params),
        "key": jax.random.key_data(jax.random.key(seed)),
    }
    return jax.device_put(
        state, parallel.state_shardings(mesh, state, heads={}, logical_axes=LAYERS)
    )


def check_equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype and x.sharding.is_equivalent_to(y.sharding, x.ndim)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save(folder: pathlib.Path, *steps: int, **metrics: float) -> None:
    checkpoints = Checkpoints(folder, keep=5)
    for step in steps:
        checkpoints.save(step, make_state(step), PLACE, metrics)
    checkpoints.close()


def check_restored(folder: pathlib.Path, step: int) -> None:
    """The latest checkpoint is `step`, restored to the devices there are."""
    checkpoints = Checkpoints(folder, keep=5)
    expected = make_state(step)
    found, state, place = checkpoints.restore(jax.tree.map(parallel.abstract, make_state(99)))
    assert (found, place) == (step, PLACE)
    check_equal(state, expected)
    checkpoints.close()


def on_eight_devices(what: str, folder: pathlib.Path) -> None:
    """Runs `save` or `check_restored` of step 3 in a process that has eight devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, __file__, what, folder], env=environment, check=True)


def test_what_eight_devices_saved_one_restores_and_back(tmp_path):
    on_eight_devices("save", tmp_path / "a")
    check_restored(tmp_path / "a", 3)
    save(tmp_path / "b", 3)
    on_eight_devices("check_restored", tmp_path / "b")


def test_nothing_is_restored_from_an_empty_folder(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.restore(jax.tree.map(parallel.abstract, make_state(0))) is None
    checkpoints.close()


def test_the_latest_stay_and_the_best_of_all_restarts(tmp_path):
    rewards = {1: 0.3, 2: 0.9, 3: float("nan"), 4: 0.4, 5: 0.1}
    for run in ((1, 2, 3), (4, 5)):
        checkpoints = Checkpoints(tmp_path, keep=2, best="eval/reward")
        for step in run:
            metrics = {"eval/reward": rewards[step], "other": 1.0}
            checkpoints.save(step, make_state(step), PLACE, metrics)
        checkpoints.close()
    steps = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert sorted(steps) == [2, 4, 5]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_metric_that_is_not_finite_is_not_written(tmp_path, value):
    checkpoints = Checkpoints(tmp_path, keep=2, best="eval/reward")
    checkpoints.save(1, make_state(1), PLACE, {"eval/reward": value})
    checkpoints.close()
    small = [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size < 10_000]
    assert small and not any(
        b"NaN" in p.read_bytes() or b"Infinity" in p.read_bytes() for p in small
    )
    check_restored(tmp_path, 1)


def test_checkpoints_that_another_program_wrote_stay_where_they_are(tmp_path):
    save(tmp_path, 1, 2)
    checkpoints = Checkpoints(tmp_path, keep=5)
    other = {"weights": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(ValueError, match="none of the checkpoints"):
        checkpoints.restore(other)
    checkpoints.close()
    check_restored(tmp_path, 2)


@pytest.mark.parametrize("damage", ["cut short", "missing"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, damage):
    save(tmp_path, 1, 2)
    for data in (tmp_path / "checkpoints" / "2" / "state").glob("**/d/*"):
        if damage == "missing":
            data.unlink()
        else:
            data.write_bytes(data.read_bytes()[:-50])
    check_restored(tmp_path, 1)
    assert list((tmp_path / "checkpoints").glob("broken.2.*"))  # nothing is thrown away
    save(tmp_path, 2)
    check_restored(tmp_path, 2)


def test_a_save_that_was_killed_leaves_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    whole = tmp_path / "checkpoints" / "1"
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "state").mkdir()
    for file in list(whole.rglob("*"))[:4]:
        if file.is_file():
            (half / "state" / file.name).write_bytes(file.read_bytes()[:10])
    check_restored(tmp_path, 1)
    save(tmp_path, 2)
    check_restored(tmp_path, 2)


# Damage -----------------------------------------------------------------------------------------


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


def hole(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(len(data) - middle)


def shorter(data: bytes) -> bytes:
    return data[:-1]


def longer(data: bytes) -> bytes:
    return data + b"0"


def empty(data: bytes) -> bytes:
    return b""


KINDS = ("state/d", "state/ocdbt.process_0/d", "state/manifest.ocdbt", "state/_METADATA")
KINDS += ("state/_sharding", "place/metadata", "metrics/metrics", "_CHECKPOINT_METADATA")
KINDS += ("digests.json",)


def files(checkpoint: pathlib.Path, kind: str) -> list[pathlib.Path]:
    found = checkpoint / kind
    return list(found.iterdir()) if found.is_dir() else [found]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", [flip, hole, shorter, longer, empty, None])
def test_damage_in_any_file_is_named_and_the_older_checkpoint_taken(kind, damage, tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=2, best="reward")
    for step in (1, 2):
        checkpoints.save(step, make_state(step), PLACE, {"reward": 1.0})
    checkpoints.close()
    newer = tmp_path / "checkpoints" / "2"
    file = files(newer, kind)[0]
    before = file.read_bytes()
    if damage:
        file.write_bytes(damage(before))
    else:
        file.unlink()
    if damage is not hole or file.read_bytes() != before:  # zeros may have been there
        check_restored(tmp_path, 1)
        name = file.relative_to(newer).as_posix()
        assert f"checkpoint 2 in {newer.parent} is damaged: {name} " in caplog.text
        assert len(list(newer.parent.glob("broken.2.*"))) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_damage_in_the_small_files_of_an_older_checkpoint_does_no_harm(kind, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, best="reward")
    for step in (1, 2):
        checkpoints.save(step, make_state(step), PLACE, {"reward": 1.0})
    checkpoints.close()
    file = files(tmp_path / "checkpoints" / "1", kind)[0]
    file.write_bytes(empty(file.read_bytes()))
    checkpoints = Checkpoints(tmp_path, keep=2, best="reward")
    assert checkpoints.restore(jax.tree.map(parallel.abstract, make_state(99)))[0] == 2
    checkpoints.close()
    assert list((tmp_path / "checkpoints").glob("broken.1.*"))


def test_what_a_killed_run_left_of_an_old_checkpoint_is_removed(tmp_path):
    save(tmp_path, 1, 2)
    for file in files(tmp_path / "checkpoints" / "1", "state/ocdbt.process_0/d"):
        file.unlink()
    check_restored(tmp_path, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_where_all_checkpoints_are_damaged_each_is_named_and_stays(tmp_path):
    save(tmp_path, 1, 2)
    for step in ("1", "2"):
        file = files(tmp_path / "checkpoints" / step, "state/ocdbt.process_0/d")[0]
        file.write_bytes(flip(file.read_bytes()))
    with pytest.raises(ValueError, match=r"all .* damaged \(2: .*changed; 1: .*changed\)"):
        Checkpoints(tmp_path, keep=5)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}


def test_an_older_checkpoint_is_compared_before_it_is_read(tmp_path, caplog):
    save(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path, keep=5)
    checkpoints.save(2, {"other": jnp.zeros(3)}, PLACE, {})  # whole, and not of this run
    checkpoints.close()
    large = tmp_path / "checkpoints" / "1" / "state" / "large"
    large.write_bytes(bytes(digests.SMALL + 1))
    (large.parents[1] / "digests.json").unlink()
    digests.write(large.parents[1])
    large.write_bytes(bytes(digests.SMALL) + b"1")
    checkpoints = Checkpoints(tmp_path, keep=5)
    with pytest.raises(ValueError, match=r"none of the checkpoints \[2, 1\]"):
        checkpoints.restore(jax.tree.map(parallel.abstract, make_state(99)))
    checkpoints.close()
    assert "checkpoint 1 cannot be read: state/large has changed" in caplog.text


def test_a_checkpoint_without_digests_is_not_trusted(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "1" / "digests.json").unlink()
    with pytest.raises(ValueError, match="1: digests.json is missing"):
        Checkpoints(tmp_path, keep=5)


def test_the_old_checkpoint_stays_until_the_new_one_has_its_digests(tmp_path, monkeypatch):
    checkpoints, folder = Checkpoints(tmp_path, keep=1), tmp_path / "checkpoints"
    checkpoints.save(1, make_state(1), PLACE, {})
    there = []
    write = digests.write

    def looked(complete: pathlib.Path) -> None:
        if not complete.name.startswith("1."):
            there.append(sorted(path.name for path in folder.iterdir()))
        write(complete)

    monkeypatch.setattr(digests, "write", looked)
    checkpoints.save(2, make_state(2), PLACE, {})
    checkpoints.close()
    assert there == [["1", "2.digests.orbax-checkpoint-tmp"]]
    assert [path.name for path in folder.iterdir()] == ["2"]


def test_a_save_that_was_killed_before_its_digests_is_cleared_away(tmp_path):
    save(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints"
    (folder / "2" / "digests.json").unlink()
    (folder / "2").rename(folder / "2.digests.orbax-checkpoint-tmp")
    check_restored(tmp_path, 1)
    save(tmp_path, 2)
    check_restored(tmp_path, 2)
    assert {path.name for path in folder.iterdir()} == {"1", "2"}


def test_ctrl_c_does_not_end_the_wait_for_a_save(tmp_path, monkeypatch):
    write = digests.write

    def slowly(folder: pathlib.Path) -> None:
        time.sleep(1)
        write(folder)

    monkeypatch.setattr(digests, "write", slowly)
    checkpoints = Checkpoints(tmp_path, keep=5)
    checkpoints.save(1, make_state(1), PLACE, {})
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        checkpoints.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    check_restored(tmp_path, 1)


def test_after_an_error_several_processes_do_not_wait_for_ever(tmp_path, monkeypatch, caplog):
    checkpoints, closed = Checkpoints(tmp_path, keep=1), []
    monkeypatch.setattr(Checkpoints, "close", lambda self: closed.append(time.sleep(1)))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.1)
    with pytest.raises(RuntimeError, match="inside"), checkpoints:
        raise RuntimeError("inside")
    assert not closed and "a save was not completed" in caplog.text
    with checkpoints:
        pass
    assert closed  # without an error all wait until it is done


# Stopping ---------------------------------------------------------------------------------------


def test_the_first_sigterm_is_noticed_and_the_second_ends():
    caught = []
    previous = signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
    try:
        with Preemption() as preemption:
            assert not preemption.requested(1)
            signal.raise_signal(signal.SIGTERM)
            assert preemption.requested(2) and not caught
            signal.raise_signal(signal.SIGTERM)
            assert caught
        signal.raise_signal(signal.SIGTERM)
        assert len(caught) == 2
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    {"save": save, "check_restored": check_restored}[sys.argv[1]](pathlib.Path(sys.argv[2]), 3)
