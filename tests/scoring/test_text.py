# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import itertools
import statistics

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from cropvlm_jax import scoring

METRICS = ("evalai", "vicrop", "official", "anls")
FEW_LETTERS = st.text("abc X.", max_size=12)


@pytest.mark.parametrize(
    "reply, evalai, vicrop",
    [
        ("Yes.", "yes", "yes"),
        ("The  Two\tdogs\n", "2 dogs", "2 dogs"),
        ("none of an apple a day", "0 of apple day", "0 of apple day"),
        ("Dont; wouldntve", "don't wouldntve", "don't wouldntve"),
        ("couldntve couldnt've couldn'tve", *["couldntve couldn't've couldn't've"] * 2),
        ("somebody'd ow's'at twas", "somebodyd ow 's'at 'twas", "somebodyd 'ow's'at 'twas"),
        ("the Cat's", "cat 's", "cat's"),  # only EvalAI's first step splits the genitive
        ("1,000", "1000", "1000"),
        ("a-b", "b", "b"),  # a mark between letters becomes a space: "a" is an article then
        ("x-y", "x y", "x y"),
        ("x -y-z", "x yz", "x yz"),  # a mark beside a space anywhere is removed everywhere
        ("1,000-2", "1000 2", "10002"),  # a comma between digits removes all marks, if it is left
        ("why?", "why", "why"),
        ("3.5 mr. 7. .5", "3.5 mr 7 .5", "3.5 mr 7 .5"),
        ("x..5", "x.5", "x.5"),
        (40 * "." + "x", 8 * "." + "x", 8 * "." + "x"),  # the 32 of re.UNICODE
        ("\u00a0Ten\u2003THE\u3000\u0130", *["10 i\u0307"] * 2),
        ("", "", ""),
        ("the.", "", ""),
    ],
)
def test_evalai_normalisation(reply, evalai, vicrop):
    for variant, normal in (("evalai", evalai), ("vicrop", vicrop)):
        gold = scoring.encode_gold([reply], variant, 1, 64).text[0]
        assert "".join(chr(code) for code in gold if code >= 0) == normal


@pytest.mark.parametrize("count", range(11))
def test_vqa_accuracy_is_the_mean_over_the_answers_left_out(count):
    answers = ["stop"] * count + [f"other {i}" for i in range(10 - count)]
    nines = itertools.combinations(answers, 9)
    mean = statistics.mean(min(1, nine.count("stop") / 3) for nine in nines)
    assert scoring.vqa_accuracy("The STOP!", answers, "evalai") == pytest.approx(mean)
    assert scoring.vqa_accuracy(" Stop. ", answers, "official") == pytest.approx(mean)
    assert scoring.vqa_accuracy("The STOP!", answers, "vicrop") == min(1, 0.3 * count)


def test_official_variant_normalises_little():
    answers = ["the stop"] * 5 + ["Stop"] * 5
    for reply, score in [("The stop.", 1), ("the stop..", 0), ("stop", 0), ("Stop", 0)]:
        assert scoring.vqa_accuracy(reply, answers, "official") == score
        assert scoring.official_accuracy(reply, answers) == score


def test_few_answers_can_all_be_matched():
    for count in range(1, 10):
        assert scoring.vqa_accuracy("x", ["x"] * count, "evalai") == 1
    assert scoring.vqa_accuracy("y", ["x"], "evalai") == 0
    assert scoring.vqa_accuracy("x", ["x", "y"], "evalai") == 0.5
    assert scoring.vqa_accuracy("x", ["x", "y", "y", "y"], "evalai") == pytest.approx(0.25)


@hypothesis.given(st.text(max_size=20), st.text(max_size=20))
def test_levenshtein(a, b):
    assert scoring.levenshtein(a, b) == Levenshtein.distance(a, b)


@hypothesis.given(FEW_LETTERS, st.lists(FEW_LETTERS, min_size=1, max_size=3))
def test_anls_divides_by_the_raw_length(prediction, answers):
    def distance(answer: str) -> float:
        one, other = (" ".join(text.lower().split()) for text in (prediction, answer))
        longer = max(len(prediction), len(answer))
        return Levenshtein.distance(one, other) / longer if longer else 0

    similarity = 1 - min(map(distance, answers))
    expected = similarity if similarity >= 0.5 else 0
    assert scoring.anls(prediction, answers) == pytest.approx(expected)


