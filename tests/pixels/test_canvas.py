# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which canvas a picture goes on, and what is on it then."""

import io

import numpy as np
import pytest
from PIL import Image

from cropvlm_jax.pixels import host
from cropvlm_jax.pixels.canvas import FITTED, Canvas, choose, empty, place


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "canvas"),
    [
        (1, 1, (1024, 1024)),
        (1024, 1024, (1024, 1024)),
        (1025, 9, (2368, 1728)),
        (2200, 1700, (2368, 1728)),  # letter at 200 dpi
        (1654, 2339, (1728, 2368)),  # A4 at 200 dpi, on its side
        (4032, 3024, (4096, 3072)),
        (3024, 4032, (3072, 4096)),
        (4096, 17, (4096, 3072)),
        (2000, 2000, (4096, 3072)),
        (4097, 10, (4096, 3072)),  # shrunk
        (6000, 8000, (3072, 4096)),
    ],
)
def test_a_picture_goes_on_the_smallest_canvas_that_holds_it(height, width, canvas):
    chosen = FITTED[choose(height, width, FITTED)]
    assert chosen == canvas
    assert chosen.holds(height, width) == (max(height, width) <= 4096)


def test_what_is_on_a_canvas_is_the_picture_and_zeros():
    image = noise(3, 5)
    canvas = empty(2, Canvas(4, 7))[1]
    canvas[:] = 9
    placed = place(image, canvas)
    np.testing.assert_array_equal(canvas[:3, :5], image)
    assert canvas[3:].sum() == canvas[:, 5:].sum() == 0
    assert placed.size.tolist() == [3, 5] and not placed.shrunk
    assert placed.size.dtype == np.int32


def test_a_picture_that_is_too_large_is_shrunk_as_pil_does_it():
    image = noise(30, 50)
    canvas = empty(1, Canvas(20, 20))[0]
    placed = place(image, canvas)
    assert placed.shrunk and placed.size.tolist() == [12, 20]
    expected = Image.fromarray(image).resize((20, 12), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(canvas[:12], expected)
    assert not canvas[12:].any()


def test_files_are_decoded_onto_the_canvas():
    image, file = noise(70, 33), io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    canvas = empty(1, Canvas(128, 64))[0]
    assert place(file.getvalue(), canvas).size.tolist() == [70, 33]
    np.testing.assert_array_equal(canvas[:70, :33], host.to_rgb(file.getvalue()))
