# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""SmolVLM2 opens as it was released: its files by name, with all that they say, only smaller.

Its processor in `transformers` wants num2words and torchvision, for videos; we want neither.
"""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest
import tiny
from flax import nnx

from cropvlm_jax.hub.export import export
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.models.conversations import Conversation

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# As released; only the numbers of the shape are smaller.
CONFIG = {
    "architectures": ["SmolVLMForConditionalGeneration"],
    "image_token_id": tiny.CONFIG.image_token_id,
    "model_type": "smolvlm",
    "pad_token_id": 128002,  # beyond the vocabulary
    "scale_factor": 2,
    "text_config": {
        "_flash_attn_2_enabled": True,
        "architectures": ["VLlama3ForCausalLM"],
        "head_dim": 8,
        "hidden_size": 32,
        "intermediate_size": 64,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "neftune_noise_alpha": 0.0,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 2,
        "perceiver_config": {"_attn_implementation_autoset": False, "model_type": "vllama3"},
        "pixel_shuffle_factor": 2,
        "qk_layer_norms": False,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_theta": 100000,
        "torch_dtype": "bfloat16",
        "use_resampler": False,
        "vocab_size": tiny.CONFIG.text.vocab_size,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.47.1",
    "use_cache": False,
    "use_reentrant_checkpointing": False,
    "vision_config": {  # 12 layers of an MLP of 3,072, which the released file does not say either
        "hidden_size": 16,
        "image_size": tiny.SIDE,
        "max_image_size": {"longest_edge": tiny.SIDE},
        "model_type": "smolvlm_vision",
        "num_attention_heads": 2,
        "patch_size": 8,
        "size": {"longest_edge": 4 * tiny.SIDE},
        "tie_word_embeddings": False,
        "use_base_siglip": False,
    },
    "vocab_size": tiny.CONFIG.text.vocab_size,
}
IMAGES = {
    "do_convert_rgb": True,
    "do_image_splitting": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SmolVLMImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "max_image_size": {"longest_edge": tiny.SIDE},
    "processor_class": "SmolVLMProcessor",
    "resample": 1,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 4 * tiny.SIDE},
    "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": tiny.SIDE}},
}
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SPECIAL = {
    "bos_token": "<|im_start|>",
    "eos_token": "<end_of_utterance>",
    "pad_token": "<|im_end|>",
}
FILES = {
    "preprocessor_config.json": IMAGES,
    "processor_config.json": {"image_seq_len": 4, "processor_class": "SmolVLMProcessor"},
    "video_preprocessor_config.json": IMAGES | {"video_processor_type": "SmolVLMVideoProcessor"},
    "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    "added_tokens.json": {"<image>": tiny.CONFIG.image_token_id},
    "special_tokens_map.json": SPECIAL,
    "tokenizer_config.json": SPECIAL
    | {"tokenizer_class": "GPT2Tokenizer", "processor_class": "SmolVLMProcessor"},
}


@pytest.fixture(params=[False, True], ids=["head", "tied"])
def released(request, tmp_path) -> pathlib.Path:
    folder, tied = tmp_path / "released", {"tie_word_embeddings": request.param}
    text = CONFIG["text_config"]
    shape = transformers.AutoConfig.for_model(**CONFIG | tied | {"pad_token_id": 0})
    torch.manual_seed(0)
    transformers.AutoModelForImageTextToText.from_config(shape).save_pretrained(folder)
    files = FILES | {"config.json": CONFIG | tied | {"text_config": text | tied}}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    tiny.TOKENIZER.save(str(folder / "tokenizer.json"))
    return folder


def their_logits(folder: pathlib.Path, tiles: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Logits of transformers for pixels that are prepared already."""
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values()), info
    pixels = torch.tensor(tiles / 127.5 - 1, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor(ids[None], dtype=torch.int64)}
        return model.eval()(**inputs, pixel_values=pixels[None]).logits[0].numpy()


def assert_asked_as_released(conversation: Conversation, question: str) -> None:
    """The ids are those of the chat template with the picture's tokens in the image's place."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny.TOKENIZER)
    asked = [{"type": "image"}, {"type": "text", "text": question}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": asked}],
        chat_template=CHAT_TEMPLATE,
        tokenize=False,
        add_generation_prompt=True,
    )
    fake = "<fake_token_around_image>"
    text = text.replace("<image>", f"{fake}<global-img>{'<image>' * 4}{fake}")
    expected = tiny.TOKENIZER.encode(text, add_special_tokens=False).ids
    assert conversation.ids.tolist() == expected


def test_the_released_files_open_as_they_are(released, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)  # as if it were not installed
    source = Pretrained.open(released)
    assert source.longest_edge == 4 * tiny.SIDE
    assert (source.config.vision.num_hidden_layers, source.config.image_seq_len) == (12, 4)
    conversation = source.conversations().answer("What is it?", 1)
    assert_asked_as_released(conversation, "What is it?\nGive a very brief answer.")

    tiles, grid = source.see(tiny.make_examples(1)[0]["image"], tiny.SIDE)
    assert grid == (0, 0)
    model = source.load()
    graphdef, params = nnx.split(model)
    ids = conversation.ids[None]
    ours = jax.jit(lambda p, *inputs: nnx.merge(graphdef, p)(*inputs))(
        params, ids, np.ones(ids.shape, bool), tiles[None]
    )[0]
    expected = their_logits(released, tiles, conversation.ids)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * expected.std())

    export(tmp_path / "out", model, source)
    again = Pretrained.open(tmp_path / "out")
    assert (again.config, again.longest_edge) == (source.config, source.longest_edge)
    np.testing.assert_array_equal(their_logits(tmp_path / "out", tiles, conversation.ids), expected)