def test_anls_examples():
    assert scoring.anls("Yes.", ["yes"]) == 0.75
    assert scoring.anls("a    b", ["x", "a b"]) == 1
    assert scoring.anls("a    c", ["a b"]) == pytest.approx(5 / 6)
    assert scoring.anls("ab", ["ac"]) == 0.5
    assert scoring.anls("ab", ["ac"], threshold=0.6) == 0
    assert scoring.anls("straße", ["strasse"]) == pytest.approx(5 / 7)
    assert scoring.anls("", [""]) == 1


def test_official_accuracy_is_anls_unless_there_are_ten_answers():
    assert scoring.official_accuracy("Abcd.", ["abce", "x"]) == 0.75
    assert scoring.official_accuracy("a    c .", ["a b"]) == pytest.approx(2 / 3)
    assert scoring.official_accuracy("ab", ["ac"]) == 0  # exactly half is not enough
    assert scoring.official_accuracy("abcd", ["abce"] * 10) == 0
    assert scoring.official_accuracy("abcd", ["abce"] * 9) == 0.75


def test_score_chooses_by_metric():
    answers = ["1,0"] * 2 + ["x"] * 8
    scores = [scoring.score("1,0.", answers, metric) for metric in METRICS]
    assert scores == pytest.approx([0.6, 0.6, 0.6, 0.75])


def test_gold_answers_are_distinct_and_padded():
    gold = scoring.encode_gold(["A dog", "dog", "Cat", "the dog."], "evalai", 4, 5)
    assert gold.text.dtype == gold.length.dtype == np.int32 and gold.weight.dtype == np.float32
    texts = ["".join(chr(code) for code in row if code >= 0) for row in gold.text]
    assert texts == ["cat", "dog", "cat", "cat"]
    dog = scoring.vqa_accuracy("dog", ["dog", "dog", "cat", "dog"], "evalai")
    np.testing.assert_allclose(gold.weight, [0.25, dog, 0, 0])

    gold = scoring.encode_gold(["A  Dog"], "anls", 2, 6)
    assert gold.text[:, :5].tolist() == [[*map(ord, "a dog")]] * 2
    assert gold.weight.tolist() == [0, 0] and gold.length.tolist() == [6, 6]


@pytest.mark.parametrize("metric", METRICS)
def test_what_cannot_be_scored_is_refused(metric):
    with pytest.raises(ValueError, match="without answers"):
        scoring.score("x", [], metric)
    with pytest.raises(ValueError, match="without answers"):
        scoring.encode_gold([], metric, 3, 10)
    with pytest.raises(
        ValueError, match="2 distinct answers of at most 1 char.* of 1 answers of 8"
    ):
        scoring.encode_gold(["x", "y"], metric, 1, 8)
    with pytest.raises(ValueError, match="at most 9 char.* of 8"):
        scoring.encode_gold(["x" * 9], metric, 1, 8)


# Whole scorers against references of their own, on random replies ---------------------------------

CASES = 10_000
PIECES = (
    *("A", "B", "C", "D", "E", "Z", "a", "b", "(A)", "(b)", "C.", "D)", "[B]", "A,", "!C", "*D*"),
    *("the answer is", "Answer:", "option", "choice is", "Option is:", "blue", "Red", "cannot"),
    *("yes", "No.", "two", "none", "the", "an", "dont", "isnt", "youre", "it's", "o'clock"),
    *("1,000", "10", "3.5", "7.", ".5", "-", "x-y", "?", "/", ";", "  ", "\n", "\t", "$", "ß"),
    *("I can't process this file.", "Cannot determine the answer"),
)


def random_texts(seed: int, longest: int = 4) -> list[str]:
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(CASES):
        pieces = rng.choice(PIECES, rng.integers(0, longest + 1))
        texts.append(str(rng.choice(["", " "])).join(map(str, pieces)))
    return texts


def evalai_reference(text: str) -> str:
    """The steps of EvalAI's `EvalAIAnswerProcessor`, one after the other."""
    text = text.lower()
    for old, new in ((",", ""), ("?", ""), ("'s", " 's")):
        text = text.replace(old, new)
    before = text.strip().replace("\n", " ").replace("\t", " ")
    after = before
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        beside_space = mark + " " in before or " " + mark in before
        numbers = any(
            c == "," and before[i - 1 : i].isdigit() and before[i + 1 : i + 2].isdigit()
            for i, c in enumerate(before)
        )
        after = after.replace(mark, "" if beside_space or numbers else " ")
    kept = [c for i, c in enumerate(after) if c != "." or after[i + 1 : i + 2].isdigit()]
    numbers = dict(zip("none zero one two three ten".split(), "0 0 1 2 3 10".split(), strict=True))
    contractions = {"dont": "don't", "isnt": "isn't", "youre": "you're", "oclock": "o'clock"}
    words = [numbers.get(word, word) for word in "".join(kept).split()]
    words = [contractions.get(word, word) for word in words if word not in ("a", "an", "the")]
    return " ".join(words)


