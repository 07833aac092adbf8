# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.api import CropVLM
from cropvlm_jax.data.source import Source
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.evals import benchmarks
from cropvlm_jax.evals.benchmarks import CENTRE, NO_CROP, ORACLE, RANDOM, UPSCALED
from cropvlm_jax.pixels import host
from cropvlm_jax.readers.base import Reply
from cropvlm_jax.readers.chat import ChatReader
from cropvlm_jax.readers.vlm import VLMReader


class Reader:
    """A cheap reader: it tells digits by the darkness of what it sees last, always the same way."""

    name = "reader"

    def __init__(self, pause: float = 0.0):
        self.pause, self.asked = pause, 0

    def answer(self, images, questions):
        self.asked += len(questions)
        time.sleep(self.pause)
        return [Reply(str(int(pictures[-1].astype(int).sum()) % 10)) for pictures in images]

    def image_tokens(self, images):
        return sum(map(len, images))


class Guesser:
    """Proposes a box that depends on the picture alone."""

    def propose(self, images, questions):
        corners = [[int(image[0, 0, i]) % 60 for i in (0, 1)] for image in images]
        return np.array([[x, y, x + 20, y + 30] for x, y in corners], np.int32)


def run(out, source, name="zoom_digits", readers=None, croppers=None, **options):
    readers = readers or [Reader()]
    croppers = croppers or {"first": Guesser(), "last": Guesser()}
    results = benchmarks.evaluate(name, source, readers, croppers, out, **options)
    return results, benchmarks.read_records(out / results["records"])


def without_seconds(told):
    return {key: value for key, value in told.items() if key != "seconds"}


# The bundled models -------------------------------------------------------------------------------


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


# Conditions ---------------------------------------------------------------------------------------


def test_cut_takes_the_boxes_original_pixels():
    image = np.arange(10 * 20 * 3, dtype=np.uint8).reshape(10, 20, 3)
    np.testing.assert_array_equal(host.cut(image, [50, 0, 100, 50]), image[:5, 10:])


def test_upscaling_doubles_up_to_a_limit():
    for size, expected in {
        (30, 50): (60, 100),
        (100, 3000): (137, 4096),
        (9, 5000): (9, 5000),
    }.items():
        assert benchmarks.upscale(np.zeros((*size, 3), np.uint8)).shape[:2] == expected


def test_what_the_target_gets_under_each_condition():
    image = np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)
    boxes = {"sft": [0, 0, 50, 100], ORACLE: [50, 50, 100, 100]}
    (alone,) = benchmarks._pictures(image, NO_CROP, boxes)
    np.testing.assert_array_equal(alone, image)
    expected = {"sft": image[:, :40], ORACLE: image[25:, 40:], UPSCALED: benchmarks.upscale(image)}
    for condition, second in expected.items():
        pictures = benchmarks._pictures(image, condition, boxes)
        np.testing.assert_array_equal(pictures[0], image)
        np.testing.assert_array_equal(pictures[1], second)


@hypothesis.given(
    st.integers(0, 99), st.integers(0, 99), st.integers(1, 100), st.integers(1, 100), st.integers(0)
)
def test_controls_are_as_large_as_the_last_croppers_box(x, y, width, height, index):
    last = [x, y, min(x + width, 100), min(y + height, 100)]
    known = {"first": [0, 0, 100, 100], "last": last, ORACLE: [1, 2, 3, 4]}
    record = {"boxes": known, "index": index}
    boxes = benchmarks._all_boxes(record, {"first": 0, "last": 0}, [1, 2, 0.5], 7)
    assert list(boxes) == [
        *(CENTRE, RANDOM, "first", "last", ORACLE, "first x0.5", "last x0.5", "oracle x0.5"),
        *("first x2", "last x2", "oracle x2"),
    ]
    assert all(geometry.is_valid(np.array(box)) for box in boxes.values())
    sides = [last[2] - last[0], last[3] - last[1]]
    for control in (CENTRE, RANDOM):
        box = np.array(boxes[control])
        np.testing.assert_array_equal(box[2:] - box[:2], sides)
    middle = np.add(boxes[CENTRE][:2], boxes[CENTRE][2:]) / 2
    assert (np.abs(middle - 50) <= 0.5).all()
    again = benchmarks._all_boxes(record, {"first": 0, "last": 0}, [], 7)
    assert again[RANDOM] == boxes[RANDOM]


def test_random_crops_are_anywhere():
    known = {"last": [0, 0, 10, 10]}
    rows = [{"boxes": known, "index": index} for index in range(300)]
    corners = [benchmarks._all_boxes(row, known, [], 0)[RANDOM][:2] for row in rows]
    assert np.min(corners) == 0 and np.max(corners) == 90
    np.testing.assert_allclose(np.mean(corners, 0), 45, atol=5)


