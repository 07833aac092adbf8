# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether a server is there and answers, as its clients see it."""

import threading

FIRST_ATTEMPTS = 2  # of a request, while nothing at all has come from the server
IN_A_ROW = 16  # requests given up with no answer in between


class ServerHealth:
    """Tells a server that is gone from single requests that it cannot answer.

    A server is gone where it cannot be reached from the start, or where many requests in a row were
    given up. Until it has answered once, a few are enough. Several threads may use it.
    """

    def __init__(self) -> None:
        """Knows nothing of the server yet."""
        self._lock = threading.Lock()
        self._responded = self._answered = False
        self._in_a_row = 0

    def responded(self) -> None:
        """Takes note that something came from the server, be it an error."""
        with self._lock:
            self._responded = True

    def answered(self) -> None:
        """Takes note that the server did its work: it answered, or refused this one request."""
        with self._lock:
            self._responded = self._answered = True
            self._in_a_row = 0

    def is_absent(self, attempts: int) -> bool:
        """Whether nobody is there, after so many attempts of a request got no response."""
        with self._lock:
            return not self._responded and attempts >= FIRST_ATTEMPTS

    def gave_up(self) -> bool:
        """Takes note of a request that was given up; returns whether the server is gone."""
        with self._lock:
            self._in_a_row += 1
            return self._in_a_row >= IN_A_ROW

    def never_answered(self) -> bool:
        """Whether no request has been answered so far."""
        with self._lock:
            return not self._answered