def test_vqa_accuracy_is_the_references():
    rng = np.random.default_rng(0)
    texts = random_texts(1, longest=2)
    scores = []
    for reply in texts:
        few = [reply, *(texts[i] for i in rng.integers(0, CASES, 3))]
        answers = [few[i] for i in rng.integers(0, 4, 10)]
        golds, text = [evalai_reference(answer) for answer in answers], evalai_reference(reply)
        others = [golds[:i] + golds[i + 1 :] for i in range(10)]
        expected = sum(min(1, rest.count(text) / 3) for rest in others) / 10
        assert scoring.vqa_accuracy(reply, answers, "evalai") == pytest.approx(expected), reply
        scores.append(expected)
    assert 0.3 < np.mean(scores) < 0.9 and len(set(scores)) >= 4  # all kinds occur


def test_anls_is_the_references():
    rng = np.random.default_rng(2)
    texts = random_texts(3, longest=2)
    scores = []
    for reply in texts:
        answers = [texts[i] for i in rng.integers(0, CASES, rng.integers(1, 4))]
        answers[0] = reply[: rng.integers(0, len(reply) + 1)] + answers[0][:2]
        best = 0.0
        for answer in answers:
            one, other = " ".join(reply.lower().split()), " ".join(answer.lower().split())
            longer = max(len(reply.upper()), len(answer.upper()))
            distance = Levenshtein.distance(one, other) / longer if longer else 0
            best = max(best, 1 - distance)
        expected = best if best >= 0.5 else 0.0
        assert scoring.anls(reply, answers) == pytest.approx(expected), (reply, answers)
        scores.append(expected)
    assert 0.2 < np.mean(scores) < 0.9 and 0.0 in scores and 1.0 in scores


def vstar_reference(reply: str) -> str:
    """lmms-eval's rules for V*, without regular expressions."""
    text = reply.strip().upper()
    letters = "ABCD"

    def skip(i: int, of) -> int:
        while i < len(text) and of(text[i]):
            i += 1
        return i

    def letter(i: int) -> str:
        return text[i] if i < len(text) and text[i] in letters else ""

    if letter(0):
        return letter(0)
    for i in range(len(text)):
        for word in ("ANSWER", "CHOICE", "OPTION"):
            if text.startswith(word, i):
                after = i + len(word)
                copula = skip(after, str.isspace)
                tries = [copula + 2] if copula > after and text.startswith("IS", copula) else []
                for start in [*tries, after]:
                    stop = skip(start, lambda c: c.isspace() or c == ":")
                    if stop > start and letter(stop):
                        return letter(stop)
    for i in range(len(text)):
        if text[i] == "(" and letter(i + 1) and text[i + 2 : i + 3] == ")":
            return letter(i + 1)
    for i in range(len(text)):
        if letter(i) and text[skip(i + 1, str.isspace) :][:1] in (".", ")", "]"):
            return letter(i)
    alone = [word for word in text.split() if len(word) == 1 and word in letters]
    if alone:
        return alone[0]
    found = [c for c in text if c in letters]
    return found[0] if len(found) == 1 else ""


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("A", "A"),
        ("(b) blue", "B"),
        ("The answer is C.", "C"),
        ("The correct option: D", "D"),
        ("Blue.", "B"),  # the first letter of a word counts: that is lmms-eval's rule
        ("It is red.", "D"),  # and so does the one before a period
        ("I think it is C here", "C"),
        ("so (A) or (B)", "A"),
        ("It is green", ""),
        ("no idea", ""),
        ("you drew it", "D"),  # the only A..D there is
        ("", ""),
    ],
)
def test_vstar_letter_by_hand(reply, letter):
    assert scoring.vstar_letter(reply) == letter


def test_vstar_letter_is_the_references():
    found = []
    for reply in random_texts(4):
        found.append(scoring.vstar_letter(reply))
        assert found[-1] == vstar_reference(reply), reply
    assert min(found.count(letter) for letter in ("", "A", "B", "C", "D")) > 200


