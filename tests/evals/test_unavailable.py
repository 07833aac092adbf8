# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Targets that answer nothing, or nothing under a condition: never 0% and never NaN."""

import html
import json
import os
import re
import subprocess
import time

import forked
import pytest
from chat_server import KEY, endpoint, serving
from tiny_evals import Reader, choice, folder_source, run, without_seconds

from cropvlm_jax.apps.evaluate import runs, table, unscored
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.evals import report
from cropvlm_jax.evals.conditions import NO_CROP, UPSCALED
from cropvlm_jax.evals.records import read_records
from cropvlm_jax.readers.base import ReaderUnavailable, Reply
from cropvlm_jax.readers.ocr import OCRReader


class Fails:
    """Fails as it is told to: always, from a question on, or where it sees so many pictures."""

    def __init__(self, failure: str, name: str = "fails", after: int = 0, pictures: int = 0):
        self.failure, self.name, self.after, self.pictures = failure, name, after, pictures
        self.asked = 0

    def answer(self, images, questions):
        replies = []
        for shown in images:
            self.asked += 1
            fails = self.asked > self.after and (not self.pictures or len(shown) == self.pictures)
            replies.append(Reply("", self.failure) if fails else Reply("7"))
        return replies


def strictly(text: str):
    def refuse(name: str):
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


FAILURES = [
    "timeout: 3 s", "HTTP 500: oh", "HTTP 400: no images here", "HTTP 413: too large",
    "HTTP 429: slow down", "connection: refused", "broken body: what", "engine: no library",
    "empty", "empty: cut off at 64 tokens", "refusal: I can't help", "refusal: content filter",
]  # fmt: skip


@pytest.mark.parametrize(
    ("failure", "count"),
    [*((failure, 1) for failure in FAILURES), ("timeout: 3 s", 40), ("empty", 40)],
)
def test_a_target_that_says_nothing_is_no_result(tmp_path, failure, count):
    dead = Fails(failure)
    for readers in ([dead], [Reader(), dead]):
        began = time.monotonic()
        with pytest.raises(
            ReaderUnavailable, match=f"fails has said nothing .*{failure}"
        ) as raised:
            run(tmp_path, ZoomDigits("test", 200), readers=readers, limit=count)
        assert time.monotonic() - began < 30
        assert "the same command goes on from there" in str(raised.value)
    assert dead.asked <= 2 * 32 * 8  # the first chunk of each
    # The server is back: what it failed at is asked again, what others answered stays.
    results, records = run(
        tmp_path, ZoomDigits("test", 200), readers=[Fails("", after=10**6)], limit=count
    )
    assert results["n"] == count and not results["targets"]["fails"]["failures"]


@pytest.mark.parametrize(
    ("failure", "pictures"), [*((failure, 2) for failure in FAILURES[:8]), ("HTTP 500: oh", 1)]
)
def test_a_condition_without_a_score_says_why(tmp_path, failure, pictures):
    rows = [choice(i) for i in range(4)]
    source = folder_source(tmp_path, rows)
    results, records = run(
        tmp_path, source, "jsonl", [Fails(failure, pictures=pictures)], expansions=(2.0,)
    )
    results["trained_with"] = {}
    strictly(json.dumps(results, allow_nan=False))
    kind = failure.partition(":")[0]
    gone = [NO_CROP] if pictures == 1 else ["centre", "random", UPSCALED, "first", "last"]
    for name, score in results["accuracy"].items():
        row = results["targets"]["fails"]["scores"]["exact"][name]
        assert (score is None) == (name in gone)
        without = name in gone or NO_CROP in gone
        assert (row["gain"] is None) == (row["gain_interval"] is None) == without
        if name in gone:
            assert (
                row["n"] == 0
                and f"none of 4 questions was answered: 4 {kind}" in row["missing"]["score"]
            )
            assert kind in results["missing"][f"accuracy/{name}"]
    text = table(results)
    assert "nan" not in text.lower() and text.count("not scored: none of 4") == len(gone)
    assert len(unscored(results)) == len(gone) + (pictures == 2) * 2  # and the expanded ones
    report.write(tmp_path, results, records, source, {})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"\bnan\b", re.sub('base64,[^"]*', "", page), re.IGNORECASE)
    assert html.escape(f"none of 4 questions was answered: 4 {kind}") in page
    assert "Not scored <small>" in page and "not answered" in page


def test_items_without_an_answer_are_told_beside_the_score(tmp_path):
    results, _ = run(tmp_path, ZoomDigits("test", 6), readers=[Fails("timeout: 3 s", after=3)])
    row = results["targets"]["fails"]["scores"]["exact"][NO_CROP]
    assert row["n"] == 3 and "of 3 items alone" in table(results)


def test_an_engine_that_fails_is_no_score(tmp_path):
    def read(picture):
        raise OSError("no model")

    with pytest.raises(ReaderUnavailable, match="engine: no model"):
        run(tmp_path, ZoomDigits("test", 3), readers=[OCRReader("broken", read)])


