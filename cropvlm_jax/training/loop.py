# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A training run, top to bottom: data, state, step, checkpoints, loop, result."""

import ctypes
import json
import math
import pathlib
import sys
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
from cropvlm_jax.hub.export import export
from cropvlm_jax.models import lora
from cropvlm_jax.progress import Progress
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training import costs
from cropvlm_jax.training.checkpoints import Checkpoints, Preemption, check_claim, claim
from cropvlm_jax.training.metrics import MetricWriter, Throughput
from cropvlm_jax.training.stage import build, jit_black_box, jit_evaluation, jit_step

SHOWN = ("loss", "reward", "area")  # on the progress line


def compile_step(step: Any, state: TrainState, batch: Any, key: jax.Array) -> jax.stages.Compiled:
    """Compiles the jitted step for the shapes of a batch, and logs what that took."""
    arrays = {name: x for name, x in batch._asdict().items() if isinstance(x, jax.Array)}
    shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in arrays.items() if x.dtype != bool)
    logging.info("compiling the step for %s", shapes)
    began = time.monotonic()
    options = {}
    if jax.default_backend() == "cpu":  # by default an order that keeps more alive, and no faster
        options["xla_cpu_scheduler_type"] = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
    compiled = step.lower(state, batch, key).compile(options)
    logging.info("compiled in %.1f s", time.monotonic() - began)
    if sys.platform == "linux":  # glibc keeps what compiling took, most of a GB
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)
    if memory := compiled.memory_analysis():
        logging.info(
            "MiB a device: arguments %.0f, outputs %.0f (in place of arguments: %.0f), temporary "
            "%.0f, code %.0f",
            memory.argument_size_in_bytes / 2**20,
            memory.output_size_in_bytes / 2**20,
            memory.alias_size_in_bytes / 2**20,
            memory.temp_size_in_bytes / 2**20,
            memory.generated_code_size_in_bytes / 2**20,
        )
    return compiled


