# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""How large requests and their pictures may be, and how long they may take."""

import dataclasses
from typing import Annotated

from cropvlm_jax.pixels import host
from cropvlm_jax.settings import Range, Settings


@dataclasses.dataclass(frozen=True)
class Limits(Settings):
    """Limits of a server.

    Attributes:
        max_requests: most that are worked on at once; others are refused with 429.
        timeout_s: most seconds from the first byte of a request to the last of its response.
        max_body_mb: largest request, millions of bytes; others are refused with 413.
        max_pictures: most pictures of a turn that are looked at; others pass as they are.
        max_picture_mb: largest file of a picture, millions of bytes.
        max_megapixels: most pixels of a picture, millions.
        fetch_s: most seconds for getting a picture by its address.
    """

    max_requests: Annotated[int, Range(1, 100_000)] = 256
    timeout_s: Annotated[float, Range(0, 86_400, above=True)] = 300.0
    max_body_mb: Annotated[float, Range(0, 2_000, above=True)] = 32.0
    max_pictures: Annotated[int, Range(1, 1_000)] = 16
    max_picture_mb: Annotated[float, Range(0, 2_000, above=True)] = 20.0
    max_megapixels: Annotated[float, Range(0, host.MAX_PIXELS / 1e6, above=True)] = 50.0
    fetch_s: Annotated[float, Range(0, 3_600, above=True)] = 5.0