@pytest.mark.parametrize("word", ["401", "404", "429quota", "400", "500", "empty", "refusal"])
def test_a_chat_endpoint_that_is_of_no_use_ends_the_evaluation(tmp_path, word):
    rows = [choice(i, question=word) for i in range(5)]
    source = folder_source(tmp_path, rows)
    with serving() as server:
        with pytest.raises(ReaderUnavailable, match="m at http|m has said nothing") as raised:
            run(tmp_path, source, "jsonl", [endpoint(server, tmp_path / "cache")])
    assert KEY not in str(raised.value)


def test_an_evaluation_whose_server_goes_away_is_finished_when_it_is_back(tmp_path):
    rows = [choice(i, question=f"ok {'x' * i}") for i in range(40)]
    with serving() as server:
        reader = endpoint(server, tmp_path / "cache", attempts=2)
        run(tmp_path / "a", folder_source(tmp_path, rows), "jsonl", [reader], limit=32)
        server.gone = True
        before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
        for _ in range(2):
            with pytest.raises(ReaderUnavailable, match="Of 40 items, 32 are in .*jsonl"):
                run(tmp_path / "a", folder_source(tmp_path, rows), "jsonl", [reader])
        assert before == {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
        server.gone = False
        results, records = run(tmp_path / "a", folder_source(tmp_path, rows), "jsonl", [reader])
        whole, at_once = run(tmp_path / "b", folder_source(tmp_path, rows), "jsonl", [reader])
    assert [without_seconds(r) for r in records] == [without_seconds(r) for r in at_once]
    assert without_seconds(results) == without_seconds(whole)


def test_items_that_never_get_an_answer_do_not_keep_the_others_from_being_reported(tmp_path):
    rows = [choice(i, question="500" if i == 2 else "ok") for i in range(4)]
    with serving() as server:
        for _ in range(3):  # the last ones have nothing else to ask
            reader = endpoint(server, tmp_path / "cache", attempts=1)
            results, _ = run(tmp_path / "out", folder_source(tmp_path, rows), "jsonl", [reader])
            assert results["targets"]["m"]["scores"]["exact"][NO_CROP]["n"] == 3


def evaluate(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = ("cropvlm_jax.apps.evaluate", *arguments)
    return forked.python("-m", *command, env=os.environ | environment)


@pytest.fixture
def mine(tmp_path):
    """A folder of one's own pictures and questions."""
    rows = [{"image": f"item{i}.png", "question": "ok", "answers": ["said ok"]} for i in range(3)]
    folder_source(tmp_path, [choice(i) for i in range(3)])
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_command_against_a_dead_endpoint(mine):
    out = mine / "out"
    arguments = ("--benchmark=jsonl", f"--folder={mine}", "--split=val", f"--out={out}")
    arguments += ("--croppers=sft=zoom_digits/cropper", "--targets=openai:m")
    began = time.monotonic()
    done = evaluate(*arguments, OPENAI_BASE_URL="http://127.0.0.1:9/v1", OPENAI_API_KEY=KEY)
    assert done.returncode == 1 and time.monotonic() - began < 120
    last = done.stderr.splitlines()[-1]
    assert "m at http://127.0.0.1:9/v1/: it cannot be reached: connection: " in last
    assert "goes on from there" in last and "Traceback" not in done.stderr
    assert "nan" not in done.stdout.lower() and not (out / "results.json").exists()
    assert KEY not in done.stderr

    # The server is there now.
    with serving() as server:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        done = evaluate(*arguments, "--metric=contains", OPENAI_BASE_URL=url, HOME=str(mine))
    assert done.returncode == 0, done.stderr
    results = strictly((out / "results.json").read_text())
    assert (
        results["accuracy"]["sft"] == 1 and next(iter(results["protocol"]["metrics"])) == "contains"
    )
    row = results["targets"]["m"]["scores"]["contains"]["sft"]
    assert row["score_interval"][0] < 0.5 and row["score_interval"][1] == 1
    assert results["protocol"]["split"] == "val" and "requests sent" in done.stderr
    assert len(read_records(out / results["records"])) == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--benchmark=docvqa", "--metric=vstar_letter"], "scored by one of anls"),
        (["--benchmark=jsonl", "--metric=accuracy"], "--metric=accuracy"),
        (["--benchmark=jsonl", "--split=vla"], "val.jsonl"),
        (["--benchmark=pdfs", "--split=vla"], "train, val"),
        (["--benchmark=zoom_digits", "--split=val"], "validation"),
    ],
)
def test_wrong_flags_of_the_command_say_what_there_is(mine, arguments, told):
    done = evaluate(
        *arguments, f"--folder={mine}", f"--out={mine}", "--croppers=sft=zoom_digits/cropper"
    )
    assert done.returncode in (1, 2) and told in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", ""),
        ("metrics.jsonl", '{"step": 1}\n{"ste\n'),
        ("metrics.jsonl", "\n\n"),
    ],
)
def test_a_damaged_run_is_said_before_the_work(tmp_path, name, content):
    (tmp_path / "config.json").write_text('{"stage": "grpo", "target": "m"}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": null}\n{"cut sh')
    models = {"grpo": str(tmp_path / "cropper")}
    want = {"grpo": {"target": "m", "metrics": [{"step": 1, "reward": None}]}}
    assert runs(models) == want
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        runs(models)
