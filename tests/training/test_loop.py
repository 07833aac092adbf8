# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whole runs: stopped and resumed, supervised with adapters, on several buckets."""

import json
import os
import pathlib
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from cropvlm_jax.data import order
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.hub.replies import Replies
from cropvlm_jax.models.vlm import RESAMPLING
from cropvlm_jax.readers.base import ReaderUnavailable
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training import compilation, digests, loop
from cropvlm_jax.training.actions import Evaluate, Export
from cropvlm_jax.training.checkpoints import Preemption
from cropvlm_jax.training.config import default_config, load_config, source
from cropvlm_jax.training.stages import open_stage
from cropvlm_jax.training.training_data import TrainingData
from cropvlm_jax.training.workdir import held


def quickstart(**changes):
    """GRPO on zoom_digits, as small as it gets."""
    config = default_config()
    config.cropper, config.target = "zoom_digits/cropper", "zoom_digits/target"
    config.steps, config.batch_size, config.learning_rate = 6, 2, 1e-4
    config.grpo.update(num_generations=2, beta=0.01)
    config.data.update(longest_edge=64, canvas=(512, 512), question_tokens=16, answer_tokens=2)
    config.data.sources.zoom_digits = source()
    config.eval.sources.zoom_digits = source(split="validation")
    config.eval.update(every=3, examples=4)
    config.checkpoint.update(every=2, best="eval/reward")
    config.update_from_flattened_dict(changes)
    return config


def rows(workdir: pathlib.Path, clock: bool = False) -> list[dict]:
    """The metrics of a run; those that depend on the clock only where asked for."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if clock or k[:5] != "perf/"} for row in lines]


def last_state(workdir: pathlib.Path) -> dict[str, bytes]:
    manager = ocp.CheckpointManager(workdir / "checkpoints")
    items = ocp.args.Composite(state=ocp.args.StandardRestore())
    state = manager.restore(manager.latest_step(), args=items).state
    manager.close()
    return {name: np.asarray(leaf).tobytes() for name, leaf in state.items()}


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has this process sent SIGTERM while step `step` of a run is at work."""
    requested = Preemption.requested

    def requested_then(self: Preemption, number: int) -> bool:
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return requested(self, number)

    monkeypatch.setattr(Preemption, "requested", requested_then)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("unbroken")
    assert loop.run(quickstart(), workdir, profile=4)
    return workdir


def test_a_run_tells_of_every_step_and_evaluation(unbroken):
    training = [row for row in rows(unbroken) if "loss" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4, 5, 6]
    names = {"reward", "reward/likelihood", "entropy", "kl", "replaced_examples"}
    assert names <= training[0].keys()
    held_out = [row for row in rows(unbroken) if "eval/reward" in row]
    assert [row["step"] for row in held_out] == [3, 6]
    assert held_out[0]["eval/reward"] != held_out[1]["eval/reward"]
    assert json.loads((unbroken / "summary.json").read_text())["steps"] == 6


def test_a_run_tells_how_fast_it_is(unbroken):
    training = [row for row in rows(unbroken, clock=True) if "loss" in row]
    # 2 prompts of a tile and a picture, and 2 crops of each.
    images = {row["perf/images_per_second_per_chip"] * row["perf/step_seconds"] for row in training}
    np.testing.assert_allclose(sorted(images), 8 / jax.device_count())
    for row in training:
        assert (
            row["perf/rollouts_per_second_per_chip"] == 2 * row["perf/prompts_per_second_per_chip"]
        )
        assert row["perf/tflops_per_second_per_chip"] > 0
        assert 0 <= row["perf/data_wait_share"] <= 1


def check_trace(workdir: pathlib.Path, *phases: str) -> None:
    (file,) = (workdir / "profile").rglob("*.xplane.pb")
    trace = file.read_bytes()
    assert b"step_num" in trace
    assert all(f"/{phase}/".encode() in trace for phase in phases)


def test_the_trace_of_a_step_shows_its_phases(unbroken):
    check_trace(unbroken, "prefix", "rollout", "reward", RESAMPLING, "reference", "update")


