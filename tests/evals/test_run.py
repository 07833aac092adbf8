# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Evaluations of items of all kinds."""

import json

import pytest
from tiny_evals import Guesser, Reader, choice, folder_source, run, without_seconds

from cropvlm_jax.api import CropVLM
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.evals import items
from cropvlm_jax.evals.conditions import CENTRE, NO_CROP, ORACLE, RANDOM, UPSCALED
from cropvlm_jax.evals.registry import BENCHMARKS
from cropvlm_jax.evals.run import evaluate
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.base import Likelihood, Reply
from cropvlm_jax.readers.vlm import VLMReader


def test_evaluation_of_the_bundled_models(tmp_path):
    target = VLMReader.from_pretrained("zoom_digits/target")
    target.name = "tiny"
    cropper = CropVLM.from_pretrained("zoom_digits/cropper")
    options = {"readers": [target], "croppers": {"sft": cropper}, "expansions": (1, 4)}
    results, records = run(tmp_path, ZoomDigits("test", 70), **options)
    accuracy = results["accuracy"]
    assert list(accuracy) == [NO_CROP, CENTRE, RANDOM, UPSCALED, "sft", ORACLE]
    assert accuracy[ORACLE] > 0.6 and accuracy[NO_CROP] < 0.35
    assert accuracy[NO_CROP] < accuracy["sft"] < accuracy[ORACLE]
    assert results["n"] == len(records) == 70 and results["valid"] == 1
    scores = results["targets"]["tiny"]["scores"]["exact"]
    assert list(scores) == [*accuracy, "sft x4", "oracle x4"]
    tokens = target.source.config.image_seq_len
    assert results["image_tokens"]["answer/tiny/no_crop"] == tokens
    assert results["image_tokens"]["answer/tiny/sft"] == 2 * tokens
    assert results["image_tokens"]["propose/sft"] == cropper.source.config.image_seq_len
    described = results["protocol"]["croppers"]["sft"]
    assert described["longest_edge"] == 64 and len(described["weights"]) == 16
    json.loads(json.dumps(results, allow_nan=False))

    # What the target says does not depend on the evaluation around it.
    record = records[69]
    image = ZoomDigits("test", 70)[69]["image"]
    for name, crop in {"sft": "sft", "oracle x4": "oracle x4"}.items():
        pictures = [image, host.cut(image, record["boxes"][crop])]
        (reply,) = target.answer([pictures], [record["question"]])
        assert record["replies"]["tiny"][name]["text"] == reply.text


class Says:
    """Says what it is told to, and keeps the questions."""

    name = "says"

    def __init__(self, *replies):
        self.replies, self.questions = replies, []

    def answer(self, images, questions):
        self.questions += questions
        if any(len(question) > 150 for question in questions):
            raise ValueError("the question is too long")
        return [self.replies[int(q.split("?")[0].split()[-1])] for q in questions]

    def check_likelihoods(self):
        pass

    def likelihoods(self, images, questions, answers):
        # The sum favours "red", the mean "green".
        nats = {"red": -1.0, "green": -1.1}
        return [Likelihood(nats.get(answer, -9.0), len(answer)) for answer in answers]


def test_multiple_choice_by_letter(tmp_path):
    source = folder_source(tmp_path, [choice(i) for i in range(4)])
    says = Says(Reply("A"), Reply("(B)"), Reply("blue."), Reply("D"))
    results, records = run(tmp_path, source, "vstar", [says])
    asked = "Which 1?\nA. red\nB. blue\nC. green\nD. none\nAnswer with the option's letter"
    assert says.questions[1].startswith(asked)
    assert results["accuracy"][NO_CROP] == 0.75  # "BLUE" begins with a B, where C is right
    assert results["targets"]["says"]["categories"]["x"][NO_CROP] == 0.5
    assert ORACLE not in results["accuracy"] and results["coverage"] is None