def run(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    resume: bool = True,
    profile: int | None = None,
) -> bool:
    """Trains a cropper and writes it to `workdir/cropper` as a Hugging Face folder.

    Args:
        config: as `training.config.default_config` documents.
        workdir: gets metrics, checkpoints, the cropper and `summary.json`.
        resume: go on with the run that `workdir` holds, if it holds one.
        profile: step that process 0 traces into `workdir/profile`, counted from 1 where this call
            starts; None traces none.

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
    # A microbatch has to divide over the devices as well.
    parallel.local_rows(batched, config.batch_size // config.gradient_accumulation_steps)
    stage = build(config, mesh=mesh)

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
    parallel.check_same_on_all_hosts(planned.fingerprint, "examples")
    if config.eval.every:
        held_out = order.open_mixture(config.eval.sources, config.seed)
        buckets = order.bucket_examples(held_out, stage.seen, config.eval.examples)
        held_out_plan = order.plan_batches(range(len(buckets)), buckets, config.batch_size)
        logging.info("held out: %s", held_out_plan.left_out())
        held_out_planned = order.PlannedBatches(held_out, stage.prepare, held_out_plan, rows)

    # --- State and step ---------------------------------------------------------------------------
    if stage.black_box:
        step, evaluation, shardings = jit_black_box(stage, mesh, config, steps)
        logging.info("the reward is that of %s, outside of the graph", stage.black_box.name)
    else:
        step, shardings = jit_step(stage, mesh, steps)
        evaluation = jit_evaluation(stage, mesh, shardings)
    create = jax.jit(stage.create, static_argnums=1, out_shardings=shardings)
    state = create(stage.weights, steps)
    stage.weights.clear()  # or they stay on the device beside the state's
    # Jitted: several processes cannot put a key on all of their devices by `device_put`.
    key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=replicated)()
    fold_in = jax.jit(jax.random.fold_in, out_shardings=replicated)
    trained = sum(x.size for x in jax.tree.leaves(state.params))
    logging.info("training %s weights on %s", f"{trained:,}", mesh)

    def work_of(batch: Any) -> dict[str, float]:
        """What the step of a batch does, for `Throughput`."""
        done = {"flops": sum(stage.flops(batch).values()), "prompts": config.batch_size}
        if config.stage == "sft":
            return done | {"images": config.batch_size * batch.images.shape[1]}
        rollouts, pictures = config.batch_size * config.grpo.num_generations, config.batch_size
        tiles = config.batch_size * batch.tiles.shape[1]
        seen = 0 if stage.black_box else pictures + rollouts  # by the target, in the graph
        return done | {"rollouts": rollouts, "images": tiles + seen}

    def on_devices_of(batch: Any) -> Any:
        """A batch as step and evaluation take it: a black box needs it on the host."""
        if stage.black_box:
            return batch
        return parallel.to_devices(batch, batched, config.batch_size)

    def evaluate(state: TrainState) -> dict[str, float]:
        totals: Any = None
        batches = order.iterate(held_out_planned, workers=config.data.workers)
        for i, batch in enumerate(batches):
            logging.log_every_n_seconds(
                logging.INFO, "held-out batch %d of %d", 10, i + 1, len(held_out_planned)
            )
            sums = jax.device_get(evaluation(state, on_devices_of(batch)))
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
    start, place = 0, {"data": planned.fingerprint}
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
    if profile and profile > steps - start:
        logging.warning("step %d is not there to be traced: %d are left", profile, steps - start)

    def write_out(state: TrainState, name: str) -> None:
        model = nnx.merge(
            stage.policy, parallel.gather(state.params), *parallel.gather(state.frozen)
        )
        if jax.process_index() == 0:
            if lora.adapters(model):
                export_adapter(workdir / name.replace("cropper", "adapter"), model, config.cropper)
            edge = config.data.longest_edge
            export(workdir / name, lora.merge(model), stage.cropper, longest_edge=edge)

    # --- Loop -------------------------------------------------------------------------------------
    writer = MetricWriter(workdir, start) if jax.process_index() == 0 else None
    progress = Progress(steps, start)
    chip = costs.CHIPS.get(jax.devices()[0].device_kind)
    throughput = Throughput(jax.device_count(), chip and chip.flops)
    compiled: dict[Any, Any] = {}
    pending: list[tuple[int, Any, dict[str, float]]] = []

    def report(behind: int = 0) -> None:
        """Tells of all steps but the last `behind`, for which the host would have to wait."""
        done = pending[: len(pending) - behind]
        if not done:
            return
        del pending[: len(done)]
        numbers, unread, works = zip(*done, strict=True)
        read = jax.device_get(unread)
        speed = throughput.steps(works)
        for number, metrics in zip(numbers, read, strict=True):
            if writer:
                writer.write(number, metrics | speed)
                note = "  ".join(f"{name} {metrics[name]:.3f}" for name in SHOWN if name in metrics)
                progress.update(number, note)
            if not math.isfinite(metrics["grad_norm"]):
                raise FloatingPointError(
                    f"the gradient of step {number} is not finite, so neither are the weights: go "
                    "on from the checkpoint before with a lower learning rate, in another folder"
                )

    number, stopping = start, False
    batches = order.iterate(planned, start, config.data.workers)
    with Preemption() as preemption:
        while number < steps and not stopping:
            number += 1
            with throughput.waiting():
                batch = next(batches)
            step_key = fold_in(key, number)
            on_devices = on_devices_of(batch)
            shapes = tuple(x.shape for x in jax.tree.leaves(on_devices))
            if shapes not in compiled:
                report()
                if stage.black_box:
                    logging.info("the first step of these shapes compiles its halves on its way")
                    compiled[shapes] = step
                else:
                    compiled[shapes] = compile_step(step, state, on_devices, step_key)
                progress = Progress(steps, number - 1)
                throughput.restart()
            tracing = number - start == profile and jax.process_index() == 0
            if tracing:
                report()  # or the step before would be in the trace
                jax.profiler.start_trace(workdir / "profile")
                throughput.restart()
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                state, metrics = compiled[shapes](state, on_devices, step_key)
            replaced = int((batch.example_id != plan.batches[number - 1, rows]).sum())
            pending.append((number, metrics | {"replaced_examples": replaced}, work_of(on_devices)))
            if tracing:
                report()
                jax.profiler.stop_trace()
                logging.info(
                    "the trace of step %d is in %s: pip install xprof, then xprof or TensorBoard "
                    "with --logdir=%s",
                    *(number, workdir / "profile", workdir / "profile"),
                )
            stopping = preemption.requested(number)

            def due(every: int, number: int = number) -> bool:
                return every > 0 and (number == steps or number % every == 0)

            held_out_metrics: dict[str, float] = {}
            if due(config.eval.every):
                report()
                held_out_metrics = evaluate(state)
                values = (f"{name} {value:.3f}" for name, value in held_out_metrics.items())
                logging.info("after step %d: %s", number, "  ".join(values))
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
                report()
                write_out(state, f"cropper-{number}")
            if pending:
                report(behind=1)
            else:  # something else was done since, which is no part of the next step
                throughput.restart()
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