def test_a_run_stopped_by_sigterm_resumes_to_the_same_bits(unbroken, tmp_path, monkeypatch):
    stop_after(5, monkeypatch)
    assert not loop.run(quickstart(), tmp_path)
    monkeypatch.undo()
    assert max(row["step"] for row in rows(tmp_path)) == 5
    assert (tmp_path / "checkpoints" / "5").is_dir()  # no step is lost
    assert not (tmp_path / "cropper").exists()

    with (tmp_path / "metrics.jsonl").open(
        "a"
    ) as file:  # as if killed in the middle of a later one
        file.write('{"step": 6, "loss": 1.0}\n{"step": 7, "lo')
    assert loop.run(quickstart(), tmp_path)
    assert rows(tmp_path) == rows(unbroken)
    assert last_state(tmp_path) == last_state(unbroken)
    weights = [
        (folder / "cropper/model.safetensors").read_bytes() for folder in (tmp_path, unbroken)
    ]
    assert weights[0] == weights[1]

    assert loop.run(quickstart(), tmp_path)  # a run that is over stays as it is
    assert rows(tmp_path) == rows(unbroken)


@pytest.mark.parametrize("more", [{"max_boxes": 2}, {"looks": 2}], ids=["boxes", "looks"])
def test_a_run_on_more_than_one_box_resumes_to_the_same_bits(tmp_path, monkeypatch, more):
    config = quickstart(**{"steps": 2, "eval.every": 2, "checkpoint.every": 1})
    config.grpo.update(abstain=True, num_generations=4, **more)
    config.data.budgets.update(low=5.0, high=0.0)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert loop.run(config, whole)
    stop_after(1, monkeypatch)
    assert not loop.run(config, stopped)
    monkeypatch.undo()
    assert loop.run(config, stopped)
    assert rows(stopped) == rows(whole) and last_state(stopped) == last_state(whole)
    found = set().union(*rows(whole))
    assert {"boxes", "no_crop", "crop_tokens", "reward/cost", "eval/no_crop"} <= found
    replies = Replies(abstain=True, budgets=("high", "low"), **more)
    assert Pretrained.open(whole / "cropper").replies == replies


def test_other_settings_or_data_are_refused(unbroken):
    changes = {"grpo.num_generations": 4, "learning_rate": 1e-3}
    with pytest.raises(ValueError, match="grpo.num_generations: 2 there, 4 now\nlearning_rate"):
        loop.run(quickstart(**changes), unbroken)
    with pytest.raises(ValueError, match="holds a run already"):
        loop.run(quickstart(), unbroken, resume=False)
    with pytest.raises(ValueError, match="stage='rl'"):
        loop.run(quickstart(stage="rl"), unbroken.with_name("other"))


# Runs that fail, and runs that are made longer --------------------------------------------------


def checkpoints_of(workdir: pathlib.Path) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir()}


