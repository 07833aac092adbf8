# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Floating point operations of a step, computed from its shapes, and what chips do at their best.

These are *model FLOPs*, what MFU is defined by: the matmuls of linear layers and attention, two
operations a multiply-add, and nothing elementwise. Of a backward pass, gradients of activations
everywhere above the lowest trained weight, and of those weights that are trained. What remat
computes again does not count. Tokens count as the arrays hold them, padding included; attention
counts the keys that a causal mask leaves, a good half, though XLA multiplies by the others too.

    phases = stage.flops(batch)  # or grpo_flops(...), with what `make_step` takes
    mfu = sum(phases.values()) / (seconds * devices * CHIPS[device.device_kind].flops)
"""

import dataclasses
import re
from typing import Any, NamedTuple

from cropvlm_jax.data.batching import Batch, SupervisedBatch
from cropvlm_jax.geometry import Grammar, PixelLimits
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.rewards import AnswerTemplate
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.llava.config import LlavaConfig
from cropvlm_jax.models.lora import LoRAConfig
from cropvlm_jax.models.qwen2_5_vl.config import QwenConfig
from cropvlm_jax.models.smolvlm.config import SmolVLMConfig
from cropvlm_jax.pixels.device import smart_reach


class Chip(NamedTuple):
    """The best that one chip does.

    Attributes:
        name: of a TPU as in the names of Cloud TPU slices.
        flops: bf16 operations a second of its matrix units.
        hbm_gib: memory.
        hbm: bytes a second from and to that memory.
        ici: bytes a second that it sends to its neighbours, over all links.
    """

    name: str
    flops: float
    hbm_gib: float
    hbm: float
    ici: float


# By `jax.Device.device_kind`. Source: cloud.google.com/tpu/docs/{v5e,v5p,v6e}; the links' 1600,
# 4800 and 3200 Gbit/s are what a chip sends, and it receives as much at the same time. NVIDIA's
# data sheet of the H100 SXM: without sparsity, and half of NVLink's 900 GB/s.
CHIPS = {
    "TPU v5 lite": Chip("v5e", 197e12, 16, 819e9, 200e9),
    "TPU v5": Chip("v5p", 459e12, 95, 2765e9, 600e9),
    "TPU v6 lite": Chip("v6e", 918e12, 32, 1640e9, 400e9),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 80, 3350e9, 450e9),
}


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of one pass forward and, where weights are trained, of one backward."""

    forward: float
    backward: float

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: float) -> "Flops":
        return Flops(self.forward * times, self.backward * times)


def _linear(
    path: str,
    inputs: int,
    outputs: int,
    lora: LoRAConfig | None,
    input_gradient: bool = True,
) -> Flops:
    """A linear layer's, one token. Without adapters its weights are trained."""
    dense = 2.0 * inputs * outputs
    if lora is None:
        return Flops(dense, dense * (1 + input_gradient))
    backward = dense * input_gradient
    if not re.fullmatch(lora.targets, path):
        return Flops(dense, backward)
    into, out_of = 2.0 * inputs * lora.rank, 2.0 * lora.rank * outputs
    backward += (1 + input_gradient) * into + 2 * out_of
    return Flops(dense + into + out_of, backward)


def image_flops(config: SmolVLMConfig, lora: LoRAConfig | None = None) -> Flops:
    """The vision tower's and the connector's, one image.

    Args:
        config: the model's shape.
        lora: its adapters; None for a plain model, all of whose weights are trained, if any.
    """
    vision, scale = config.vision, config.scale_factor
    d, ff, patches = vision.hidden_size, vision.intermediate_size, vision.grid**2
    shapes = dict.fromkeys("qkvo", (d, d)) | {"fc1": (d, ff), "fc2": (ff, d)}
    linears = {f"vision.layers.{name}": shape for name, shape in shapes.items()}
    is_trained = lora is None or any(re.fullmatch(lora.targets, path) for path in linears)

    attention = 4.0 * patches**2 * d
    layer = Flops(attention, 2 * attention)
    for path, shape in linears.items():
        layer += _linear(path, *shape, lora) * patches
    pixels = _linear("vision.patch_embedding", 3 * vision.patch_size**2, d, lora, False) * patches
    tower = pixels + layer * vision.num_hidden_layers
    connector = _linear("connector", d * scale**2, config.text.hidden_size, lora, is_trained)
    if not is_trained:
        tower = Flops(tower.forward, 0)
    return tower + connector * config.image_seq_len


