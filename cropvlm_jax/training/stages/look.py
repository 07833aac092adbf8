# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a model in training makes of held-out examples, for people to look at."""

from typing import Any, NamedTuple

import numpy as np

from cropvlm_jax.hub.pretrained import Pretrained

SHOWN = 6  # examples that are looked at after each evaluation


class Look(NamedTuple):
    """What a model makes of the examples of a batch, to be shown to people.

    Attributes:
        boxes: percent boxes `[B, K, 4]` of the likeliest replies; None where the model proposes
            none.
        count: int `[B]`, how many of its K boxes a reply has.
        replies: int `[B, T]`, token ids of the reader's replies, or a list of their texts; None
            where no reader answers.
        rewards: fp32 `[B]`, of the replies; None where there is no reward.
    """

    boxes: Any = None
    count: Any = None
    replies: Any = None
    rewards: Any = None


def words_of(pretrained: Pretrained, replies: np.ndarray) -> list[str]:
    """The texts of a model's replies.

    Args:
        pretrained: the model.
        replies: token ids `[B, T]`; what follows an end token is end tokens.
    """
    end, decode = pretrained.end_token_id, pretrained.tokenizer.decode
    return [decode(reply[reply != end].tolist()).strip() for reply in np.asarray(replies)]
