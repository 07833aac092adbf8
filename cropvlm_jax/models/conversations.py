# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""The crop and the answer conversation as token ids with named spans.

A conversation is rendered to one string, tokenized once, and its spans are found from the
tokens' character offsets: the ids are those of the Hugging Face processor by construction.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

CROP_INSTRUCTION = "Outline the region in the image that would help answer this question."
ANSWER_INSTRUCTION = "Give a very brief answer."

START, END = "<|im_start|>", "<end_of_utterance>"
FAKE, GLOBAL, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"

LLAVA_INSTRUCTION = "Answer the question using a single word or phrase."
LLAVA_END = "</s>"

QWEN_END, QWEN_IMAGE = "<|im_end|>", "<|image_pad|>"
QWEN_VISION = "<|vision_start|>", "<|vision_end|>"
QWEN_SYSTEM = "You are a helpful assistant."
QWEN_INSTRUCTION = LLAVA_INSTRUCTION  # of lmms-eval, for both

# What `transformers` needs beside an exported model to render the conversations below.
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


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A tokenized conversation.

    Attributes:
        ids: Token ids, int32 `[T]`.
        images: The tokens of each picture, wrapper tokens included.
        question: From after the last picture up to and including "Assistant:".
        completion: The reply from its leading space to its `<end_of_utterance>`, without the
            newline that follows; empty, at the end, where there is no reply.
    """

    ids: np.ndarray
    images: tuple[slice, ...]
    question: slice
    completion: slice


class Conversations:
    """What the conversations of all architectures share.

    Args:
        tokenizer: A tokenizer with the special tokens of the architecture.
        image_seq_len: Image tokens of a tile.
        official: Reproduce the official code's `str.capitalize()` of questions and answers, which
            lower-cases everything but the first character, and its "." after every answer.
        max_question_tokens: Refuse longer questions.
    """

    special: tuple[str, ...]

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_seq_len: int,
        *,
        official: bool = False,
        max_question_tokens: int | None = None,
    ):
        # A copy: tokenizer files may carry truncation or padding, which would shift the spans.
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._special = [token.content for token in added]
        self._require(*self.special)
        self._image_seq_len = image_seq_len
        self._official = official
        self._max_question_tokens = max_question_tokens

    def _prompt(
        self, text: str, pictures: Sequence[int], reply: tuple[int, int], begin: bool = False
    ) -> Prompt:
        """Tokenizes a conversation.

        Args:
            text: Of all of it.
            pictures: Where each picture begins and ends in the text.
            reply: Where the reply begins, after the question, and ends.
            begin: Whether the tokenizer adds the token that begins a text.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=begin)
        starts = np.array([start for start, _ in encoding.offsets])
        # Every edge touches a special token or the colon, which no token reaches across.
        edges = [*pictures, pictures[-1], *reply]
        *images, first, middle, last = (int(i) for i in np.searchsorted(starts, edges))
        return Prompt(
            ids=np.array(encoding.ids, np.int32),
            images=tuple(map(slice, images[::2], images[1::2])),
            question=slice(first, middle),
            completion=slice(middle, last),
        )

    def _question(self, question: str) -> str:
        text = self._capitalized(question, "question")
        if self._max_question_tokens is not None:
            length = len(self._tokenizer.encode(text, add_special_tokens=False).ids)
            if length > self._max_question_tokens:
                raise ValueError(
                    f"The question has {length} tokens, over the limit of "
                    f"{self._max_question_tokens}: {text[:80]!r}."
                )
        return text

    def _capitalized(self, text: str, what: str) -> str:
        text = text.strip()
        text = text.capitalize() if self._official else text[:1].upper() + text[1:]
        return self._clean(text, what)

    def _clean(self, text: str, what: str) -> str:
        text = text.strip()
        if not text:
            raise ValueError(f"The {what} is empty.")
        for token in self._special:
            if token in text:
                raise ValueError(f"The {what} contains the special token {token}: {text[:80]!r}.")
        return text

    def _require(self, *tokens: str) -> None:
        missing = [token for token in tokens if token not in self._special]
        if missing:
            raise ValueError(f"The tokenizer lacks the special tokens {', '.join(missing)}.")


