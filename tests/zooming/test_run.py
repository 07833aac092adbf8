# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Many pictures, in processes that are killed: none is lost, none is there twice."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_zooms import Model, draw_pictures

from cropvlm_jax import json_lines
from cropvlm_jax.readers.base import ReaderUnavailable
from cropvlm_jax.training import workdir
from cropvlm_jax.zooming import contact_sheet, questions, run
from cropvlm_jax.zooming.results import CROPS

SETTINGS = {"images": "pictures", "cropper": {"weights": "1"}}


def zoom(out, pictures, model=None, **settings):
    asked = questions.of_folder(pictures, "What?", out)
    return run.zoom_all(model or Model(), asked, out, SETTINGS | settings)


def results(out):
    return json_lines.read(out / questions.RESULTS)


def cards(out):
    page = (out / contact_sheet.PAGE).read_text(encoding="utf-8")
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])


def test_results_crops_and_the_page(tmp_path):
    draw_pictures(tmp_path / "in", 3)
    (tmp_path / "in" / "x<b>.png").write_bytes(b"\x89PNG broken")
    records = zoom(tmp_path / "out", tmp_path / "in", Model(answers=True))
    assert records == results(tmp_path / "out") and len(records) == 4
    for record in records[:3]:
        whole = Image.open(tmp_path / "in" / record["image"])
        assert (record["width"], record["height"]) == whole.size
        crop = Image.open(tmp_path / "out" / record["crop"])
        np.testing.assert_array_equal(crop, whole.crop(record["box_pixels"]))
        assert record["answer_without_crop"] == "1 pictures" and record["answer"] == "2 pictures"
    assert records[3].keys() == {"id", "image", "question", "failure"}
    shown = cards(tmp_path / "out")
    assert [card["id"] for card in shown] == [record["id"] for record in records]
    assert shown[3]["failure"] == records[3]["failure"] and "picture" not in shown[3]
    assert all(len(card["picture"]) > 100 for card in shown[:3])
    page = (tmp_path / "out" / contact_sheet.PAGE).read_text(encoding="utf-8")
    assert "x<b>" not in page and "4 of 4 questions, 1 failed" in page
    assert "http" not in page and "src=" not in page.replace("image.src", "")


def test_results_of_no_box_and_of_several(tmp_path):
    draw_pictures(tmp_path / "in", 4)
    out = tmp_path / "out"
    records = zoom(out, tmp_path / "in", Model(answers=True, always_one_box=False))
    assert records == results(out)
    assert [len(record["boxes"]) for record in records] == [0, 1, 2, 0]
    for record in records:
        whole = Image.open(tmp_path / "in" / record["image"])
        assert "box" not in record and record["confidence"] == 0.5
        for crop, pixels in zip(record["crops"], record["boxes_pixels"], strict=True):
            np.testing.assert_array_equal(Image.open(out / crop), whole.crop(pixels))
    assert len({crop for record in records for crop in record["crops"]}) == 3
    assert [card["boxes"] for card in cards(out)] == [record["boxes"] for record in records]
    assert all(len(card["picture"]) > 100 for card in cards(out))
    (out / records[2]["crops"][1]).unlink()
    again = Model(always_one_box=False)
    zoom(out, tmp_path / "in", again)
    assert again.seen == [2]


def test_which_answer_was_kept_is_told(tmp_path):
    draw_pictures(tmp_path / "in", 1)
    asked = questions.of_folder(tmp_path / "in", "What?", tmp_path / "out")
    model = Model(answers=True)
    (record,) = run.zoom_all(model, asked, tmp_path / "out", SETTINGS, keep_if_surer=True)
    assert record["answer"] == "1 pictures" and record["kept"] is False
    assert (record["margin_with"], record["margin_without"]) == (1, 2)
    (card,) = cards(tmp_path / "out")
    assert card["kept"] is False and "margin_with" not in card


def test_without_the_comparison_there_is_one_answer(tmp_path):
    draw_pictures(tmp_path / "in", 2)
    asked = questions.of_folder(tmp_path / "in", "What?", tmp_path / "out")
    model = Model(answers=True, silent=1)
    sound, silent = run.zoom_all(model, asked, tmp_path / "out", SETTINGS, compare=False)
    assert sound["answer"] == "2 pictures" and "answer_without_crop" not in sound
    assert silent["answer"] is None and silent["failure"] == "with the crop: HTTP 500: broken"
    assert ["answer_without_crop" in card for card in cards(tmp_path / "out")] == [False, False]


def test_what_failed_is_tried_again_and_nothing_else(tmp_path):
    draw_pictures(tmp_path / "in", 5)
    broken = tmp_path / "in" / "broken.png"
    broken.write_bytes(b"no picture")
    model = Model(answers=True, silent=1)
    first = zoom(tmp_path / "out", tmp_path / "in", model)
    failed = {record["id"]: record["failure"] for record in first if "failure" in record}
    assert failed.keys() == {"broken.png", "p1.png"} and "HTTP 500" in failed["p1.png"]
    assert "empty" not in failed["p1.png"] and first[2]["id"] == "p1.png"
    assert first[2]["answer"] is None and first[2]["answer_without_crop"] == ""
    Image.new("RGB", (30, 20)).save(broken)
    model = Model(answers=True)
    second = zoom(tmp_path / "out", tmp_path / "in", model)
    assert len(model.seen) == 2
    assert not any("failure" in record for record in second)
    draw_pictures(tmp_path / "in", 6)  # another picture, and nothing changed of the others
    (tmp_path / "out" / second[0]["crop"]).unlink()
    model = Model(answers=True)
    third = zoom(tmp_path / "out", tmp_path / "in", model)
    assert len(model.seen) == 2 and len(third) == len(results(tmp_path / "out")) == 7
    assert {r["id"] for r in third} == {r["id"] for r in results(tmp_path / "out")}