def save_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes each save take a second after its last file is written."""
    write = digests.write

    def slowly(folder: pathlib.Path) -> None:
        time.sleep(1)
        write(folder)

    monkeypatch.setattr(digests, "write", slowly)


FAILURES = {  # after the save of step 2 has begun
    "evaluation": (Evaluate, "__call__", lambda self, moment, state: True),
    "export": (Export, "__call__", lambda self, moment, state: True),
    "data, Ctrl-C": (TrainingData, "replaced", lambda self, step, batch: step == 3),
}


@pytest.mark.parametrize("where", FAILURES)
def test_a_run_that_fails_during_a_save_keeps_the_checkpoint(
    unbroken, tmp_path, monkeypatch, where
):
    owner, name, fails = FAILURES[where]
    real, error = getattr(owner, name), KeyboardInterrupt if "Ctrl-C" in where else RuntimeError

    def failing(*args):
        if fails(*args):
            raise error("as a test wants it")
        return real(*args)

    monkeypatch.setattr(owner, name, failing)
    save_slowly(monkeypatch)
    changes = {"export_every": 3} if where == "export" else {}
    with pytest.raises(error, match="as a test wants it"):
        loop.run(quickstart(**changes), tmp_path)
    assert "2" in checkpoints_of(tmp_path) <= {"2", "3"}
    assert not (tmp_path / "lock.json").exists()
    monkeypatch.undo()
    assert loop.run(quickstart(), tmp_path)  # `export_every` may change
    assert rows(tmp_path) == rows(unbroken)
    assert last_state(tmp_path) == last_state(unbroken)


def test_a_run_that_fails_before_its_first_step_does_not_own_its_folder(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("before the first step")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="before the first"):
        patch.setattr(TrainingData, "replaced", fails)
        loop.run(quickstart(), tmp_path)
    assert loop.run(quickstart(seed=1, steps=2), tmp_path, resume=False)
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [1, 2]


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="does not use the"):
        loop.run(quickstart(**{"mesh.data": 3}), tmp_path / "run")
    with pytest.raises(FileNotFoundError):
        loop.run(quickstart(cropper=str(tmp_path / "nothing")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_in_use_is_left_alone(unbroken):
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.is_file()}
    with held(unbroken):
        with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on"):
            loop.run(quickstart(), unbroken)
    after = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*") if path.is_file()}
    assert after == before


def test_a_run_with_a_constant_rate_can_be_made_longer(tmp_path, monkeypatch):
    constant = {"lr_scheduler_type": "constant", "warmup": 0.0}
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    assert loop.run(quickstart(**constant), whole)
    texts = []
    compile_step = compilation.compile_step

    def seen(step, *args):
        texts.append(step.lower(*args).as_text())
        return compile_step(step, *args)

    monkeypatch.setattr(compilation, "compile_step", seen)
    assert loop.run(quickstart(steps=4, **constant), longer)
    assert loop.run(quickstart(**constant), longer)
    assert texts[0] == texts[1]  # so that the compilation cache knows the program
    kept = [row for row in rows(longer) if "loss" in row]
    assert kept == [row for row in rows(whole) if "loss" in row]
    assert last_state(longer) == last_state(whole)
    assert json.loads((longer / "config.json").read_text())["steps"] == 6
    with pytest.raises(ValueError, match="6 steps, which cannot be made shorter"):
        loop.run(quickstart(steps=4, **constant), longer)
    with pytest.raises(ValueError, match="set warmup=0, so that 0 updates are"):
        loop.run(quickstart(steps=8, **constant | {"warmup": 0.5}), longer)


def test_a_cosine_cannot_be_made_longer(unbroken, tmp_path):
    with pytest.raises(ValueError, match=r"a run of 6 steps\. With .*config\.cropper=.*cropper"):
        loop.run(quickstart(steps=8), unbroken)
    assert json.loads((unbroken / "config.json").read_text())["steps"] == 6


def write_pictures(folder: pathlib.Path) -> None:
    """Scenes of digits, whole and their upper halves, as a JSONL data set with boxes."""
    scenes, lines = ZoomDigits("train", 12, digits=(1, 2)), []
    for i in range(len(scenes)):
        example = scenes[i]
        image = example["image"][: 512 - 256 * (i % 2)]
        Image.fromarray(image).save(folder / f"{i}.png")
        box = [10, 10, 30, 30 + i]
        line = {"image": f"{i}.png", "question": example["question"], "box": box}
        lines.append(json.dumps(line | {"answers": example["answers"]}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")


def test_supervised_adapters_on_two_buckets_of_a_mixture(tmp_path, monkeypatch):
    monkeypatch.setattr(order, "SCENES", 1000)  # the size of each is asked for
    write_pictures(tmp_path)
    config = quickstart(**{"stage": "sft", "steps": 8, "checkpoint.best": "", "export_every": 4})
    config.lora.update(rank=2, alpha=4, dropout=0.1)
    config.learning_rate = 1e-2
    config.data.longest_edge = 128
    config.data.sources.zoom_digits.weight = 1.0
    config.data.sources.halves = source(str(tmp_path), weight=3.0, kind="jsonl")
    compiled = []
    compile_step = compilation.compile_step

    def counted(*args):
        compiled.append(1)
        return compile_step(*args)

    monkeypatch.setattr(compilation, "compile_step", counted)
    run = tmp_path / "run"
    assert loop.run(config, run, profile=8)
    assert len(compiled) == 2  # once a bucket
    check_trace(run, "loss", "update")
    losses = [row["loss"] for row in rows(run) if "loss" in row]
    assert len(losses) == 8 and np.isfinite(losses).all()
    assert all("eval/loss" in row for row in rows(run) if "loss" not in row)

    base = Pretrained.open("zoom_digits/cropper").load()
    exported = Pretrained.open(run / "cropper")
    assert exported.longest_edge == 128  # as trained, not as the model it was trained from
    merged = exported.load()
    from_adapter = Pretrained.open(run / "adapter")
    assert from_adapter.longest_edge == 128
    adapted = from_adapter.load()
    kernels = [model.text.layers.q.kernel[...] for model in (base, merged, adapted)]
    assert abs(kernels[1] - kernels[0]).max() > 1e-3
    np.testing.assert_allclose(kernels[1], kernels[2], atol=1e-6)
    np.testing.assert_array_equal(base.text.head[...], merged.text.head[...])
    assert (run / "cropper-4" / "model.safetensors").is_file()


# The reward of a black box --------------------------------------------------------------------


def black_box(**changes):
    """The quickstart's target, outside of the graph."""
    config = quickstart(target="vlm:zoom_digits/target", steps=4, gradient_accumulation_steps=2)
    config.grpo.update(likelihood_weight=0.0, accuracy_weight=1.0, accuracy="nearly_contains")
    config.grpo.entropy_target = 2.4
    config.update_from_flattened_dict(changes)
    return config


