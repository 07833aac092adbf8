# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings that check themselves: ranges, types, and what the messages say."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import pytest

from cropvlm_jax.settings import Range, Settings, expected, kind_of, read, unknown


@dataclasses.dataclass(frozen=True)
class Inner(Settings):
    share: Annotated[float, Range(0, 1, above=True)] = 0.5
    sizes: tuple[Annotated[int, Range(1, 8)], Annotated[int, Range(1, 8)]] = (1, 1)


@dataclasses.dataclass(frozen=True)
class Outer(Settings):
    count: Annotated[int, Range(1, 10, also=-1)] = 1
    limit: Annotated[int, Range(1, 10)] | None = None
    mode: Literal["a", "b"] = "a"
    flag: bool = False
    name: str = ""
    inner: Inner = Inner()
    named: Mapping[str, Inner] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    ("kind", "text", "inside", "outside"),
    [
        (Range(0, 1), "between 0 and 1", (0, 1, 0.5), (-1e-9, 1.1, math.nan, math.inf, -math.inf)),
        (Range(0, 1, above=True), "above 0 and at most 1", (1e-30, 1), (0, -0.0, 2, math.nan)),
        (Range(0, 1, below=True), "at least 0 and below 1", (0, 0.999), (1, -1, math.nan)),
        (Range(1, 8, also=-1), "between 1 and 8, or -1", (-1, 1, 8), (0, -2, 9, 10**400)),
    ],
)
def test_a_range_has_its_numbers_and_says_which(kind, text, inside, outside):
    assert str(kind) == text
    assert all(map(kind.has, inside)) and not any(map(kind.has, outside))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count=0 is not a whole number between 1 and 10, or -1"),
        ({"count": 1.0}, "count=1.0 is not a whole number between 1 and 10, or -1"),
        ({"count": True}, "count=True is not a whole number between 1 and 10, or -1"),
        ({"count": "3"}, "count='3' is not a whole number between 1 and 10, or -1"),
        ({"count": None}, "count=None is not a whole number between 1 and 10, or -1"),
        ({"limit": 0}, "limit=0 is not a whole number between 1 and 10"),
        ({"mode": "c"}, "mode='c' is not one of 'a', 'b'"),
        ({"mode": ["a"]}, "mode=['a'] is not one of 'a', 'b'"),
        ({"flag": 1}, "flag=1 is not True or False"),
        ({"name": 1}, "name=1 is not a text"),
        ({"inner": 3}, "inner=3 is not a section of settings by name"),
        ({"inner": {"share": 0}}, "inner.share=0 is not a number above 0 and at most 1"),
        ({"inner": {"share": math.nan}}, "inner.share=nan is not a number above 0 and at most 1"),
        ({"inner": {"share": True}}, "inner.share=True is not a number above 0 and at most 1"),
        ({"inner": {"share": 10**400}}, "is not a number above 0 and at most 1"),
        ({"inner": {"sizes": [1]}}, "inner.sizes=[1] is not 2 values, each a whole number between"),
        ({"inner": {"sizes": [1, 9]}}, "inner.sizes[1]=9 is not a whole number between 1 and 8"),
        ({"named": {"x": {"share": -1.0}}}, "named.x.share=-1.0 is not a number above 0"),
        ({"named": [1]}, "named=[1] is not a section of settings by name"),
        ({"cuont": 3}, "there is no setting cuont; there are: count, flag, inner, limit, mode, na"),
        ({"cuont": 3}, "Did you mean count?"),
        ({"inner": {"size": 3}}, "no setting inner.size; there are: share, sizes. Did you mean"),
        (
            {"named": {"x": {"part": 3}}},
            "no setting named.x.part; there are: share, sizes",
        ),
    ],
)
def test_a_value_that_a_setting_does_not_take_is_refused_by_name(values, message):
    with pytest.raises(ValueError) as refused:
        read(Outer, values)
    assert message in str(refused.value)


@pytest.mark.parametrize("value", [0.0, -1, 1.5, math.nan, math.inf, "1", True, None])
def test_what_is_made_in_python_is_checked_too(value):
    with pytest.raises(ValueError, match=r"share=.* is not a number above 0 and at most 1"):
        Inner(share=value)


def test_values_are_read_in_the_types_of_the_settings():
    found = read(Outer, {"inner": {"share": 1, "sizes": [2, np.int64(3)]}, "count": np.int32(-1)})
    assert found == Outer(count=-1, inner=Inner(share=1.0, sizes=(2, 3)))
    assert type(found.inner.share) is float and type(found.count) is int
    assert read(Outer, {"limit": None, "named": {"x": {}}}).named == {"x": Inner()}


def test_the_type_of_a_setting_is_found_by_its_path():
    assert expected(kind_of(Outer, ["inner", "share"])) == "a number above 0 and at most 1"
    assert expected(kind_of(Outer, ["named", "any", "share"])) == "a number above 0 and at most 1"
    assert expected(kind_of(Outer, ["limit"])) == "a whole number between 1 and 10, or None"
    assert kind_of(Outer, ["inner", "nope"]) is None and kind_of(Outer, ["count", "x"]) is None


def test_an_empty_section_has_no_settings():
    assert unknown("a.b", ()) == "there is no setting a.b; there are: none"
