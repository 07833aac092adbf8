# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings that are checked: a field's type says which values it takes, numbers by their range.

For example:

    @dataclasses.dataclass(frozen=True)
    class Config(Settings):
        rate: Annotated[float, Range(0, 1, above=True)] = 0.5

    Config(rate=0.0)  # ValueError: rate=0.0 is not a number above 0 and at most 1
"""

import dataclasses
import difflib
import numbers
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

T = TypeVar("T")

PLAIN = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting may have. NaN is in no range, and infinity in none of ours.

    Attributes:
        lowest: the least of them.
        highest: the greatest of them.
        above: whether `lowest` itself is too low.
        below: whether `highest` itself is too high.
        also: a number outside of the range that has a meaning of its own.
    """

    lowest: float
    highest: float
    above: bool = False
    below: bool = False
    also: int | None = None

    def has(self, number: Any) -> bool:
        """Whether a setting may have this number."""
        high_enough = number > self.lowest if self.above else number >= self.lowest
        low_enough = number < self.highest if self.below else number <= self.highest
        return bool(high_enough and low_enough) or number == self.also

    def __str__(self) -> str:
        text = f"between {self.lowest} and {self.highest}"
        if self.above or self.below:
            lower = f"{'above' if self.above else 'at least'} {self.lowest}"
            text = f"{lower} and {'below' if self.below else 'at most'} {self.highest}"
        return text if self.also is None else f"{text}, or {self.also}"


class Settings:
    """Base of the dataclasses of settings: refuses a value that its field does not take."""

    def __post_init__(self) -> None:
        for name, kind in fields(type(self)).items():
            checked(kind, getattr(self, name), name)


def fields(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, with their ranges, in the order of the class."""
    return typing.get_type_hints(cls, include_extras=True)


def read(cls: type[T], values: Any, path: str = "") -> T:
    """Makes a dataclass of nested settings.

    Args:
        cls: the dataclass.
        values: settings by name; what is not named has its default.
        path: where they stand, such as "grpo.", for messages.

    Raises:
        ValueError: a setting is not known, or has a value that it does not take.
    """
    kinds = fields(cls)
    for name in values:
        if name not in kinds:
            raise ValueError(unknown(f"{path}{name}", kinds))
    found = {
        name: checked(kind, values[name], f"{path}{name}")
        for name, kind in kinds.items()
        if name in values
    }
    try:
        return cls(**found)
    except ValueError as error:
        raise ValueError(f"{path}{error}") from error


def unknown(name: str, there: Iterable[str]) -> str:
    """Says that a setting does not exist, and which do.

    Args:
        name: of the setting, with its section.
        there: the names in that section.
    """
    last = name.rpartition(".")[2]
    guesses = difflib.get_close_matches(last, there, n=1)
    guess = f". Did you mean {guesses[0]}?" if guesses else ""
    return f"there is no setting {name}; there are: {', '.join(sorted(there)) or 'none'}{guess}"


def optional(kind: Any) -> Any:
    """The type X of a setting of type `X | None`; None for other types."""
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return None
    inner = [x for x in typing.get_args(kind) if x is not type(None)]
    return inner[0] if len(inner) == 1 else None


def kind_of(cls: type, path: list[str]) -> Any:
    """The type of a setting; None where there is no such setting.

    Args:
        cls: the dataclass of all settings.
        path: names of its sections, and of the setting last.
    """
    kind: Any = cls
    for name in path:
        kind = optional(kind) or kind
        if dataclasses.is_dataclass(kind):
            kind = fields(typing.cast(type, kind)).get(name)
        else:
            by_name = typing.get_origin(kind) is Mapping
            kind = typing.get_args(kind)[1] if by_name else None
    return kind


def expected(kind: Any) -> str:
    """What a setting of this type takes, in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return f"{expected(arguments[0])} {arguments[1]}"
    if (inner := optional(kind)) is not None:
        return f"{expected(inner)}, or None"
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple:
        return f"{len(arguments)} values, each {expected(arguments[0])}"
    return PLAIN.get(kind, "a section of settings by name")


def checked(kind: Any, value: Any, name: str) -> Any:
    """The value of a setting in the type of its field: whole numbers may stand for others.

    Args:
        kind: the field's type.
        value: of the setting.
        name: of the setting, for messages.

    Raises:
        ValueError: the field does not take it; the message says what it takes.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if (inner := optional(kind)) is not None:
        return None if value is None else checked(inner, value, name)
    if dataclasses.is_dataclass(kind):
        if isinstance(value, typing.cast(type, kind)):
            return value
        if isinstance(value, Mapping):
            return read(typing.cast(type, kind), value, f"{name}.")
    elif origin is tuple:
        if isinstance(value, list | tuple) and len(value) == len(arguments):
            pairs = zip(arguments, value, strict=True)
            return tuple(checked(k, x, f"{name}[{i}]") for i, (k, x) in enumerate(pairs))
    elif origin is Mapping:
        if isinstance(value, Mapping):
            return {key: checked(arguments[1], x, f"{name}.{key}") for key, x in value.items()}
    elif takes(kind, value):
        plain = arguments[0] if origin is typing.Annotated else kind
        return plain(value) if plain in (int, float) else value
    raise ValueError(f"{name}={value!r} is not {expected(kind)}")


def takes(kind: Any, value: Any) -> bool:
    """Whether a setting that is no section takes a value: a choice, a text, or a number."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return takes(arguments[0], value) and arguments[1].has(value)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if kind in (bool, str):
        return isinstance(value, kind)
    number = numbers.Integral if kind is int else numbers.Real
    return isinstance(value, number) and not isinstance(value, bool)
