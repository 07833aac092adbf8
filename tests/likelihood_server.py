# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A chat endpoint with one of our models behind it that tells log-probabilities of prompts.

It speaks as vLLM's does by its documentation, and misbehaves as the question says.
"""

import base64
import io
import math
from typing import NamedTuple

import jax
import numpy as np
from chat_server import Server
from PIL import Image

from cropvlm_jax.readers.batches import PROMPT_MULTIPLE, round_up
from cropvlm_jax.readers.vlm import VLMReader, _logits


class Template(NamedTuple):
    """A chat template: what is written before, between and after the messages."""

    user: str = "<|im_start|>User:{pictures}{text}<end_of_utterance>\n"
    asks: str = "Assistant:"  # the generation prompt
    says: str = "Assistant: {text}"
    ends: str = "<end_of_utterance>\n"

    def render(self, pictures: str, body: dict) -> str:
        question, *answer = body["messages"]
        text = self.user.format(pictures=pictures, text=question["content"][-1]["text"])
        for message in answer:
            text += self.says.format(text=message["content"])
            text += "" if body.get("continue_final_message") else self.ends
        return text + (self.asks if body.get("add_generation_prompt", True) else "")


class LikelihoodServer(Server):
    """Tells how likely the tokens of prompts are to a SmolVLM that sees pictures as one tile."""

    IGNORES = {"closed": "continue_final_message", "prompted": "add_generation_prompt"}

    def __init__(self, reader: VLMReader, template: Template | None = None):
        super().__init__()
        self.reader, self.template = reader, template or Template()

    def tokens(self, body: dict) -> tuple[list[int], np.ndarray]:
        """Ids of a prompt, and the log-probability of each but the first."""
        *parts, _ = body["messages"][0]["content"]
        files = [base64.b64decode(part["image_url"]["url"].split(",")[1]) for part in parts]
        images, _ = self.reader.see([Image.open(io.BytesIO(file)) for file in files])
        tile = "<image>" * self.reader.source.config.image_seq_len
        fake = "<fake_token_around_image>"
        text = self.template.render(len(files) * f"{fake}<global-img>{tile}{fake}", body)
        ids = self.reader.source.tokenizer.encode(text, add_special_tokens=False).ids
        length = round_up(len(ids), PROMPT_MULTIPLE)
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(ids)] = ids
        inputs = (padded, np.arange(length)[None] < len(ids), images[None])
        log_probs = jax.nn.log_softmax(self.reader.call(_logits, inputs)[0])
        return ids, np.asarray(log_probs)[np.arange(len(ids) - 1), ids[1:]]

    def extras(self, body: dict, word: str) -> dict:
        if "prompt_logprobs" not in body or word == "missing":
            return {}
        ids, log_probs = self.tokens({k: v for k, v in body.items() if k != self.IGNORES.get(word)})
        decode = self.reader.source.tokenizer.decode
        entries = [
            {
                str(i): {
                    "logprob": float(log_prob),
                    "rank": 1,
                    "decoded_token": decode([i], skip_special_tokens=False),
                }
            }
            for i, log_prob in zip(ids[1:], log_probs, strict=True)
        ]
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}
        told = {"prompt_logprobs": [None, *entries], "usage": usage}
        return self.spoilt(told, word)

    def spoilt(self, told: dict, word: str) -> dict:
        """The same with what `word` asks for."""
        entries = told["prompt_logprobs"]
        numbers = {"nan": math.nan, "minus": -math.inf, "clamped": -9999.0, "positive": 0.7,
                   "string": "-0.5", "true": True, "null": None}  # fmt: skip
        if word in numbers:
            (entry,) = entries[-2].values()
            entry["logprob"] = numbers[word]
        elif word == "unnamed":
            (entry,) = entries[-2].values()
            del entry["logprob"]
        elif word == "none":
            entries[-2] = None
        elif word == "top":
            entries[-2]["1"] = {"logprob": -0.1, "rank": 1, "decoded_token": "x"}
        elif word in ("short", "shortly"):
            del entries[1 if word == "shortly" else -1]
        elif word == "uncounted":
            del entries[-1], told["usage"]
        elif word == "long":
            entries.append(entries[-1])
        elif word == "text":
            told["prompt_logprobs"] = "many"
        elif word == "silent":
            told["prompt_logprobs"] = None
        elif word == "hollow":
            told["prompt_logprobs"] = []
        elif word == "other":
            entries[-3] = {"0": {"logprob": -0.1, "rank": 1, "decoded_token": "x"}}
        return told