def test_a_run_with_a_black_box_stopped_by_sigterm_resumes_to_the_same_bits(tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert loop.run(black_box(), whole)
    training = [row for row in rows(whole) if "loss" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4]
    assert {"reward/accuracy", "unscored", "area", "grad_norm"} <= training[0].keys()
    assert all(row["unscored"] == 0 for row in training)
    assert any(row["reward/accuracy"] > 0 for row in training)
    np.testing.assert_allclose([row["entropy_coef"] for row in training], [0, 5e-3, 1e-2, 1.5e-2])
    assert [row["step"] for row in rows(whole) if "eval/reward/accuracy" in row] == [3, 4]

    stop_after(2, monkeypatch)
    assert not loop.run(black_box(), stopped)
    assert max(row["step"] for row in rows(stopped)) == 2
    monkeypatch.undo()
    assert loop.run(black_box(), stopped)
    assert rows(stopped) == rows(whole)
    assert last_state(stopped) == last_state(whole)


def test_what_a_black_box_cannot_do_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="tells no likelihoods .* set grpo.likelihood_weight=0"):
        loop.run(black_box(**{"target": "rapidocr:v6", "grpo.likelihood_weight": 1.0}), tmp_path)
    with pytest.raises(ValueError, match="official_span=True counts tokens that target='vlm:"):
        loop.run(black_box(**{"grpo.official_span": True}), tmp_path)
    with pytest.raises(ValueError, match="'contains' is for targets outside"):
        inside = {"target": "zoom_digits/target", "grpo.accuracy": "contains"}
        loop.run(black_box(**inside), tmp_path)
    with pytest.raises(ValueError, match="no processor setting {'max_pixels'}"):
        loop.run(black_box(**{"target_processor.max_pixels": 9999}), tmp_path)
    planned = open_stage(load_config(black_box()), abstract=True)
    with pytest.raises(ReaderUnavailable, match="only planned"):
        planned.reader.answer([], [])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="one process"):
        open_stage(load_config(black_box()))


# Weights that are not finite ---------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, step: int, value: float) -> None:
    """Has one weight become `value` at a step whose loss and gradient are finite."""
    apply_gradients = TrainState.apply_gradients

    def spoilt(self: TrainState, grads, optimizer):
        state = apply_gradients(self, grads, optimizer)
        here = self.step == step - 1
        leaves, structure = jax.tree.flatten(state.params)
        leaves[-1] = jnp.where(here, leaves[-1].at[(0,) * leaves[-1].ndim].set(value), leaves[-1])
        return state._replace(params=jax.tree.unflatten(structure, leaves))

    monkeypatch.setattr(TrainState, "apply_gradients", spoilt)


@pytest.mark.parametrize(
    ("settings", "value", "exported"),
    [
        ({"steps": 4, "checkpoint.every": 2}, np.nan, []),  # found at the last step's save
        ({"stage": "sft", "steps": 4, "checkpoint.every": 2}, np.inf, []),
        ({"steps": 8, "checkpoint.every": 2, "export_every": 2}, -np.inf, ["cropper-2"]),
        ({"stage": "sft", "steps": 8, "export_every": 2, "lora.rank": 2}, np.nan, ["cropper-2"]),
    ],
)
def test_weights_that_are_not_finite_end_the_run_and_reach_no_file(
    settings, value, exported, tmp_path, monkeypatch
):
    spoil(monkeypatch, 4, value)
    config = quickstart(**{"eval.every": 0, "checkpoint.best": "", **settings})
    with pytest.raises(FloatingPointError, match="not finite, .*: they are not saved or exported"):
        loop.run(config, tmp_path)
    assert [folder.name for folder in sorted(tmp_path.glob("cropper*"))] == exported
    assert all(np.isfinite(x).all() for x in last_arrays(tmp_path))
    assert not (tmp_path / "summary.json").exists()


def last_arrays(workdir: pathlib.Path) -> list[np.ndarray]:
    """Arrays of the last checkpoint, which is there."""
    manager = ocp.CheckpointManager(workdir / "checkpoints")
    items = ocp.args.Composite(state=ocp.args.StandardRestore())
    assert manager.latest_step() == 2
    state = manager.restore(2, args=items).state
    manager.close()
    return [np.asarray(leaf) for leaf in state.values() if np.issubdtype(leaf.dtype, np.inexact)]


def test_a_best_metric_that_no_evaluation_has_is_named(tmp_path):
    config = quickstart(**{"steps": 2, "eval.every": 1, "checkpoint.best": "eval/rewrd"})
    with pytest.raises(ValueError, match="'eval/rewrd' is no metric .*; there are: eval/area, ev"):
        loop.run(config, tmp_path)