def _token_flops(config: LlamaConfig, lora: LoRAConfig | None) -> Flops:
    """Those of the decoder layers' linear layers, one token."""
    d, ff = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    shared = config.num_key_value_heads * config.head_dim
    shapes = {"q": (d, queries), "k": (d, shared), "v": (d, shared), "o": (queries, d)}
    shapes |= {"gate": (d, ff), "up": (d, ff), "down": (ff, d)}
    layer = Flops(0, 0)
    for name, shape in shapes.items():
        layer += _linear(f"text.layers.{name}", *shape, lora)
    return layer * config.num_hidden_layers


def decoder_flops(
    config: LlamaConfig, tokens: int, prefix: int = 0, lora: LoRAConfig | None = None
) -> Flops:
    """The decoder layers', one sequence; the same whether read at once or token by token.

    Args:
        config: the decoder's shape.
        tokens: of the sequence.
        prefix: tokens read before, whose keys and values all of `tokens` attend to.
        lora: as for `image_flops`.
    """
    width = config.num_attention_heads * config.head_dim * config.num_hidden_layers
    attention = 4.0 * width * (tokens * prefix + tokens * (tokens + 1) / 2)
    return _token_flops(config, lora) * tokens + Flops(attention, 2 * attention)


def logits_flops(config: LlamaConfig, columns: int, lora: LoRAConfig | None = None) -> Flops:
    """The output head's, which has no adapters, one token, for `columns` of the vocabulary."""
    dense = 2.0 * config.hidden_size * columns
    return Flops(dense, dense * (1 + (lora is None)))


def crop_flops(canvas: tuple[int, int], side: int) -> float:
    """Those of cutting one crop out of a canvas: four resampling passes, each a dense matmul.

    A pass counts once, in however many digits its weights are multiplied.
    """
    longest = max(canvas)
    return 2.0 * 3 * side * (longest**2 + longest * side + 2 * side**2)


def bicubic_flops(canvas: tuple[int, int], side: int) -> float:
    """As `crop_flops`, of the two passes of `crops.bicubic_square`."""
    longest = max(canvas)
    return 2.0 * 3 * side * (longest**2 + longest * side)


def _llava_image_flops(config: LlavaConfig) -> float:
    """The vision tower's and the projector's, one image; the class token looks and is looked at."""
    vision, width = config.vision, config.text.hidden_size
    d, patches = vision.hidden_size, vision.grid**2
    tokens = patches + 1
    linears = 4.0 * 2 * d**2 + 2.0 * 2 * d * vision.intermediate_size
    layer = linears * tokens + 4.0 * tokens**2 * d
    tower = 2.0 * 3 * vision.patch_size**2 * d * patches + layer * config.feature_layers
    return tower + (2.0 * d * width + 2.0 * width**2) * patches


def _smart_flops(canvas: tuple[int, int], limits: PixelLimits) -> float:
    """As `crop_flops`, of the two passes of `crops.smart_tiles`."""
    side, reach = limits.factor, smart_reach(canvas, limits)
    return 2.0 * 3 * side * (reach**2 + reach * side) * limits.most_tiles


