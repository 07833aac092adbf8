# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Scores of a reply against gold answers: VQA accuracy as three codes compute it, ANLS, letters.

`scoring/in_graph.py` computes the same scores in the graph. No jax in here: data workers encode
gold answers with `encode_gold`.
"""

import re
import string
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

VQAVariant = Literal["evalai", "vicrop", "official"]
Metric = Literal["evalai", "vicrop", "official", "anls"]  # which the graph computes too
HostMetric = Literal["evalai", "vicrop", "official", "anls", "contains", "nearly_contains"]

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_VSTAR_RULES = tuple(
    re.compile(rule)
    for rule in (
        r"^([A-D])",
        r"(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
        r"\(([A-D])\)",
        r"([A-D])\s*[.)\]]",
        r"(?:^|\s)([A-D])(?:\s|$)",
    )
)
_REFUSALS = (  # of closed models, as VLMEvalKit lists them
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
MAX_PERIODS = 32  # the original passes the flag re.UNICODE, 32, where re.sub takes a count
_NUMBERS = "zero one two three four five six seven eight nine ten"
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll
    you're you've
"""
WORDS = (  # what EvalAI makes of a word; nothing of an article
    {word: str(number) for number, word in enumerate(_NUMBERS.split())}
    | {"none": "0", "a": "", "an": "", "the": "", "somebody'd": "somebodyd"}
    | {  # a contraction is recognised by the lack of one of its apostrophes
        word[:i] + word[i + 1 :]: word
        for word in _CONTRACTED.split()
        for i, character in enumerate(word)
        if character == "'"
    }
)


class GoldAnswers(NamedTuple):
    """The gold answers of a prompt, ready to be compared with a normalised reply in the graph.

    Shape letters: K distinct answers, N characters; a batch stacks them to `[B, K, N]`, `[B, K]`.
    Spare rows repeat the first answer with weight 0.

    Attributes:
        text: int32 `[K, N]`, codepoints of the normalised answers, then -1.
        weight: fp32 `[K]`, VQA accuracy of a reply equal to the answer; 0 where ANLS applies.
        length: int32 `[K]`, characters that ANLS divides by.
    """

    text: Any
    weight: Any
    length: Any


def vqa_accuracy(prediction: str, answers: Sequence[str], variant: VQAVariant) -> float:
    """VQA accuracy, 0..1.

    Args:
        prediction: a reply.
        answers: of the annotators, with repetitions. The published codes have 10. Fewer than 4
            cannot give the three matches that count as right, so there all others have to match,
            and one answer alone has to be equal.
        variant: "evalai": EvalAI's normalisation of reply and answers, then the mean over the
            answers of min(1, matches among the others / 3), as lmms-eval and VLMEvalKit.
            "vicrop": min(1, 0.3 * matches), normalised as EvalAI but for its first step, as ViCrop
            and the official CropVLM code for targets other than SmolVLM.
            "official": the mean as "evalai", the official CropVLM code for SmolVLM: the reply is
            only stripped, relieved of one final period and lower-cased, the answers are not.

    Raises:
        ValueError: there are no answers.
    """
    _require(answers)
    matches = _golds(answers, variant).count(_NORMALIZE[variant](prediction))
    return _credit(matches, len(answers), variant)


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one question, 0..1, as lmms-eval.

    Distances are between lower-cased texts with single spaces, but are divided by the length of
    the longer raw text. "yes." is not "yes": nothing else is removed.

    Args:
        prediction: a reply.
        answers: the best one counts.
        threshold: similarities below are 0.

    Raises:
        ValueError: there are no answers.
    """
    _require(answers)
    text = collapse(prediction)
    similarity = max(
        _similarity(text, collapse(answer), max(_length(prediction), _length(answer)))
        for answer in answers
    )
    return similarity if similarity >= threshold else 0.0


def official_accuracy(reply: str, answers: Sequence[str]) -> float:
    """The accuracy reward of the official CropVLM code, 0..1 (there not wired to the trainer).

    Ten answers are TextVQA's: `vqa_accuracy(variant="official")`. Otherwise ANLS by the package
    `anls`, which divides by the length of the longer normalised text and wants more than 0.5; one
    final period of the reply is removed first.

    Raises:
        ValueError: there are no answers.
    """
    _require(answers)
    if len(answers) == 10:
        return vqa_accuracy(reply, answers, "official")
    text = collapse(reply.strip().removesuffix("."))
    golds = [collapse(answer) for answer in answers]
    similarity = max(_similarity(text, gold, max(_length(text), _length(gold))) for gold in golds)
    return similarity if similarity > 0.5 else 0.0


def score(prediction: str, answers: Sequence[str], metric: HostMetric) -> float:
    """A reply's score, 0..1, by the function of that name, or a variant of `vqa_accuracy`."""
    if metric == "contains":
        return contains(prediction, answers)
    if metric == "nearly_contains":
        return nearly_contains(prediction, answers)
    if metric == "anls":
        return anls(prediction, answers)
    if metric == "official":
        return official_accuracy(prediction, answers)
    return vqa_accuracy(prediction, answers, metric)


