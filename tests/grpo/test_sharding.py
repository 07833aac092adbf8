# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The step on one device and on meshes of eight pretended ones, in a process of its own."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import AbstractMesh, PartitionSpec

from cropvlm_jax import parallel
from cropvlm_jax.evals import scoring
from cropvlm_jax.grpo.answer_scores import Vocabulary
from cropvlm_jax.grpo.step import GRPOConfig, make_step
from cropvlm_jax.training.state import TrainState

MESHES = {"one": None, "8x1x1": (8, 1, 1), "2x2x2": (2, 2, 2), "1x4x2": (1, 4, 2)}
STEPS, DEVICES = 3, 8


def main(folder: pathlib.Path) -> None:
    """Runs the steps on each mesh and leaves metrics, weights, HLO and errors in `folder`."""
    # SGD: Adam's first steps have the size of the learning rate whatever the gradient's rounding.
    optimizer = optax.chain(optax.trace(0.9), optax.scale(-1.0))
    graphdef, policy = tiny.make_model(0)
    reference, target = tiny.make_model(1)[1], tiny.make_model(2)[1]
    config = GRPOConfig(
        group=4,
        beta=0.1,
        reward_chunk=4,
        aggregation="token",
        scale="batch",
        updates=2,
        accuracy_weight=1.0,
        accuracy="anls",
        answer_tokens=3,
    )
    batches = []
    for seed in range(STEPS):
        examples = tiny.make_examples(8, seed)
        gold = [scoring.encode_gold(e["answers"], config.accuracy, 2, 20) for e in examples]
        gold = jax.tree.map(lambda *x: np.stack(x), *gold)
        batches.append(tiny.make_batch(examples)._replace(gold=gold))
    inner = make_step(
        graphdef,
        graphdef,
        tiny.GRAMMAR,
        tiny.TEMPLATE,
        optimizer,
        config,
        vocabulary=Vocabulary.from_tokenizer(tiny.TOKENIZER),
    )
    for name, sizes in MESHES.items():
        params, *frozen = jax.tree.map(np.array, (policy, reference, target))
        state = TrainState.create(params, optimizer, reference=frozen[0], target=frozen[1])
        shardings, put = {}, [None, None, None]
        if sizes:
            mesh = parallel.make_mesh(*sizes)
            state_shardings = parallel.state_shardings(mesh, state)
            put = [state_shardings, parallel.batch_sharding(mesh), parallel.replicated(mesh)]
            shardings = {"in_shardings": tuple(put), "out_shardings": (put[0], put[2])}
        state = jax.device_put(state, put[0])
        step = jax.jit(
            inner,
            donate_argnums=0,
            compiler_options={"xla_backend_optimization_level": 0},
            **shardings,
        )
        compiled, history = None, []
        for i, batch in enumerate(batches):
            key = jax.random.fold_in(jax.random.key(0), i)
            inputs = state, jax.device_put(batch, put[1]), jax.device_put(key, put[2])
            compiled = compiled or step.lower(*inputs).compile()
            state, metrics = compiled(*inputs)
            history.append({k: float(v) for k, v in metrics.items()})
        if sizes:
            kept = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, put[0])
            assert all(jax.tree.leaves(kept))
        (folder / f"{name}.json").write_text(json.dumps(history))
        (folder / f"{name}.hlo").write_text(compiled.as_text())
        np.savez(folder / f"{name}.npz", *jax.tree.leaves(jax.device_get(state.params)))
    np.savez(folder / "start.npz", *jax.tree.leaves(policy))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    here = pathlib.Path(__file__).resolve()
    path = os.pathsep.join([str(here.parents[1]), str(here.parents[2]), *filter(None, sys.path)])
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    # A device waits for the others in up to a thread a collective: with a thread a device, the
    # default on few cores, they may wait for each other forever.
    environment["NPROC"] = str(16 * DEVICES)
    done = subprocess.run(
        [sys.executable, here, folder], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.mark.parametrize("name", [name for name in MESHES if name != "one"])
def test_a_mesh_changes_nothing(runs, name):
    want, got = (json.loads((runs / f"{n}.json").read_text()) for n in ("one", name))
    worst = 0
    for one, other in zip(want, got, strict=True):
        assert one.keys() == other.keys()
        for metric, value in one.items():
            if metric in ("area", "valid"):  # of the boxes themselves
                assert other[metric] == pytest.approx(value, rel=1e-6), metric
            else:
                assert other[metric] == pytest.approx(value, rel=1e-5, abs=1e-5), metric
                worst = max(worst, abs(other[metric] - value) / max(abs(value), 1))
    start, one, other = (np.load(runs / f"{n}.npz") for n in ("start", "one", name))
    differences = [np.abs(one[k] - other[k]).max() / np.abs(one[k]).max() for k in one.files]
    moved = [np.abs(one[k] - start[k]).max() for k in one.files]
    print(name, "metrics", worst, "weights", max(differences), "moved", np.median(moved))
    assert max(differences) < 1e-5 and np.median(moved) > 1e-3


def test_data_parallelism_moves_no_weights(runs):
    weights = np.load(runs / "start.npz")
    shapes = {str(list(weights[k].shape)).replace(" ", "") for k in weights.files}
    shapes |= {str(list(weights[k].shape[1:])).replace(" ", "") for k in weights.files}  # a layer
    hlo = (runs / "8x1x1.hlo").read_text()
    assert re.search("all-reduce[a-z-]*\\(", hlo)  # of gradients
    for result in re.findall("= (.*?) (?:all-gather|all-to-all)[a-z-]*\\(", hlo):
        moved = set(re.findall(r"\[[\d,]+\]", result))
        assert not moved & shapes, result


def devices() -> int:
    return jax.device_count()


def test_mesh_sizes_are_checked():
    assert parallel.make_mesh().shape == {"data": devices(), "fsdp": 1, "tensor": 1}
    for sizes in ((devices() + 1, 1, 1), (-1, devices() + 1, 1), (1, 1, 2 * devices())):
        with pytest.raises(ValueError, match=f"does not use the {devices()} devices"):
            parallel.make_mesh(*sizes)


def test_an_axis_that_does_not_divide_stays_whole(caplog):
    mesh = AbstractMesh((1, 4, 2), parallel.AXES)
    float32 = np.float32
    weights = {
        "text": {
            "layers": {
                "q": {"kernel": jax.ShapeDtypeStruct((30, 576, 9), float32)},
                "k": {"kernel": jax.ShapeDtypeStruct((30, 576, 64), float32)},
                "o": {"kernel": jax.ShapeDtypeStruct((30, 576, 574), float32)},
                "attention_norm": {"scale": jax.ShapeDtypeStruct((30, 576), float32)},
            },
            "embedding": {"embedding": jax.ShapeDtypeStruct((49280, 576), float32)},
        },
        "step": jax.ShapeDtypeStruct((), np.int32),
    }
    with caplog.at_level("INFO"):
        specs = jax.tree.map(lambda s: s.spec, parallel.state_shardings(mesh, weights))
    layers = specs["text"]["layers"]
    assert layers["q"]["kernel"] == PartitionSpec(None, "fsdp", None)  # 9 heads, 2 devices
    assert layers["k"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert layers["o"]["kernel"] == PartitionSpec(None, "tensor", None)
    assert layers["attention_norm"]["scale"] == specs["step"] == PartitionSpec()
    assert specs["text"]["embedding"]["embedding"] == PartitionSpec("tensor", "fsdp")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
