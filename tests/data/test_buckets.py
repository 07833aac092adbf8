# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which examples may be in one batch, and the canvases that a batch's pictures are on."""

import io
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cropvlm_jax.data import batching, order
from cropvlm_jax.data.buckets import Bucket, bucket_examples, describe, with_whole_batches
from cropvlm_jax.data.source import Source
from cropvlm_jax.pixels import host
from cropvlm_jax.pixels.canvas import FITTED, Canvas

CANVASES = (Canvas(32, 32), Canvas(64, 48), Canvas(48, 64), Canvas(96, 72), Canvas(72, 96))
PREPARE = batching.Preparer(tiny.CROPPER_INPUT, tiny.CONVERSATIONS, CANVASES, 10)
SIZES = ((20, 30), (60, 40), (96, 60), (200, 150), (9, 9), (50, 10))  # height, width


def jpeg(height: int, width: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def same(image: bytes) -> bytes:
    return image


def make_source(count: int, broken: int = -1) -> Source:
    pictures = [jpeg(*SIZES[i % len(SIZES)], seed=i) for i in range(count)]
    if broken >= 0:
        pictures[broken] = pictures[broken][:-40]  # its header is whole
    common = {"question": "What?", "answers": ["3"]}
    rows = [{"example_id": str(i), "image": image} | common for i, image in enumerate(pictures)]
    return Source("pictures", rows, same)


def planned(
    source: Source, batch_size: int, steps: int
) -> tuple[order.Plan, Iterator[batching.Batch]]:
    buckets = bucket_examples(source, tiny.CROPPER_INPUT, CANVASES, batch_size)
    plan = order.plan_batches(order.Mixture([source]).order(0), buckets, batch_size, steps)
    return plan, order.iterate(order.PlannedBatches(source, PREPARE, plan))


@given(canvas=st.integers(0, 9), rows=st.integers(0, 64), columns=st.integers(0, 64))
def test_a_bucket_has_its_own_number(canvas, rows, columns):
    bucket = Bucket(canvas, rows, columns)
    assert Bucket.of(bucket.number) == bucket


def test_pictures_keep_their_pixels_on_the_smallest_canvas():
    source = make_source(24)
    _, ahead = planned(source, 2, 16)
    batches = list(ahead)
    seen = {batch.canvas.shape[1:3] for batch in batches}
    assert seen == {(32, 32), (64, 48), (96, 72)}
    for batch in batches:
        for canvas, size, index, shrunk in zip(
            batch.canvas, batch.size, batch.example_id, batch.shrunk, strict=True
        ):
            picture, original = canvas[: size[0], : size[1]], host.to_rgb(source[index]["image"])
            assert shrunk == (max(original.shape) > 96)
            if not shrunk:
                np.testing.assert_array_equal(picture, original)
            assert canvas.sum() == picture.sum()  # zeros elsewhere


def test_metrics_tell_what_travels_in_vain_and_what_was_shrunk():
    batches = list(planned(make_source(24), 2, 16)[1])
    for batch in batches:
        told = batching.canvas_facts(batch)
        shown = sum(int(height) * int(width) for height, width in batch.size)
        assert told["padding_share"] == 1 - shown / (batch.canvas.size // 3)
        assert told["shrunk_pictures"] == batch.shrunk.sum()
    assert any(batch.shrunk.any() for batch in batches)
    assert batching.canvas_facts(batching.SupervisedBatch(*[None] * 6)) == {}


def test_a_batch_that_was_taken_is_not_kept():
    _, batches = planned(make_source(24), 2, 4)
    canvas = weakref.ref(next(batches).canvas)
    assert canvas() is None and len(list(batches)) == 3


def test_a_broken_jpeg_in_a_batch_costs_one_example_and_is_named(caplog):
    source = make_source(24, broken=7)
    plan, batches = planned(source, 4, 24)
    used = np.stack([batch.example_id for batch in batches])
    assert (plan.batches == 7).any() and not (used == 7).any()
    np.testing.assert_array_equal(used[plan.batches != 7], plan.batches[plan.batches != 7])
    assert caplog.text.count("skipped example 7, 7: Cannot decode") == 1


@settings(deadline=None)
@given(
    examples=st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 1)), max_size=60),
    batch_size=st.integers(1, 6),
)
def test_what_is_left_over_goes_on_a_larger_canvas_in_use(examples, batch_size):
    numbers = [Bucket(c, r, r).number if c >= 0 else -1 for c, r in examples]
    buckets = np.array(numbers, np.int32)
    moved = with_whole_batches(buckets, CANVASES, batch_size)
    assert ((moved < 0) == (buckets < 0)).all()
    used = {Bucket.of(number) for number in numbers if number >= 0}
    for before, after in zip(buckets[buckets >= 0], moved[buckets >= 0], strict=True):
        one, other = Bucket.of(int(before)), Bucket.of(int(after))
        assert one[1:] == other[1:] and other in used  # no more to compile than before
        assert CANVASES[other.canvas].holds(*CANVASES[one.canvas])
    for bucket in used:
        larger = [
            other
            for other in used
            if other[1:] == bucket[1:]
            and other != bucket
            and CANVASES[other.canvas].holds(*CANVASES[bucket.canvas])
        ]
        if larger:
            assert (moved == bucket.number).sum() % batch_size == 0


def test_messages_tell_canvases_where_there_are_several():
    buckets = np.array([Bucket(1, 0, 0).number] * 5 + [Bucket(2, 2, 1).number] * 3)
    plan = order.plan_batches(range(8), buckets, 4, canvases=CANVASES)
    left = "1 of one tile on 64x48 px, 3 of 2x1 tiles on 48x64 px"
    assert plan.left_out() == f"0 pictures unreadable; in batches that never filled: {left}"
    with pytest.raises(ValueError, match="are 5 of one tile on 64x48 px, 3 of .*one data.canvas"):
        order.plan_batches(range(8), buckets, 6, canvases=CANVASES)
    one = order.plan_batches(range(5), np.zeros(5, int), 2, canvases=CANVASES[:1])
    assert one.left_out().endswith("never filled: 1 of one tile")
    assert one._replace(waiting={}).left_out().endswith("never filled: none")


def test_one_canvas_is_as_it_was():
    source = make_source(12)
    for canvases in ((), CANVASES[:1]):
        assert not bucket_examples(source, tiny.CROPPER_INPUT, canvases, 5).any()
    split = tiny.make_cropper_input(2 * tiny.SIDE)
    grids = bucket_examples(source, split)
    np.testing.assert_array_equal(grids, bucket_examples(source, split, CANVASES[:1], 5))


def test_what_canvases_are_used_is_told():
    buckets = bucket_examples(make_source(24), tiny.CROPPER_INPUT, FITTED, 5)
    told = describe(buckets, tiny.CROPPER_INPUT, FITTED)
    assert told.endswith(". Canvases, height x width: 24 on 1024x1024 px")