def exact(prediction: str, answers: Sequence[str]) -> float:
    """1 where a reply is one of the answers, up to case, spaces and one final period; else 0.

    Raises:
        ValueError: there are no answers.
    """
    _require(answers)
    plain = {collapse(answer).removesuffix(".") for answer in answers}
    return float(collapse(prediction).removesuffix(".") in plain)


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1 where a reply has one of the answers in it, up to case and spaces; else 0.

    The answer must not be a part of a longer number or word: "19.00" and "9.005" do not contain
    "9.00", "RM9.00" does.

    Raises:
        ValueError: there are no answers.
    """
    _require(answers)
    text = collapse(prediction)
    return float(any(_stands_in(collapse(answer), text) for answer in answers))


def vstar_letter(prediction: str) -> str:
    """The option A..D that a reply names, as lmms-eval reads V* Bench; "" where it names none.

    The first of these that is found, in capitals: a reply's first letter (even that of a word, such
    as "Blue"), a letter after "answer", "choice" or "option", in parentheses, before a period or a
    closing bracket (even that of a word, such as "rod."), by itself; else the only A..D there is.
    """
    text = prediction.strip().upper()
    for rule in _VSTAR_RULES:
        if found := rule.search(text):
            return found[1]
    letters = re.findall("[A-D]", text)
    return letters[0] if len(letters) == 1 else ""


def hrbench_letter(prediction: str, options: Sequence[str]) -> str:
    """The option that a reply names, as lmms-eval reads HR-Bench; "" where it names none.

    The one letter of an option that stands by itself; else the one option whose text is in the
    reply. Where a judge model would be asked, nobody is: the reply is wrong. "Z" is a refusal.
    """
    reply = prediction.strip()
    if any(phrase in reply for phrase in _REFUSALS):
        return "Z"
    letters = string.ascii_uppercase[: len(options)]
    words = set(reply.translate(_SEPARATORS).split())
    named = [letter for letter in letters if letter in words]
    if len(named) != 1 and not (not named and "Z" in words):
        text = reply.lower()
        pairs = zip(letters, options, strict=True)
        named = [letter for letter, option in pairs if option.lower() in text]
        return named[0] if len(named) == 1 else ""
    return named[0] if named else "Z"


def nearly_contains(prediction: str, answers: Sequence[str]) -> float:
    """How near a reply comes to having one of the answers in it, 0..1.

    The mean of `contains` and of the likeness, 1 - distance / length, of the answer to the part of
    the reply that is nearest to it: with a half-read answer there is something to climb.

    Raises:
        ValueError: there are no answers.
    """
    _require(answers)
    text = collapse(prediction)
    golds = [gold for gold in map(collapse, answers) if gold]
    likeness = max((1 - _distance_to_part(gold, text) / len(gold) for gold in golds), default=0.0)
    return (contains(prediction, answers) + likeness) / 2


def encode_gold(
    answers: Sequence[str], metric: Metric, max_answers: int, max_length: int
) -> GoldAnswers:
    """What `scoring.in_graph.score` needs to know about a prompt's answers.

    Args:
        answers: of the annotators, with repetitions.
        metric: they will be scored by.
        max_answers: K.
        max_length: N.

    Raises:
        ValueError: there are no answers, over K distinct ones, or one is over N characters.
    """
    _require(answers)
    if metric == "anls" or (metric == "official" and len(answers) != 10):
        raw = answers if metric == "anls" else [collapse(answer) for answer in answers]
        rows = {(collapse(answer), 0.0, _length(answer)) for answer in raw}
    else:
        golds = _golds(answers, metric)
        rows = {(gold, _credit(golds.count(gold), len(golds), metric), 0) for gold in golds}
    texts, weights, lengths = zip(*sorted(rows), strict=True)
    longest = max(map(len, texts))
    if len(texts) > max_answers or longest > max_length:
        raise ValueError(
            f"{len(texts)} distinct answers of at most {longest} characters, over the limit of "
            f"{max_answers} answers of {max_length}"
        )
    spare = max_answers - len(texts)
    codes = [[*map(ord, text), *[-1] * (max_length - len(text))] for text in texts]
    return GoldAnswers(
        text=np.array(codes + codes[:1] * spare, np.int32),
        weight=np.array([*weights, *[0.0] * spare], np.float32),
        length=np.array(lengths + lengths[:1] * spare, np.int32),
    )


def collapse(text: str) -> str:
    """Lower case, single spaces, none outside."""
    return " ".join(text.lower().split())


def levenshtein(a: str, b: str) -> int:
    """The least number of insertions, deletions and substitutions that turn `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def _require(answers: Sequence[str]) -> None:
    if not answers:
        raise ValueError("an example without answers cannot be scored: leave it out")


def _golds(answers: Sequence[str], variant: VQAVariant) -> list[str]:
    if variant == "official":
        return list(answers)
    return [_NORMALIZE[variant](answer) for answer in answers]


def _credit(matches: int, answers: int, variant: VQAVariant) -> float:
    """VQA accuracy of a reply that equals `matches` of the answers."""
    if variant == "vicrop":
        return min(1.0, 0.3 * matches)
    if answers == 1:
        return float(matches)
    enough = min(3, answers - 1)
    matched = min(1.0, (matches - 1) / enough) * matches  # one of these is left out
    return (matched + min(1.0, matches / enough) * (answers - matches)) / answers


def _stands_in(answer: str, text: str) -> bool:
    """Whether `answer` is in `text`, and there not a part of a longer number or word."""
    before, after = r"(?<!\d)(?<!\d[.,])", r"(?!\d)(?![.,]\d)"
    left, right = answer[:1], answer[-1:]
    before = before if left.isdigit() else r"(?<![^\W\d_])" if left.isalpha() else ""
    after = after if right.isdigit() else r"(?![^\W\d_])" if right.isalpha() else ""
    return bool(answer) and bool(re.search(before + re.escape(answer) + after, text))


def _distance_to_part(wanted: str, text: str) -> int:
    """The least edit distance of `wanted` to any part of `text`.

    Sellers' algorithm ("The theory and computation of evolutionary distances", 1980), a row at a
    time: a part may begin anywhere, so the first row is zeros.
    """
    codes, place = np.array([*map(ord, text)], np.int64), np.arange(len(text) + 1)
    row = np.zeros(len(text) + 1, np.int64)
    for i, character in enumerate(map(ord, wanted), 1):
        changed = np.minimum(row[1:] + 1, row[:-1] + (codes != character))
        above = np.concatenate([[i], changed])
        row = np.minimum.accumulate(above - place) + place  # what is inserted, all at once
    return int(row.min())


def _similarity(a: str, b: str, length: int) -> float:
    return 1.0 - levenshtein(a, b) / max(length, 1)


def _length(text: str) -> int:
    return len(text.upper())  # as the references measure: "ß" counts 2


def _evalai(text: str) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _vicrop(text.replace("\n", " ").replace("\t", " "))


def _vicrop(text: str) -> str:
    original, grouped = text, re.search(r"\d,\d", text)
    for mark in PUNCTUATION:
        spaced = f"{mark} " in original or f" {mark}" in original
        text = text.replace(mark, "" if spaced or grouped else " ")
    # The original forbids "<=" and a digit where the period has to be, evidently for "no digit
    # before": a period after a digit goes too.
    text = re.sub(r"\.(?!\d)", "", text, count=MAX_PERIODS)
    return " ".join(filter(None, (WORDS.get(word, word) for word in text.lower().split())))


def _official(text: str) -> str:
    return text.strip().removesuffix(".").lower()


_NORMALIZE = {"evalai": _evalai, "vicrop": _vicrop, "official": _official}
