# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Requests for chat completions: which pictures they ask about, and the same with crops.

Only what the crops change is changed. Without crops the bytes that came are the bytes that go on.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from cropvlm_jax import settings
from cropvlm_jax.serving.faults import Fault
from cropvlm_jax.serving.looks import Policy

FIELD = "cropvlm"  # of requests, what they ask of the crops; of replies, what was done
PICTURE = "image_url"  # the type of a part of a message, and the key of its picture


@dataclasses.dataclass(frozen=True)
class Place:
    """A picture in the last user turn.

    Attributes:
        part: which part of the turn's content it is.
        url: as the request gives it.
    """

    part: int
    url: str


@dataclasses.dataclass(frozen=True)
class Chat:
    """A request for a chat completion.

    Attributes:
        fields: of the request, without ours.
        body: its bytes as they came; None where our field was among them.
        policy: what it asks of the crops.
        turn: which message is the last one of the user; -1 where there is none.
        places: the pictures of that turn, in order.
        question: its text.
    """

    fields: Mapping[str, Any]
    body: bytes | None
    policy: Policy
    turn: int
    places: tuple[Place, ...]
    question: str

    @classmethod
    def read(cls, body: bytes, policy: Policy) -> "Chat":
        """Reads the body of a request.

        Args:
            body: of the request.
            policy: what crops are like where the request does not say.

        Raises:
            Fault: it is no JSON object, or asks of the crops what there is not.
        """
        try:
            fields = json.loads(body, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else error
            raise Fault(400, "invalid_json", f"the request is no JSON: {reason}") from None
        if not isinstance(fields, dict):
            raise Fault(400, "invalid_json", "the request must be a JSON object")
        untouched = None if FIELD in fields else body
        asked = fields.pop(FIELD, None)
        messages = fields.get("messages")
        messages = messages if isinstance(messages, list) else []
        turn = _last_user_turn(messages)
        places, question = _read_turn(messages[turn].get("content")) if turn >= 0 else ((), "")
        return cls(fields, untouched, _policy(asked, policy), turn, places, question)

    @property
    def streams(self) -> bool:
        """Whether the reply is to come as a stream."""
        return self.fields.get("stream") is True

    def with_crops(self, crops: Sequence[Sequence[str]]) -> bytes:
        """The request as it goes on.

        Args:
            crops: of each place, `data:` URLs; none leaves the picture as it is.
        """
        if not any(crops):
            return self._written(self.fields) if self.body is None else self.body
        messages, content = list(self.fields["messages"]), []
        turn = messages[self.turn]
        by_part = {place.part: urls for place, urls in zip(self.places, crops, strict=True)}
        for number, part in enumerate(turn["content"]):
            urls = by_part.get(number, ())
            if not urls or self.policy.crops == "append":
                content.append(part)
            content += [_crop_part(part, url) for url in urls]
        messages[self.turn] = turn | {"content": content}
        return self._written(dict(self.fields) | {"messages": messages})

    @staticmethod
    def _written(fields: Mapping[str, Any]) -> bytes:
        try:
            # ASCII, so that halves of surrogate pairs come out as they came in.
            return json.dumps(fields, allow_nan=False, separators=(",", ":")).encode("ascii")
        except ValueError:
            raise Fault(400, "invalid_json", "the request has a number beyond 1e308") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _policy(asked: Any, policy: Policy) -> Policy:
    """What a request asks of the crops; what it leaves open is as the server says."""
    if asked is None:
        return policy
    if not isinstance(asked, dict):
        raise Fault(400, "invalid_cropvlm", f"{FIELD} must be an object, not {asked!r:.80}")
    try:
        return settings.read(Policy, dataclasses.asdict(policy) | asked, f"{FIELD}.")
    except ValueError as error:
        raise Fault(400, "invalid_cropvlm", str(error)) from None


def _last_user_turn(messages: Sequence[Any]) -> int:
    """Which message is the last one of the user; -1 where there is none."""
    for number in reversed(range(len(messages))):
        if isinstance(messages[number], dict) and messages[number].get("role") == "user":
            return number
    return -1


def _read_turn(content: Any) -> tuple[tuple[Place, ...], str]:
    """The pictures and the text of a turn; of content that is not known there are none."""
    if isinstance(content, str):
        return (), content
    places, said = [], []
    for number, part in enumerate(content if isinstance(content, list) else ()):
        match part:
            case {"type": "text", "text": str(text)}:
                said.append(text)
            case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
                places.append(Place(number, url))
    return tuple(places), "\n".join(said)


def _crop_part(part: Mapping[str, Any], url: str) -> dict[str, Any]:
    """A part of a message that shows a crop as another part shows its picture."""
    picture = part[PICTURE]
    if isinstance(picture, str):
        return {"type": PICTURE, PICTURE: url}
    detail = {"detail": picture["detail"]} if "detail" in picture else {}
    return {"type": PICTURE, PICTURE: {"url": url} | detail}
