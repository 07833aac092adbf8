# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Replies of a labeller to boxes, whatever the replies look like and wherever a run stopped."""

import io
import json
import logging
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cropvlm_jax import geometry
from cropvlm_jax.data import seed_boxes
from cropvlm_jax.data.source import Source

JSON = '{"bbox_2d": [10, 20, 30, 40], "label": "sign"}'


def png(height, width):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (width % 256, height % 256, 0)).save(file, "PNG")
    return file.getvalue()


def broken_is_missing(image):
    if image is None:
        raise FileNotFoundError("there is no such picture")
    return image


def make_source(*sizes):
    """Examples q0, q1, ... of pictures `(height, width)`; None is a picture that is not there."""
    rows = [
        {
            "example_id": f"q{i}",
            "image": size and png(*size),
            "question": f"Which {i}?",
            "answers": ["a"],
        }
        for i, size in enumerate(sizes)
    ]
    return Source("small", rows, broken_is_missing)


def write(path, *lines):
    path.write_text(
        "".join(f"{line if type(line) is str else json.dumps(line)}\n" for line in lines)
    )
    return path


# Parsing ------------------------------------------------------------------------------------------


def percent_box(reply, size):
    return seed_boxes.inside(seed_boxes.written_box(reply), size)


@pytest.mark.parametrize(
    "reply",
    [
        JSON,
        f"```json\n{JSON}\n```",
        f"```json\n[\n\t{JSON}\n]\n```",
        f'```json\n[{JSON}, {{"bbox_2d": [0, 0, 5, 5], "label": "second"}}]\n```',
        f"Look at page [1, 2, 3, 4]. The region is:\n{JSON}\nIt holds the sign [5, 5, 6, 6].",
        '{"label": "cut off", "bbox_2d": [10, 20, 30, 40], "why": "beca',
        "{'bbox_2d': [10, 20, 30, 40]}",
        '{"bbox_2d":[10.0,20.0,30.0,40.]}',
        '{"bbox_2d": [\n  10,\n  20,\n  30,\n  40\n]}',
        "[10, 20, 30, 40]",
        "The answer is in [10,20,30,40], or [1, 1, 2, 2].",
        "[[10, 20, 30, 40]]",
    ],
)
def test_replies_that_name_a_box(reply):
    assert percent_box(reply, (200, 100)) == (10, 10, 30, 20)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("", "no box"),
        ("The sign is on the left.", "no box"),
        ('{"bbox_2d": []}', "no box"),
        ('{"bbox_2d": [10, 20, 30]}', "no box"),
        ('{"bbox_2d": [10, 20, 30, 40, 50]}', "no box"),
        ('{"bbox_2d": ["left", 20, 30, 40]}', "no box"),
        ('{"bbox_2d": [1' + "0" * 400 + ", 20, 30, 40]}", "no box"),
        ("[30, 20, 10, 40]", "out of order"),
        ("[10, 20, 10, 40]", "empty"),
        ("[10, 40, 30, 20]", "out of order"),
        ("[100, 20, 130, 40]", "outside of the 100 x 200 image; is the frame right"),
        ("[10, 200, 30, 240]", "outside"),
        ("[-30, 20, 0, 40]", "outside"),
        ("[10, -40, 30, -20]", "outside"),
    ],
)
def test_replies_that_fail(reply, message):
    with pytest.raises(ValueError, match=message):
        percent_box(reply, (200, 100))


def test_small_boxes_are_not_rounded():
    assert percent_box("[11, 21, 12.5, 24]", (800, 1000)) == (1.1, 2.625, 1.25, 3)


def test_a_box_beyond_the_edge_is_clipped():
    assert percent_box("[-5, 150, 104, 900]", (200, 100)) == (0, 75, 100, 100)


@settings(deadline=None)
@given(
    st.text(max_size=20),
    st.lists(st.integers(-50, 3000) | st.floats(-9, 3000).map(lambda x: round(x, 3)), max_size=6),
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
)
def test_any_reply_gives_a_valid_box_or_fails(prose, numbers, size):
    try:
        box = percent_box(f"{prose} {numbers}", size)
    except ValueError:
        return
    assert geometry.is_valid(np.array(box))


# Labels -------------------------------------------------------------------------------------------


def replies_to(texts):
    return {f"q{i}": {"example_id": f"q{i}", "reply": text} for i, text in enumerate(texts)}


