# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The step on one device and on meshes of eight pretended ones, in a process of its own."""

import functools
import gc
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from jax.sharding import AbstractMesh

from cropvlm_jax import geometry, parallel
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.step import GRPOStep
from cropvlm_jax.models import lora
from cropvlm_jax.models.smolvlm.architecture import ARCHITECTURE
from cropvlm_jax.models.smolvlm.config import SmolVLMConfig
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.train_state import TrainState

MESHES = {
    "one": (1, 1, 1),
    "8x1x1": (8, 1, 1),
    "2x4x1": (2, 4, 1),
    "1x8x1": (1, 8, 1),
    "4x1x2": (4, 1, 2),
}
TILED = ("one", "8x1x1", "4x1x2")
TWICE = ("one", "8x1x1")  # meshes of the steps with two looks
OF_BOXES = ("area", "boxes", "no_crop", "second_look", "crop_tokens")  # of the boxes themselves
STEPS, DEVICES = 3, 8
SNAPSHOT = pathlib.Path(__file__).with_name("shardings_256m.txt")


def main(folder: pathlib.Path) -> None:
    """Runs the steps on each mesh and leaves metrics, weights, HLO and errors in `folder`."""
    config = GRPOConfig(
        num_generations=4,
        beta=0.1,
        reward_chunk=2,
        loss_type="dapo",
        multi_objective_aggregation="normalize_then_sum",
        verification_weight=0.5,
        min_reward_std=0.5,
        entropy_target=2.4,
        gradient_accumulation_steps=2,
        max_boxes=2,
        abstain=True,
    )
    twice = GRPOConfig(num_generations=4, beta=0.0, looks=2, abstain=True, loss_type="dapo")
    for name, sizes in MESHES.items():
        train(folder, name, sizes, config)
    for name in TWICE:
        train(folder, f"{name}_twice", MESHES[name], twice)
    np.savez(folder / "start.npz", *jax.tree.leaves(tiny.make_model(11)[1]))
    for name in TILED:
        encode_tiles(folder, name, MESHES[name])
    for name in ("one", "8x1x1"):
        drop(folder, name, MESHES[name])


