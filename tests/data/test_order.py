# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Plans, mixtures and batches: the order is a function of the seed, and nothing gets lost."""

import collections
import io
import itertools
import json
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
import tiny
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cropvlm_jax.data import batching, builders, order, seed_boxes
from cropvlm_jax.data.buckets import bucket_examples, describe
from cropvlm_jax.data.source import Source
from cropvlm_jax.training.config import source

EDGE = 2 * tiny.SIDE  # up to 2 x 2 tiles
CROPPER_INPUT = tiny.make_cropper_input(EDGE)
PREPARE = batching.Preparer(CROPPER_INPUT, tiny.CONVERSATIONS, (tiny.CANVAS,), 10)
SIZES = {(90, 90): (2, 2), (90, 45): (2, 1), (40, 90): (1, 2)}  # height, width: grid


def png(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(file, "PNG")
    return file.getvalue()


def same(image: bytes) -> bytes:
    return image


def make_source(count: int, broken: dict[int, bytes] | None = None) -> Source:
    """Pictures of three grids in turn; those in `broken` hold other bytes."""
    pictures = [png(*size) for size in SIZES]
    rows = [
        {
            "example_id": str(i),
            "image": (broken or {}).get(i, pictures[i % len(SIZES)]),
            "question": tiny.QUESTIONS[i % 4],
            "answers": [tiny.ANSWERS[i % 4]],
        }
        for i in range(count)
    ]
    return Source("pictures", rows, same)


@settings(deadline=None)
@given(
    buckets=st.lists(st.integers(-1, 3), min_size=1, max_size=60),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_a_plan_uses_every_example_once_or_counts_it_as_waiting(buckets, batch_size, seed):
    buckets = np.array(buckets)
    indices = np.random.default_rng(seed).permutation(len(buckets)).tolist()
    counts = collections.Counter(buckets[buckets >= 0].tolist())
    if not any(count >= batch_size for count in counts.values()):
        with pytest.raises(ValueError, match="none of the|no batch of"):
            order.plan_batches(indices, buckets, batch_size)
        return
    plan = order.plan_batches(indices, buckets, batch_size)
    used = plan.batches.ravel().tolist()
    assert len(set(used)) == len(used)
    assert all(len(set(buckets[batch])) == 1 and buckets[batch[0]] >= 0 for batch in plan.batches)
    waiting = {b: count % batch_size for b, count in counts.items() if count % batch_size}
    assert plan.waiting == waiting
    assert len(used) + sum(waiting.values()) == (buckets >= 0).sum()


def test_epochs_differ_and_each_holds_every_example():
    mixture = order.Mixture([range(7), range(5)])
    drawn = list(itertools.islice(mixture.order(0), 24))
    assert sorted(drawn[:12]) == sorted(drawn[12:]) == list(range(12))
    assert drawn[:12] != drawn[12:]
    assert drawn == list(itertools.islice(mixture.order(0), 24))
    assert drawn != list(itertools.islice(mixture.order(1), 24))
    assert [mixture[i] for i in range(12)] == [*range(7), *range(5)]


def test_weights_set_the_shares_of_the_sources():
    mixture = order.Mixture([range(1000), range(10)], [1, 3])
    drawn = np.array(list(itertools.islice(mixture.order(0), 400)))
    assert abs((drawn >= 1000).mean() - 0.75) < 0.01
    assert set(drawn[drawn >= 1000]) == set(range(1000, 1010))  # the small one goes round
    assert len(set(drawn[drawn < 1000])) == (drawn < 1000).sum()  # the large one does not yet
    for weights in ([1], [1, 0], [1, -1]):
        with pytest.raises(ValueError, match="positive weights"):
            order.Mixture([range(3), range(3)], weights)


def test_buckets_are_the_grids_that_tiles_have():
    source = make_source(6, {4: b"no picture"})
    buckets = bucket_examples(source, CROPPER_INPUT)
    grids = list(SIZES.values())
    expected = [100 * grids[i % 3][0] + grids[i % 3][1] for i in range(6)]
    expected[4] = -1
    assert buckets.tolist() == expected
    for size, grid in SIZES.items():
        picture = np.zeros((*size, 3), np.uint8)
        assert CROPPER_INPUT.see(picture)[1] == grid


def test_pictures_that_cannot_be_read_are_counted_and_named_in_one_line(caplog):
    source = make_source(30, dict.fromkeys(range(0, 30, 3), b"%PDF-1.7"))
    buckets = bucket_examples(source, CROPPER_INPUT)
    assert (buckets < 0).sum() == 10
    (line,) = (message for message in caplog.messages if "left out" in message)
    assert line.startswith("10 of 30 examples left out: 0: ") and line.endswith("; and 7 more")
    assert line.count("it is a PDF file") == 3


def test_what_prompts_cost_is_told():
    buckets = bucket_examples(make_source(7), CROPPER_INPUT)
    told = describe(buckets, CROPPER_INPUT)
    tokens = [len(tiny.CONVERSATIONS.crop("A", grid).ids) for grid in ((2, 2), (2, 1), (1, 2))]
    assert told == (
        f"prompts without their questions: 3 of 2x2 tiles and the whole, {tokens[0]} tokens; 2 of "
        f"2x1 tiles and the whole, {tokens[1]} tokens; 2 of 1x2 tiles and the whole, {tokens[2]} "
        "tokens"
    )
    one = describe(np.zeros(3, int), tiny.CROPPER_INPUT)
    assert one.startswith("prompts without their questions: 3 of one tile, ")


def planned(source: Source, steps: int, **options) -> order.PlannedBatches:
    mixture = order.Mixture([source])
    buckets = bucket_examples(mixture, CROPPER_INPUT)
    plan = order.plan_batches(mixture.order(0), buckets, 4, steps)
    return order.PlannedBatches(mixture, PREPARE, plan, **options)


def test_batches_are_the_same_from_threads_from_processes_and_after_a_restart():
    flags.FLAGS.mark_as_parsed()  # Grain's processes ask for flags
    batches = planned(make_source(40), 9)
    expected = [batches[i] for i in range(9)]
    assert len({batch.tiles.shape for batch in expected}) == 3 - 1  # 1x2 and 2x1: as many tiles
    for iterator, start in (
        (order.iterate(batches), 0),
        (order.iterate(batches, 4), 4),
        (order.iterate(batches, 3, workers=2), 3),
    ):
        for one, other in zip(iterator, expected[start:], strict=True):
            for name, x, y in zip(one._fields, one, other, strict=True):
                assert (x is None and y is None) or np.array_equal(x, y), name


def test_ctrl_c_leaves_the_processes_alone():
    flags.FLAGS.mark_as_parsed()
    before = multiprocessing.active_children()
    batches = planned(make_source(40), 9)
    iterator = order.iterate(batches, workers=2)
    next(iterator)
    workers = [child for child in multiprocessing.active_children() if child not in before]
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(iterator)) == 8


def test_processes_share_each_batch():
    source = make_source(40)
    whole = planned(source, 5)
    halves = [planned(source, 5, columns=slice(i, i + 2)) for i in (0, 2)]
    for step in range(5):
        ids = np.concatenate([half[step].example_id for half in halves])
        np.testing.assert_array_equal(ids, whole[step].example_id)


def test_a_broken_picture_among_a_thousand_is_skipped_named_and_replaced(caplog):
    cut_short = png(90, 90)[:-30]  # its header is whole
    batches = planned(make_source(1000, {500 - 500 % 3: cut_short}), 250)
    used = np.concatenate([batches[step].example_id for step in range(250)])
    expected = batches._plan.batches.ravel()
    (place,) = np.flatnonzero(used != expected)
    assert expected[place] == 498 and used[place] == 501  # the next one of its bucket
    assert "skipped example 498" in caplog.text


def test_garbage_is_not_trained_on_for_long():
    source = make_source(60)
    rows = [row | {"question": "What? " * 2000} for row in source.rows]  # 10,000 characters
    with pytest.raises(ValueError, match="20 examples in a row"):
        planned(Source("long", rows, same), 2)[0]


def test_settings_open_parts_labels_prepared_sets_and_scenes(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "0.png").write_bytes(png(9, 9))
    line = {"image": "0.png", "question": "What?", "answers": ["3"]}
    lines = [json.dumps(line | {"example_id": str(i)}) for i in range(8)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    builders.prepare("jsonl", folder, tmp_path / "prepared", ["train"])
    labels = [{"example_id": str(i), "box": [1, 2, 30, 40]} for i in (1, 5)]
    seed_boxes.write_labels(labels, tmp_path / "labels.jsonl")
    settings = {
        "halves": source(str(folder), part=(0.5, 1.0), kind="jsonl"),
        "labelled": source(str(folder), boxes=str(tmp_path / "labels.jsonl"), kind="jsonl"),
        "jsonl": source(str(tmp_path / "prepared"), prepared=True),
        "zoom_digits": source(split="validation"),
    }
    mixture = order.open_mixture(settings, seed=3)
    plan = order.plan_batches(range(8), np.zeros(8, int), 4)

    def fingerprint(seed: int = 3) -> str:
        mixture = order.open_mixture(settings, seed)
        return order.PlannedBatches(mixture, PREPARE, plan).fingerprint

    known = fingerprint()
    assert known == fingerprint() != fingerprint(seed=4)
    assert len(mixture) == 4 + 2 + 8 + order.SCENES
    ids = [mixture[i]["example_id"] for i in range(14)]
    assert ids == ["4", "5", "6", "7", "1", "5", *map(str, range(8))]
    assert mixture[4]["box"] == (1, 2, 30, 40) and "box" not in mixture[0]
    assert mixture[14]["example_id"] == "zoom_digits/validation/3/0"
    assert mixture.picture_size(0) == mixture.picture_size(13) == (9, 9)

    # Another example in the place of one, in the folder and then in what is prepared from it.
    lines[7] = json.dumps(line | {"example_id": "7", "answers": ["a 3"]})
    (folder / "train.jsonl").write_text("\n".join(lines))
    assert known != (changed := fingerprint())
    shutil.rmtree(tmp_path / "prepared")
    builders.prepare("jsonl", folder, tmp_path / "prepared", ["train"])
    assert fingerprint() not in (known, changed)
