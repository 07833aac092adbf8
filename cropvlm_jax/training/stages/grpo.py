# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The GRPO stage whose target answers inside of the graph."""

import dataclasses
import functools
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import ClosedJaxpr
from jax.sharding import Mesh

from cropvlm_jax.data.batching import Batch, Preparer
from cropvlm_jax.geometry import Grammar
from cropvlm_jax.grpo import reading
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.reading import AnswerTemplate, Crops
from cropvlm_jax.grpo.step import GRPOStep
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.microbatching import Sums
from cropvlm_jax.pixels.plans import count_images
from cropvlm_jax.scoring.in_graph import Vocabulary
from cropvlm_jax.scoring.text import Metric, encode_gold
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training import costs
from cropvlm_jax.training.config import TrainConfig
from cropvlm_jax.training.schedule import Schedule, make_optimizer
from cropvlm_jax.training.stages.base import CropperModel, shapes_of
from cropvlm_jax.training.stages.jitting import jit_program
from cropvlm_jax.training.stages.look import Look, words_of
from cropvlm_jax.training.stages.program import Program

PHASES = ("prefix", "rollout", "reward", "reference", "update")  # scopes of `grpo.step`
GOLD_ANSWERS, GOLD_CHARACTERS = 10, 64  # most of an example, and of an answer, that are scored


@dataclasses.dataclass(frozen=True)
class TargetModel:
    """The frozen model that the cropper is rewarded by, without its weights.

    Attributes:
        pretrained: its folder.
        model: its graph.
        shapes: of its weights as `TrainState.target` holds them.
        template: the constant parts of its conversation.
        vocabulary: of its tokenizer; None where its own answers earn nothing.
        sees_tile: whether its picture is the cropper's one tile.
        same_tower: whether its tower before the training is the cropper's.
    """

    pretrained: Pretrained
    model: nnx.GraphDef
    shapes: nnx.State
    template: AnswerTemplate
    vocabulary: Vocabulary | None
    sees_tile: bool
    same_tower: bool

    @classmethod
    def open(
        cls,
        config: TrainConfig,
        cropper: CropperModel,
        plain: nnx.State,
        abstract: bool,
        mesh: Mesh | None,
    ) -> tuple["TargetModel", nnx.State]:
        """Opens the model that `config.target` names.

        Args:
            config: settings of the run.
            cropper: the model being trained.
            plain: its weights without adapters.
            abstract: read no weights.
            mesh: whose devices share the weights of a large model from the beginning.

        Returns:
            The model, and its weights: without its vision tower where the KL reference has the
            same; shapes where `abstract`.
        """
        changes = dataclasses.asdict(config.target_processor)
        pretrained = Pretrained.open(config.target, not abstract, changes)
        dtype = jnp.dtype(config.dtype)
        if abstract:
            loaded = pretrained.abstract(dtype=dtype)
        else:
            spread = mesh if pretrained.architecture.load_over_mesh else None
            loaded = pretrained.load(dtype=dtype, mesh=spread)
        model, weights = nnx.split(loaded)
        tower = cropper.pretrained.architecture.tower
        same_tower = (
            pretrained.architecture is cropper.pretrained.architecture
            # Of shapes nothing else tells that the weights are equal.
            and (not abstract or cropper.pretrained.is_same_model(pretrained))
            and _same_weights(plain, weights, tower)
        )
        if same_tower and (config.lora or config.grpo.beta):
            own = {part: x for part, x in weights.items() if part not in tower}
            weights = nnx.State(own)
        template = _template(config, pretrained)
        vocabulary = None
        if config.grpo.accuracy_weight:
            vocabulary = Vocabulary.from_tokenizer(pretrained.tokenizer)
        target = cls(
            pretrained=pretrained,
            model=model,
            shapes=shapes_of(weights),
            template=template,
            vocabulary=vocabulary,
            # A tile of fewer pixels is not what the target sees of the picture.
            sees_tile=pretrained.architecture is cropper.pretrained.architecture
            and pretrained.architecture.splits_pictures
            and config.data.longest_edge == cropper.pretrained.tile_size == pretrained.tile_size,
            same_tower=same_tower,
        )
        return target, weights