def train(folder: pathlib.Path, name: str, sizes: tuple[int, ...], config: GRPOConfig) -> None:
    """Leaves metrics, weights and HLO of the steps on a mesh."""
    # SGD: Adam's first steps have the size of the learning rate whatever the gradient's rounding.
    optimizer = optax.chain(optax.trace(0.9), optax.scale(-1.0))
    graphdef, policy = tiny.make_model(11)  # undecided whether and how often to look
    reference, target = tiny.make_model(1)[1], tiny.make_model(2)[1]
    batches = [
        tiny.make_batch(tiny.make_examples(16, seed), looks=config.looks) for seed in range(STEPS)
    ]
    second = geometry.Grammar.from_tokenizer(tiny.SEVERAL, abstain=True)
    inner = GRPOStep(
        policy=graphdef,
        target=graphdef,
        grammar=geometry.Grammar.from_tokenizer(tiny.SEVERAL, config.max_boxes, config.abstain),
        second_grammar=second if config.looks > 1 else None,
        template=tiny.TEMPLATE,
        optimizer=optimizer,
        config=config,
    )
    mesh = parallel.make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
    params, *frozen = jax.tree.map(np.array, (policy, reference, target))
    state = TrainState.create(
        params,
        optimizer,
        reference=frozen[0] if config.beta else None,
        target=frozen[1],
        entropy_coef=np.float32(0.1) if config.entropy_target else None,
    )
    shardings = parallel.state_shardings(mesh, state, tiny.CONFIG.heads, ARCHITECTURE.logical_axes)
    batched, replicated = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    state = jax.device_put(state, shardings)
    step = jax.jit(
        parallel.on_mesh(mesh, inner),
        donate_argnums=0,
        in_shardings=(shardings, batched, replicated),
        out_shardings=(shardings, replicated),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    compiled, history = None, []
    for i, batch in enumerate(batches):
        key = jax.random.fold_in(jax.random.key(0), i)
        inputs = state, jax.device_put(batch, batched), jax.device_put(key, replicated)
        # Compiled once: what it returned is placed as what it takes, or it would complain.
        compiled = compiled or step.lower(*inputs).compile()
        with jax.transfer_guard("disallow"):
            state, metrics = compiled(*inputs)
        history.append({k: float(v) for k, v in metrics.items()})
    (folder / f"{name}.json").write_text(json.dumps(history))
    (folder / f"{name}.hlo").write_text(compiled.as_text())
    np.savez(folder / f"{name}.npz", *jax.tree.leaves(jax.device_get(state.params)))


def encode_tiles(folder: pathlib.Path, name: str, sizes: tuple[int, ...]) -> None:
    """Leaves HLO and gradients of the tower that sees five tiles of each of 16 pictures."""
    mesh = parallel.make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
    graphdef, model = tiny.make_model(0)
    tiles = tiny.make_batch(tiny.make_examples(16), longest_edge=2 * tiny.SIDE).tiles
    assert tiles.shape[1] == 5

    def loss(model: nnx.State, tiles: jax.Array) -> jax.Array:
        return jnp.sin(nnx.merge(graphdef, model).encode_images(tiles)).sum()

    shardings = parallel.state_shardings(mesh, model, tiny.CONFIG.heads, ARCHITECTURE.logical_axes)
    gradient = jax.jit(
        parallel.on_mesh(mesh, jax.grad(loss)),
        in_shardings=(shardings, parallel.batch_sharding(mesh)),
        out_shardings=shardings,
    )
    compiled = gradient.lower(model, tiles).compile()
    (folder / f"tiles_{name}.hlo").write_text(compiled.as_text())
    found = compiled(*jax.device_put((model, tiles), compiled.input_shardings[0]))
    np.savez(folder / f"tiles_{name}.npz", *jax.tree.leaves(jax.device_get(found)))


def drop(folder: pathlib.Path, name: str, sizes: tuple[int, ...]) -> None:
    """Leaves image tokens of eight pictures' tiles, made with dropout before a tower's adapters."""
    mesh = parallel.make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
    graphdef, plain = tiny.make_model(0)
    config = lora.LoRAConfig(rank=2, dropout=0.5, targets=r"vision\.layers\.fc1")
    model = lora.add(nnx.merge(graphdef, plain), config, nnx.Rngs(0))
    graphdef, adapters, others = nnx.split(model, lora.LoRAParam, ...)
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    tiles = tiny.make_batch(tiny.make_examples(8), longest_edge=2 * tiny.SIDE).tiles

    def encode(tiles: jax.Array) -> jax.Array:
        adapted = nnx.merge(graphdef, adapters, others)
        return lora.with_dropout(adapted, jax.random.key(1)).encode_images(tiles)

    batched = parallel.batch_sharding(mesh)
    encoded = jax.jit(parallel.on_mesh(mesh, encode), in_shardings=batched)(tiles)
    np.save(folder / f"dropped_{name}.npy", encoded)


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


@pytest.mark.parametrize(
    "name", [*[name for name in MESHES if name != "one"], *[f"{name}_twice" for name in TWICE[1:]]]
)
def test_a_mesh_changes_nothing(runs, name):
    alone = "one_twice" if name.endswith("_twice") else "one"
    want, got = (json.loads((runs / f"{n}.json").read_text()) for n in (alone, name))
    worst = 0
    for one, other in zip(want, got, strict=True):
        assert one.keys() == other.keys()
        for metric, value in one.items():
            if metric in OF_BOXES:
                assert other[metric] == pytest.approx(value, rel=1e-6), metric
            else:
                assert other[metric] == pytest.approx(value, rel=1e-5, abs=1e-5), metric
                worst = max(worst, abs(other[metric] - value) / max(abs(value), 1))
    start, one, other = (np.load(runs / f"{n}.npz") for n in ("start", alone, name))
    differences = [np.abs(one[k] - other[k]).max() / np.abs(one[k]).max() for k in one.files]
    moved = [np.abs(one[k] - start[k]).max() for k in one.files]
    print(name, "metrics", worst, "weights", max(differences), "moved", np.median(moved))
    assert max(differences) < 1e-5 and np.median(moved) > 1e-3


def collectives(hlo: str) -> list[tuple[str, str, str]]:
    """Kind, result and `op_name` of each collective operation."""
    kinds = (
        "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
    )
    return re.findall(rf"= (.*?) ({kinds})(?:-start)?\(.*op_name=\"([^\"]*)", hlo)


@pytest.mark.parametrize("name", ["8x1x1", "8x1x1_twice"])
def test_data_parallelism_reduces_gradients_and_metrics_only(runs, name):
    found = collectives((runs / f"{name}.hlo").read_text())
    assert any("transpose(" in name for *_, name in found)
    for result, kind, name in found:
        assert kind == "all-reduce", (kind, name)
        scalars = not re.search(r"\[\d", result)
        assert scalars or "update/" in name and "transpose(" in name, (result, name)
        assert "rollout" not in name, "decode iterations wait for each other"


def test_the_towers_gradient_is_exchanged_once_whatever_the_number_of_tiles(runs):
    for result, _, name in collectives((runs / "tiles_8x1x1.hlo").read_text()):
        assert "while" not in name, (result, name)
    one, *others = (np.load(runs / f"tiles_{name}.npz") for name in TILED)
    for leaf in one.files:
        for other in others:
            np.testing.assert_allclose(other[leaf], one[leaf], rtol=1e-4, atol=1e-4)


def test_replicas_drop_what_one_device_drops(runs):
    one, other = (np.load(runs / f"dropped_{name}.npy") for name in ("one", "8x1x1"))
    np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4 * np.abs(one).max())


