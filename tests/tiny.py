# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Models small enough to compile in seconds, pictures and questions for them, and batches."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from cropvlm_jax import geometry
from cropvlm_jax.data import batching
from cropvlm_jax.grpo.reading import AnswerTemplate
from cropvlm_jax.hub.tokenizer import train_tokenizer
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.smolvlm.architecture import ARCHITECTURE
from cropvlm_jax.models.smolvlm.config import SiglipConfig, SmolVLMConfig
from cropvlm_jax.models.smolvlm.conversations import (
    ANSWER_INSTRUCTION,
    CROP_INSTRUCTION,
    SmolVLMConversations,
)
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.pixels.canvas import Canvas

SIDE = 32
CANVAS = Canvas(96, 128)
QUESTIONS = ("What?", "What is in the red frame?", "Which digit is it?", "Who signed, and when?")
ANSWERS = ("3", "A red digit", "42", "It is in a frame")
SIZES = ((96, 128), (73, 111), (96, 64), (70, 128))  # height, width

TOKENIZER = train_tokenizer((CROP_INSTRUCTION, ANSWER_INSTRUCTION, *QUESTIONS, *ANSWERS), 400)
GRAMMAR = geometry.Grammar.from_tokenizer(TOKENIZER)
CONFIG = SmolVLMConfig(
    vision=SiglipConfig(SIDE, 8, 16, 32, 2, 2),
    text=LlamaConfig(TOKENIZER.get_vocab_size(), 32, 64, 2, 4, 2, 8),
    scale_factor=2,
    image_token_id=TOKENIZER.token_to_id("<image>"),
)
CONVERSATIONS = SmolVLMConversations(TOKENIZER, CONFIG.image_seq_len)
TEMPLATE = AnswerTemplate.from_conversations(CONVERSATIONS)


def several_boxes(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with "]," as one token, in place of the word learned last."""
    written = json.loads(tokenizer.to_str())
    model = written["model"]
    last = "".join(model["merges"][-1])
    model["merges"][-1] = ["]", ","]
    model["vocab"]["],"] = model["vocab"].pop(last)
    return Tokenizer.from_str(json.dumps(written))


SEVERAL = several_boxes(TOKENIZER)  # of replies that may have several boxes


def make_cropper_input(
    longest_edge: int, in_step: bool = False, looks: int = 1
) -> batching.CropperInput:
    """What the model sees as a cropper, which splits pictures where `longest_edge` is > `SIDE`."""
    plan = functools.partial(ARCHITECTURE.plan, CONFIG, longest_edge=longest_edge)
    return batching.CropperInput(
        conversations=CONVERSATIONS,
        see=functools.partial(ARCHITECTURE.see, CONFIG, longest_edge=longest_edge),
        grid=functools.partial(ARCHITECTURE.grid, CONFIG, longest_edge=longest_edge),
        splits=ARCHITECTURE.splits(CONFIG, longest_edge),
        question_tokens=20,
        plan=plan if in_step else None,
        looks=looks,
    )


CROPPER_INPUT = make_cropper_input(SIDE)
PREPARE = batching.Preparer(CROPPER_INPUT, CONVERSATIONS, (CANVAS,), 10)


def make_model(seed: int) -> tuple[nnx.GraphDef, nnx.State]:
    """A random model, fp32, that cares about what it sees but does not amplify rounding much."""
    rng = np.random.default_rng(seed)
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: SmolVLM(CONFIG, rngs=nnx.Rngs(0))))

    def fill(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if "scale" in name or "bias" in name:  # of a norm, of a linear layer
            values = rng.normal(1.0 * ("scale" in name), 0.1, shape.shape)
        else:
            fan_in = shape.shape[-2 if "kernel" in name else -1]
            values = rng.normal(0, fan_in**-0.5, shape.shape)
        return jnp.asarray(values, jnp.float32)

    return graphdef, jax.tree_util.tree_map_with_path(fill, shapes)


def make_examples(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Smooth pictures of different sizes with questions and answers of different lengths."""
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(count):
        height, width = SIZES[i % len(SIZES)]
        y, x, _ = np.mgrid[:height, :width, :1] / 100
        waves = rng.uniform(1, 8, (2, 3)), rng.uniform(0, 6, 3)
        picture = 127.5 + 127.5 * np.sin(waves[0][0] * x + waves[0][1] * y + waves[1])
        question, answer = QUESTIONS[i % len(QUESTIONS)], ANSWERS[i % len(ANSWERS)]
        examples.append(
            {"image": picture.astype(np.uint8), "question": question, "answers": [answer]}
        )
    return examples


def make_batch(
    examples: list[dict[str, Any]],
    longest_edge: int = SIDE,
    in_step: bool = False,
    looks: int = 1,
) -> batching.Batch:
    """The examples as one batch of NumPy arrays, the cropper's pictures split above `SIDE` px."""
    cropper_input = make_cropper_input(longest_edge, in_step, looks)
    prepare = dataclasses.replace(PREPARE, cropper_input=cropper_input)
    return batching.stack([prepare(example, i) for i, example in enumerate(examples)])