@dataclasses.dataclass(frozen=True)
class GRPOStage:
    """Learns from what the target makes of the crops; see `Stage` for the attributes."""

    config: TrainConfig
    trained: CropperModel
    frozen_target: TargetModel
    prepare: Preparer
    weights: dict[str, Any]

    @classmethod
    def open(
        cls, config: TrainConfig, abstract: bool, in_step: bool, mesh: Mesh | None
    ) -> "GRPOStage":
        """Opens cropper and target.

        Args:
            config: settings of the run.
            abstract: read no weights.
            in_step: whether the step cuts the cropper's tiles.
            mesh: whose devices share the weights of a large target from the beginning.
        """
        grpo, data = config.grpo, config.data
        if grpo.accuracy not in get_args(Metric):
            raise ValueError(
                f"grpo.accuracy={grpo.accuracy!r} is for targets outside of the graph, such as OCR "
                f"readers; target={config.target!r} takes one of {get_args(Metric)}"
            )
        cropper, weights = CropperModel.open(config, abstract, in_step)
        plain = cropper.plain(weights)
        target, weights["target"] = TargetModel.open(config, cropper, plain, abstract, mesh)
        gold = None
        if grpo.accuracy_weight:
            gold = functools.partial(
                encode_gold,
                metric=cast(Metric, grpo.accuracy),
                max_answers=GOLD_ANSWERS,
                max_length=GOLD_CHARACTERS,
            )
        prepare = Preparer(
            cropper_input=cropper.input,
            target_conversations=target.pretrained.conversations(official=data.official_text),
            canvases=data.canvases,
            answer_tokens=data.answer_tokens,
            gold=gold,
        )
        return cls(config, cropper, target, prepare, weights)

    @property
    def target(self) -> Pretrained:
        """The folder of the target."""
        return self.frozen_target.pretrained

    def step(self) -> GRPOStep:
        """The step of the run."""
        target, in_step = self.frozen_target, self.trained.input.plan is not None
        return GRPOStep(
            policy=self.trained.policy,
            grammar=self.trained.grammar,
            optimizer=make_optimizer(self.config),
            config=self.config.grpo,
            base=self.trained.base,
            target=target.model,
            template=target.template,
            vocabulary=target.vocabulary,
            tower=self.trained.pretrained.architecture.tower,
            shared_tower=target.sees_tile and target.same_tower,
            same_picture=target.sees_tile and in_step,
            longest_edge=self.trained.longest_edge,
            second_grammar=self.trained.second_grammar,
        )

    def init(self, weights: dict[str, Any], steps: int) -> TrainState:
        """A fresh train state."""
        return init_grpo(self.config, self.trained, weights, steps)

    def compile(self, mesh: Mesh, steps: int) -> Program:
        """Step and evaluation for a mesh."""
        return jit_program(self, self.step(), mesh, steps)

    def evaluate(self, state: TrainState, batch: Batch) -> Sums:
        """Reward, its parts and area of the likeliest boxes."""
        return self.step().evaluate(state, batch)

    def look(self, state: TrainState, batch: Batch) -> Look:
        """The likeliest boxes, their worth, and what the target answers with their crops."""
        step = self.step()
        template = step.template
        assert template is not None
        proposed, target = step.propose(state, batch), step.target_model(state)
        boxes, count = proposed.boxes, proposed.count
        grpo = dataclasses.replace(self.config.grpo, reward_chunk=None)
        whole = reading.encode_whole(target, batch.canvas, batch.size)
        worth = step.target_rewards(grpo)(target, batch, boxes, count, whole)
        replies = reading.own_answers(
            target,
            template,
            reading.read_picture(target, template, whole),
            batch,
            Crops.of(target, batch, boxes, count),
            grpo.answer_tokens,
        )
        return Look(boxes[:, 0], count[:, 0], replies[:, 0], worth.total[:, 0])

    def words(self, replies: Any) -> list[str]:
        """The texts of the target's answers."""
        return words_of(self.target, replies)

    def cost(self, program: ClosedJaxpr) -> dict[str, float]:
        """Operations of a step by phase."""
        return costs.count_flops(program, PHASES, backward="update")

    def decoding(self, batch: Batch) -> dict[str, float]:
        """Bytes that the rollouts and the target's own answers read, for the batch of one chip."""
        grpo, target = self.config.grpo, self.frozen_target
        reward = 0.0
        if grpo.accuracy_weight:
            template, tokens = target.template, grpo.answer_tokens
            chunks = grpo.num_generations // (grpo.reward_chunk or grpo.num_generations)
            prompts, question = batch.question.shape
            asked = grpo.max_boxes * len(template.crop) + question - 1 + tokens
            replies = prompts * grpo.num_generations
            decoder = target.pretrained.config.text
            reward = costs.decoding_bytes(
                decoder,
                weights=count(target.shapes["text"]["layers"]),
                columns=decoder.vocab_size,
                passes=tokens * grpo.gradient_accumulation_steps * chunks,
                slots=tokens * (prompts * len(template.first) + replies * asked),
                itemsize=jnp.dtype(self.config.dtype).itemsize,
            )
        return {"rollout": rollout_bytes(self.config, self.trained, batch), "reward": reward}

    def work(self, batch: Batch) -> dict[str, int]:
        """Prompts, rollouts, and images: the cropper's tiles, the target's pictures and crops."""
        done = rollout_work(self.config.grpo, batch)
        crops = done["rollouts"] * self.config.grpo.max_boxes
        return done | {"images": done["images"] + done["prompts"] + crops}