def test_a_refused_item_does_not_stop_the_others(tmp_path):
    draw_pictures(tmp_path / "in", 4)
    records = zoom(tmp_path / "out", tmp_path / "in", Model(refuses=2))
    assert [r["id"] for r in records if "failure" in r] == ["p2.png"]


def test_a_server_that_is_gone_leaves_what_was_done(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "CHUNK", 2)
    draw_pictures(tmp_path / "in", 5)
    with pytest.raises(ReaderUnavailable, match="Of 5 questions, 2 are in .*results.jsonl"):
        zoom(tmp_path / "out", tmp_path / "in", Model(ends_after=2))
    assert len(results(tmp_path / "out")) == 2 and len(cards(tmp_path / "out")) == 2
    assert len(zoom(tmp_path / "out", tmp_path / "in")) == 5


def test_other_settings_and_other_folders_are_refused(tmp_path):
    draw_pictures(tmp_path / "in", 2)
    zoom(tmp_path / "out", tmp_path / "in")
    before = results(tmp_path / "out")
    with pytest.raises(ValueError, match=r"cropper\.weights: '1' there, '2' now"):
        zoom(tmp_path / "out", tmp_path / "in", cropper={"weights": "2"})
    with pytest.raises(ValueError, match="has a result of p0.png for the question 'What.'"):
        asked = questions.of_folder(tmp_path / "in", "Who?", tmp_path / "out")
        run.zoom_all(Model(), asked, tmp_path / "out", SETTINGS)
    assert results(tmp_path / "out") == before
    for name, text in (("config.json", '{"steps": 3}'), ("results.jsonl", "")):
        other = tmp_path / name
        other.mkdir()
        (other / name).write_text(text)
        with pytest.raises(ValueError, match="holds something else"):
            zoom(other, tmp_path / "in")
    for text, line in (("x\n", 1), ('{"id": 1}\n', 1), (json.dumps(before[0]) + "\n[]\n", 2)):
        (tmp_path / "out" / "results.jsonl").write_text(text)
        with pytest.raises(ValueError, match=f"line {line} of .*results.jsonl is damaged"):
            zoom(tmp_path / "out", tmp_path / "in")
        assert (tmp_path / "out" / "results.jsonl").read_text() == text


def test_a_second_process_is_refused(tmp_path):
    draw_pictures(tmp_path / "in", 1)
    with workdir.held(tmp_path / "out"), pytest.raises(ValueError, match="in use by process"):
        zoom(tmp_path / "out", tmp_path / "in")


def test_the_page_holds_pictures_of_the_first_results_only(tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "MOST_PICTURES", 2)
    draw_pictures(tmp_path / "in", 3)
    zoom(tmp_path / "out", tmp_path / "in")
    assert ["picture" in card for card in cards(tmp_path / "out")] == [True, True, False]
    assert "pictures of the first 2" in (tmp_path / "out" / contact_sheet.PAGE).read_text()


# Processes that take over from each other. They are forked from one that has imported everything.
KILLED = """
import os, pathlib, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
import tiny_zooms
from cropvlm_jax.zooming import questions, run
pictures, out = map(pathlib.Path, sys.argv[2:])
run.CHUNK = 4
rng = random.Random(0)

def work(pause):
    asked = questions.of_folder(pictures, "What?", out)
    run.zoom_all(tiny_zooms.Model(pause=pause), asked, out, {})
    os._exit(0)

def lines():
    file = out / questions.RESULTS
    return file.read_bytes().count(b"\\n") if file.exists() else 0

for kill in range(5):
    before, child = lines(), os.fork()
    if not child:
        work(pause=0.02)
    deadline = time.monotonic() + 60
    while lines() < before + 4 * (kill != 1):  # the second one dies as soon as it has begun
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    file = out / questions.RESULTS
    if kill % 2 and file.exists():  # as if the kill had come in the middle of a line
        file.write_bytes(file.read_bytes() + b'{"id": "p1.png", "ima')
    print(lines())
child = os.fork()
if not child:
    work(pause=0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_killed_at_any_moment_nothing_is_lost_or_doubled(tmp_path):
    pictures, out, total = tmp_path / "in", tmp_path / "out", 60
    draw_pictures(pictures, total)
    broken = {"p7.png", "p41.png"}
    for name in broken:
        (pictures / name).write_bytes((pictures / name).read_bytes()[:60])
    command = [sys.executable, "-c", KILLED, str(pathlib.Path(__file__).parents[1])]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*command, str(pictures), str(out)], env=environment, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    assert 0 < int(done.stdout.split()[-1]) < total  # there was something left to do
    records = results(out)
    assert sorted(record["id"] for record in records) == sorted(f"p{i}.png" for i in range(total))
    assert {record["id"] for record in records if "failure" in record} == broken
    assert len(list((out / CROPS).iterdir())) == total - len(broken)
    unbroken = zoom(tmp_path / "unbroken", pictures)
    assert sorted(records, key=str) == sorted(unbroken, key=str)
    assert [card["id"] for card in cards(out)] == [record["id"] for record in unbroken]
