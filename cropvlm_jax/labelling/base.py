# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What every labeller is: it is asked about pictures and says boxes in a frame of its own."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from cropvlm_jax.pixels.host import Picture
from cropvlm_jax.readers.base import Reply

MAX_NEW_TOKENS = 128  # of a reply: a box is named at its beginning


def prompt(question: str) -> str:
    """What the official code asks Qwen2.5-VL."""
    return (
        "Outline the region in the image that would help answer the following question: "
        f"{question}\nOutput the coordinates in JSON format with a 'bbox_2d' field containing "
        "[x1, y1, x2, y2]."
    )


class Told(NamedTuple):
    """What a labeller said about an example.

    Attributes:
        example_id: which one.
        reply: the reply, or why there is none.
        resized: height and width of the picture in the labeller's frame, where this is not the
            same for all pictures; None where it is.
    """

    example_id: str
    reply: Reply
    resized: tuple[int, int] | None


class Labeller(Protocol):
    """A model that points at the evidence.

    Attributes:
        frame: what the numbers of its boxes count, one of `geometry.FRAMES`.
    """

    frame: str

    def prepare(self, picture: Picture, text: str) -> Any:
        """Makes what is asked of a picture; several threads do so at once.

        Args:
            picture: what `host.to_rgb` takes.
            text: what to ask, all of it.

        Raises:
            OSError: the picture cannot be read.
            ValueError: this cannot be asked.
        """

    def ask(self, prepared: Iterable[tuple[str, Any]]) -> Iterator[Told]:
        """Asks about examples, many at once, and tells what was said as it comes, in any order.

        Args:
            prepared: example ids, and what `prepare` made of each.

        Raises:
            ReaderUnavailable: a server answers nothing, and will not.
        """


def resolve_frame(told: str | None, given: str | None, name: str) -> str:
    """The frame of a labeller's boxes: what the model is known for, else what the user says.

    Args:
        told: what the model itself tells; None where it tells nothing.
        given: by the user; None where nothing was.
        name: of the model, for messages.

    Raises:
        ValueError: nobody says it, or both say it and do not agree.
    """
    if told is None and given is None:
        raise ValueError(
            f"what do the numbers of boxes that {name} writes count? It is not known for them: "
            "say --frame=thousandths (Qwen2-VL, Qwen3-VL), --frame=smart_resized (Qwen2.5-VL), "
            "--frame=pixels or --frame=percent"
        )
    if told and given and given != told:
        raise ValueError(
            f"--frame={given} contradicts {name}, whose boxes are in {told}: leave --frame out"
        )
    return told or given or ""
