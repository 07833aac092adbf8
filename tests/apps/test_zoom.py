# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""`cropvlm zoom` with many pictures: what it prints, and exit codes that tell the truth."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import several_boxes
from PIL import Image
from tiny_zooms import draw_pictures

from cropvlm_jax import json_lines
from cropvlm_jax.api import CropVLM
from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.evals.calibration import Calibration

MODELS = {"cropper": "zoom_digits/cropper", "target": "zoom_digits/target"}

# Runs the command in a fork of a process that has imported everything, once a line of its input.
COMMANDS = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import tiny_zooms
from cropvlm_jax.api import CropVLM
from cropvlm_jax.apps import command, zoom

def run(model, arguments):
    if model == "none":  # nothing may be loaded
        CropVLM.from_pretrained = None
    if model == "tiny":
        CropVLM.from_pretrained = lambda *names, **options: tiny_zooms.Model()
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv, code = ["cropvlm-zoom", *arguments], 1
    try:
        command.run_script(zoom.main)
    except SystemExit as end:
        code = end.code or 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    folder, model, arguments = json.loads(line)
    os.chdir(folder)
    child = os.fork()
    if child == 0:
        run(model, arguments)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def commands():
    """The process that runs commands."""
    program = [sys.executable, "-c", COMMANDS, str(Path(__file__).parents[1])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(program, env=os.environ | {"JAX_PLATFORMS": "cpu"}, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def run(commands, tmp_path):
    """A function that runs `cropvlm zoom` in the test's folder.

    Its arguments: "real", "tiny" (a stand-in without weights) or "none" for the models, and flags.
    """

    def run(models: str, **given: str) -> Done:
        given = {"cropper": MODELS["cropper"]} | given
        arguments = [f"--{name}={value}" for name, value in given.items()]
        commands.stdin.write(json.dumps([str(tmp_path), models, arguments]) + "\n")
        commands.stdin.flush()
        code = int(commands.stdout.readline())
        return Done(code, *((tmp_path / name).read_text() for name in ("stdout", "stderr")))

    return run


def test_no_box_and_several_and_the_answer_that_is_kept(run, tmp_path):
    several_boxes.save(tmp_path / "cropper")
    pictures, questions = several_boxes.scenes(4)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    rows = [{"image": f"{i}.png", "question": question} for i, question in enumerate(questions)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = CropVLM.from_pretrained(tmp_path / "cropper", MODELS["target"])
    zooms = model.zoom(pictures, questions, keep_if_surer=True)
    assert zooms[0].boxes == () and len(zooms[2].boxes) == 3
    asked = {"cropper": "cropper", "target": MODELS["target"]}
    done = run("real", **asked, jsonl="q.jsonl", out="out", keep_if_surer="true")
    assert done.code == 0, done.err
    records = json_lines.read(tmp_path / "out" / "results.jsonl")
    assert [r["boxes"] for r in records] == [[list(b) for b in z.boxes] for z in zooms]
    for name in ("answer", "answer_without_crop", "kept"):
        assert [r[name] for r in records] == [getattr(z, name) for z in zooms]
    refused = run("real", **asked, jsonl="q.jsonl", out="out")
    assert "target.keep_if_surer: True there, None now" in refused.err

    Calibration(0.1, 0.5, 0.25, 9).write(tmp_path / "c.json")
    options = {"keep_if_surer": "true", "out": "one.png", "question": questions[2]}
    options["calibration"] = "c.json"
    done = run("real", **asked, image="2.png", **options)
    told = ", ".join(str(list(box)) for box in zooms[2].boxes)
    assert f"boxes (percent): {told}\nanswer: {zooms[2].answer}\n" in done.out
    chosen = "with" if zooms[2].kept else "without"
    assert f"the answer is that {chosen}" in done.out
    assert "the answer is right with a probability of" in done.out
    assert Image.open(tmp_path / "one.png").width > 600
    done = run("real", cropper="cropper", image="0.png", question=questions[0], out="one.png")
    assert done.out == "boxes (percent): none, not needed\n"


def test_a_file_of_questions_is_answered_as_from_python(run, tmp_path):
    scenes = [ZoomDigits("test", 3)[i] for i in range(3)]
    (tmp_path / "in" / "sub").mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6  # is to be turned clockwise
    Image.fromarray(scenes[0]["image"]).rotate(90).save(tmp_path / "in/sub/a.png", exif=turned)
    Image.fromarray(scenes[1]["image"]).convert("RGBA").save(tmp_path / "in/ünï.png")
    Image.fromarray(scenes[2]["image"]).save(tmp_path / "c.png")
    places = ["sub/a.png", "ünï.png", "../c.png"]
    rows = [{"image": p, "question": s["question"]} for p, s in zip(places, scenes, strict=True)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "in" / "q.jsonl").write_text(text)
    done = run("real", **MODELS, jsonl="in/q.jsonl", out="out")
    assert done.code == 0 and "questions: 3, of which 0 failed" in done.out, done.err
    assert "picture 3/3" in done.err
    model = CropVLM.from_pretrained(MODELS["cropper"], MODELS["target"])
    zooms = model.zoom([s["image"] for s in scenes], [s["question"] for s in scenes])
    records = json_lines.read(tmp_path / "out" / "results.jsonl")
    assert [r["id"] for r in records] == ["line 1", "line 2", "line 3"]
    assert [r["box"] for r in records] == [list(z.box) for z in zooms]
    assert [r["answer"] for r in records] == [z.answer for z in zooms]
    assert [r["answer_without_crop"] for r in records] == [z.answer_without_crop for z in zooms]

    refused = run("real", **MODELS, jsonl="in/q.jsonl", out="out", compare="false")
    assert refused.code == 1 and "target.compare: True there, False now" in refused.err
    assert run("real", **MODELS, jsonl="in/q.jsonl", out="alone", compare="false").code == 0
    alone = json_lines.read(tmp_path / "alone" / "results.jsonl")
    assert [r["answer"] for r in alone] == [z.answer for z in zooms]
    assert not any("answer_without_crop" in r for r in alone)


def test_failures_are_named_and_the_exit_code_says_so(run, tmp_path):
    draw_pictures(tmp_path / "in", 3)
    (tmp_path / "in" / "p1.png").write_bytes(b"")
    given = {"images": "in", "question": "What?", "out": "out"}
    done = run("tiny", **given)
    assert done.code == 1 and "questions: 3, of which 1 failed" in done.out
    assert "failed: p1.png: No picture that can be opened in" in done.out
    line = done.err.splitlines()[-1]
    assert line.startswith("cropvlm zoom: 1 of 3 failed, such as p1.png; the same command tries")
    Image.new("RGB", (30, 20)).save(tmp_path / "in" / "p1.png")
    assert run("tiny", **given).code == 0
    other = run("tiny", **given | {"question": "Who?"})
    assert other.code == 1
    assert "question: 'What?' there, 'Who?' now" in other.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ({}, 2, "give one of --image, --images and --jsonl"),
        ({"image": "a.png", "jsonl": "q.jsonl"}, 2, "give one of"),
        ({"images": "full", "out": "out"}, 2, "--images takes --question=..., too"),
        ({"images": "full", "question": "What?"}, 2, "takes --out=..., a folder"),
        ({"images": "full/p0.png", "question": "What?", "out": "out"}, 2, "--image="),
        ({"image": "full", "question": "What?"}, 2, "give it as --images"),
        ({"images": "full", "question": "What?", "out": "full/p0.png"}, 2, "is a file"),
        ({"image": "full/p0.png", "question": "What?", "out": "full/p0.png"}, 2, "picture itself"),
        ({"image": "full/p0.png", "question": "What?", "out": "a.txt"}, 2, "name a picture file"),
        ({"image": "full/p0.png", "question": "What?", "out": "a.psd"}, 2, "name a picture file"),
        ({"image": "full/p0.png", "question": "?", "target_processor": "x=1"}, 2, "no target is"),
        ({"images": "full", "question": "What?", "out": "full"}, 1, "write results to another"),
        ({"images": "empty", "question": "What?", "out": "out"}, 1, "there is no picture in"),
        ({"images": "gone", "question": "What?", "out": "out"}, 1, "there is no folder gone"),
        ({"jsonl": "gone.jsonl", "out": "out"}, 1, "there is no file gone.jsonl"),
    ],
)
def test_what_cannot_be_done_is_one_line(given, code, message, run, tmp_path):
    draw_pictures(tmp_path / "full", 1)
    (tmp_path / "empty").mkdir()
    done = run("none", **given)
    (line,) = done.err.splitlines()
    assert done.code == code and line.startswith("cropvlm zoom: ") and message in line
    assert not (tmp_path / "out").exists()
