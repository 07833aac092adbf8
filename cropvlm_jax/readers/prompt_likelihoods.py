# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Likelihoods of given answers from a server that tells log-probabilities of prompts.

vLLM's server does, by the field `prompt_logprobs` of /v1/chat/completions: for each token of the
prompt, the first one excepted, the log-probability of the token that stands there. So an answer is
sent as the assistant's message, and its tokens are picked out of the prompt. A small request finds
out beforehand which these are: see `find_span`.
"""

import dataclasses
import functools
import hashlib
import json
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from cropvlm_jax import texts
from cropvlm_jax.readers.base import Likelihood, ReaderUnavailable, Reply
from cropvlm_jax.readers.endpoint import Asked, Endpoint

PICTURE = np.full((64, 64, 3), 128, np.uint8)  # of the small requests
QUESTION, ANSWER = "What is it?", "Yes"
NOT_TOLD = "no prompt_logprobs"  # the kind of failure of a server that ignores the field
REFUSED = ("HTTP 400", "HTTP 422", NOT_TOLD)  # kinds of failure that say what a server is not
IMPOSSIBLE = -9999.0  # what vLLM writes for minus infinity


class Token(NamedTuple):
    """A token of a prompt.

    Attributes:
        id: None of the first one, whose entry is empty.
        log_prob: given all tokens before it; NaN of the first one.
        text: as the server decodes this token alone.
    """

    id: int | None
    log_prob: float
    text: str


class Ending(NamedTuple):
    """What the chat template writes after an answer.

    Attributes:
        ids: of its tokens.
        counted: how many of them, from the first on, belong to the likelihood: all up to the token
            that ends the answer; 0 where none does.
    """

    ids: tuple[int | None, ...]
    counted: int


class Frame(NamedTuple):
    """What is around an answer, found out in a small conversation.

    Attributes:
        question: the tokens of this conversation up to where an answer begins.
        ending: what follows an answer.
        digest: of these tokens, which another tokenizer or chat template would change.
    """

    question: list[Token]
    ending: Ending
    digest: str


class Span(NamedTuple):
    """Where an answer stands in a prompt, counted from the prompt's end.

    Attributes:
        ids: the token before the answer, its own, and those of the ending: a prompt's last ones.
        counted: how many of them, from the second on, belong to the likelihood.
    """

    ids: tuple[int | None, ...]
    counted: int


class PromptLikelihoods:
    """Asks one model of one server."""

    def __init__(self, endpoint: Endpoint, send: Callable[[Sequence[Asked]], list[Reply]]):
        """Sends nothing yet.

        Args:
            endpoint: the server, for messages.
            send: sends requests, several at once, and returns their replies.
        """
        self._endpoint, self._send, self._lock = endpoint, send, threading.Lock()
        self._frame: Frame | None = None
        self._spans: dict[str, Span] = {}

    def frame(self) -> Frame:
        """What is around an answer; the first time, this asks the server.

        Raises:
            ReaderUnavailable: it answers nothing.
            ValueError: it tells no log-probabilities of prompts, or not as this needs them.
        """
        with self._lock:
            if self._frame is None:
                try:
                    self._frame = self._find_out(fresh=True)
                except ReaderUnavailable:  # but all that is asked may be on disk already
                    self._frame = self._find_out(fresh=False)
            return self._frame

    def of(
        self,
        images: Sequence[Sequence[np.ndarray]],
        questions: Sequence[str],
        answers: Sequence[str],
    ) -> list[Likelihood]:
        """Likelihoods, as `LikelihoodReader.likelihoods`."""
        answers = [_cleaned(answer) for answer in answers]
        items = list(zip(images, questions, answers, strict=True))
        frame = self.frame()
        failures = self._learn_spans(answers, frame)
        replies = iter(
            self._send(
                [
                    _asked(
                        pictures,
                        question,
                        answer,
                        functools.partial(read_log_probs, self._spans[answer]),
                        kept=f"log_probs {frame.digest}",
                    )
                    for pictures, question, answer in items
                    if answer not in failures
                ]
            )
        )
        return [
            Likelihood(math.nan, 0, failures[answer])
            if answer in failures
            else _likelihood(next(replies))
            for *_, answer in items
        ]

    def _find_out(self, fresh: bool) -> Frame:
        """Asks the server about the small conversation, without and with an answer."""
        read = functools.partial(read_tokens, lenient=True)
        asked = [
            _asked([PICTURE], QUESTION, None, read),
            _asked([PICTURE], QUESTION, ANSWER, read, is_open=True),
            _asked([PICTURE], QUESTION, ANSWER, read),
        ]
        replies = self._send([dataclasses.replace(each, fresh=fresh) for each in asked])
        for reply in replies:
            if reply.kind in REFUSED:
                raise self._unable(reply.failure)
            if reply.failure:
                raise self._endpoint.unavailable(reply.failure)
        question, unfinished, whole = map(_tokens, replies)
        try:
            ending = find_ending(question, unfinished, whole)
        except ValueError as error:
            raise self._unable(str(error)) from None
        if not ending.counted:
            logging.warning(
                "%s: its chat template writes no token that ends an answer: likelihoods are those "
                "of the answers' own tokens",
                self._endpoint.name,
            )
        tokens = "".join(reply.text for reply in replies)
        return Frame(question, ending, hashlib.sha256(tokens.encode()).hexdigest()[:16])

    def _unable(self, reason: str) -> ValueError:
        """The error that says that this server is none for likelihoods."""
        return ValueError(
            f"{self._endpoint.name} at {self._endpoint.address} tells no likelihoods of given "
            f"answers, which take a server with prompt_logprobs such as vLLM's: {reason}"
        )

    def _learn_spans(self, answers: Sequence[str], frame: Frame) -> dict[str, str]:
        """Finds the spans of answers that are new; returns why it could not, by answer."""
        new = [answer for answer in dict.fromkeys(answers) if answer not in self._spans]
        kept = f"tokens {frame.digest}"
        replies = self._send(
            [_asked([PICTURE], QUESTION, answer, read_tokens, kept=kept) for answer in new]
        )
        failures = {}
        for answer, reply in zip(new, replies, strict=True):
            try:
                if reply.failure:
                    raise ValueError(reply.failure)
                self._spans[answer] = find_span(frame.question, _tokens(reply), frame.ending)
            except ValueError as error:
                failures[answer] = str(error)
        return failures


def find_ending(
    question: Sequence[Token], unfinished: Sequence[Token], whole: Sequence[Token]
) -> Ending:
    """What follows an answer, from three prompts about the same small question.

    Args:
        question: without an answer, up to where one begins.
        unfinished: with `ANSWER`, to which more could be added.
        whole: with `ANSWER`, and ended.

    Raises:
        ValueError: the server did not make them so.
    """
    if not _text(unfinished).rstrip().endswith(ANSWER):
        raise ValueError("continue_final_message does not leave the answer open")
    if _ids(whole[: len(unfinished)]) != _ids(unfinished):
        raise ValueError("continue_final_message changes how the answer is written")
    after = whole[len(unfinished) :]
    if len(after) > 1 and _ids(after[-2:]) == _ids(question[-2:]):
        raise ValueError("add_generation_prompt=false is ignored")
    visible = [number for number, token in enumerate(after, 1) if token.text.strip()]
    ending = Ending(_ids(after), visible[0] if visible else 0)
    before = len(whole) - len(find_span(question, whole, ending).ids)  # the answer begins after it
    if QUESTION in _text(whole[before + 1 : len(unfinished)]):
        raise ValueError("the chat template writes the question otherwise before an answer")
    return ending


def find_span(question: Sequence[Token], whole: Sequence[Token], ending: Ending) -> Span:
    """The tokens of an answer: those in which a prompt with it differs from one without it.

    An answer may melt with the text before it into one token, such as "Assistant: " and "Red" into
    ":" and " Red". All tokens that hold a part of the answer count, and no other ones.

    Args:
        question: the prompt up to where an answer begins.
        whole: the same with an answer, and what follows it.
        ending: what follows an answer.

    Raises:
        ValueError: these prompts are not of this form.
    """
    stop = len(whole) - len(ending.ids)
    if _ids(whole[stop:]) != ending.ids:
        raise ValueError("the answer melts with what the chat template writes after it")
    start = 0
    while start < min(len(question), stop) and question[start].id == whole[start].id:
        start += 1
    if not start:
        raise ValueError("the chat template begins otherwise where there is an answer")
    asked, seen = _text(question[start:]), ""
    while start < stop and (text := whole[start].text) and asked.startswith(seen + text):
        seen, start = seen + text, start + 1  # a token of the prompt alone, divided otherwise
    if start == stop:
        raise ValueError("the chat template writes nothing of the answer")
    return Span(_ids(whole[start - 1 :]), stop - start + ending.counted)


def read_tokens(completion: Any, lenient: bool = False) -> Reply:
    """All tokens of a prompt, as text that `_tokens` reads.

    Args:
        completion: what the server sent.
        lenient: whether a prompt without log-probabilities is a reply, one that failed, rather
            than an error, after which the server would be asked again.
    """
    if lenient and _entries(completion) is None:
        return Reply("", f"{NOT_TOLD}: its reply has no such field")
    tokens = [_token(entry) for entry in _checked_entries(completion)]
    return Reply(json.dumps([[token.id, token.text] for token in tokens], allow_nan=False))


def read_log_probs(span: Span, completion: Any) -> Reply:
    """Log-probabilities of an answer's tokens, as JSON.

    Args:
        span: of the answer.
        completion: what the server sent.

    Raises:
        ValueError: the answer is not there, or one of the numbers is none.
    """
    tokens = [_token(entry) for entry in _checked_entries(completion)[-len(span.ids) :]]
    if _ids(tokens) != span.ids:
        raise ValueError(
            "the prompt does not end with the answer's tokens, as it did in a small conversation"
        )
    log_probs = [token.log_prob for token in tokens[1 : 1 + span.counted]]
    for log_prob in log_probs:
        if not IMPOSSIBLE < log_prob <= 1e-3:  # what is not a number is not in between either
            raise ValueError(f"{log_prob} as the log-probability of a token of the answer")
    return Reply(json.dumps(log_probs, allow_nan=False))


def _asked(
    pictures: Sequence[np.ndarray],
    question: str,
    answer: str | None,
    read: Callable[[Any], Reply],
    *,
    is_open: bool = False,
    kept: str = "tokens",
) -> Asked:
    """A request for the log-probabilities of a prompt; see `Asked`.

    Sampling settings are given, though they should have no influence, because a server takes those
    that are missing from the model's generation_config.json.
    """
    more = {
        "prompt_logprobs": 0,  # no other tokens than those that stand there
        "add_generation_prompt": answer is None,
        "continue_final_message": is_open,
        "skip_special_tokens": False,
        "top_k": -1,
        "repetition_penalty": 1.0,
    }
    fields = {"max_tokens": 1, "temperature": 1, "top_p": 1, "extra_body": more}
    return Asked(pictures, question, answer, fields, read, kept)


def _cleaned(answer: str) -> str:
    """An answer without outer spaces; raises a ValueError where nothing is left."""
    texts.check(answer, "answer")
    if not answer.strip():
        raise ValueError("the answer is empty")
    return answer.strip()


def _entries(completion: Any) -> Any:
    """What a completion says of its prompt's tokens; None where it says nothing."""
    return (completion.model_extra or {}).get("prompt_logprobs")


