# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `transformers` needs beside the weights of a SmolVLM that was made here."""

from typing import Any

from tokenizers import Tokenizer

from cropvlm_jax.models.smolvlm import image_processing
from cropvlm_jax.models.smolvlm.config import SmolVLMConfig
from cropvlm_jax.models.smolvlm.conversations import CROP_INSTRUCTION, END, START

# Renders the conversations of `SmolVLMConversations`.
CHAT_TEMPLATE = """<|im_start|>
{%- for message in messages -%}
  {{- message['role'] | capitalize ~ ':' -}}
  {{- '' if message['content'][0]['type'] == 'image' else ' ' -}}
  {%- for part in message['content'] -%}
    {{- '<image>' if part['type'] == 'image' else part['text'] -}}
  {%- endfor -%}
  {{- '<end_of_utterance>\\n' -}}
{%- endfor -%}
{{- 'Assistant:' if add_generation_prompt else '' -}}
"""

# Does to a user's questions what `SmolVLMConversations.crop` does; see `Architecture.ask_for_box`.
ASK_FOR_BOX = """
{%- set instruction = 'INSTRUCTION' -%}
{%- set asked = namespace(pictures=0, messages=[]) -%}
{%- for message in messages -%}
  {%- set parts = message['content'] | default('', true) -%}
  {%- if parts is string -%}
    {%- set parts = [{'type': 'text', 'text': parts}] -%}
  {%- endif -%}
  {%- set pictures = parts | selectattr('type', 'equalto', 'image') | list -%}
  {%- set texts = parts | selectattr('type', 'equalto', 'text') | map(attribute='text') -%}
  {%- set question = texts | join | trim -%}
  {%- set asked.pictures = asked.pictures + pictures | count -%}
  {%- if message['role'] == 'user' and question and asked.pictures -%}
    {%- set question = (question[:1] | upper) ~ question[1:] -%}
    {%- if instruction not in question -%}
      {%- set question = question ~ '\\n' ~ instruction -%}
    {%- endif -%}
    {%- set others = parts | rejectattr('type', 'equalto', 'text') | list -%}
    {%- set parts = others + [{'type': 'text', 'text': question}] -%}
  {%- endif -%}
  {%- set asked.messages = asked.messages + [dict(message, content=parts)] -%}
{%- endfor -%}
{%- set messages = asked.messages -%}
""".replace("INSTRUCTION", CROP_INSTRUCTION)


def processor_files(
    config: SmolVLMConfig, tokenizer: Tokenizer, longest_edge: int
) -> dict[str, dict[str, Any] | str]:
    """Content of the files by their names; see `Architecture.processor_files`.

    The classes are Idefics3's for both model types: SmolVLM's also want a video processor, which
    needs torchvision, and treat images in the same way.

    Args:
        config: the model's shape.
        tokenizer: has SmolVLM's special tokens.
        longest_edge: pixels that the processor resizes an image's longest side to.
    """
    processor_class = {"processor_class": "Idefics3Processor"}
    special = {"bos_token": START, "eos_token": END, "pad_token": "<|im_end|>"}
    images = image_processing.image_settings(config, longest_edge, {})
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.text.max_position_embeddings,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    return {
        "config.json": config.to_hf(),
        "generation_config.json": {
            f"{name}_id": tokenizer.token_to_id(token) for name, token in special.items()
        },
        "preprocessor_config.json": images | processor_class,
        "processor_config.json": image_processing.processor_config(config, {}) | processor_class,
        "tokenizer_config.json": tokenizer_config | special | processor_class,
        "special_tokens_map.json": special,
        "chat_template.jinja": CHAT_TEMPLATE,
    }
