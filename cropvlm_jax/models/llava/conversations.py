# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""LLaVA-1.5's conversation; no jax import."""

from collections.abc import Sequence
from typing import Any

from cropvlm_jax.models.conversations import Conversation, Conversations

IMAGE, END = "<image>", "</s>"


class LlavaConversations(Conversations):
    """LLaVA-1.5's answer conversation.

    The words are those that it was trained with for short answers. The text is that of the chat
    template released for transformers, with the end token after a reply as in the original code.
    Questions and answers stay as they are written; with `official`, questions go through
    `str.capitalize()`, as in lmms-eval's TextVQA.
    """

    special = (IMAGE, END)

    def answer(
        self,
        question: str,
        num_images: int = 2,
        answer: str | None = None,
        grids: Sequence[Any] | None = None,
    ) -> Conversation:
        """The conversation that asks for the answer; see `Conversations`.

        There are no grids: no picture is split.
        """
        text, pictures = "USER: ", []
        for _ in range(num_images):
            start = len(text)
            text += IMAGE * self._image_seq_len
            pictures += [start, len(text)]
            text += "\n"
        text += f"{self._instructed(question)} ASSISTANT:"
        asked = len(text)
        if answer is not None:
            text += f" {self._clean(answer, 'answer')}{END}"
        return self._tokenized(text, pictures, (asked, len(text)), begin=True)

    def _capitalized(self, text: str, what: str) -> str:
        return self._clean(text.strip().capitalize() if self._official else text, what)
