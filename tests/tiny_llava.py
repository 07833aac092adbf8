# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A tokenizer of Llama's structure and random LLaVA folders as `transformers` writes them."""

import json
import pathlib
from typing import Any

import pytest
from tiny import ANSWERS, QUESTIONS
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from cropvlm_jax.models.config import LlamaConfig
from cropvlm_jax.models.conversations import SHORT_ANSWER_INSTRUCTION
from cropvlm_jax.models.llava.config import ClipConfig, LlavaConfig

# That of llava-hf/llava-1.5-7b-hf, which renders pictures first.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def llama_tokenizer(texts: tuple[str, ...], merged: int) -> Tokenizer:
    """A BPE as Llama's: "▁" for spaces, also before a text, and bytes for unknown characters.

    Args:
        texts: what the merges are learned from.
        merged: tokens of the vocabulary beside the special ones and the bytes.
    """
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    teacher = Tokenizer(models.BPE())
    teacher.normalizer = normalizer
    # Llama's tokens do not reach across spaces either, though nothing splits its texts.
    teacher.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Punctuation("isolated")]
    )
    teacher.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=merged, show_progress=False, max_token_length=6)
    )
    learned = json.loads(teacher.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    merges = [tuple(merge) for merge in learned["merges"]]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ("<unk>", "<s>", "</s>", "<image>", "<pad>")
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


TOKENIZER = llama_tokenizer(
    (*QUESTIONS, *ANSWERS, SHORT_ANSWER_INSTRUCTION, "USER: ASSISTANT:"), 120
)


def make_config(
    side: int = 32,
    patch: int = 8,
    layers: int = 3,
    feature_layers: int = 2,
    heads: tuple[int, int, int] = (4, 4, 8),
    tied: bool = False,
) -> LlavaConfig:
    """A tiny shape; `heads` of the decoder: query heads, key heads, channels of a head."""
    size = TOKENIZER.get_vocab_size()
    options: dict[str, Any] = dict(max_position_embeddings=512, tie_word_embeddings=tied)
    return LlavaConfig(
        vision=ClipConfig(side, patch, 32, 48, layers, 4),
        text=LlamaConfig(size, 48, 56, 2, *heads, rope_theta=1e4, **options),
        feature_layers=feature_layers,
        image_token_id=TOKENIZER.token_to_id("<image>"),
    )


def hf_processor(config: LlavaConfig, pad: bool = False) -> Any:
    """The processor of transformers for a model of this shape."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    side = config.vision.image_size
    sizes = dict(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    pad_or_centre = LlavaImageProcessorPil(do_pad=True, **sizes)
    return transformers.LlavaProcessor(
        pad_or_centre if pad else CLIPImageProcessorPil(**sizes),
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(TOKENIZER.to_str()),
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
        ),
        patch_size=config.vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def hf_model(config: LlavaConfig) -> Any:
    """A random torch model whose every weight matters, biases and norms included."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    hf_config = transformers.AutoConfig.for_model(**config.to_hf())
    model = transformers.AutoModelForImageTextToText.from_config(hf_config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                is_scale = "norm" in name and name.endswith("weight")
                p.normal_(0, 0.1, generator=generator).add_(float(is_scale))
            elif "embed" in name and "patch" not in name:
                p.normal_(0, 1, generator=generator)
            else:
                p.normal_(0, (p.numel() / p.shape[0]) ** -0.5, generator=generator)
    model.generation_config.eos_token_id = None
    return model.eval()


def write_folder(folder: pathlib.Path, config: LlavaConfig, pad: bool = False) -> Any:
    """Writes a random model with its processor; returns the torch model."""
    model = hf_model(config)
    model.save_pretrained(folder)
    hf_processor(config, pad).save_pretrained(folder)
    return model
