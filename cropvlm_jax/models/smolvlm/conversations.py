# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""SmolVLM's conversations; no jax import."""

from collections.abc import Sequence
from typing import Any

from cropvlm_jax.models.conversations import Conversation, Conversations

CROP_INSTRUCTION = "Outline the region in the image that would help answer this question."
ANSWER_INSTRUCTION = "Give a very brief answer."

START, END = "<|im_start|>", "<end_of_utterance>"
FAKE, GLOBAL, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"


class SmolVLMConversations(Conversations):
    """SmolVLM's two conversations.

    The names of tiles and of the whole picture are special tokens, but ordinary text to the
    tokenizer of the first release, SmolVLM-Instruct of 2.2B parameters.
    """

    special = (START, END, FAKE, IMAGE)
    answer_instruction = ANSWER_INSTRUCTION

    def crop(
        self, question: str, grid: tuple[int, int] = (0, 0), box_text: str | None = None
    ) -> Conversation:
        """The conversation that asks where to look.

        Args:
            question: The question about the picture.
            grid: `(rows, cols)` of the picture's tiles, `(0, 0)` if it is not split.
            box_text: The reply, e.g. "[12, 5, 40, 33].".
        """
        reply = None if box_text is None else self._clean(box_text, "box text")
        return self._build([grid], f"{self._question(question)}\n{CROP_INSTRUCTION}", reply)

    def answer(
        self,
        question: str,
        num_images: int = 2,
        answer: str | None = None,
        grids: Sequence[Any] | None = None,
    ) -> Conversation:
        """The conversation that asks for the answer.

        Args:
            question: The question about the pictures.
            num_images: How many pictures: the whole one, then its crops.
            answer: The reply; its first letter becomes a capital and it ends with ".".
            grids: `(rows, cols)` of each picture's tiles; by default none is split.
        """
        grids = [(0, 0)] * num_images if grids is None else grids
        if len(grids) != num_images:
            raise ValueError(f"{len(grids)} grids for {num_images} images: {grids}.")
        reply = None
        if answer is not None:
            reply = self._capitalized(answer, "answer")
            reply += "." if self._official or not reply.endswith(".") else ""
        return self._build(grids, self._instructed(question), reply)

    def _build(
        self, grids: Sequence[tuple[int, int]], user: str, reply: str | None
    ) -> Conversation:
        text, pictures = f"{START}User:", []
        for grid in grids:
            start = len(text)
            text += self._image(grid)
            pictures += [start, len(text)]
        text += f"{user}{END}\nAssistant:"
        asked = len(text)
        if reply is not None:
            text += f" {reply}{END}"
        replied = len(text)
        text += "" if reply is None else "\n"
        return self._tokenized(text, pictures, (asked, replied))

    def _image(self, grid: tuple[int, int]) -> str:
        tile = IMAGE * self._image_seq_len
        whole = f"{FAKE}{GLOBAL}{tile}{FAKE}"
        rows, cols = grid
        if rows == cols == 0:
            return whole
        if min(rows, cols) < 1:
            raise ValueError(
                f"A grid is (rows, cols) of at least 1, or (0, 0) unsplit, got {grid}."
            )
        names = [
            [f"<row_{row}_col_{col}>" for col in range(1, cols + 1)] for row in range(1, rows + 1)
        ]
        if GLOBAL in self._special:
            self._require(*(name for row in names for name in row))
        lines = ["".join(f"{FAKE}{name}{tile}" for name in row) for row in names]
        return "".join(f"{line}\n" for line in lines) + f"\n{whole}"