def _qwen_image_flops(config: QwenConfig) -> float:
    """The vision tower's and the merger's, a picture that fills its tiles; XLA multiplies by the
    neighbours of a window, too."""
    vision, tiles = config.vision, config.image_seq_len
    d, merge = vision.hidden_size, vision.spatial_merge_size**2
    patches, window = tiles * merge, (vision.window_size // vision.patch_size) ** 2
    full = len(vision.fullatt_block_indexes)
    linears = (4.0 * 2 * d**2 + 3.0 * 2 * d * vision.intermediate_size) * vision.depth
    attention = 4.0 * d * (patches * full + window * (vision.depth - full))
    embedding = 2.0 * 2 * 3 * vision.patch_size**2 * d
    wide = d * merge
    merger = 2.0 * wide**2 + 2.0 * wide * config.text.hidden_size
    return (embedding + linears + attention) * patches + merger * tiles


def picture_flops(target: Any, canvas: tuple[int, int]) -> float:
    """Those of cutting one crop out of a canvas and encoding it.

    Args:
        target: shape of a model, of any architecture.
        canvas: its height and width.
    """
    if isinstance(target, SmolVLMConfig):
        return crop_flops(canvas, target.vision.image_size) + image_flops(target).forward
    if isinstance(target, LlavaConfig):
        return bicubic_flops(canvas, target.vision.image_size) + _llava_image_flops(target)
    if isinstance(target, QwenConfig):
        return _smart_flops(canvas, target.limits) + _qwen_image_flops(target)
    raise TypeError(f"no formula for {type(target).__name__}")


def grpo_flops(
    cropper: Any,
    target: Any,
    config: GRPOConfig,
    grammar: Grammar,
    template: AnswerTemplate | None,
    batch: Batch,
    lora: LoRAConfig | None = None,
    shared_tower: bool = False,
) -> dict[str, float]:
    """A GRPO step's, by the phases that `grpo.step` names.

    Args:
        cropper: shape of the model being trained.
        target: shape of the frozen model; None where the reward comes from outside of the graph.
        config: settings of the step. `gradient_accumulation_steps` and `reward_chunk` change
            nothing.
        grammar: of the cropper's tokenizer.
        template: of the target's tokenizer, or None as well.
        batch: arrays, or their shapes, of all prompts of the step.
        lora: the cropper's adapters; None where all its weights are trained.
        shared_tower: as for `make_step`.

    Returns:
        Operations of "prefix", "rollout", "reward" (crops included, `crop_flops`), "reference" and
        "update", over all devices. Greedy answers are counted at their full length.
    """
    (prompts, tiles), read = batch.tiles.shape[:2], batch.crop_prompt.shape[1] - 1
    replies = prompts * config.num_generations
    actions, vocabulary = len(grammar.actions), cropper.text.vocab_size

    images = image_flops(cropper, lora) * (prompts * tiles)
    prompt = decoder_flops(cropper.text, read, lora=lora) * prompts

    def reply(tokens: int, choices: int, columns: int, lora: LoRAConfig | None) -> Flops:
        logits = logits_flops(cropper.text, columns, lora) * choices
        return (decoder_flops(cropper.text, tokens, read, lora) + logits) * replies

    iterations, length = grammar.iterations, grammar.max_length
    sampled = reply(iterations * grammar.chunk, 2 * iterations, actions, lora)
    written = reply(length, length, actions + bool(config.format_weight) * vocabulary, lora)
    prefix = images + prompt
    update = written.forward + written.backward + prefix.backward
    trained = lora is None or images.backward > 0  # the tower
    reference = 0.0
    if config.beta:
        alone = decoder_flops(cropper.text, read) * prompts + reply(length, length, actions, None)
        reference = alone.forward
        if trained and not shared_tower:  # else policy or target have seen the tiles for it
            reference += image_flops(cropper).forward * prompts * tiles
    reward = 0.0
    if target and template:
        if shared_tower:
            picture = image_flops(target).forward * trained
        else:
            picture = picture_flops(target, batch.canvas.shape[1:3])
        reward = _reward_flops(target, config, template, batch, picture)
    return {
        "prefix": prefix.forward,
        "rollout": sampled.forward,
        "reward": reward,
        "reference": reference,
        "update": update + (config.num_iterations - 1) * (prefix.forward + update),
    }


def _reward_flops(
    target: Any,
    config: GRPOConfig,
    template: AnswerTemplate,
    batch: Batch,
    picture: float,
) -> float:
    """Operations of the reward, where the image tokens of a whole picture take `picture`."""
    (prompts, question), answer = batch.question.shape, batch.answer.shape[1]
    first, asked = len(template.first), len(template.crop) + question
    seen = picture_flops(target, batch.canvas.shape[1:3])

    def passes(tokens: int, answers: int) -> float:
        logits = logits_flops(target.text, target.text.vocab_size) * answers
        return (decoder_flops(target.text, tokens, first) + logits).forward

    picture += decoder_flops(target.text, first).forward
    rollout = seen
    if config.likelihood_weight:
        rollout += passes(asked + answer - 1, answer)
        if config.gain:
            picture += passes(question + answer - 1, answer)
    if config.accuracy_weight:
        rollout += passes(asked + config.answer_tokens - 1, config.answer_tokens)
    return prompts * (picture + config.num_generations * rollout)


def decode_bytes(
    cropper: Any,
    target: Any,
    config: GRPOConfig,
    grammar: Grammar,
    template: AnswerTemplate | None,
    batch: Batch,
    lora: LoRAConfig | None = None,
    itemsize: int = 2,
) -> dict[str, float]:
    """What the decoding of a GRPO step reads from a chip's memory, at least, by phase.

    An iteration reads the decoder's weights once a microbatch, and all keys and values. The other
    passes use a weight for so many tokens that arithmetic bounds them.

    Args:
        cropper: as for `grpo_flops`, and so are the arguments that follow.
        target: likewise.
        config: likewise; greedy answers read the weights once a chunk of rollouts.
        grammar: likewise.
        template: likewise.
        batch: the prompts of one chip.
        lora: likewise.
        itemsize: bytes of a number.

    Returns:
        Bytes of "rollout" and "reward".
    """

    def read(text: LlamaConfig, columns: int, passes: int, keys: int, lora: LoRAConfig | None):
        weights = _token_flops(text, lora).forward / 2 + text.hidden_size * columns
        widths = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        return itemsize * (passes * weights + widths * keys)

    prompts, prefix = batch.crop_prompt.shape
    replies, iterations = prompts * config.num_generations, grammar.iterations
    keys = prompts * (prefix - 1) + replies * iterations * grammar.chunk
    actions, passes = len(grammar.actions), iterations * config.gradient_accumulation_steps
    found = {"rollout": read(cropper.text, actions, passes, iterations * keys, lora), "reward": 0.0}
    if config.accuracy_weight and target and template:
        iterations = config.answer_tokens
        passes = (
            iterations
            * config.gradient_accumulation_steps
            * (config.num_generations // (config.reward_chunk or config.num_generations))
        )
        asked = len(template.crop) + batch.question.shape[1] - 1
        keys = prompts * len(template.first) + replies * (asked + iterations)
        vocabulary = target.text.vocab_size
        found["reward"] = read(target.text, vocabulary, passes, iterations * keys, None)
    return found


def sft_flops(
    cropper: Any, batch: SupervisedBatch, lora: LoRAConfig | None = None
) -> dict[str, float]:
    """A supervised step's, all of them of its "loss"; arguments as of `grpo_flops`."""
    (rows, images), prompt = batch.images.shape[:2], batch.prompt.shape[1]
    completion = batch.completion.shape[1]
    logits = logits_flops(cropper.text, cropper.text.vocab_size, lora) * completion
    decoder = decoder_flops(cropper.text, prompt + completion - 1, lora=lora)
    total = (image_flops(cropper, lora) * images + decoder + logits) * rows
    return {"loss": total.forward + total.backward}
