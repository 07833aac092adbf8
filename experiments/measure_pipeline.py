# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How many pictures a second the input pipeline prepares on one core, beside what a step needs.

    python experiments/measure_pipeline.py --pictures=24

Pictures are JPEGs of document size (2,200 x 1,700 px, 3:4) made here, so that nothing has to be
downloaded; each becomes canvas, tiles and token ids as in a GRPO run. The need is computed: the
least time that the published peak of a chip allows for the FLOPs of a step.
"""

import io
import os
import time

import numpy as np
from absl import app, flags, logging
from PIL import Image, ImageDraw

from cropvlm_jax.data import images, pipeline
from cropvlm_jax.hub.tokenizer import train_tokenizer
from cropvlm_jax.models.smolvlm import SmolVLMConfig
from cropvlm_jax.prompts import ANSWER_INSTRUCTION, CROP_INSTRUCTION, Prompts

PICTURES = flags.DEFINE_integer("pictures", 24, "Pictures at each resolution.", lower_bound=1)
PEAK = {"v5e": 197e12, "v6e": 918e12}  # bf16 FLOP/s of a chip, as published
GROUP, REPLY, QUESTION = 8, 20, 48  # rollouts; tokens of a box reply, of question and answer
UTILISATION = 0.4  # of the peak: a generous step, so that the need is not flattered


def document(seed: int) -> bytes:
    """A page of scribbled lines, as JPEG."""
    rng = np.random.default_rng(seed)
    page = Image.fromarray(rng.normal(235, 6, (2200, 1700)).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(page)
    for y in range(100, 2100, 36):
        for x in np.cumsum(rng.integers(20, 90, 30)):
            draw.rectangle((x, y, x + int(rng.integers(8, 60)), y + 18), fill=40)
    file = io.BytesIO()
    page.convert("RGB").save(file, "JPEG", quality=85)
    return file.getvalue()


def step_flops(config: SmolVLMConfig, tiles: int) -> float:
    """FLOPs that one prompt of a GRPO step costs, matmuls alone (2 a multiply-add).

    The policy reads the tiles (forward and backward), the target the whole picture and G crops;
    attention over patches is counted, the rest of attention is small.
    """
    vision, text = config.vision, config.text
    patches = vision.grid**2
    layer = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    tower = vision.num_hidden_layers * (layer + 2 * patches * vision.hidden_size)
    tower = 2 * patches * tower
    width = text.num_attention_heads * text.head_dim
    shared = text.num_key_value_heads * text.head_dim
    decoder = text.hidden_size * (2 * width + 2 * shared + 3 * text.intermediate_size)
    decoder *= 2 * text.num_hidden_layers
    seen = config.image_seq_len
    policy = 3 * (tiles * tower + (tiles * seen + GROUP * REPLY) * decoder)
    sampled = GROUP * REPLY * decoder
    reward = (1 + GROUP) * (tower + (seen + QUESTION) * decoder)
    return policy + sampled + reward


def main(argv: list[str]) -> None:
    del argv
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    config = SmolVLMConfig.smolvlm_256m()
    tokenizer = train_tokenizer((CROP_INSTRUCTION, ANSWER_INSTRUCTION), 400)
    prompts = Prompts(tokenizer, config.image_seq_len)
    pages = [document(seed) for seed in range(PICTURES.value)]
    print(f"{'px':>5} {'tiles':>5} {'pictures/s a core':>18}", end="")
    print("".join(f"  {'needs on a ' + chip:>16} {'cores':>6}" for chip in PEAK))
    for edge in (512, 1024, 2048):
        cropper = pipeline.CropperInput(prompts, config.vision.image_size, edge, 64)
        prepare = pipeline.Preparer(cropper, prompts, (2048, 2048), 32)
        example = {"question": "What is it?", "answers": ["A page"]}
        prepare(example | {"image": pages[0]}, 0)
        began = time.perf_counter()
        for i, page in enumerate(pages):
            prepare(example | {"image": page}, i)
        rate = len(pages) / (time.perf_counter() - began)
        rows, cols = images.grid(2200, 1700, config.vision.image_size, edge)
        tiles = rows * cols + 1
        line = f"{edge:>5} {tiles:>5} {rate:>18.1f}"
        for peak in PEAK.values():
            need = UTILISATION * peak / step_flops(config, tiles)
            line += f"  {need:>12.1f}/s    {need / rate:>5.1f}"
        print(line)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
