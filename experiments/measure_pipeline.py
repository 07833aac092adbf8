# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How many pictures a second the input pipeline prepares on one core, beside what a step needs.

    python experiments/measure_pipeline.py --pictures=24

Pictures are JPEGs of document size (2,200 x 1,700 px, 3:4) made here, so that nothing has to be
downloaded; each becomes canvas, tiles and token ids as in a GRPO run. The need is computed: the
least time that the published peak of a chip allows for the FLOPs of a step.
"""

import functools
import io
import os
import time

import jax
import numpy as np
import optax
from absl import flags, logging
from flax import nnx
from PIL import Image, ImageDraw

from cropvlm_jax import apps
from cropvlm_jax.data import batching
from cropvlm_jax.geometry import Grammar
from cropvlm_jax.grpo.config import GRPOConfig
from cropvlm_jax.grpo.rewards import AnswerTemplate
from cropvlm_jax.grpo.step import GRPOStep
from cropvlm_jax.hub.tokenizer import train_tokenizer
from cropvlm_jax.models.smolvlm.architecture import ARCHITECTURE
from cropvlm_jax.models.smolvlm.config import SmolVLMConfig
from cropvlm_jax.models.smolvlm.conversations import (
    ANSWER_INSTRUCTION,
    CROP_INSTRUCTION,
    SmolVLMConversations,
)
from cropvlm_jax.models.smolvlm.model import SmolVLM
from cropvlm_jax.train_state import TrainState
from cropvlm_jax.training import costs
from cropvlm_jax.training.stages.grpo import PHASES

PICTURES = flags.DEFINE_integer("pictures", 24, "Pictures at each resolution.", lower_bound=1)
CHIPS = [chip for chip in costs.CHIPS.values() if chip.name in ("v5e", "v6e")]
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


def main(argv: list[str]) -> None:
    del argv
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    config = SmolVLMConfig.smolvlm_256m()
    tokenizer = train_tokenizer((CROP_INSTRUCTION, ANSWER_INSTRUCTION), 400)
    conversations = SmolVLMConversations(tokenizer, config.image_seq_len)
    model, params = nnx.split(nnx.eval_shape(lambda: SmolVLM(config, rngs=nnx.Rngs(0))))
    step = GRPOStep(
        policy=model,
        grammar=Grammar.from_tokenizer(tokenizer),
        optimizer=optax.adam(1e-4),
        config=GRPOConfig(),
        target=model,
        template=AnswerTemplate.from_conversations(conversations),
    )
    weights = {"params": params, "reference": params, "target": params}
    state = jax.eval_shape(lambda w: TrainState.create(optimizer=step.optimizer, **w), weights)
    pages = [document(seed) for seed in range(PICTURES.value)]
    print(f"{'px':>5} {'tiles':>5} {'pictures/s a core':>18}", end="")
    print("".join(f"  {'needs on a ' + chip.name:>16} {'cores':>6}" for chip in CHIPS))
    for edge in (512, 1024, 2048):
        cropper_input = batching.CropperInput(
            conversations=conversations,
            see=functools.partial(ARCHITECTURE.see, config, longest_edge=edge),
            grid=functools.partial(ARCHITECTURE.grid, config, longest_edge=edge),
            splits=ARCHITECTURE.splits(config, edge),
            question_tokens=64,
        )
        prepare = batching.Preparer(cropper_input, conversations, (2048, 2048), 32)
        example = {"question": "What is it?", "answers": ["A page"]}
        batch = batching.stack([prepare(example | {"image": pages[0]}, 0)])
        began = time.perf_counter()
        for i, page in enumerate(pages):
            prepare(example | {"image": page}, i)
        rate = len(pages) / (time.perf_counter() - began)
        program = jax.make_jaxpr(step)(state, batch, jax.random.key(0))
        cost = sum(costs.count_flops(program, PHASES, backward="update").values())
        line = f"{edge:>5} {batch.tiles.shape[1]:>5} {rate:>18.1f}"
        for chip in CHIPS:
            need = UTILISATION * chip.flops / cost
            line += f"  {need:>12.1f}/s    {need / rate:>5.1f}"
        print(line)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    apps.run_script(main)