def test_fsdp_gathers_weights_and_not_activations(runs):
    """Each device keeps its own prompts: without constraints XLA splits activations' width."""
    for result, _, name in collectives((runs / "2x4x1.hlo").read_text()):
        if "while/body/closed_call/dot_general" in name and "transpose(" not in name:
            for shape in re.findall(r"f32\[([\d,]+)\]", result):
                assert shape.count(",") == 1, (shape, name)  # a layer's weight, [in, out]


def devices() -> int:
    return jax.device_count()


def test_mesh_sizes_are_checked():
    assert parallel.make_mesh().shape == {"data": devices(), "fsdp": 1, "tensor": 1}
    for sizes in ((devices() + 1, 1, 1), (-1, devices() + 1, 1), (1, 1, 2 * devices())):
        with pytest.raises(ValueError, match=f"does not use the {devices()} devices"):
            parallel.make_mesh(*sizes)


class Device:
    """As much of a TPU as a mesh looks at."""

    platform, device_kind = "fake", "fake"

    def __init__(self, id: int, slice_index: int):
        self.id, self.slice_index, self.process_index = id, slice_index, slice_index


def test_slices_split_the_data_axis():
    slices = [Device(i, i // 4) for i in reversed(range(8))]
    mesh = parallel.make_mesh(fsdp=2, devices=slices)
    assert mesh.shape == {"data": 4, "fsdp": 2, "tensor": 1}
    found = np.vectorize(lambda device: device.slice_index)(mesh.devices)[..., 0]
    np.testing.assert_array_equal(found, [[0, 0], [0, 0], [1, 1], [1, 1]])
    with pytest.raises(ValueError, match="data=1 is not a multiple of the 2 slices"):
        parallel.make_mesh(1, 8, 1, devices=slices)


def state_256m() -> TrainState:
    """Shapes of the paper's GRPO state: adapters with Adam on bf16 weights, and a bf16 target."""
    bf16 = dict(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)

    def build() -> tuple[SmolVLM, SmolVLM]:
        plain = SmolVLM(SmolVLMConfig.smolvlm_256m(), rngs=nnx.Rngs(0), **bf16)
        return plain, lora.add(plain, lora.LoRAConfig(), nnx.Rngs(0))

    plain, adapted = nnx.eval_shape(build)
    _, params, frozen = nnx.split(adapted, lora.LoRAParam, ...)
    create = functools.partial(TrainState.create, optimizer=optax.adam(1e-5))
    return jax.eval_shape(create, params, frozen=(frozen,), target=nnx.state(plain))


def test_shardings_of_the_256m_shape(caplog):
    """The committed table is what the rules say; delete it and run the test to write it anew."""
    state, heads = state_256m(), SmolVLMConfig.smolvlm_256m().heads
    names = ("8x1x1", "2x4x1", "4x1x2")
    table: dict[str, list[str]] = {}
    parallel._log_once.cache_clear()
    with caplog.at_level("INFO"):
        for name in names:
            mesh = AbstractMesh(MESHES[name], parallel.AXES)
            shardings = parallel.state_shardings(mesh, state, heads, ARCHITECTURE.logical_axes)
            leaves = jax.tree_util.tree_leaves_with_path(shardings)
            for (path, sharding), x in zip(leaves, jax.tree.leaves(state), strict=True):
                row = jax.tree_util.keystr(path, simple=True, separator="/")
                row = f"{row.removesuffix('/value')} {x.dtype}{list(x.shape)}"
                spec = ",".join(axis or "-" for axis in sharding.spec)
                table.setdefault(row, []).append(spec or "-")
    text = f"on {' | '.join(names)}\n"
    text += "".join(f"{row}: {' | '.join(specs)}\n" for row, specs in sorted(table.items()))
    if not SNAPSHOT.is_file():
        SNAPSHOT.write_text(text)
        pytest.fail("written anew: look at it, then run this again")
    assert text == SNAPSHOT.read_text()
    told = [record.getMessage() for record in caplog.records]
    assert told == ["heads stay whole: 3 do not divide over tensor=2"]


if __name__ == "__main__":
    gc.set_threshold(50_000, 10, 10)  # as conftest.py
    main(pathlib.Path(sys.argv[1]))
