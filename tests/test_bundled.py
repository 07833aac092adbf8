# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The bundled cropper, exported and loaded by transformers, writes the same boxes as here."""

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.idefics3 import image_processing_pil_idefics3

from cropvlm_jax import geometry
from cropvlm_jax.api import CropVLM
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.hub.export import export
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.models.smolvlm.conversations import CROP_INSTRUCTION

SCENES = 100


def test_transformers_writes_the_same_boxes(tmp_path):
    source = Pretrained.open("zoom_digits/cropper")
    folder = tmp_path / "cropper"
    export(folder, source.load(), source)
    scenes = [ZoomDigits("test", SCENES)[i] for i in range(SCENES)]
    questions = [scene["question"] for scene in scenes]
    ours = CropVLM.from_pretrained(folder).propose([s["image"] for s in scenes], questions)

    # The PIL image processor, because the default one needs torchvision.
    pil = image_processing_pil_idefics3.Idefics3ImageProcessorPil.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    processor = transformers.Idefics3Processor(
        pil, tokenizer, source.config.image_seq_len, chat_template=tokenizer.chat_template
    )
    texts = [
        processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image"},
                        {"type": "text", "text": f"{question}\n{CROP_INSTRUCTION}"},
                    ],
                }
            ],
            add_generation_prompt=True,
        )
        for question in questions
    ]
    images = [[Image.fromarray(scene["image"])] for scene in scenes]
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    with torch.inference_mode():
        replies = model.generate(**inputs, do_sample=False, max_new_tokens=24)
    replies = tokenizer.batch_decode(replies[:, inputs["input_ids"].shape[1] :])
    assert all("<end_of_utterance>" in reply for reply in replies)
    theirs = np.array([geometry.parse(reply) for reply in replies])
    np.testing.assert_array_equal(theirs, ours)
