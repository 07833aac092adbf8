# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What labelling takes, said before it starts: questions or requests, and hours.

Nothing is asked and no weights are read. Hours on devices are computed from the operations of the
very program that writes replies, at the share of the peak rate that `training.costs` takes, and
from the weights that are read for each token of a reply.
"""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cropvlm_jax.data.batching import SupervisedBatch
from cropvlm_jax.data.source import Source
from cropvlm_jax.hub.pretrained import Pretrained
from cropvlm_jax.labelling import vlm
from cropvlm_jax.labelling.base import MAX_NEW_TOKENS, prompt
from cropvlm_jax.readers.batches import Row, round_up
from cropvlm_jax.readers.vlm import greedy_replies
from cropvlm_jax.training.costs import CHIPS, UTILISATION, Chip, count_flops

SAMPLE = 64  # pictures whose sizes are looked at
REPLY_TOKENS = 64  # of a usual reply: one box as JSON, in a fence
SECONDS_A_REPLY = (1, 5)  # of an endpoint, which only the run finds out
PHASE = "label"

Lines = list[tuple[str, str]]


def of_endpoint(name: str, requests: int, concurrency: int) -> Lines:
    """What it takes to ask an endpoint, as lines of a label and a text.

    Args:
        name: of the model.
        requests: how many there are.
        concurrency: how many of them are under way at once.
    """
    fast, slow = (requests * seconds / concurrency / 3600 for seconds in SECONDS_A_REPLY)
    return [
        (
            "requests",
            f"{requests:,} to {name}, each with one picture, {concurrency} at once; what it has "
            "answered before is kept on disk and not asked for again",
        ),
        (
            "hours",
            f"{fast:.2g} where a reply takes {SECONDS_A_REPLY[0]} s, {slow:.2g} where it takes "
            f"{SECONDS_A_REPLY[1]} s",
        ),
    ]


def of_model(
    model: Pretrained, examples: Source, indices: Sequence[int], devices: Sequence[Any], dtype: Any
) -> Lines:
    """What it takes to ask a model of this package, as lines of a label and a text.

    Args:
        model: from `vlm.open_labeller`.
        examples: the data set.
        indices: of the examples to ask about.
        devices: that share the work.
        dtype: of the weights.
    """
    chip = CHIPS.get(devices[0].device_kind)
    lines = [("devices", f"{len(devices)} x {devices[0].device_kind}")]
    sampled = _Sampled.of(model, examples, indices)
    if not sampled.rooms:
        return [*lines, ("hours", "not known: none of the first pictures can be read")]
    lines.append(("pictures", f"{len(indices):,}, of {sampled.tokens:.0f} tokens on average"))
    if chip is None:
        unknown = "has no peak rate here; the line of progress tells after the first batch"
        return [*lines, ("hours", f"not known: {devices[0].device_kind!r} {unknown}")]
    hours = len(indices) * sampled.seconds_a_picture(model, chip, len(devices), dtype) / 3600
    told = f"{hours:.2g}, computed and not measured: at {UTILISATION:.0%} of the peak rate"
    return [*lines, ("hours", f"{told}, and compiling comes on top")]


@dataclasses.dataclass(frozen=True)
class _Sampled:
    """Some of the pictures to ask about.

    Attributes:
        rooms: how many of them lie in each of the model's rooms, by its number.
        rows: a row of each room.
        tokens: of a picture, on average.
    """

    rooms: dict[int, int]
    rows: dict[int, Row]
    tokens: float

    @classmethod
    def of(cls, model: Pretrained, examples: Source, indices: Sequence[int]) -> "_Sampled":
        """Looks at the sizes of pictures, from all over the data set."""
        rooms, rows, tokens = vlm.rooms(model), {}, []
        found: collections.Counter[int] = collections.Counter()
        for index in np.unique(np.linspace(0, len(indices) - 1, SAMPLE).astype(int)):
            try:
                height, width = examples.picture_size(indices[index])
                room = vlm.room_of(rooms, height, width)
            except (OSError, ValueError):
                continue
            found[room] += 1
            tokens.append(model.image_tokens(height, width, model.longest_edge))
            if room not in rows:
                question = examples.rows[indices[index]]["question"]
                rows[room] = _row(rooms[room], height, width, question)
        return cls(dict(found), rows, float(np.mean(tokens)) if tokens else 0.0)

    def seconds_a_picture(self, model: Pretrained, chip: Chip, devices: int, dtype: Any) -> float:
        """Seconds of a picture, on average.

        Args:
            model: that is asked.
            chip: of the devices.
            devices: how many share the work.
            dtype: of the weights.
        """
        graphdef, weights = nnx.split(model.abstract(dtype=dtype))
        decoder = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(weights["text"]))
        heads = model.config.text.num_attention_heads
        total = 0.0
        for room, count in self.rooms.items():
            row = self.rows[room]
            label = functools.partial(_label, graphdef, model.end_token_id)
            program = jax.make_jaxpr(label)(weights, _abstract_batch(row))
            flops = count_flops(program, [PHASE], backward=PHASE)[PHASE]
            arithmetic = flops / (devices * chip.flops * UTILISATION)
            # All rows of a batch share what is read for a token.
            rows = vlm.most_rows(row, heads=heads, devices=devices)
            total += count * (arithmetic + REPLY_TOKENS * decoder / chip.hbm / rows)
        return total / sum(self.rooms.values())


def _row(room: Pretrained, height: int, width: int, question: str) -> Row:
    """A row as `VLMLabeller.prepare` makes it, of an empty picture."""
    seen, grid = room.see(np.zeros((height, width, 3), np.uint8), room.longest_edge)
    conversation = room.conversations(instruction="").answer(prompt(question), 1, None, [grid])
    tokens = round_up(len(conversation.ids), vlm.PROMPT_MULTIPLE)
    return Row(seen, np.zeros(tokens, np.int32), np.zeros(0, np.int32))


def _label(graphdef: Any, end_token: int, weights: Any, batch: SupervisedBatch) -> jax.Array:
    """The program that writes replies, in a scope that `count_flops` looks for."""
    with jax.named_scope(PHASE):
        return greedy_replies(graphdef, weights, batch, end_token, MAX_NEW_TOKENS)


def _abstract_batch(row: Row) -> SupervisedBatch:
    """Shapes of a batch of one row."""

    def batched(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *x.shape), x.dtype)

    valid = jax.ShapeDtypeStruct((1, *row.prompt.shape), jnp.bool_)
    nothing = jax.ShapeDtypeStruct((1, 0), jnp.int32)
    return SupervisedBatch(
        images=jax.tree.map(batched, row.images),
        prompt=batched(row.prompt),
        prompt_valid=valid,
        completion=nothing,
        completion_valid=jax.ShapeDtypeStruct((1, 0), jnp.bool_),
    )
