# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
import html.parser
import re

import numpy as np
import pytest
from chromium import SIZES, browser
from PIL import Image
from tiny_evals import Guesser, Looker, SureReader

from cropvlm_jax.data.source import Source
from cropvlm_jax.data.sources.zoom_digits_looks import MixedScenes
from cropvlm_jax.evals import figures, report
from cropvlm_jax.evals.best_scale import Validation
from cropvlm_jax.evals.records import read_records
from cropvlm_jax.evals.run import evaluate
from cropvlm_jax.readers.base import Reply

SECTIONS = (
    "Scores and controls",
    "The control's scale, chosen on validation",
    "How tight should the box be?",
    "What it looks at",
    "Transfer",
    "The runs",
    "What it costs",
    "Protocol",
)


class Reader:
    """Reads the colour of what it sees last, and fails on what is dark."""

    def __init__(self, name: str):
        self.name = name

    def answer(self, images, questions):
        means = [pictures[-1].mean((0, 1)) for pictures in images]
        return [
            Reply(["red", "green", "<b>blue</b>"][int(mean.argmax())])
            if mean.max() > 60
            else Reply("", "timeout: after 3 s")
            for mean in means
        ]


class Corner:
    """Proposes a corner, always the same one."""

    def __init__(self, *box: int):
        self.box = box

    def propose(self, images, questions):
        return np.array([self.box] * len(images))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report on pictures of four colours, with all that may be in one: its text and folder."""
    folder, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    rows = []
    for i in range(24):
        picture = rng.integers(0, 40, (40, 60, 3), np.uint8)
        picture[:20, :30, i % 3] = rng.integers(30, 255)
        picture[20:, 30:, (i + 1) % 3] = 255
        Image.fromarray(picture).save(folder / f"{i}.png")
        rows.append(
            {
                "example_id": f"item{i}",
                "image": str(folder / f"{i}.png"),
                "question": f'Which <script>alert("{i}")</script> colour?',
                "answers": ["red", "green", "<b>blue</b>"][i % 3 : i % 3 + 1],
                "category": "odd & even"[: 3 + i % 2],
                "box": (0, 0, 50, 50),
            }
        )
    rows[5]["image"] = str(folder / "missing.png")
    source = Source("colours", rows, str)
    croppers = {"wrong <corner>": Corner(50, 50, 100, 100), "right": Corner(0, 0, 60, 60)}
    readers = [Reader("first"), Reader("second & last")]
    others = [row | {"question": "Which?"} for row in rows if "missing" not in row["image"]]
    results = evaluate(
        "jsonl",
        source,
        readers,
        croppers,
        folder,
        expansions=(0.5, 4),
        validation=Validation("val <i>", Source("others", others, str)),
    )
    results["trained_with"] = {"right": "first"}
    records = read_records(folder / results["records"])
    steps = np.arange(1, 50)
    rows = [{"step": int(i), "reward": float(-1 / i), "area": 0.3} for i in steps]
    rows[9] |= {"eval/reward": -0.2, "area": float("nan")}
    curves = {"right": rows}
    report.write(folder, results, records, source, curves)
    return (folder / "report.html").read_text(encoding="utf-8"), folder, results


def test_it_has_all_its_parts(page):
    text, folder, results = page
    assert re.findall("<h2>(.*?)</h2>", text) == list(SECTIONS)
    assert text.count("<svg") == 4 and text.count('<tr class="last">') == 2
    for name in ("scores", "expansion", "transfer", "training", "examples"):
        assert min(Image.open(folder / f"{name}.png").size) > 200
    for told in ("no crop", "centre crop", "random crop", "true box", "missing.png", "timeout"):
        assert told in text
    scores = results["targets"]["first"]["scores"]["exact"]["right"]
    assert f"{100 * scores['score']:.1f}%" in text and scores["rescued"] > 0
    assert f"{scores['rescued']} : {scores['harmed']}" in text
    assert "trained with first" in text and "read by" in text
    best = results["best_scale"]
    assert "wrong &lt;corner&gt; at its best scale" in text and "val &lt;i&gt;" in text
    assert "points ahead of wrong &lt;corner&gt;'s boxes" in text
    chosen = best["validation"]["scores"][f"{best['chosen_scale']:g}"]
    assert f"<b>{100 * chosen:.1f}%</b></td>" in text
    for name, value in results["protocol"]["versions"].items():
        assert name in text and value in text


def test_it_needs_nothing_from_elsewhere(page):
    text, _, _ = page
    outside = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)  # names of namespaces are not fetched
    assert not re.search(
        r"(?:https?:)?//[a-z]|@import|url\((?!#)", re.sub('base64,[^"]*', "", outside)
    )
    assert "<script" not in outside and "<link" not in outside
    sources = re.findall(r'(?:src|href)="([^"]*)"', outside)
    assert sources and all(source.startswith(("data:image/", "#")) for source in sources)


def test_what_data_says_is_text_and_the_page_is_well_formed(page):
    text, _, _ = page
    open_tags: list[str] = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img"):
                open_tags.append(tag)

        def handle_startendtag(self, tag, attributes):
            pass

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Parser().feed(text)
    assert not open_tags
    assert "&lt;b&gt;blue&lt;/b&gt;" in text and "wrong &lt;corner&gt;" in text


def test_the_box_is_where_the_cropper_put_it(page):
    text, _, _ = page
    assert "left:0%;top:0%;width:60%;height:60%" in text


def test_running_means():
    np.testing.assert_allclose(figures._smooth(np.full(40, 2.0)), 2)
    values = np.random.default_rng(0).random(90)
    np.testing.assert_allclose(figures._smooth(values)[45], values[42:49].mean())
    assert figures._smooth(np.array([1.0])) == [1.0]


def test_curves_of_a_run_that_ends_with_held_out_examples(page):
    rows = [{"step": step, "reward": 1.0, "area": 0.2} for step in (1, 2)]
    rows.append({"step": 3, "eval/reward": 1.1})
    figure = figures.training_figure(page[2], {"right": rows})
    assert {axis.get_title() for axis in figure.axes} >= {"reward", "area of the boxes"}


def test_without_the_control_the_page_says_why(page, tmp_path):
    text, folder, results = page
    source = Source(
        "one",
        [{"example_id": "a", "image": str(folder / "0.png"), "question": "?", "answers": ["red"]}],
        str,
    )
    alone = evaluate("jsonl", source, [Reader("reader")], {"one": Corner(0, 0, 60, 60)}, tmp_path)
    report.write(tmp_path, alone, read_records(tmp_path / alone["records"]), source, {})
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "is left out: no validation items were given" in written
    assert SECTIONS[1] not in written


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    """The folder of a report on a cropper that says none to two boxes."""
    folder, source = tmp_path_factory.mktemp("looks"), MixedScenes("test", 24, seed=1)
    told = {f"looks {name}": Looker(budget=name) for name in ("low", "high")}
    results = evaluate(
        "zoom_digits_mixed",
        source,
        [SureReader()],
        {"always": Guesser(), **told},
        folder,
        validation=Validation("validation", MixedScenes("validation", 8)),
    )
    report.write(folder, results, read_records(folder / results["records"]), source, {})
    return folder


def test_what_looking_costs_is_drawn(looks):
    text = (looks / "report.html").read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", text)[2:4] == [
        "When does looking pay?",
        "Risk and coverage",
    ]
    for name in ("cost", "risk"):
        assert min(Image.open(looks / f"{name}.png").size) > 200
    drawn = text[text.index("Risk and coverage") :]
    for told in ("looks low: ", "always: ", "no crop, ever: ", "always, confidence gate: "):
        assert re.search(rf">{told}0\.\d\d\d<", drawn), told
    table = text[text.index("When does looking pay?") : text.index("Risk and coverage")]
    for told in ("looks high", "always, oracle gate", "8 items of the split validation"):
        assert told in table
    assert "<p>no crop</p>" in text  # an example
    for stage in ("no crop: reader", "looks high: reader", "all other conditions: reader"):
        assert stage in text[text.index("What it costs") :]
    assert text.count('<i style="left:50%;top:60%;width:40%;height:35%">') > 0  # a second box


def test_it_fits_into_a_browser(looks):
    with browser() as opened:
        for width, height in SIZES.values():
            page = opened.new_page(viewport={"width": width, "height": height})
            page.goto((looks / "report.html").as_uri())
            overhang = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert page.evaluate(overhang) == 0
            section = page.locator("section", has_text="Risk and coverage")
            assert section.locator("svg").bounding_box()["width"] > width / 2
            assert page.locator(".crop img").first.is_visible()
            page.close()