class Prompts(Conversations):
    """SmolVLM's two conversations."""

    special = (START, END, FAKE, GLOBAL, IMAGE)

    def crop(
        self, question: str, grid: tuple[int, int] = (0, 0), box_text: str | None = None
    ) -> Prompt:
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
        grids: Sequence[tuple[int, int]] | None = None,
    ) -> Prompt:
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
        return self._build(grids, f"{self._question(question)}\n{ANSWER_INSTRUCTION}", reply)

    def _build(self, grids: Sequence[tuple[int, int]], user: str, reply: str | None) -> Prompt:
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
        return self._prompt(text, pictures, (asked, replied))

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
        self._require(*(name for row in names for name in row))
        lines = ["".join(f"{FAKE}{name}{tile}" for name in row) for row in names]
        return "".join(f"{line}\n" for line in lines) + f"\n{whole}"


class LlavaPrompts(Conversations):
    """LLaVA-1.5's answer conversation, in the words of its training for short answers.

    The text is that of the chat template released for transformers, with the end token after a
    reply as in the original code. Questions and answers stay as they are written; with `official`
    questions go through `str.capitalize()`, as in lmms-eval's TextVQA.
    """

    special = (IMAGE, LLAVA_END)

    def answer(
        self,
        question: str,
        num_images: int = 2,
        answer: str | None = None,
        grids: Sequence[None] | None = None,
    ) -> Prompt:
        """The conversation that asks for the answer; arguments as of `Prompts.answer`.

        There are no grids: no picture is split.
        """
        text, pictures = "USER: ", []
        for _ in range(num_images):
            start = len(text)
            text += IMAGE * self._image_seq_len
            pictures += [start, len(text)]
            text += "\n"
        text += f"{self._question(question)}\n{LLAVA_INSTRUCTION} ASSISTANT:"
        asked = len(text)
        if answer is not None:
            text += f" {self._clean(answer, 'answer')}{LLAVA_END}"
        return self._prompt(text, pictures, (asked, len(text)), begin=True)

    def _capitalized(self, text: str, what: str) -> str:
        return self._clean(text.strip().capitalize() if self._official else text, what)


class QwenPrompts(Conversations):
    """Qwen2.5-VL's answer conversation, in the words of its chat template.

    Every picture has room for as many tokens as the largest one: those that it does not fill are
    left out by the model, which knows its grid. Questions and answers stay as they are written;
    with `official` questions go through `str.capitalize()`.
    """

    special = (START, QWEN_END, QWEN_IMAGE, *QWEN_VISION)

    def answer(
        self,
        question: str,
        num_images: int = 2,
        answer: str | None = None,
        grids: Sequence[tuple[int, int]] | None = None,
    ) -> Prompt:
        """The conversation that asks for the answer; arguments as of `Prompts.answer`.

        The text is the same for all grids.
        """
        start, end = QWEN_VISION
        text = f"{START}system\n{QWEN_SYSTEM}{QWEN_END}\n{START}user\n"
        pictures = []
        for _ in range(num_images):
            pictures.append(len(text))
            text += start + QWEN_IMAGE * self._image_seq_len + end
            pictures.append(len(text))
        text += f"{self._question(question)}\n{QWEN_INSTRUCTION}{QWEN_END}\n{START}assistant\n"
        asked = len(text)
        if answer is not None:
            text += f"{self._clean(answer, 'answer')}{QWEN_END}"
        replied = len(text)
        text += "" if answer is None else "\n"
        return self._prompt(text, pictures, (asked, replied))

    def _capitalized(self, text: str, what: str) -> str:
        return self._clean(text.strip().capitalize() if self._official else text, what)