def test_each_picture_has_its_own_frame():
    source = make_source((280, 280), (300, 1000), (1000, 300))
    replies = replies_to(["[28, 28, 140, 140]"] * 3)
    replies["q2"]["resized"] = [280, 84]  # the labeller had less than the released limit
    labels = seed_boxes.make_labels(source, replies, "smart_resized")
    # 300 x 1000 px are seen as 308 x 1008
    wanted = {
        "q0": [10, 10, 50, 50],
        "q1": [2800 / 1008, 2800 / 308, 14000 / 1008, 14000 / 308],
        "q2": [2800 / 84, 10, 100, 50],
    }
    assert {label["example_id"]: label["seed"] for label in labels} == wanted


def test_small_seeds_become_whole_percentages_only_at_the_end():
    source = make_source((1000, 1000))
    labels = seed_boxes.make_labels(
        source, replies_to(["[301, 405, 309, 409]"]), "pixels", bounds=geometry.PAPER_BOUNDS
    )
    # An area of .000032: sides times the root of 45, 5.37 x 2.68 %, about (30.5, 40.7).
    assert labels == [
        {"example_id": "q0", "box": [27, 39, 33, 42], "seed": [30.1, 40.5, 30.9, 40.9]}
    ]


def frame_of(sizes, boxes, frame=None):
    """Labels of boxes that a labeller wrote about pictures of such sizes."""
    source = make_source(*sizes)
    return seed_boxes.make_labels(source, replies_to(map(str, boxes)), frame)


