# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import itertools
import statistics

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from cropvlm_jax.evals import scoring

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


@pytest.mark.parametrize(
    "reply, answer, found",
    [
        ("TOTAL RM9.00\nCASH 10.00", "9.00", True),
        ("TOTAL 19.00", "9.00", False),
        ("TOTAL 1,239.00", "239.00", False),
        ("9.005", "9.00", False),
        ("Date:  25/12/2018 8:13", "25/12/2018", True),
        ("date: 125/12/2018", "25/12/2018", False),
        ("Book  Ta K\nSDN BHD", "BOOK TA K SDN BHD", True),
        ("category", "cat", False),
        ("", "9.00", False),
    ],
)
def test_contains(reply, answer, found):
    assert scoring.contains(reply, ["other", answer]) == found
    assert scoring.score(reply, [answer], "contains") == found


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
