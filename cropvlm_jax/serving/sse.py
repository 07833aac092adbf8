# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Streams of server-sent events, passed on as they come."""

from collections.abc import Callable

from cropvlm_jax.serving.report import is_object, with_member

DATA = b"data:"
END = b"data: [DONE]\n\n"


class FirstEvent:
    """Adds a member to the first JSON object of a stream, and changes nothing else.

    What has come of a line is held back until the line is whole, so that a stream that is cut ends
    between lines.
    """

    def __init__(self, member: Callable[[], bytes]):
        """Takes what makes the member once the first event is there."""
        self._member: Callable[[], bytes] | None = member
        self._rest = b""

    def feed(self, part: bytes) -> bytes:
        """The whole lines that have come with a part of the stream."""
        whole, newline, self._rest = (self._rest + part).rpartition(b"\n")
        if self._member is None or not newline:
            return whole + newline
        lines = (whole + newline).splitlines(keepends=True)
        return b"".join(map(self._line, lines))

    def rest(self) -> bytes:
        """The last line, where none ends it."""
        rest, self._rest = self._rest, b""
        return rest

    def _line(self, line: bytes) -> bytes:
        """A line of the stream, with the member where it is the first event."""
        text = line.removeprefix(DATA).strip()
        if self._member is None or not line.startswith(DATA) or not is_object(text):
            return line
        member, self._member = self._member(), None
        end = line[len(line.rstrip(b"\r\n")) :]
        return b"data: " + with_member(text, member) + end
