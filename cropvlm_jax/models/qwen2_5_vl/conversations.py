# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL's conversation; no jax import."""

from collections.abc import Sequence
from typing import Any

from cropvlm_jax.models.conversations import Conversation, Conversations

START, END = "<|im_start|>", "<|im_end|>"
IMAGE = "<|image_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
SYSTEM = "You are a helpful assistant."


class QwenConversations(Conversations):
    """Qwen2.5-VL's answer conversation, in the words of its chat template.

    Every picture has room for as many tokens as the largest one. The model knows the picture's
    grid and leaves out the tokens that the picture does not fill. Questions and answers stay as
    they are written; with `official` questions go through `str.capitalize()`.
    """

    opening = f"{START}system\n{SYSTEM}{END}\n"  # of every conversation
    special = (START, END, IMAGE, VISION_START, VISION_END)

    def answer(
        self,
        question: str,
        num_images: int = 2,
        answer: str | None = None,
        grids: Sequence[Any] | None = None,
    ) -> Conversation:
        """The conversation that asks for the answer; see `Conversations`.

        The text is the same for all grids.
        """
        text = f"{self.opening}{START}user\n"
        pictures = []
        for _ in range(num_images):
            pictures.append(len(text))
            text += VISION_START + IMAGE * self._image_seq_len + VISION_END
            pictures.append(len(text))
        text += f"{self._instructed(question)}{END}\n{START}assistant\n"
        asked = len(text)
        if answer is not None:
            text += f"{self._clean(answer, 'answer')}{END}"
        replied = len(text)
        text += "" if answer is None else "\n"
        return self._tokenized(text, pictures, (asked, replied))

    def _capitalized(self, text: str, what: str) -> str:
        return self._clean(text.strip().capitalize() if self._official else text, what)
