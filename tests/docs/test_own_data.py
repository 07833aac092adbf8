# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""docs/own_data.md is typed through: its commands and its Python, read from its own text.

Models and sizes are those that the page's table of the rehearsal names. Replies of the labelling
model are there already, so that it is not asked.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import string

import chat_server
import forked
import pytest
from command_lines import ROOT, blocks, calls, commands
from PIL import Image

from cropvlm_jax.data.sources import open_source
from cropvlm_jax.pixels import host

PAGE = ROOT / "docs" / "own_data.md"
TEXT = PAGE.read_text(encoding="utf-8")
READERS = {"HuggingFaceTB/": "vlm", "openai:": "endpoint", "rapidocr:": "ocr"}


def rehearsal() -> dict[str, list[str]]:
    """What the page's table adds to a command, by the first column."""
    table = TEXT.partition("## Rehearse on a CPU")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| `(.+)` \|$", table, re.MULTILINE)
    return {what.replace("`", ""): shlex.split(change) for what, change in rows}


def section(number: int) -> list[list[str]]:
    """The simple commands of each shell block of a numbered section."""
    lines = TEXT.split("\n")
    first = next(i for i, line in enumerate(lines, 1) if line.startswith(f"## {number}. "))
    last = next(i for i, line in enumerate(lines, 1) if i > first and line.startswith("## "))
    return [
        list(commands(text))
        for line, language, text in blocks(PAGE)
        if language == "bash" and first < line < last
    ]


def type_in(block, folder: pathlib.Path, environment: dict[str, str]) -> str:
    """Types a block's commands, changed as the rehearsal says; gives what they print.

    Args:
        block: of `section`.
        folder: to be in.
        environment: of the shell; what the block exports is added to it.
    """
    changes, lines = rehearsal(), []
    for words in block:
        if words[0] == "export":
            environment |= {k: environment.get(k, v) for k, v in (w.split("=") for w in words[1:])}
            continue
        for name, arguments in calls(words):
            arguments = [string.Template(word).substitute(environment) for word in arguments]
            if name == "train":
                arguments += changes["every train"]
                arguments += changes["train, stage SFT"] if ":sft" in " ".join(words) else []
            lines.append([name, *arguments, *changes.get(name, [])])
    said = ""
    for name, *arguments in lines:
        command = ("-m", "cropvlm_jax.apps.cli", name, *arguments)
        done = forked.python(*command, cwd=folder, env=os.environ | environment)
        assert done.returncode == 0, done.stderr
        said += done.stdout
    return said


def run_python(number: int, folder: pathlib.Path) -> str:
    """Runs the page's Python block with this number in a folder; gives what it prints."""
    texts = [text for _, language, text in blocks(PAGE) if language == "python"]
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(texts[number], PAGE.name, "exec"), {})
    return said.getvalue()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the data and, of sections 1 and 2, the cropper that imitates named boxes."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    run_python(0, folder)
    source = open_source("jsonl", folder / "data/mine", "train")
    reply = '{"bbox_2d": [100, 100, 300, 200]}'
    with (folder / "data/mine/replies.jsonl").open("w") as lines:
        for name in source.ids():
            print(json.dumps({"example_id": name, "reply": reply}), file=lines)
    own, named = section(2)
    type_in(own, folder, {})
    assert (folder / "runs/mine/sft/cropper/model.safetensors").is_file()
    shutil.rmtree(folder / "runs")
    type_in(named, folder, {})
    return folder


def test_the_data_are_as_the_page_says(prepared):
    (line,) = [json.loads(text) for _, language, text in blocks(PAGE) if language == "json"]
    drawn = json.loads((prepared / "data/mine/train.jsonl").read_text().splitlines()[0])
    assert line.keys() == drawn.keys() and line["image"] == drawn["image"]
    for split in ("train", "val", "test"):
        source = open_source("jsonl", prepared / "data/mine", split)
        assert len(source) and not source.skipped and not source.lost_boxes
    ink = host.to_rgb(source[0]["image"]).min(-1) < 255
    left, top, right, bottom = (10 * edge for edge in source[0]["box"])  # of 1000 pixels
    assert ink.sum() == ink[top:bottom, left:right].sum() > 0


@pytest.mark.parametrize("kind", READERS.values())
def test_from_the_cropper_to_the_zoom(prepared, tmp_path, kind):
    if kind == "ocr":
        pytest.importorskip("rapidocr")
    shutil.copytree(prepared, folder := tmp_path / "checkout", symlinks=True)
    (block,) = [b for b in section(3) if kind == kind_of(b)]
    environment = {"HOME": str(tmp_path)}
    with contextlib.ExitStack() as stack:
        if kind == "vlm":
            (change,) = rehearsal()["train, a VLM as reader"]
            environment["READER"] = change.removeprefix("READER=")
        if kind == "endpoint":
            server = stack.enter_context(chat_server.serving())
            environment["OPENAI_BASE_URL"] = f"http://127.0.0.1:{server.server_port}/v1"
        (evaluate,), (zoom,) = section(4), section(5)
        said = type_in([*block, *evaluate, *zoom], folder, environment)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            said_in_python = run_python(1, folder)
    assert_finished(folder, said, said_in_python)


def kind_of(block: list[list[str]]) -> str:
    """Which kind of reader a block of section 3 trains with."""
    (reader,) = [w for words in block for w in words if w.startswith("READER=")]
    (kind,) = [k for head, k in READERS.items() if reader.startswith(f"READER={head}")]
    return kind


def assert_finished(folder: pathlib.Path, said: str, said_in_python: str) -> None:
    """All that the page promises is there, and both ways to zoom say the same."""
    text = (folder / "runs/mine/grpo/metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert {row["step"] for row in rows} == {1, 2} and any("eval/reward" in row for row in rows)
    results = json.loads((folder / "runs/mine/evaluation/results.json").read_text())
    names = {"no_crop", "upscaled", "sft_best_scale", "sft", "grpo", "oracle"}
    assert results["n"] == 4 and names <= results["accuracy"].keys()
    assert (folder / "runs/mine/evaluation/report.html").is_file()
    Image.open(folder / "runs/mine/zoom.png").verify()
    answers = r"answer: (.*)\nanswer without the crop: (.*)\n"  # of OCR with several lines
    box, answer, without = re.search(
        rf"box \(percent\): \[([\d, ]+)\]\n{answers}", said, re.DOTALL
    ).groups()
    assert said_in_python.strip() == f"({box}) {answer} instead of {without}"
