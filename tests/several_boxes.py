# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A cropper that names no box, one or up to three, by the picture; it has not been trained to."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from cropvlm_jax.data.sources.zoom_digits import ZoomDigits
from cropvlm_jax.hub.export import export
from cropvlm_jax.hub.pretrained import BUNDLED, Pretrained
from cropvlm_jax.hub.replies import Replies
from cropvlm_jax.models.vlm import VLM


def scenes(count: int) -> tuple[list[np.ndarray], list[str]]:
    """Pictures of the digits task, and what is asked about them."""
    found = [ZoomDigits("test", count)[i] for i in range(count)]
    return [scene["image"] for scene in found], [scene["question"] for scene in found]


def source() -> Pretrained:
    """The bundled cropper, as one of up to three boxes or none."""
    several = Replies(max_boxes=3, abstain=True)
    return dataclasses.replace(Pretrained.open(BUNDLED / "zoom_digits/cropper"), replies=several)


def model() -> VLM:
    """Its weights; to go on, to end and to abstain are made about as likely as each other."""
    opened = source()
    grammar, found = opened.grammar(), opened.load()
    head, rng = np.array(found.text.head[...]), np.random.default_rng(2)
    for new, known in (
        (grammar.between[0], grammar.closing[0]),
        (grammar.refusal[0], grammar.opening[0]),
    ):
        spread = 0.5 * np.abs(head[known]).mean()
        head[new] = head[known] + spread * rng.normal(size=head.shape[1])
    found.text.head[...] = jnp.asarray(head)
    return found


def save(folder: Path) -> None:
    """Writes it as an export."""
    export(folder, model(), source(), role="cropper")