def hrbench_reference(reply: str, options: list[str]) -> str:
    """lmms-eval's `can_infer`, in the order of its tests."""
    reply = reply.strip()
    choices = dict(zip("ABCD", options, strict=True))
    for phrase in ("I can't process this file.", "Cannot determine the answer"):
        if phrase in reply:
            return "Z"
    spaced = reply
    for mark in ".()[],:;!*#{}":
        spaced = spaced.replace(mark, " ")
    tokens = spaced.split()
    count = sum(letter in tokens for letter in choices)
    if count == 1:
        return next(letter for letter in choices if letter in tokens)
    if count == 0 and "Z" in tokens:
        return "Z"
    texts = [letter for letter, option in choices.items() if option.lower() in reply.lower()]
    return texts[0] if len(texts) == 1 else ""


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("(C).", "C"),
        ("The answer is **D**", "D"),
        ("a", ""),  # letters are capitals
        ("A or B", ""),
        ("A or B: blue", "C"),  # two letters, but one text
        ("It is BLUE", "C"),
        ("dark blue", ""),  # contains the texts of C and D
        ("Z", "Z"),
        ("A cat", "A"),  # an article is a letter too
        ("I can't process this file.", "Z"),
        ("", ""),
    ],
)
def test_hrbench_letter_by_hand(reply, letter):
    assert scoring.hrbench_letter(reply, ["red", "green", "blue", "dark blue"]) == letter


def test_hrbench_letter_is_the_references():
    rng = np.random.default_rng(5)
    texts = ("red", "Blue", "yes", "no", "10", "two", "x-y", "answer")
    found = []
    for reply in random_texts(6):
        options = [str(text) for text in rng.choice(texts, 4, replace=False)]
        found.append(scoring.hrbench_letter(reply, options))
        assert found[-1] == hrbench_reference(reply, options), (reply, options)
    assert min(found.count(letter) for letter in ("", "A", "B", "C", "D", "Z")) > 200


@pytest.mark.parametrize(
    ("reply", "answer", "expected"),
    [
        ("Total RM9.00", "9.00", 1),
        ("TOTAL  9.00 .", "9.00", 1),
        ("19.00", "9.00", 0),
        ("9.005", "9.00", 0),
        ("9.00", "9", 0),
        ("1,234.50", "234.50", 0),
        ("9.", "9", 1),
        ("page 12, 13", "12", 1),
        ("Wanted", "want", 0),
        ("i want it", "WANT", 1),
        ("on 25/12/2018 8:13", "25/12/2018", 1),
        ("ABC SDN BHD (123-A)", "abc  sdn bhd", 1),
        ("19.00 and 9.00", "9.00", 1),
        ("anything", "", 0),
    ],
)
def test_contains_by_hand(reply, answer, expected):
    assert scoring.contains(reply, ["no such thing", answer]) == expected
    assert scoring.score(reply, [answer], "contains") == expected


@pytest.mark.parametrize(
    ("reply", "answers", "expected"),
    [
        ("7.", ["7"], 1),
        (" Yes ", ["no", "YES."], 1),
        ("two  words", ["Two words"], 1),
        ("17", ["7"], 0),
        ("", ["7"], 0),
    ],
)
def test_exact_by_hand(reply, answers, expected):
    assert scoring.exact(reply, answers) == expected


@hypothesis.given(st.text("ab1 .,", max_size=8), st.text("ab1 .,", max_size=3))
def test_contains_implies_a_substring(reply, answer):
    if scoring.contains(reply, [answer]):
        assert scoring.collapse(answer) in scoring.collapse(reply)
    if scoring.exact(reply, [answer]) and scoring.collapse(answer).strip("."):
        assert scoring.contains(reply, [scoring.collapse(answer).removesuffix(".")])


@hypothesis.given(FEW_LETTERS, st.text("abc X.", min_size=1, max_size=6))
def test_nearly_contains_is_the_mean_of_both_kinds(reply, answer):
    hypothesis.assume(answer.strip())
    text, gold = scoring.collapse(reply), scoring.collapse(answer)
    spans = itertools.combinations_with_replacement(range(len(text) + 1), 2)
    distance = min(Levenshtein.distance(gold, text[i:j]) for i, j in spans)
    want = (scoring.contains(reply, [answer]) + 1 - distance / len(gold)) / 2
    assert scoring.score(reply, [answer], "nearly_contains") == pytest.approx(want)
    assert scoring.nearly_contains(reply, ["xxxxxxxxxxx", answer]) >= want


def test_a_better_reading_scores_higher():
    answers = ["25/12/2018"]
    replies = ("", "total 9.00", "2512 2018", "25/12/2O18", "date 25/12/2018 ok")
    scores = [scoring.nearly_contains(reply, answers) for reply in replies]
    assert scores == sorted(scores) and scores[0] == 0 and scores[-1] == 1 and scores[-2] < 0.5
    with pytest.raises(ValueError, match="without answers"):
        scoring.nearly_contains("x", [])
