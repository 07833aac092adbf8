# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Conversations as token ids with named spans; no jax import.

A conversation is rendered to one string, tokenized once, and its spans are found from the
tokens' character offsets: the ids are those of the Hugging Face processor by construction.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cropvlm_jax import texts

# Of the training of LLaVA-1.5, and of lmms-eval for many models.
SHORT_ANSWER_INSTRUCTION = "Answer the question using a single word or phrase."


@dataclasses.dataclass(frozen=True)
class Conversation:
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


class Conversations(abc.ABC):
    """The conversations of an architecture: `answer` for all, `crop` for those that may propose.

    Attributes:
        special: the special tokens that its texts need.
        answer_instruction: the sentence after a question that asks for a short answer.

    Args:
        tokenizer: A tokenizer with the special tokens of the architecture.
        image_seq_len: Image tokens of a tile.
        official: Reproduce the official code's `str.capitalize()` of questions and answers, which
            lower-cases everything but the first character, and its "." after every answer.
        max_question_tokens: Refuse longer questions.
        instruction: The sentence after a question in `answer`; "" where the question says all, None
            for `answer_instruction`.
    """

    special: tuple[str, ...]
    answer_instruction = SHORT_ANSWER_INSTRUCTION

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_seq_len: int,
        *,
        official: bool = False,
        max_question_tokens: int | None = None,
        instruction: str | None = None,
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
        self._instruction = self.answer_instruction if instruction is None else instruction

    @abc.abstractmethod
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
            answer: The reply; None where it is to be generated.
            grids: What the architecture's `see` says of each picture; by default none is split.

        Raises:
            ValueError: A text is empty or contains a special token, or the question is too long.
        """

    def crop(
        self, question: str, grid: tuple[int, int] = (0, 0), box_text: str | None = None
    ) -> Conversation:
        """The conversation that asks where to look.

        Args:
            question: The question about the picture.
            grid: `(rows, cols)` of the picture's tiles, `(0, 0)` if it is not split.
            box_text: The reply, e.g. "[12, 5, 40, 33]."; None where it is to be generated.

        Raises:
            ValueError: A text is empty or contains a special token, the question is too long, or
                this architecture may not be a cropper.
        """
        raise ValueError(f"{type(self).__name__} ask for answers only, not for boxes")

    def _tokenized(
        self, text: str, pictures: Sequence[int], reply: tuple[int, int], begin: bool = False
    ) -> Conversation:
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
        return Conversation(
            ids=np.array(encoding.ids, np.int32),
            images=tuple(map(slice, images[::2], images[1::2])),
            question=slice(first, middle),
            completion=slice(middle, last),
        )

    def _instructed(self, question: str) -> str:
        """A question with the instruction after it, if there is one."""
        return "\n".join([self._question(question), *filter(None, [self._instruction])])

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
        texts.check(text, what)
        for token in self._special:
            if token in text:
                raise ValueError(f"The {what} contains the special token {token}: {text[:80]!r}.")
        return text

    def _require(self, *tokens: str) -> None:
        missing = [token for token in tokens if token not in self._special]
        if missing:
            raise ValueError(f"The tokenizer lacks the special tokens {', '.join(missing)}.")
