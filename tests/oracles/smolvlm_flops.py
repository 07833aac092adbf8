# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the steps of a SmolVLM cost, written down from its shape: the oracle of `training.costs`.

All are model FLOPs: two operations a multiply-add, causal masks leave what they leave, nothing is
computed again.
"""

import dataclasses
import math
import re

from cropvlm_jax.geometry import Grammar
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.reading import AnswerTemplate
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.lora import LoRAConfig


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of one pass forward, and of one backward where weights are trained."""

    forward: float
    backward: float

    def __add__(self, other):
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times):
        return Flops(self.forward * times, self.backward * times)


def linear(path, inputs, outputs, lora, input_gradient=True):
    """A linear layer's, one token. Without adapters its weights are trained."""
    dense = 2.0 * inputs * outputs
    if lora is None:
        return Flops(dense, dense * (1 + input_gradient))
    backward = dense * input_gradient
    if not re.fullmatch(lora.targets, path):
        return Flops(dense, backward)
    into, out_of = 2.0 * inputs * lora.rank, 2.0 * lora.rank * outputs
    return Flops(dense + into + out_of, backward + (1 + input_gradient) * into + 2 * out_of)


def image(config, lora: LoRAConfig | None = None) -> Flops:
    """The vision tower's and the connector's, one image."""
    vision, scale = config.vision, config.scale_factor
    d, ff, patches = vision.hidden_size, vision.intermediate_size, vision.grid**2
    shapes = dict.fromkeys("qkvo", (d, d)) | {"fc1": (d, ff), "fc2": (ff, d)}
    linears = {f"vision.layers.{name}": shape for name, shape in shapes.items()}
    is_trained = lora is None or any(re.fullmatch(lora.targets, path) for path in linears)
    attention = 4.0 * patches**2 * d
    layer = Flops(attention, 2 * attention)
    for path, shape in linears.items():
        layer += linear(path, *shape, lora) * patches
    pixels = linear("vision.patch_embedding", 3 * vision.patch_size**2, d, lora, False) * patches
    tower = pixels + layer * vision.num_hidden_layers
    connector = linear("connector", d * scale**2, config.text.hidden_size, lora, is_trained)
    if not is_trained:
        tower = Flops(tower.forward, 0)
    return tower + connector * config.image_seq_len


def decoder(config: LlamaConfig, tokens, prefix=0, lora: LoRAConfig | None = None) -> Flops:
    """The decoder layers', one sequence of `tokens` after a prefix read before."""
    d, ff = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    shared = config.num_key_value_heads * config.head_dim
    shapes = {"q": (d, queries), "k": (d, shared), "v": (d, shared), "o": (queries, d)}
    shapes |= {"gate": (d, ff), "up": (d, ff), "down": (ff, d)}
    attention = 4.0 * queries * (tokens * prefix + tokens * (tokens + 1) / 2)
    layer = Flops(attention, 2 * attention)
    for name, shape in shapes.items():
        layer += linear(f"text.layers.{name}", *shape, lora) * tokens
    return layer * config.num_hidden_layers


def logits(config: LlamaConfig, columns, lora: LoRAConfig | None = None) -> Flops:
    """The output head's, one token, for `columns` of the vocabulary."""
    dense = 2.0 * config.hidden_size * columns
    return Flops(dense, dense * (1 + (lora is None)))


def resize(picture, shape, shrinks, order) -> float:
    """Resizing a picture to `shape` in windows; `order` names the axes in the order of passes."""
    total, sides = 0.0, list(picture)
    for axis in order:
        rows = 32 * math.ceil(shape[axis] / 32)
        reach = min(math.ceil((32 + 6 + 2) * max(shrinks, 1)) + 5, sides[axis])
        total += 2.0 * 3 * rows * reach * sides[1 - axis]
        sides[axis] = shape[axis]
    return total


def crop(canvas, side) -> float:
    """Cutting one crop out of a canvas: the dearer order of the passes of the first resize."""
    once, shrinks = (side, side), max(canvas) / side
    first = max(resize(canvas, once, shrinks, order) for order in ((0, 1), (1, 0)))
    return first + resize(once, once, 1, (1, 0))


def grpo(
    model,
    config: GRPOConfig,
    grammar: Grammar,
    template: AnswerTemplate,
    batch,
    lora: LoRAConfig | None,
    shared_tower: bool,
) -> dict[str, float]:
    """A GRPO step's by phase, where cropper and target are `model`."""
    (prompts, tiles), read = batch.tiles.shape[:2], batch.crop_prompt.shape[1] - 1
    replies, text = prompts * config.num_generations, model.text
    actions = len(grammar.actions)

    def reply(tokens, choices, columns, lora):
        head = logits(text, columns, lora) * choices
        return (decoder(text, tokens, read, lora) + head) * replies

    images = image(model, lora) * (prompts * tiles)
    prefix = images + decoder(text, read, lora=lora) * prompts
    iterations, length = grammar.iterations, grammar.max_length
    sampled = reply(iterations * grammar.chunk, 2 * iterations, actions, lora)
    columns = actions + bool(config.format_weight) * text.vocab_size
    written = reply(length, length, columns, lora)
    update = written.forward + written.backward + prefix.backward
    is_tower_trained = lora is None or images.backward > 0
    reference = 0.0
    if config.beta:
        alone = decoder(text, read) * prompts + reply(length, length, actions, None)
        reference = alone.forward
        if is_tower_trained and not shared_tower:  # else another has seen the tiles for it
            reference += image(model).forward * prompts * tiles
    seen = crop(batch.canvas.shape[1:3], model.vision.image_size) + image(model).forward
    whole = image(model).forward * is_tower_trained if shared_tower else seen
    return {
        "prefix": prefix.forward,
        "rollout": sampled.forward,
        "reward": reward(model, config, template, batch, whole, seen),
        "reference": reference,
        "update": update + (config.num_iterations - 1) * (prefix.forward + update),
    }


def reward(model, config, template, batch, whole, seen) -> float:
    """The reward's, where the image tokens of a whole picture take `whole`, of a crop `seen`."""
    (prompts, question), answer = batch.question.shape, batch.answer.shape[1]
    first, asked = len(template.first), len(template.crop) + question

    def passes(tokens, answers):
        head = logits(model.text, model.text.vocab_size) * answers
        return (decoder(model.text, tokens, first) + head).forward

    picture, rollout = whole + decoder(model.text, first).forward, seen
    if config.likelihood_weight:
        rollout += passes(asked + answer - 1, answer)
        if config.gain:
            picture += passes(question + answer - 1, answer)
    if config.accuracy_weight:
        rollout += passes(asked + config.answer_tokens - 1, config.answer_tokens)
        # Of what was asked, each token of the answer counts half: its cache is one loop's.
        queries = model.text.num_attention_heads * model.text.head_dim
        uncounted = (asked - 1) * config.answer_tokens / 2
        rollout -= 4.0 * queries * uncounted * model.text.num_hidden_layers
    return prompts * (picture + config.num_generations * rollout)


def supervised(model, batch, lora: LoRAConfig | None) -> float:
    """A supervised step's."""
    (rows, images), prompt = batch.images.shape[:2], batch.prompt.shape[1]
    completion = batch.completion.shape[1]
    head = logits(model.text, model.text.vocab_size, lora) * completion
    read = decoder(model.text, prompt + completion - 1, lora=lora)
    total = (image(model, lora) * images + read + head) * rows
    return total.forward + total.backward