def _template(config: TrainConfig, target: Pretrained) -> AnswerTemplate:
    """The constant parts of the target's conversation about a picture and its crops.

    Raises:
        ValueError: it does not take so many pictures.
    """
    conversations = target.conversations(official=config.data.official_text)
    crops, positions = config.grpo.max_boxes, target.config.text.max_position_embeddings
    try:
        template = AnswerTemplate.from_conversations(conversations, crops)
    except ValueError as error:
        raise ValueError(f"target={config.target!r}: {error}") from error
    data = config.data
    asked = len(template.first) + crops * len(template.crop) + data.question_tokens
    if crops > 1 and asked + data.answer_tokens > positions:
        raise ValueError(
            f"grpo.max_boxes={crops}: a picture, {crops} crops, question and answer take up to "
            f"{asked + data.answer_tokens} tokens, and target={config.target!r} has {positions} "
            "positions: set a smaller grpo.max_boxes"
        )
    return template


def init_grpo(
    config: TrainConfig, cropper: CropperModel, weights: dict[str, Any], steps: int
) -> TrainState:
    """A fresh train state of a GRPO run of `steps` batches, with its KL reference."""
    if config.grpo.beta and config.lora is None:
        # A copy, because the step donates the whole state.
        dtype = jnp.dtype(config.dtype)
        reference = jax.tree.map(lambda x: x.astype(dtype), weights["params"])
        weights = weights | {"reference": reference}
    if config.grpo.entropy_target:
        weights = weights | {"entropy_coef": jnp.zeros(())}
    schedule = Schedule.of(config, steps * config.grpo.num_iterations)
    return TrainState.create(optimizer=make_optimizer(config), schedule=schedule, **weights)


def rollout_work(config: GRPOConfig, batch: Batch) -> dict[str, int]:
    """Prompts, rollouts, and the cropper's tiles: of its pictures and of crops that it sees."""
    prompts, tiles = batch.size.shape[0], count_images(batch.tiles)
    rollouts = prompts * config.num_generations
    crops = rollouts * (config.looks - 1)
    return {"prompts": prompts, "rollouts": rollouts, "images": prompts * tiles + crops}


def rollout_bytes(config: TrainConfig, cropper: CropperModel, batch: Batch) -> float:
    """Bytes that sampling the replies reads, for the batch of one chip."""
    prompts, group = batch.size.shape[0], config.grpo.num_generations
    read = _look_bytes(config, cropper, cropper.grammar, batch.crop_prompt.shape, group)
    if cropper.second_grammar is None:
        return read
    crops = prompts * group, batch.second_prompt.shape[1]
    return read + _look_bytes(config, cropper, cropper.second_grammar, crops, 1)


def _look_bytes(
    config: TrainConfig,
    cropper: CropperModel,
    grammar: Grammar,
    prompt: tuple[int, ...],
    group: int,
) -> float:
    """Bytes that sampling the replies of a look reads.

    Args:
        config: settings of the run.
        cropper: the model being trained.
        grammar: of the replies.
        prompt: how many prompts there are, and tokens of each.
        group: replies to each prompt.
    """
    prompts, length = prompt
    own = prompts * group * grammar.iterations * grammar.chunk
    params = cropper.shapes["params"]
    adapters = params["text"]["layers"] if config.lora and "text" in params else ()
    return costs.decoding_bytes(
        cropper.pretrained.config.text,
        weights=count(cropper.plain(cropper.shapes)["text"]["layers"]) + count(adapters),
        columns=len(grammar.actions),
        passes=grammar.iterations * config.grpo.gradient_accumulation_steps,
        slots=grammar.iterations * (prompts * (length - 1) + own),
        itemsize=jnp.dtype(config.dtype).itemsize,
    )


def count(tree: Any) -> int:
    """Numbers in a tree of arrays or their shapes."""
    return sum(x.size for x in jax.tree.leaves(tree))


def _same_weights(cropper: nnx.State, target: nnx.State, parts: tuple[str, ...]) -> bool:
    """Whether two models have the same weights in these parts."""
    for part in parts:
        one, other = jax.tree.leaves(cropper[part]), jax.tree.leaves(target[part])
        if [x.shape for x in one] != [x.shape for x in other]:
            return False
        if isinstance(one[0], jax.Array) and not all(map(jnp.array_equal, one, other)):
            return False
    return True