# Intervals and counts -----------------------------------------------------------------------------


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    values = rng.random((100, 200)) < 0.3  # 200 evaluations of 100 items
    mean, (low, high) = benchmarks.bootstrap(
        values.astype(float), np.arange(100), np.zeros(100, int)
    )
    np.testing.assert_allclose(mean, values.mean(0))
    assert 0.88 <= ((low <= 0.3) & (0.3 <= high)).mean() <= 0.99
    normal = 2 * 1.96 * np.sqrt(0.3 * 0.7 / 100)
    np.testing.assert_allclose(np.mean(high - low), normal, rtol=0.05)


def test_items_of_one_picture_count_as_one():
    one_each = np.random.default_rng(1).random((60, 1))
    width = np.diff(benchmarks.bootstrap(one_each, np.arange(60), np.zeros(60, int))[1], axis=0)
    copies, pictures = np.repeat(one_each, 4, 0), np.repeat(np.arange(60), 4)
    together = np.diff(benchmarks.bootstrap(copies, pictures, np.zeros(240, int))[1], axis=0)
    np.testing.assert_allclose(together, width)
    apart = np.diff(benchmarks.bootstrap(copies, np.arange(240), np.zeros(240, int))[1], axis=0)
    np.testing.assert_allclose(apart, width / 2, rtol=0.15)


def test_scores_gains_and_counts_by_hand():
    values = np.array([[0, 1, 1], [1, 1, 0], [0, 0.5, np.nan], [0, 0, 1]])
    groups = benchmarks._Groups(np.arange(4), np.zeros(4, int))
    table = benchmarks._scores(values, [NO_CROP, "sft", ORACLE], 1, groups)
    assert [table[name]["score"] for name in table] == pytest.approx([1 / 4, 2.5 / 4, 2 / 3])
    assert table["sft"]["gain"] == pytest.approx(1.5 / 4)
    assert table[ORACLE]["gain"] == pytest.approx(1 / 3)  # of the items that have a box
    assert table[NO_CROP]["lead"] == table["sft"]["gain"] and table["sft"]["lead"] == 0
    counts = {
        name: [row[key] for key in ("n", "rescued", "harmed", "neutral")]
        for name, row in table.items()
    }
    assert counts == {NO_CROP: [4, 0, 0, 4], "sft": [4, 2, 0, 2], ORACLE: [3, 2, 1, 0]}
    low, high = table["sft"]["gain_interval"]
    assert 0 <= low < 1.5 / 4 < high <= 1


def test_cyclic_orders_are_averaged_as_lmms_eval_does():
    values = np.array([[1], [0], [1], [1]])
    cycle = np.array([0, 0, 0, 1])  # orders that are not complete still count the same
    mean, _ = benchmarks.bootstrap(values, np.arange(4), cycle)
    np.testing.assert_allclose(mean, (2 / 3 + 1) / 2)


# Items of all kinds -------------------------------------------------------------------------------


def folder_source(tmp_path, rows):
    rng = np.random.default_rng(3)
    for row in rows:
        if row.get("image") is None:
            path = tmp_path / f"{row['example_id']}.png"
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
            row["image"] = str(path)
    return Source("rows", rows, str)


def choice(i, **more):
    options = ["red", "blue", "green", "none"]
    label = "ABCD"[i % 4]
    row = {"example_id": f"item{i}", "question": f"Which {i}?", "answers": [options[i % 4]]}
    return row | {"options": options, "label": label, "category": "xy"[i % 2]} | more


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

    def answer_tokens(self, answers):
        return np.array([len(answer) for answer in answers])

    def log_likelihood(self, images, questions, answers):
        # The sum favours "red", the mean "green".
        return np.array([{"red": -1.0, "green": -1.1}.get(a, -9.0) for a in answers])


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
    with pytest.raises(ValueError, match="reader does not tell"):
        run(tmp_path, source, "vstar_likelihood", [Reader()])


def test_refusals_are_wrong_failures_are_asked_again_and_both_are_told(tmp_path):
    rows = [choice(0), choice(1, question="Which 1?" + 200 * "x"), choice(2), choice(3)]
    rows[2]["image"] = str(tmp_path / "missing.png")
    said = Reply("red"), Reply("blue"), Reply("green")
    says, source = Says(*said, Reply("", "timeout: 3 s")), folder_source(tmp_path, rows)
    results, records = run(tmp_path, source, "jsonl", [says])
    assert results["n"] == 3 and list(results["unreadable"]) == ["item2"]
    assert "missing.png" in results["unreadable"]["item2"]
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
        benchmarks.evaluate("jsonl", source, [Reader()], {}, tmp_path)
    reader = Reader()
    with pytest.raises(ValueError, match="item1 has no answers"):
        run(tmp_path, folder_source(tmp_path, [choice(1, answers=[])]), "docvqa", [reader])
    assert not reader.asked
    with pytest.raises(ValueError, match="local folder"):
        benchmarks.BENCHMARKS["docvqa"].open(None)


