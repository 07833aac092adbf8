# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What users may hand to readers and croppers: pictures of any kind, and a text for each."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from cropvlm_jax import texts
from cropvlm_jax.pixels import host

Picture = host.Picture
Shown = Picture | Sequence[Picture]  # of one question: a picture, or a list of it and its crops
MOST = 5  # pictures of a question: the whole one and four crops


def check_images(images: Any) -> None:
    """Checks that there is a list of pictures, or one array of all, and not a single picture.

    Raises:
        ValueError: there is not.
    """
    stack = isinstance(images, np.ndarray) and images.ndim == 4
    if not hasattr(images, "__len__") or (isinstance(images, Picture) and not stack):
        raise ValueError(f"images must be a list of pictures, not {type(images).__name__}")


def check_texts(images: Sequence[Any], **strings: Sequence[str]) -> None:
    """Checks that there is a list of strings for each name, one string an image.

    Raises:
        ValueError: there is not, or UTF-8 cannot hold one of them.
    """
    check_images(images)
    for name, values in strings.items():
        listed = hasattr(values, "__len__") and not isinstance(values, str)
        if not listed or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{name} must be a list of strings, got {values!r:.80}")
        if len(values) != len(images):
            raise ValueError(f"{len(images)} images but {len(values)} {name}")
        for number, value in enumerate(values, 1):
            texts.check(value, f"{name.removesuffix('s')} {number}")


def for_each(images: Sequence[Any], questions: str | Sequence[str]) -> Sequence[str]:
    """The question to each picture, also where one was given for all."""
    check_images(images)
    return [questions] * len(images) if isinstance(questions, str) else questions


def as_lists(images: Sequence[Shown]) -> list[list[Picture]]:
    """What each question is about, as a list, also where a single picture was given.

    Raises:
        ValueError: there is no picture, or there are more than it and four crops.
    """
    nested = [
        list(shown) if isinstance(shown, (list, tuple)) else [cast(Picture, shown)]
        for shown in images
    ]
    for pictures in nested:
        if not 1 <= len(pictures) <= MOST:
            raise ValueError(
                f"a question takes 1 to {MOST} pictures, not {len(pictures)}: {pictures!r:.80}"
            )
    return nested


def as_arrays(images: Sequence[Shown], questions: Sequence[str]) -> list[list[np.ndarray]]:
    """What each question is about, as lists of uint8 RGB arrays `[H, W, 3]`.

    Arrays that are such already stay the same objects, and a picture that several questions share
    stays shared, so that readers may tell pictures apart by identity.

    Args:
        images: of each question, a picture, or a list of the picture and crops of it.
        questions: checked by `check_texts`.
    """
    check_texts(images, questions=questions)
    nested = as_lists(images)
    arrays: dict[int, np.ndarray] = {}  # by the identity of what `nested` keeps alive
    for number, pictures in enumerate(nested, 1):
        for picture in pictures:
            if id(picture) not in arrays:
                with blamed_on_item(number, len(nested)):
                    arrays[id(picture)] = as_array(picture)
    return [[arrays[id(picture)] for picture in pictures] for pictures in nested]


def check_picture(picture: Any) -> None:
    """Checks that something can be a picture.

    Raises:
        ValueError: it is of another type.
    """
    if not isinstance(picture, Picture):
        kind = type(picture).__name__
        raise ValueError(f"a picture is a PIL image, an array, a file's bytes or path, not {kind}")


@contextlib.contextmanager
def blamed_on_item(number: int, total: int) -> Iterator[None]:
    """Puts the number of an item of several before the message of an error that it causes."""
    try:
        yield
    except (ValueError, OSError) as error:
        if total == 1:
            raise
        kind = type(error) if isinstance(error, OSError) else ValueError
        raise kind(f"item {number}: {error}") from error


def as_array(picture: Picture) -> np.ndarray:
    """A picture as uint8 RGB `[H, W, 3]`; the same object where it is that already."""
    check_picture(picture)
    if isinstance(picture, np.ndarray):
        is_rgb = picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
        if is_rgb and picture.size:
            return picture
    return host.to_rgb(picture)
