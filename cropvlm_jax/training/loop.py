# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A training run, top to bottom: data, state, step, checkpoints, loop, result."""

import json
import math
import pathlib
import time
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from flax import nnx

from cropvlm_jax import parallel
from cropvlm_jax.data import order
from cropvlm_jax.hub.adapters import export_adapter
from cropvlm_jax.hub.pretrained import export
from cropvlm_jax.models import lora
from cropvlm_jax.training.checkpoints import Checkpoints, Preemption, check_claim, claim
from cropvlm_jax.training.metrics import MetricWriter, Progress
from cropvlm_jax.training.stage import build, jit_step
from cropvlm_jax.training.state import TrainState

SHOWN = ("loss", "reward", "area")  # on the progress line


def run(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path, resume: bool = True
) -> bool:
    """Trains a cropper and writes it to `workdir/cropper` as a Hugging Face folder.

    Args:
        config: as `training.config.default_config` documents.
        workdir: gets metrics, checkpoints, the cropper and `summary.json`.
        resume: go on with the run that `workdir` holds, if it holds one.

    Returns:
        Whether the run is complete; False where it was told to stop, after saving.

    Raises:
        ValueError: a setting is wrong, or `workdir` holds a run of other settings or data.
    """
    workdir = pathlib.Path(workdir)
    began = time.monotonic()
    check_claim(workdir, config.to_dict(), resume)
    mesh = parallel.make_mesh(**config.mesh)
    batched, replicated = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    rows = parallel.local_rows(batched, config.batch_size)
    if config.stage == "grpo":  # a microbatch has to divide over the devices as well
        parallel.local_rows(batched, config.batch_size // config.grpo.accumulate)
    stage = build(config)

    # --- Data -------------------------------------------------------------------------------------
    source = order.open_mixture(config.data.sources, config.seed)
    steps = config.steps or round(config.epochs * len(source)) // config.batch_size
    if steps < 1:
        raise ValueError(
            f"{config.epochs} epochs of {len(source)} examples fill no batch of {config.batch_size}"
        )
    buckets = order.bucket_examples(source, stage.seen)
    plan = order.plan_batches(source.order(config.seed), buckets, config.batch_size, steps)
    planned = order.PlannedBatches(source, stage.prepare, plan, rows)
    logging.info("%d steps over %d examples; %s", steps, len(source), plan.left_out())
    parallel.check_same_on_all_hosts(plan.fingerprint, "examples")
    if config.eval.every:
        held_out = order.open_mixture(config.eval.sources, config.seed)
        buckets = order.bucket_examples(held_out, stage.seen, config.eval.examples)
        held_out_plan = order.plan_batches(range(len(buckets)), buckets, config.batch_size)
        logging.info("held out: %s", held_out_plan.left_out())
        held_out_planned = order.PlannedBatches(held_out, stage.prepare, held_out_plan, rows)

    # --- State and step ---------------------------------------------------------------------------
    step, shardings = jit_step(stage, mesh, steps)
    create = jax.jit(stage.create, static_argnums=1, out_shardings=shardings)
    state = create(stage.weights, steps)
    stage.weights.clear()  # or they stay on the device beside the state's
    key = jax.device_put(jax.random.key(config.seed), replicated)
    trained = sum(x.size for x in jax.tree.leaves(state.params))
    logging.info("training %s weights on %s", f"{trained:,}", mesh)
    evaluation = jax.jit(
        parallel.on_mesh(mesh, stage.evaluation),
        in_shardings=(shardings, batched),
        out_shardings=replicated,
    )

    def evaluate(state: TrainState) -> dict[str, float]:
        totals: Any = None
        for batch in order.iterate(held_out_planned, workers=config.data.workers):
            sums = jax.device_get(
                evaluation(state, parallel.to_devices(batch, batched, config.batch_size))
            )
            totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
        return {
            f"eval/{name}": float(total / n) if n else math.nan
            for name, (total, n) in totals.items()
        }

    # --- Checkpoints ------------------------------------------------------------------------------
    def to_save(state: TrainState, key: jax.Array) -> dict[str, Any]:
        trained = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
        return trained | {"key": jax.random.key_data(key)}

    claim(workdir, config.to_dict())
    checkpoints = Checkpoints(workdir, config.checkpoint.keep, config.checkpoint.best)
    start, place = 0, {"data": plan.fingerprint}
    if found := checkpoints.restore(jax.tree.map(parallel.abstract, to_save(state, key))):
        start, restored, saved_place = found
        if saved_place != place:
            raise ValueError(
                f"{workdir} was trained on other data, or in another order: restore the examples "
                "that were there, or take another folder"
            )
        key = jax.random.wrap_key_data(restored.pop("key"))
        state = state._replace(**restored)
        logging.info("going on after step %d", start)

    def write_out(state: TrainState, name: str) -> None:
        model = nnx.merge(
            stage.policy, parallel.gather(state.params), *parallel.gather(state.frozen)
        )
        if jax.process_index() == 0:
            if lora.adapters(model):
                export_adapter(workdir / name.replace("cropper", "adapter"), model, config.cropper)
            export(workdir / name, lora.merge(model), stage.cropper)

    # --- Loop -------------------------------------------------------------------------------------
    writer = MetricWriter(workdir, start) if jax.process_index() == 0 else None
    progress = Progress(steps, start)
    pending: tuple[int, Any] | None = None  # read a step late: the host never waits for the device

    def report() -> None:
        nonlocal pending
        if not pending:
            return
        (number, metrics), pending = (pending[0], jax.device_get(pending[1])), None
        if writer:
            writer.write(number, metrics)
            note = "  ".join(f"{name} {metrics[name]:.3f}" for name in SHOWN if name in metrics)
            progress.update(number, note)
        if not math.isfinite(metrics["grad_norm"]):
            raise FloatingPointError(
                f"the gradient of step {number} is not finite, so neither are the weights: go on "
                "from the checkpoint before with a lower learning rate, in another folder"
            )

    number, stopping = start, False
    batches = order.iterate(planned, start, config.data.workers)
    with Preemption() as preemption:
        while number < steps and not stopping:
            number += 1
            batch = next(batches)
            step_key = jax.device_put(jax.random.fold_in(key, number), replicated)
            on_devices = parallel.to_devices(batch, batched, config.batch_size)
            state, metrics = step(state, on_devices, step_key)
            report()
            replaced = int((batch.example_id != plan.batches[number - 1, rows]).sum())
            pending = number, metrics | {"replaced_examples": replaced}
            if number == start + 1:
                jax.block_until_ready(metrics)
                logging.info("first step, compilation included: %.1f s", time.monotonic() - began)
                progress = Progress(steps, number)
            stopping = preemption.requested(number)

            def due(every: int, number: int = number) -> bool:
                return every > 0 and (number == steps or number % every == 0)

            held_out_metrics: dict[str, float] = {}
            if due(config.eval.every):
                report()
                held_out_metrics = evaluate(state)
                logging.info("after step %d: %s", number, held_out_metrics)
                if writer:
                    writer.write(number, held_out_metrics)
            if (
                stopping
                or number == steps
                or due(config.checkpoint.every)
                or (config.checkpoint.best and held_out_metrics)
            ):
                report()
                checkpoints.save(number, to_save(state, key), place, held_out_metrics)
            if due(config.export_every) and number < steps and not stopping:
                write_out(state, f"cropper-{number}")
        checkpoints.close()

    # --- Result -----------------------------------------------------------------------------------
    if writer:
        writer.close()
    if number < steps:
        logging.warning("stopped after step %d of %d, which is saved", number, steps)
        return False
    write_out(state, "cropper")
    if jax.process_index() == 0:
        summary = {"steps": steps, "train_seconds": round(time.monotonic() - began, 1)}
        (workdir / "summary.json").write_text(json.dumps(summary) + "\n", encoding="utf-8")
    return True
