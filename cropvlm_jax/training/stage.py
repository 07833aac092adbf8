# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a config says is computed: models, data preparation, train state, step and evaluation.

With `abstract=True` no weight is read and every array is a shape: the very step of a run can be
compiled for machines that are not there.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh

from cropvlm_jax import parallel
from cropvlm_jax.data import batching
from cropvlm_jax.geometry import Grammar
from cropvlm_jax.grpo.black_box import BlackBoxStep
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.rewards import AnswerTemplate
from cropvlm_jax.grpo.step import GRPOStep
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.models import lora
from cropvlm_jax.readers.base import Reader
from cropvlm_jax.readers.registry import is_black_box, open_reader
from cropvlm_jax.scoring.in_graph import Vocabulary
from cropvlm_jax.scoring.text import Metric, encode_gold
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training.config import STAGES
from cropvlm_jax.training.costs import decode_bytes, grpo_flops, sft_flops
from cropvlm_jax.training.sft import SFTStep

GOLD_ANSWERS, GOLD_CHARACTERS = 10, 64  # most of an example, and of an answer, that are scored


class Stage(NamedTuple):
    """The parts of a run that its config determines.

    Attributes:
        cropper: the folder of the model being trained.
        policy: its structure, with adapters where they are trained.
        weights: of the train state by attribute; shapes where the stage is abstract.
        create: makes a fresh train state of `weights` and the number of batches.
        seen: how the cropper sees an example.
        prepare: makes a row of a batch of an example.
        make_step: `(steps) -> step`, a function of state, batch and key.
        evaluation: a function of state and batch.
        flops: operations of a step by phase, a function of the batch or its shapes.
        decode_bytes: what its decoding reads, a function of the batch of one chip.
        target: the folder of the frozen model that gives the reward, or None.
        black_box: what gives it from outside of the graph, or None; then `make_step` and
            `evaluation` are for `jit_black_box`.
    """

    cropper: Pretrained
    policy: nnx.GraphDef
    weights: dict[str, Any]
    create: Callable[[dict[str, Any], int], TrainState]
    seen: batching.CropperInput
    prepare: Callable[[Any, int], Any]
    make_step: Callable[[int], Any]
    evaluation: Callable[[TrainState, Any], Any]
    flops: Callable[[Any], dict[str, float]]
    decode_bytes: Callable[[Any], dict[str, float]]
    target: Pretrained | None = None
    black_box: Reader | None = None


