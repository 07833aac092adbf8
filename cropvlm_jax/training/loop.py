# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A GRPO run, top to bottom: models, mesh, state, data, step, loop, export."""

import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from absl import logging
from flax import nnx

from cropvlm_jax import parallel
from cropvlm_jax.boxes import Grammar
from cropvlm_jax.data import pipeline, zoom_digits
from cropvlm_jax.grpo.rewards import AnswerTemplate
from cropvlm_jax.grpo.step import GRPOConfig, make_step
from cropvlm_jax.hub.pretrained import Pretrained, export
from cropvlm_jax.prompts import Prompts
from cropvlm_jax.training.metrics import MetricWriter, Progress
from cropvlm_jax.training.state import TrainState


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """AdamW with warm-up (at most half the run), cosine decay and gradient clipping."""
    warmup = min(config.warmup_steps, config.steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, config.steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, b2=config.adam_b2, weight_decay=config.weight_decay),
    )


def run(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> None:
    """Trains a cropper and writes it to `workdir/cropper` as a Hugging Face folder.

    Args:
        config: as `experiments/zoom_digits.py` documents.
        workdir: gets metrics, the cropper and `summary.json`.
    """
    workdir = pathlib.Path(workdir)
    began = time.monotonic()
    settings = GRPOConfig(**config.grpo)

    # --- Models -----------------------------------------------------------------------------------
    cropper, target = Pretrained.open(config.cropper), Pretrained.open(config.target)
    dtype = jnp.dtype(config.dtype)
    policy, params = nnx.split(
        cropper.load(dtype=dtype, param_dtype=jnp.float32, remat=config.remat)
    )
    reader, frozen = nnx.split(target.load(dtype=dtype))
    crop_prompts = Prompts(cropper.tokenizer, cropper.config.image_seq_len)
    answer_prompts = Prompts(target.tokenizer, target.config.image_seq_len)

    # --- Mesh and state ---------------------------------------------------------------------------
    mesh = parallel.make_mesh(**config.mesh)
    optimizer = make_optimizer(config)

    def create(params: Any, frozen: Any) -> TrainState:
        # A copy each, because the step donates the whole state.
        reference = jax.tree.map(lambda x: x.astype(dtype), params) if settings.beta else None
        return TrainState.create(params, optimizer, reference=reference, target=frozen)

    shardings = parallel.state_shardings(mesh, jax.eval_shape(create, params, frozen))
    state = jax.jit(create, out_shardings=shardings)(params, frozen)
    weights = sum(x.size for x in jax.tree.leaves(params))
    del params, frozen
    logging.info("training %s weights on %s", f"{weights:,}", mesh)

    # --- Data -------------------------------------------------------------------------------------
    source = zoom_digits.ZoomDigits("train", config.data.num_scenes, config.seed)
    prepare = pipeline.Preparer(
        crop_prompts,
        answer_prompts,
        cropper.tile_size,
        cropper.longest_edge,
        tuple(config.data.canvas),
        config.data.prompt_length,
        config.data.question_length,
        config.data.answer_length,
    )
    batches = pipeline.training_batches(source, prepare, config.batch_size, config.seed)

    # --- Step -------------------------------------------------------------------------------------
    batched, replicated = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    step = jax.jit(
        make_step(
            policy,
            reader,
            Grammar.from_tokenizer(cropper.tokenizer),
            AnswerTemplate.from_prompts(answer_prompts),
            optimizer,
            settings,
        ),
        in_shardings=(shardings, batched, replicated),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
    )

    # --- Loop -------------------------------------------------------------------------------------
    writer = MetricWriter(workdir) if jax.process_index() == 0 else None
    progress = Progress(config.steps)
    key = jax.random.key(config.seed)

    def report(number: int, metrics: Any) -> None:
        metrics = jax.device_get(metrics)
        if writer:
            writer.write(number, metrics)
            progress.update(number, f"reward {metrics['reward']:.3f}  area {metrics['area']:.3f}")

    pending = None  # metrics are read one step late, so that the host never waits for the device
    for number in range(1, config.steps + 1):
        batch = jax.device_put(next(batches), batched)
        step_key = jax.device_put(jax.random.fold_in(key, number), replicated)
        state, metrics = step(state, batch, step_key)
        if pending:
            report(*pending)
        pending = (number, metrics)
        if number == 1:
            jax.block_until_ready(metrics)
            logging.info("first step, compilation included: %.1f s", time.monotonic() - began)
            progress = Progress(config.steps, start=1)
    if pending:
        report(*pending)

    # --- Result -----------------------------------------------------------------------------------
    if writer:
        writer.close()
        export(workdir / "cropper", nnx.merge(policy, state.params), cropper)
        summary = {"steps": config.steps, "train_seconds": round(time.monotonic() - began, 1)}
        (workdir / "summary.json").write_text(json.dumps(summary) + "\n", encoding="utf-8")