def _checked_entries(completion: Any) -> list[Any]:
    """The entries of all tokens of the prompt."""
    entries = _entries(completion)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"prompt_logprobs is {entries!r:.40}, not a list of tokens")
    usage = completion.usage
    if usage is not None and usage.prompt_tokens != len(entries):
        raise ValueError(f"{len(entries)} prompt_logprobs of {usage.prompt_tokens} prompt tokens")
    return entries


def _token(entry: Any) -> Token:
    """A token from its entry: such as `{"42": {"logprob": -0.5, "decoded_token": " Red"}}`."""
    if entry is None:
        return Token(None, math.nan, "")
    if len(entry) != 1:
        raise ValueError(f"{len(entry)} tokens at one position, though prompt_logprobs was 0")
    ((token_id, told),) = entry.items()
    log_prob = told["logprob"]
    if isinstance(log_prob, bool) or not isinstance(log_prob, int | float):
        raise ValueError(f"{log_prob!r:.40} as a log-probability")
    return Token(int(token_id), float(log_prob), told.get("decoded_token") or "")


def _tokens(reply: Reply) -> list[Token]:
    """The tokens that `read_tokens` wrote."""
    return [Token(token_id, math.nan, text) for token_id, text in json.loads(reply.text)]


def _likelihood(reply: Reply) -> Likelihood:
    """The likelihood that `read_log_probs` wrote, or why there is none."""
    if reply.failure:
        return Likelihood(math.nan, 0, reply.failure)
    log_probs = json.loads(reply.text)
    return Likelihood(math.fsum(log_probs), len(log_probs))


def _ids(tokens: Sequence[Token]) -> tuple[int | None, ...]:
    return tuple(token.id for token in tokens)


def _text(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)