def test_hrbench_is_scored_by_letter_or_text(tmp_path):
    rows = [choice(i, cycle_category=str(i % 2)) for i in range(4)]
    says = Says(Reply("A"), Reply("It is blue"), Reply("red"), Reply("Nothing."))
    results, records = run(tmp_path, folder_source(tmp_path, rows), "hrbench_4k", [says])
    scores = [record["replies"]["says"][NO_CROP]["scores"]["hrbench_letter"] for record in records]
    assert scores == [1, 1, 0, 0] and results["accuracy"]["last"] == 0.5
    assert says.questions[0].endswith("D. none\nAnswer the option letter directly.")


def test_the_likeliest_option_is_by_token(tmp_path):
    source = folder_source(tmp_path, [choice(i) for i in range(4)])
    results, records = run(tmp_path, source, "vstar_likelihood", [Says()])
    texts = {told["text"] for record in records for told in record["replies"]["says"].values()}
    assert texts == {"green"} and results["accuracy"][NO_CROP] == 0.25
    with pytest.raises(ValueError, match="reader tells no likelihoods"):
        run(tmp_path, source, "vstar_likelihood", [Reader()])


def test_refusals_are_wrong_failures_are_asked_again_and_both_are_told(tmp_path, caplog):
    rows = [choice(0), choice(1, question="Which 1?" + 200 * "x"), choice(2), choice(3)]
    rows[2]["image"] = str(tmp_path / "missing.png")
    said = Reply("red"), Reply("blue"), Reply("green")
    says, source = Says(*said, Reply("", "timeout: 3 s")), folder_source(tmp_path, rows)
    results, records = run(tmp_path, source, "jsonl", [says])
    assert results["n"] == 3 and list(results["unreadable"]) == ["item2"]
    assert "missing.png" in results["unreadable"]["item2"]
    assert "jsonl: 1 of 4 items left out, as there is no picture: item2: " in caplog.text
    assert results["accuracy"]["last"] == pytest.approx(1 / 2)
    told = [record["replies"]["says"]["last"] for record in records if "replies" in record]
    assert [row.get("failure", "") for row in told] == [
        "",
        "refusal: the question is too long",
        "timeout: 3 s",
    ]
    conditions = len(results["accuracy"])
    kinds = {"refusal": conditions, "timeout": conditions}
    assert results["targets"]["says"]["failures"] == kinds
    assert set(results["targets"]["says"]["scores"]) == {"exact", "contains", "anls"}
    assert results["targets"]["says"]["scores"]["exact"]["last"]["n"] == 2

    # The server is back.
    results, again = run(tmp_path, source, "jsonl", [Says(*said, Reply("none"))])
    assert results["targets"]["says"]["failures"] == {"refusal": conditions}
    assert results["accuracy"]["last"] == pytest.approx(2 / 3)
    assert again[:3] == records[:3] and [r["index"] for r in again] == [0, 1, 2, 3]
    results, after = run(tmp_path, source, "jsonl", [Says()])  # asks for nothing
    assert after == again


def test_what_makes_no_sense_is_refused(tmp_path):
    source = folder_source(tmp_path, [choice(0)])
    with pytest.raises(ValueError, match="different names"):
        run(tmp_path, source, "jsonl", [Reader(), Reader()])
    with pytest.raises(ValueError, match="these are controls"):
        run(tmp_path, source, "jsonl", croppers={"centre": Guesser()})
    with pytest.raises(ValueError, match="at least one cropper"):
        evaluate("jsonl", source, [Reader()], {}, tmp_path)
    reader = Reader()
    with pytest.raises(ValueError, match="item1 has no answers"):
        run(tmp_path, folder_source(tmp_path, [choice(1, answers=[])]), "docvqa", [reader])
    assert not reader.asked
    with pytest.raises(ValueError, match="local folder"):
        BENCHMARKS["docvqa"].open(None)


def test_pictures_are_not_all_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(items, "PIXELS", 3 * 512 * 512)
    parts = list(items.read_parts(ZoomDigits("test", 8), range(8)))
    assert [len(part) for part in parts] == [3, 3, 2]
    assert [item.number for part in parts for item in part] == list(range(8))
    few, _ = run(tmp_path / "few", ZoomDigits("test", 8))
    monkeypatch.undo()
    many, _ = run(tmp_path / "many", ZoomDigits("test", 8))
    assert without_seconds(few) == without_seconds(many)