def make_optimizer(config: ml_collections.ConfigDict, updates: int) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay over `updates` and gradient clipping."""
    warmup = round(config.warmup * updates)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, updates)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, b2=config.adam_b2, weight_decay=config.weight_decay),
    )


def build(
    config: ml_collections.ConfigDict, abstract: bool = False, mesh: Mesh | None = None
) -> Stage:
    """Puts together what `config` names.

    Args:
        config: as `training.config.default_config` documents.
        abstract: read and download no weights; `Stage.weights` are shapes.
        mesh: whose devices share the weights of a large target from the beginning.

    Raises:
        FileNotFoundError: a model is not there.
        ValueError: a setting is wrong.
    """
    if config.stage not in STAGES:
        raise ValueError(f"stage={config.stage!r} is not one of {STAGES}")
    is_grpo = config.stage == "grpo"
    settings = GRPOConfig(
        **config.grpo, gradient_accumulation_steps=config.gradient_accumulation_steps
    )
    dtype = jnp.dtype(config.dtype)

    def load(pretrained: Pretrained, **options: Any) -> Any:
        return pretrained.abstract(**options) if abstract else pretrained.load(**options)

    cropper = Pretrained.open(config.cropper, weights=not abstract)
    if not cropper.architecture.can_crop:
        raise ValueError(
            f"cropper={config.cropper!r}: a {cropper.config.model_type} may not be a cropper"
        )
    adaptation = lora.LoRAConfig(**config.lora) if config.lora.rank else None
    param_dtype = dtype if adaptation else jnp.float32
    plain = load(cropper, dtype=dtype, param_dtype=param_dtype, remat=config.remat)
    weights: dict[str, Any] = {}
    base = None
    if adaptation:

        def add() -> nnx.Module:
            return lora.add(plain, adaptation, nnx.Rngs(config.seed))

        adapted = nnx.eval_shape(add) if abstract else add()
        policy, weights["params"], *frozen = nnx.split(adapted, lora.LoRAParam, ...)
        weights["frozen"], base = tuple(frozen), nnx.graphdef(plain)
    else:
        policy, weights["params"] = nnx.split(plain)
    grammar = Grammar.from_tokenizer(cropper.tokenizer)
    official, limit = config.data.official_text, config.data.question_tokens
    crop_prompts = cropper.conversations(official=official, max_question_tokens=limit)
    seen = batching.CropperInput(crop_prompts, cropper.tile_size, config.data.longest_edge, limit)

    def optimizer(steps: int) -> optax.GradientTransformation:
        return make_optimizer(config, steps * (settings.num_iterations if is_grpo else 1))

    def create(weights: dict[str, Any], steps: int) -> TrainState:
        if is_grpo and settings.beta and not adaptation:
            # A copy, because the step donates the whole state.
            reference = jax.tree.map(lambda x: x.astype(dtype), weights["params"])
            weights = weights | {"reference": reference}
        return TrainState.create(optimizer=optimizer(steps), **weights)

    if not is_grpo:
        return Stage(
            cropper,
            policy,
            weights,
            create,
            seen,
            prepare=batching.BoxPreparer(seen, grammar.max_length),
            make_step=lambda steps: SFTStep(
                policy, optimizer(steps), config.gradient_accumulation_steps
            ),
            evaluation=SFTStep(policy, optimizer(1)).evaluate,
            flops=lambda batch: sft_flops(cropper.config, batch, adaptation),
            decode_bytes=lambda batch: {},
        )

    canvas, answer_tokens = tuple(config.data.canvas), config.data.answer_tokens
    if is_black_box(config.target):
        if abstract:
            raise ValueError(f"target={config.target!r} is outside of the graph: it has no step")
        if jax.process_count() > 1:
            raise ValueError(
                f"target={config.target!r} gives its reward to one process, and there are "
                f"{jax.process_count()}: train in one, on all devices of its host"
            )
        if settings.likelihood_weight or not settings.accuracy_weight:
            raise ValueError(
                f"target={config.target!r} says no likelihoods: set grpo.likelihood_weight=0 and "
                "grpo.accuracy_weight"
            )
        outside = cropper.config, None, settings, grammar, None
        black_box = open_reader(config.target)
        return Stage(
            cropper,
            policy,
            weights,
            create,
            seen,
            prepare=batching.Preparer(seen, None, canvas, answer_tokens),
            make_step=lambda steps: GRPOStep(
                policy=policy,
                grammar=grammar,
                optimizer=optimizer(steps),
                config=settings,
                base=base,
            ),
            evaluation=lambda state, batch: None,
            flops=lambda batch: grpo_flops(*outside, batch, adaptation),
            decode_bytes=lambda batch: decode_bytes(*outside, batch, adaptation, dtype.itemsize),
            black_box=black_box,
        )

    if settings.accuracy not in get_args(Metric):
        raise ValueError(
            f"grpo.accuracy={settings.accuracy!r} is for targets outside of the graph, such as OCR "
            f"readers; target={config.target!r} takes one of {get_args(Metric)}"
        )
    target = Pretrained.open(config.target, not abstract, config.target_processor)
    spread = {"mesh": mesh} if target.architecture.load_over_mesh and not abstract else {}
    reader, weights["target"] = nnx.split(load(target, dtype=dtype, **spread))
    tower = cropper.architecture.tower
    same_tower = (
        target.architecture is cropper.architecture
        and (not abstract or cropper.folder == target.folder)  # no weights tell that they are equal
        and _same_tower(nnx.state(plain), weights["target"], tower)
    )
    if same_tower and (adaptation or settings.beta):
        own = {part: x for part, x in weights["target"].items() if part not in tower}
        weights["target"] = nnx.State(own)
    # A tile of fewer pixels is not what the target sees of the picture.
    shared_tower = same_tower and config.data.longest_edge == cropper.tile_size
    answer_prompts = target.conversations(official=official)
    gold, vocabulary = None, None
    if settings.accuracy_weight:
        gold = functools.partial(
            encode_gold,
            metric=cast(Metric, settings.accuracy),
            max_answers=GOLD_ANSWERS,
            max_length=GOLD_CHARACTERS,
        )
        vocabulary = Vocabulary.from_tokenizer(target.tokenizer)
    template = AnswerTemplate.from_conversations(answer_prompts)
    shapes = cropper.config, target.config, settings, grammar, template
    return Stage(
        cropper,
        policy,
        weights,
        create,
        seen,
        prepare=batching.Preparer(seen, answer_prompts, canvas, answer_tokens, gold),
        make_step=lambda steps: GRPOStep(
            policy=policy,
            target=reader,
            grammar=grammar,
            template=template,
            optimizer=optimizer(steps),
            config=settings,
            base=base,
            vocabulary=vocabulary,
            shared_tower=shared_tower,
        ),
        evaluation=GRPOStep(
            policy=policy,
            target=reader,
            grammar=grammar,
            template=template,
            optimizer=optimizer(1),
            config=settings,
            vocabulary=vocabulary,
        ).evaluate,
        flops=lambda batch: grpo_flops(*shapes, batch, adaptation, shared_tower),
        decode_bytes=lambda batch: decode_bytes(*shapes, batch, adaptation, dtype.itemsize),
        target=target,
    )


def _same_tower(cropper: nnx.State, target: nnx.State, tower: tuple[str, ...]) -> bool:
    """Whether two models have the same weights in these parts."""
    for part in tower:
        one, other = jax.tree.leaves(cropper[part]), jax.tree.leaves(target[part])
        if [x.shape for x in one] != [x.shape for x in other]:
            return False
        if isinstance(one[0], jax.Array) and not all(map(jnp.array_equal, one, other)):
            return False
    return True


def state_shardings(stage: Stage, mesh: Mesh, steps: int) -> Any:
    """How the train state of a run of `steps` batches is spread over a mesh."""
    shapes = jax.eval_shape(lambda weights: stage.create(weights, steps), stage.weights)
    shardings = stage.cropper.state_shardings(mesh, shapes)
    if stage.target:
        of_target = stage.target.state_shardings(mesh, shapes.target)
        shardings = shardings._replace(target=of_target)
    return shardings


def jit_step(stage: Stage, mesh: Mesh, steps: int) -> tuple[Any, Any]:
    """The jitted step of a run of `steps` batches on a mesh, and the shardings of its state."""
    shardings = state_shardings(stage, mesh, steps)
    batched, replicated = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    step = jax.jit(
        parallel.on_mesh(mesh, stage.make_step(steps)),
        in_shardings=(shardings, batched, replicated),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
    )
    return step, shardings


def jit_evaluation(stage: Stage, mesh: Mesh, shardings: Any) -> Any:
    """The jitted evaluation on a mesh, where the state has `shardings`."""
    return jax.jit(
        parallel.on_mesh(mesh, stage.evaluation),
        in_shardings=(shardings, parallel.batch_sharding(mesh)),
        out_shardings=parallel.replicated(mesh),
    )


def jit_black_box(
    stage: Stage, mesh: Mesh, config: ml_collections.ConfigDict, steps: int
) -> tuple[Any, Any, Any]:
    """Step and evaluation of a run whose target is outside of the graph, and the shardings of its
    state; both take batches of NumPy arrays."""
    assert stage.black_box is not None
    shardings, batched = state_shardings(stage, mesh, steps), parallel.batch_sharding(mesh)

    def put(tree: Any) -> Any:
        return parallel.to_devices(tree, batched, len(jax.tree.leaves(tree)[0]))

    def jit(function: Callable[..., Any], **options: Any) -> Any:
        return jax.jit(parallel.on_mesh(mesh, function), **options)

    step = BlackBoxStep(
        stage.make_step(steps), stage.black_box, put=put, jit=jit, state_shardings=shardings
    )
    return step, step.evaluate, shardings