def thousandths(count, seed=0):
    """Boxes anywhere in a picture, in thousandths."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 900, (count, 2))
    return np.concatenate([low, low + rng.integers(20, 100, (count, 2))], 1).tolist()


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ((280, 280), 20),  # most leave the picture
        ((560, 840), 20),
        ((1008, 1008), 20),  # about as large as the frame: the numbers fit
        ((1400, 1400), 20),
        ((1400, 2800), 6),
        ((2800, 1400), 8),
        ((3024, 4032), 5),
        ((4032, 840), 9),
    ],
)
def test_thousandths_in_the_default_frame_are_refused_where_they_can_be_told(size, count):
    sizes, boxes = [size] * count, thousandths(count)
    if size == (1008, 1008):
        assert len(frame_of(sizes, boxes)) == count
        return
    message = "is 'smart_resized' the frame of the replies?.* may count thousandths. Say it with"
    with pytest.raises(ValueError, match=message):
        frame_of(sizes, boxes)
    assert len(frame_of(sizes, boxes, "thousandths")) == count


@pytest.mark.parametrize(
    ("frame", "scale", "counts"),
    [
        ("thousandths", 0.1, "percent"),
        ("thousandths", 0.001, "shares of 1"),
        ("percent", 10, "thousandths"),
        ("percent", 30, "pixels"),
        ("percent", 0.01, "shares of 1"),
        ("pixels", 0.5, "thousandths"),
        ("pixels", 0.05, "percent"),
        ("smart_resized", 0.05, "percent"),
        ("smart_resized", 2, "pixels"),
    ],
)
def test_a_frame_that_was_given_is_doubted(caplog, frame, scale, counts):
    height, width = geometry.frame_size(frame, 1960, 1960)
    corners = np.array(thousandths(12)) / 1000
    boxes = (corners * [width, height, width, height] * scale).round(4).tolist()
    try:
        frame_of([(1960, 1960)] * 12, boxes, frame)
    except ValueError as error:
        assert "no label for" in str(error)
    assert f"is '{frame}' the frame of the replies?" in caplog.text
    assert f"may count {counts}" in caplog.text


@pytest.mark.parametrize("frame", geometry.FRAMES)
def test_boxes_in_the_right_frame_are_not_doubted(caplog, frame):
    rng = np.random.default_rng(3)
    sizes = [(int(h), int(w)) for h, w in rng.integers(200, 3000, (30, 2))]
    boxes = []
    for corners, (height, width) in zip(thousandths(30, 5), sizes, strict=True):
        high, wide = geometry.frame_size(frame, height, width)
        boxes.append((np.array(corners) * [wide, high, wide, high] / 1000).round(2).tolist())
    assert len(frame_of(sizes, boxes, frame)) == 30
    assert "the frame of the replies?" not in caplog.text
    if frame == "smart_resized":
        assert len(frame_of(sizes, boxes)) == 30


def test_few_boxes_are_believed():
    assert len(frame_of([(2800, 2800)] * 4, thousandths(4))) == 4


@pytest.mark.parametrize("bounds", [None, geometry.PAPER_BOUNDS])
def test_seeds_are_expanded_by_quintile(bounds):
    texts = [f"[10, 10, {11 + 9 * i}, {11 + 8 * i}]" for i in range(10)]
    source = make_source(*[(100, 100)] * 10)
    labels = seed_boxes.make_labels(source, replies_to(texts), "pixels", bounds=bounds)
    seeds = np.array([label["seed"] for label in labels])
    np.testing.assert_array_equal(seeds, [json.loads(text) for text in texts])
    factors = [45, 45, 10, 10, 4, 4, 2, 2, 1, 1] if bounds is None else [45, 4, 2] + [1] * 7
    for label, seed, factor in zip(labels, seeds, factors, strict=True):
        assert label["box"] == geometry.expand(seed, factor).tolist()


@pytest.mark.parametrize("whole_image", [False, True])
def test_failures_are_left_out_or_get_the_whole_image(whole_image, caplog):
    caplog.set_level(logging.INFO)
    source = make_source((50, 50), (50, 50), None, (1, 300), (50, 50))
    replies = replies_to(["[5, 5, 10, 10]", "nothing", "[5, 5, 10, 10]", "[5, 5, 10, 10]"])
    replies["other"] = replies["q0"]
    labels = seed_boxes.make_labels(
        source, replies, "smart_resized", whole_image_on_failure=whole_image
    )
    # A picture that is not there or cannot have been labelled is no failed reply.
    assert [label["example_id"] for label in labels] == ["q0", "q1"][: 1 + whole_image]
    if whole_image:
        assert labels[1] == {"example_id": "q1", "box": [0, 0, 100, 100], "seed": [0, 0, 100, 100]}
    text = "\n".join(caplog.messages)
    assert ("q1 gets the whole image" if whole_image else "q1 is left out") in text
    assert "q2 is left out: there is no such picture" in text
    assert "q3 is left out: 1 x 300 px" in text
    counts = (
        f"1 without a reply, 2 with an unusable picture, 1 replies failed, {len(labels)} labels"
    )
    assert f"{counts}; 1 replies are about" in text


@pytest.mark.parametrize(
    ("replies", "share"), [({}, "0 example ids"), (replies_to(["none"]), "1 example ids")]
)
def test_no_label_at_all_is_an_error(replies, share):
    with pytest.raises(ValueError, match=f"no label for small: 1 examples and .* share {share}"):
        seed_boxes.make_labels(make_source((50, 50)), replies, "pixels")


def test_a_label_file_is_complete_or_untouched(tmp_path):
    path = tmp_path / "runs" / "labels.jsonl"
    seed_boxes.write_labels([{"example_id": "a"}, {"example_id": "b"}], path)
    with pytest.raises(TypeError):
        seed_boxes.write_labels([{"example_id": "a"}, {"example_id": np.array(1)}], path)
    assert [json.loads(line)["example_id"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_labelled_examples_have_their_boxes(tmp_path):
    source = make_source((40, 50), (50, 60), (60, 70))
    replies = replies_to(["[5, 5, 10, 10]", "nothing", "[9, 9, 60, 60]"])
    labels = seed_boxes.make_labels(source, replies, "pixels")
    seed_boxes.write_labels(labels, tmp_path / "labels.jsonl")
    joined = seed_boxes.labelled(source, tmp_path / "labels.jsonl")
    assert len(joined) == 2 and joined.skipped == ["no label for q1"]
    for some in (joined, pickle.loads(pickle.dumps(joined))):
        assert some[1] == {**source[2], "box": tuple(labels[1]["box"])}
        assert some[0]["example_id"] == "q0"
    assert "box" not in source[0]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        '{"example_id": "q0"}',
        '{"example_id": "q0", "box": [0, 0, 10]}',
        '{"example_id": "q0", "box": [0, 0, 10, 10.5]}',
        '{"example_id": "q0", "box": [0, 0, 10, 101]}',
        '{"example_id": "q0", "box": [10, 0, 10, 10]}',
        '{"box": [0, 0, 10, 10]}',
    ],
)
def test_a_line_that_is_no_label_is_refused(tmp_path, line):
    good = {"example_id": "q0", "box": [0, 0, 10, 10]}
    path = write(tmp_path / "labels.jsonl", good, line)
    with pytest.raises(ValueError, match="line 2 of labels.jsonl is no label"):
        seed_boxes.labelled(make_source((40, 50)), path)


def test_a_label_has_several_boxes_or_none(tmp_path):
    labels = [
        {"example_id": "q0", "boxes": [[50, 0, 60, 10], [0, 0, 10, 10]]},
        {"example_id": "q1", "boxes": []},
        {"example_id": "q2", "box": [0, 0, 10, 10]},
    ]
    source = make_source((40, 50), (40, 50), (40, 50))
    for row in source.rows:  # what a data set knows is no seed
        row |= {"box": (1, 2, 3, 4), "boxes": [(1, 2, 3, 4)], "around": (0, 0, 50, 50)}
    joined = seed_boxes.labelled(source, write(tmp_path / "labels.jsonl", *labels))
    found = [
        {name: row[name] for name in ("box", "boxes", "around") if name in row}
        for row in joined.rows
    ]
    assert found == [
        {"boxes": [(0, 0, 10, 10), (50, 0, 60, 10)]},
        {"boxes": []},
        {"box": (0, 0, 10, 10)},
    ]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, 10, 10]] * 2, "a box is there twice"),
        ([[0, 0, 10, i] for i in range(1, 6)], "not a list of at most 4 boxes"),
        ([[0, 0, 10]], "not four ordered whole percentages"),
        ([[5, 0, 5, 10]], "not four ordered"),
        ("none", "not a list"),
    ],
)
def test_boxes_that_are_no_label_are_refused(tmp_path, boxes, message):
    path = write(tmp_path / "labels.jsonl", {"example_id": "q0", "boxes": boxes})
    with pytest.raises(ValueError, match=f"line 1 of labels.jsonl is no label: .*{message}"):
        seed_boxes.labelled(make_source((40, 50)), path)
    path = write(path, {"example_id": "q0", "boxes": [], "box": [0, 0, 10, 10]})
    with pytest.raises(ValueError, match="there are both `box` and `boxes`"):
        seed_boxes.labelled(make_source((40, 50)), path)


def test_labels_of_another_data_set_are_refused(tmp_path):
    path = write(tmp_path / "labels.jsonl", {"example_id": "x", "box": [0, 0, 10, 10]})
    with pytest.raises(ValueError, match="no usable example: no label for q0"):
        seed_boxes.labelled(make_source((40, 50)), path)


# Frames that replies say --------------------------------------------------------------------------


def told(frame, *texts, **more):
    """Replies that say their frame."""
    return {name: row | {"frame": frame} | more for name, row in replies_to(texts).items()}


def test_a_reply_says_its_own_frame():
    source = make_source((280, 560), (280, 560), (280, 560))
    replies = told("thousandths", "[100, 200, 300, 400]", "none", "[100, 200, 300, 400]")
    replies["q1"] = {"example_id": "q1", "reply": "[56, 56, 168, 112]", "frame": "smart_resized"}
    replies["q2"] |= {"frame": "pixels", "resized": [500, 1000]}  # as it was sent
    labels = seed_boxes.make_labels(source, replies)
    assert [label["seed"] for label in labels] == [
        [10, 20, 30, 40],
        [10, 20, 30, 40],
        [10, 40, 30, 80],
    ]


def test_a_frame_that_contradicts_the_replies_is_refused():
    source, replies = make_source((280, 560)), told("thousandths", "[100, 200, 300, 400]")
    assert seed_boxes.make_labels(source, replies, "thousandths")
    with pytest.raises(ValueError, match="--frame=pixels contradicts the replies, .* thousandths"):
        seed_boxes.make_labels(source, replies, "pixels")
    # The official code's mistake can be made of replies that are right.
    replies = told("smart_resized", "[56, 56, 168, 112]", resized=[140, 280])
    (label,) = seed_boxes.make_labels(source, replies, "smart_resized_unscaled")
    assert label["seed"] == [10, 20, 30, 40]


def test_a_frame_that_replies_say_is_doubted_aloud_and_believed(caplog):
    sizes = [(1960, 1960)] * 12
    replies = told("smart_resized", *map(str, thousandths(12)))
    assert len(seed_boxes.make_labels(make_source(*sizes), replies)) == 12
    assert "is 'smart_resized' the frame of the replies?" in caplog.text