def test_pictures_are_not_all_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "PIXELS", 3 * 512 * 512)
    parts = list(benchmarks._parts(ZoomDigits("test", 8), range(8)))
    assert [len(part) for part in parts] == [3, 3, 2]
    assert [item.number for part in parts for item in part] == list(range(8))
    few, _ = run(tmp_path / "few", ZoomDigits("test", 8))
    monkeypatch.undo()
    many, _ = run(tmp_path / "many", ZoomDigits("test", 8))
    assert without_seconds(few) == without_seconds(many)


# Resuming -----------------------------------------------------------------------------------------


def test_a_longer_evaluation_goes_on_from_a_shorter_one(tmp_path):
    source, reader = ZoomDigits("test", 100), Reader()
    run(tmp_path, source, limit=40, readers=[reader])
    before = reader.asked
    results, records = run(tmp_path, source, limit=80, readers=[reader])
    per_item = len(results["accuracy"])
    assert before == 40 * per_item
    assert reader.asked - before == (80 - 32) * per_item  # its own chunk is done as a whole
    fresh, all_at_once = run(tmp_path / "fresh", source, limit=80)
    assert [without_seconds(r) for r in records] == [without_seconds(r) for r in all_at_once]
    assert without_seconds(results) == without_seconds(fresh)


def test_parts_that_are_recorded_are_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "PIXELS", 1)  # an item a part
    reader = Reader()
    run(tmp_path, ZoomDigits("test", 8), limit=5, readers=[reader])
    before = reader.asked
    results, _ = run(tmp_path, ZoomDigits("test", 8), readers=[reader])
    assert reader.asked - before == 3 * len(results["accuracy"])


def test_another_protocol_begins_anew(tmp_path):
    source = ZoomDigits("test", 3)
    files = {run(tmp_path, source, seed=seed)[0]["records"] for seed in (0, 0, 1)}
    files.add(run(tmp_path, source, expansions=(2,))[0]["records"])
    assert len(files) == 3 and {path.name for path in tmp_path.iterdir()} == files


def test_what_a_target_depends_on_is_in_the_protocol(tmp_path):
    source, files = ZoomDigits("test", 2), set()
    for address in ("http://a/v1", "http://b/v1", "http://user:secret@b/v1"):
        reader = Reader()
        reader.settings = ChatReader("m", base_url=address, api_key="k").settings
        results, _ = run(tmp_path, source, readers=[reader])
        files.add(results["records"])
        assert "secret" not in json.dumps(results)
    assert len(files) == 2


def test_records_that_were_changed_are_refused(tmp_path):
    source = ZoomDigits("test", 3)
    results, _ = run(tmp_path, source)
    path = tmp_path / results["records"]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(ValueError, match="begin anew"):
        run(tmp_path, source)


KILLED = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import test_benchmarks as test
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
reader = test.Reader(pause=float(sys.argv[3]))
test.run(pathlib.Path(sys.argv[2]), ZoomDigits("test", 1000), readers=[reader], limit=300)
"""


def test_an_evaluation_killed_at_any_moment_repeats_and_loses_nothing(tmp_path):
    folder = str(pathlib.Path(__file__).parent)
    command = [sys.executable, "-c", KILLED, folder, str(tmp_path)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    rng = np.random.default_rng(0)

    def lines() -> int:
        return sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("*.jsonl"))

    for kill in range(4):
        before = lines()
        process = subprocess.Popen([*command, "0.02"], env=environment)
        deadline = time.monotonic() + 120
        while lines() <= before + 20 * (kill != 1):  # the second one dies as soon as it has begun
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        (path,) = tmp_path.glob("*.jsonl")
        assert 0 < lines() <= 300
        if kill % 2:  # as if the kill had come in the middle of a line
            whole = path.read_bytes()
            path.write_bytes(whole[: rng.integers(whole[:-1].rfind(b"\n") + 2, len(whole))])
    done = lines()
    assert subprocess.run([*command, "0"], env=environment, timeout=120).returncode == 0
    results, records = run(tmp_path, ZoomDigits("test", 1000), limit=300)
    assert [record["index"] for record in records] == list(range(300)) and done < 300
    assert len({record["example_id"] for record in records}) == 300
    unbroken, at_once = run(tmp_path / "unbroken", ZoomDigits("test", 1000), limit=300)
    assert [without_seconds(r) for r in records] == [without_seconds(r) for r in at_once]
    assert without_seconds(results) == without_seconds(unbroken)


def test_two_processes_do_not_write_the_same_records(tmp_path):
    with benchmarks._open_records(tmp_path / "x.jsonl", {}):
        with pytest.raises(BlockingIOError):
            with benchmarks._open_records(tmp_path / "x.jsonl", {}):
                pass
