# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The start cropper for `experiments/receipts.py`, and what its supervised stage imitates.

    python experiments/receipts_models.py --data=FOLDER --out=runs/receipts/start

The cropper is random: `experiments/receipts.py:sft` teaches it boxes. The lines that hold the
answers are written as a labeller's replies, for `cropvlm label`. FOLDER is laid out as
`cropvlm_jax/data/sources/sroie.py` says.
"""

import json
import pathlib

from absl import flags, logging
from flax import nnx

from cropvlm_jax import apps
from cropvlm_jax.data.sources import sroie
from cropvlm_jax.hub.export import export, write_processor_files
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.hub.tokenizer import train_tokenizer
from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.smolvlm.config import SiglipConfig, SmolVLMConfig
from cropvlm_jax.models.smolvlm.conversations import ANSWER_INSTRUCTION, CROP_INSTRUCTION, IMAGE
from cropvlm_jax.models.smolvlm.model import SmolVLM

DATA = flags.DEFINE_string("data", None, "Folder of the receipts.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder for the cropper and the replies.", required=True)

SIDE = 96  # pixels of a tile


def shape(tokenizer) -> SmolVLMConfig:
    """96 px pictures as 36 tokens, a million weights."""
    return SmolVLMConfig(
        vision=SiglipConfig(SIDE, 8, 96, 192, 3, 4),
        text=LlamaConfig(
            tokenizer.get_vocab_size(), 128, 256, 4, 4, 2, 32, max_position_embeddings=1024
        ),
        scale_factor=2,
        image_token_id=tokenizer.token_to_id(IMAGE),
    )


def write_replies(split: str) -> None:
    """Writes the boxes of the lines that hold a split's answers as replies, in percent."""
    source = sroie.open(DATA.value, split)
    with (pathlib.Path(OUT.value) / f"replies_{split}.jsonl").open("w") as file:
        for row in source.rows:
            if "box" in row:
                reply = {"example_id": row["example_id"], "reply": str(list(row["box"]))}
                file.write(json.dumps(reply, allow_nan=False) + "\n")


def main(argv: list[str]) -> None:
    del argv
    texts = [
        f"User:{question}\n{instruction}\nAssistant: [12, 5, 40, 33]."
        for question in sroie.QUESTIONS.values()
        for instruction in (ANSWER_INSTRUCTION, CROP_INSTRUCTION)
    ]
    tokenizer = train_tokenizer(texts, 640)
    config = shape(tokenizer)
    model = SmolVLM(config, rngs=nnx.Rngs(1))
    for table, std in ((model.text.embedding, 0.3), (model.vision.position_embedding, 0.5)):
        table.embedding[...] *= std * table.features**0.5
    folder = pathlib.Path(OUT.value) / "cropper"
    folder.mkdir(parents=True, exist_ok=True)
    write_processor_files(folder, config, tokenizer, longest_edge=SIDE)
    export(folder, model, Pretrained.open(folder))
    for split in ("train", "val"):
        write_replies(split)


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    apps.run_script(main)
